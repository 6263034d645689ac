"""``krl-deploy build-engine``: a TensorRT engine, built, checked and registered on the device that runs it."""

from __future__ import annotations

import json
import logging
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

from krl_runtime.backends.cuda import Gpu, NoTensorRTError, current_gpu, platform_key, tensorrt_version
from krl_runtime.backends.tensorrt import TensorRTBackend
from krl_runtime.bundle import Bundle, Engine
from krl_runtime.bundle.golden import golden_arrays
from krl_runtime.device.platforms import jetpack_here
from krl_runtime.errors import CheckFailedError, UsageError
from krl_runtime.files import sha256_bytes, write_atomic

from .api import GENERATIONS
from .builder import BuildOptions, BuiltPlan, build_plan
from .config import BuildEngineConfig
from .onnx_file import OnnxFile, read_source
from .parity import check_parity
from .script import trtexec_line, trtexec_script

if TYPE_CHECKING:
    from krl_deploy.rules.targets import Target

__all__ = ["build_engine", "engine_key"]

_log = logging.getLogger("krl")

_TIMING_CACHE = "timing.cache"
_MAKERS = {"fp16": "krl-deploy fp16", "int8": "krl-deploy quantize"}


def build_engine(config: BuildEngineConfig) -> tuple[dict[str, Any], str]:
    """Build a TensorRT engine on this device, check it and keep it; elsewhere do all up to the engine.

    Returns:
        Facts of the engine, or the reason why none was built, as plain JSON types, and as text.

    Raises:
        KrlError: An option is wrong, the model is not ready, the build failed, or the engine's outputs differ.
    """
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
        result = {"engine": None, "reason": str(absent), "trtexec": lines}
        return {"model": str(config.model), **result}, _what_remains(config, absent, lines)
    if bundle is None:
        result = _build_file(source, target, options, version, gpu)
    else:
        result = _build_into(bundle, source, str(config.precision), options, version, gpu)
    text = "\n".join(f"{name.replace('_', ' ')}: {value}" for name, value in result.items() if value is not None)
    return {"model": str(config.model), **result}, text


def _open(config: BuildEngineConfig) -> tuple[Bundle | None, OnnxFile]:
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
            f"the graph of bundle {bundle.path} takes images of any size, an engine of krl those of one. Make a "
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
    """Return the target to check for: the TensorRT that is installed, else the newest that krl knows."""
    from krl_deploy.rules.targets import target_here

    try:
        return target_here(tensorrt_version())
    except NoTensorRTError:
        return target_here(None)


def _what_remains(config: BuildEngineConfig, absent: NoTensorRTError, lines: Mapping[str, str]) -> str:
    """Return the remaining steps for a person on a machine without TensorRT."""
    jetpack = jetpack_here()
    here = f"This is {jetpack.name}, which has TensorRT {jetpack.tensorrt}.\n" if jetpack and jetpack.tensorrt else ""
    by_hand = "\n".join(f"  TensorRT {major}:  {line}" for major, line in lines.items())
    return (
        f"No engine was built: {absent}.\n{here}"
        f"{config.model} is in order and unchanged. Run the same command on the device that is to run the engine. Or "
        f"run trtexec there, in the folder of the ONNX file (it checks no outputs and changes no bundle):\n"
        f"{by_hand}"
    )


def _build_into(
    bundle: Bundle, source: OnnxFile, variant: str, options: BuildOptions, version: str, gpu: Gpu
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


def _build_file(source: OnnxFile, target: Path, options: BuildOptions, version: str, gpu: Gpu) -> dict[str, Any]:
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
    _log.warning("it loads; its outputs were not checked: an ONNX file has no golden inputs, a bundle has")
    return {"engine": str(target), **description}


def _build(source: OnnxFile, options: BuildOptions, version: str, gpu: Gpu, cache: bytes) -> BuiltPlan:
    _log.info("building with TensorRT %s for %s; this takes minutes", version, gpu.name)
    built = build_plan(source.data, options, version=version, free_bytes=gpu.free_bytes, timing_cache=cache)
    if built.on_gpu:
        shown = ", ".join(built.on_gpu[:10]) + (" …" if len(built.on_gpu) > 10 else "")
        _log.warning(
            "%d of %d layers are not for the DLA and run on the GPU: %s", len(built.on_gpu), built.layers, shown
        )
    return built


def _load(built: BuiltPlan, label: str, source: OnnxFile, options: BuildOptions) -> TensorRTBackend:
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
