"""``krl-deploy build-engine`` and ``inspect-engine``."""

from __future__ import annotations

import json
import logging
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import tyro

from krl_runtime.backends.cuda import Gpu, NoTensorRTError, current_gpu, platform_key, tensorrt_version
from krl_runtime.backends.tensorrt import TensorRTBackend
from krl_runtime.bundle import Bundle, Engine
from krl_runtime.bundle.golden import golden_arrays
from krl_runtime.cli.commandline import print_json
from krl_runtime.cli.tables import table
from krl_runtime.device.platforms import jetpack_here
from krl_runtime.errors import CheckFailedError, UsageError
from krl_runtime.files import sha256_bytes, sha256_file, write_atomic

from .api import GENERATIONS
from .builder import BuildOptions, BuiltPlan, build_plan
from .parity import check_parity
from .plan import plan_version
from .script import trtexec_line, trtexec_script
from .source import Source, read_source

if TYPE_CHECKING:
    from krl_deploy.rules.targets import Target

__all__ = ["BuildEngineConfig", "InspectEngineConfig", "build_engine", "engine_key", "inspect_engine"]

_log = logging.getLogger("krl")

_TIMING_CACHE = "timing.cache"
_MAKERS = {"fp16": "krl-deploy half", "int8": "krl-deploy quantize"}


@dataclass(frozen=True)
class BuildEngineConfig:
    """What to build, and how."""

    model: tyro.conf.Positional[Path]
    """The bundle NAME.krl; or an ONNX file, whose types stand in it."""
    precision: Literal["fp32", "fp16", "int8"] | None = None
    """The variant of the bundle to build from."""
    output: Annotated[Path | None, tyro.conf.arg(aliases=["-o"])] = None
    """For an ONNX file: the engine to write; its description goes beside it, as ENGINE.json."""
    profile: str = "1,1,1"
    """Smallest, best and largest batch, as MIN,OPT,MAX; larger batches are run in parts."""
    workspace_mb: int | None = None
    """Memory in MiB that a layer may use for itself; by default, and at most, what the GPU has free."""
    optimization_level: int = 3
    """From 0 (quick to build) to 5 (quick to run)."""
    dla_core: int | None = None
    """Run on this DLA core of a Jetson Orin what it can run, the rest on the GPU."""
    version_compatible: bool = False
    """Make an engine that newer TensorRT of the same major version runs as well."""
    hardware_compatibility: Literal["none", "ampere-plus", "same-compute-capability"] = "none"
    """Make an engine for other GPUs as well; not on Jetson."""
    refit: bool = False
    """Allow new weights to be put into the engine later."""
    strip_weights: bool = False
    """Leave the weights out of the engine; they are put in from the ONNX file when it is loaded."""
    time_limit: float | None = None
    """Seconds after which to give up."""
    emit_script: Path | None = None
    """Write a shell script that builds the same engine with trtexec, for TensorRT 10 and 11."""
    json: bool = False
    """Print one JSON object."""

    def options(self) -> BuildOptions:
        """Return the options of the build.

        Raises:
            UsageError: One is out of its range.
        """
        try:
            low, best, high = (int(part) for part in self.profile.split(","))
        except ValueError as error:
            raise UsageError(f"--profile is {self.profile!r}; accepted: MIN,OPT,MAX, as in 1,8,32") from error
        return BuildOptions(
            profile=(low, best, high),
            workspace_bytes=None if self.workspace_mb is None else self.workspace_mb << 20,
            optimization_level=self.optimization_level,
            dla_core=self.dla_core,
            version_compatible=self.version_compatible,
            hardware_compatibility=self.hardware_compatibility,
            refit=self.refit,
            strip_weights=self.strip_weights,
            time_limit=self.time_limit,
        )


@dataclass(frozen=True)
class InspectEngineConfig:
    """What to look at."""

    model: tyro.conf.Positional[Path]
    """An engine file, or a bundle NAME.krl, of which all engines are shown."""
    json: bool = False
    """Print one JSON object."""


def build_engine(config: BuildEngineConfig) -> int | None:
    """Build a TensorRT engine on this device, check it and keep it; elsewhere do all up to the engine."""
    options = config.options()
    bundle, source = _open(config)
    target = config.output or source.path.with_suffix(".engine")
    if config.emit_script:
        script = trtexec_script(source.path.name, target.name, source.inputs, options)
        write_atomic(config.emit_script, script.encode())
        _log.info("wrote %s, which builds the engine with trtexec", config.emit_script)
    try:
        version, gpu = tensorrt_version(), current_gpu()
    except NoTensorRTError as absent:
        lines = {str(n): trtexec_line(n, source.path.name, target.name, source.inputs, options) for n in GENERATIONS}
        _report({"engine": None, "reason": str(absent), "trtexec": lines}, config, _what_remains(config, absent, lines))
        return None
    if bundle is None:
        result = _build_file(source, target, options, version, gpu)
    else:
        result = _build_into(bundle, source, str(config.precision), options, version, gpu)
    text = "\n".join(f"{name.replace('_', ' ')}: {value}" for name, value in result.items() if value is not None)
    _report(result, config, text)
    return None


def _open(config: BuildEngineConfig) -> tuple[Bundle | None, Source]:
    """Return the bundle, checked whole, if it is one, and the ONNX file to build from."""
    if config.model.suffix == ".onnx" and not config.model.is_dir():
        if config.precision is not None:
            raise UsageError("--precision is for bundles; the types of an ONNX file stand in it")
        return None, read_source(config.model, _target())
    if config.output is not None:
        raise UsageError("--output is for ONNX files; a bundle keeps its engines itself")
    bundle = Bundle.open(config.model)
    bundle.verify()
    variants = bundle.manifest.variants
    if any(not isinstance(side, int) for spec in bundle.manifest.inputs for side in spec.shape[1:]):
        raise UsageError(
            f"the graph of bundle {bundle.path} takes pictures of any size, an engine of krl those of one. Make a "
            "bundle whose graph takes parts of one size, with krl-deploy export RUN --tile 256; as it is, it runs on "
            "ONNX Runtime"
        )
    if config.precision is None:
        raise UsageError(f"--precision is missing; bundle {bundle.path} has: {', '.join(variants)}")
    if config.precision not in variants:
        raise UsageError(
            f"bundle {bundle.path} has no variant {config.precision} (it has: {', '.join(variants)}); make it with: "
            f"{_MAKERS[config.precision]} {bundle.path}"
        )
    return bundle, read_source(bundle.file(variants[config.precision].file), _target())


def _target() -> Target:
    """Return what to check for: the TensorRT that is installed, else the newest that krl knows."""
    from krl_deploy.rules.targets import target_here

    try:
        return target_here(tensorrt_version())
    except NoTensorRTError:
        return target_here(None)


def _what_remains(config: BuildEngineConfig, absent: NoTensorRTError, lines: Mapping[str, str]) -> str:
    """Return what a person on a machine without TensorRT has to know."""
    jetpack = jetpack_here()
    here = f"This is {jetpack.name}, which has TensorRT {jetpack.tensorrt}.\n" if jetpack and jetpack.tensorrt else ""
    by_hand = "\n".join(f"  TensorRT {major}:  {line}" for major, line in lines.items())
    return (
        f"No engine was built: {absent}.\n{here}"
        f"{config.model} is in order and unchanged. Run the same command on the device that is to run the engine, or "
        f"there by hand, in the folder of the ONNX file (trtexec checks no answers, and krl does not see its engine):\n"
        f"{by_hand}"
    )


def _build_into(
    bundle: Bundle, source: Source, variant: str, options: BuildOptions, version: str, gpu: Gpu
) -> dict[str, Any]:
    """Build, check against the golden inputs, and register."""
    golden = golden_arrays(bundle)  # before the build, which takes minutes
    known = _TIMING_CACHE in bundle.manifest.files
    cache = bundle.file(_TIMING_CACHE).read_bytes() if known else b""
    built = _build(source, options, version, gpu, cache)
    key = engine_key(variant, version, gpu, options)
    engine = Engine(
        file=f"engines/{key}.engine",
        variant=variant,
        onnx_sha256=source.sha256,
        tensorrt=version,
        compute_capability=gpu.compute_capability,
        gpu=gpu.name,
        platform=platform_key(),
        profile=options.profile,
        version_compatible=options.version_compatible,
        hardware_compatibility=options.hardware_compatibility,
        dla_core=options.dla_core,
        stripped=options.strip_weights,
    )
    parity = check_parity(_load(built, key, source, options), golden, bundle.manifest, variant, options.profile)
    current = Bundle.open(bundle.path)  # another command may have changed it meanwhile
    manifest = current.manifest
    chosen = manifest.variants.get(variant)
    if chosen is None or manifest.files[chosen.file].sha256 != source.sha256:
        raise CheckFailedError(f"variant {variant} of {bundle.path} was changed during the build; build it again")
    evidence: dict[str, Any] = {
        "seconds": round(built.seconds, 1),
        "layers": built.layers,
        "layers_on_gpu": built.on_gpu or None,
    }
    evidence |= {"parity": asdict(parity)}
    engines = manifest.evidence.get("engines", {})
    current.update(
        {engine.file: built.plan, _TIMING_CACHE: built.timing_cache},
        engines={**manifest.engines, key: engine},
        evidence={**manifest.evidence, "engines": {**engines, key: evidence}},
    )
    return {"engine": key, "file": engine.file, "bytes": len(built.plan), **evidence}


def _build_file(source: Source, target: Path, options: BuildOptions, version: str, gpu: Gpu) -> dict[str, Any]:
    """Build from an ONNX file, and describe the engine in a file beside it."""
    built = _build(source, options, version, gpu, b"")
    _load(built, target.name, source, options).close()
    description = {
        "file": target.name,
        "sha256": sha256_bytes(built.plan),
        "bytes": len(built.plan),
        "onnx_sha256": source.sha256,
        "tensorrt": version,
        "compute_capability": gpu.compute_capability,
        "gpu": gpu.name,
        "platform": platform_key(),
        "options": asdict(options),
        "seconds": round(built.seconds, 1),
        "layers_on_gpu": built.on_gpu or None,
        "parity": None,
    }
    write_atomic(target, built.plan)
    write_atomic(target.with_name(target.name + ".json"), json.dumps(description, indent=1).encode() + b"\n")
    _log.warning("it loads; its answers were not checked: an ONNX file has no golden inputs, a bundle has")
    return {"engine": str(target), **description}


def _build(source: Source, options: BuildOptions, version: str, gpu: Gpu, cache: bytes) -> BuiltPlan:
    _log.info("building with TensorRT %s for %s; this takes minutes", version, gpu.name)
    built = build_plan(source.data, options, version=version, free_bytes=gpu.free_bytes, timing_cache=cache)
    if built.on_gpu:
        shown = ", ".join(built.on_gpu[:10]) + (" …" if len(built.on_gpu) > 10 else "")
        _log.warning(
            "%d of %d layers are not for the DLA and run on the GPU: %s", len(built.on_gpu), built.layers, shown
        )
    return built


def _load(built: BuiltPlan, label: str, source: Source, options: BuildOptions) -> TensorRTBackend:
    return TensorRTBackend(
        built.plan,
        label=label,
        version_compatible=options.version_compatible,
        dla_core=options.dla_core,
        weights=source.data if options.strip_weights else None,
    )


def engine_key(variant: str, version: str, gpu: Gpu, options: BuildOptions) -> str:
    """Return an engine's key in a bundle, as ``"int8-trt10.3.0-sm87-linux-aarch64-b1-8-32"``."""
    batches = "b" + "-".join(map(str, options.profile))
    sm = "sm" + gpu.compute_capability.replace(".", "")
    return "-".join([variant, f"trt{version}", sm, platform_key(), batches, *options.suffixes])


def inspect_engine(config: InspectEngineConfig) -> int | None:
    """Show what built an engine, and for what, without TensorRT."""
    if config.model.is_dir():
        bundle = Bundle.open(config.model)
        found = {key: _entry(bundle, engine) for key, engine in bundle.manifest.engines.items()}
    else:
        found = {config.model.name: _file(config.model)}
    columns = ("variant", "tensorrt", "gpu", "compute_capability", "platform", "profile", "bytes")
    rows = [(key, *(_cell(entry.get(column)) for column in columns)) for key, entry in found.items()]
    _report({"engines": found}, config, table(("engine", *columns), rows) if rows else f"{config.model} has no engines")
    return None


def _entry(bundle: Bundle, engine: Engine) -> dict[str, Any]:
    path = bundle.file(engine.file)
    return {**asdict(engine), "plan_version": plan_version(path), "bytes": path.stat().st_size}


def _file(path: Path) -> dict[str, Any]:
    """Describe an engine file; what stands beside it is believed only if its hash is the file's."""
    entry: dict[str, Any] = {"tensorrt": plan_version(path), "bytes": path.stat().st_size, "sha256": sha256_file(path)}
    try:
        beside = json.loads(path.with_name(path.name + ".json").read_bytes())
    except (OSError, ValueError):
        return entry
    if not isinstance(beside, dict) or beside.get("sha256") != entry["sha256"]:
        _log.warning("%s.json does not belong to this engine (another SHA-256)", path)
        return entry
    return {**beside, "profile": beside.get("options", {}).get("profile"), "plan_version": entry["tensorrt"]}


def _cell(value: object) -> object:
    return ",".join(map(str, value)) if isinstance(value, list | tuple) else value


def _report(result: Mapping[str, Any], config: BuildEngineConfig | InspectEngineConfig, text: str) -> None:
    """Print a result for programs or for people."""
    if config.json:
        print_json({"model": str(config.model), **result})
    else:
        print(text)  # noqa: T201
