"""``krl-deploy build-engine``: an engine, built, checked where it can run, and registered in its bundle."""

from __future__ import annotations

import json
import logging
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from krl_runtime.backends.cuda import Gpu, NoTensorRTError, current_gpu, platform_key
from krl_runtime.backends.tensorrt.backend import TensorRTBackend
from krl_runtime.backends.tensorrt.library import Library, rtx_library, tensorrt_library
from krl_runtime.backends.tensorrt.registry import BuiltEngine, register_engine
from krl_runtime.bundle import Bundle, Engine
from krl_runtime.bundle.golden import golden_arrays
from krl_runtime.bundle.sidecar import add_engine
from krl_runtime.device.platforms import jetpack_here
from krl_runtime.errors import BackendError, CheckFailedError
from krl_runtime.files import sha256_bytes, write_atomic

from .builder import BuiltPlan, build_plan
from .config import BuildEngineConfig
from .inputs import Inputs, read_inputs
from .onnx_file import OnnxFile
from .options import BuildOptions
from .parity import Parity, check_parity
from .script import build_lines, build_script

__all__ = ["as_text", "build_engine", "engine_key", "keep_engine"]

_log = logging.getLogger("krl")

_TIMING_CACHE = "timing.cache"


@dataclass(frozen=True)
class _Place:
    """Where an engine is built: the library, and the GPU, which TensorRT-RTX does without."""

    library: Library
    gpu: Gpu | None

    @property
    def made_for(self) -> Gpu | None:
        """The GPU that an engine is bound to; an engine of TensorRT-RTX is bound to none."""
        return None if self.library.rtx else self.gpu


def build_engine(config: BuildEngineConfig) -> tuple[dict[str, Any], str]:
    """Build an engine, check it where it can run, and keep it.

    Returns:
        Facts of the engine as plain JSON types, and as text. Where nothing can be built, and ``prepare`` is given: the
        reason and the commands that build it elsewhere.

    Raises:
        KrlError: An option is wrong, the model is not ready, nothing can be built here, the build failed, or the
            engine's outputs differ.
    """
    inputs = read_inputs(config)
    source, options = inputs.source, inputs.options
    target = config.output or source.path.with_suffix(".engine")
    if config.emit_script:
        script = build_script(source.path.name, target.name, source.inputs, options)
        write_atomic(config.emit_script, script.encode())
        _log.info("wrote %s, which builds the engine by hand", config.emit_script)
    try:
        place = _place(config)
    except NoTensorRTError as absent:
        if not config.prepare:
            raise BackendError(
                f"no engine was built: {absent}. {config.model} is in order and unchanged; run the same command where "
                "the library is, or give --prepare for the commands that build it by hand"
            ) from absent
        lines = build_lines(source.path.name, target.name, source.inputs, options)
        result = {"engine": None, "reason": str(absent), "commands": lines}
        return {"model": str(config.model), **result}, _what_remains(config, absent, lines)
    options.check_library(place.library.name, gpu=place.gpu is not None)
    result = _build_file(source, target, options, place) if inputs.bundle is None else _build_into(inputs, place)
    return {"model": str(config.model), **result}, as_text(result)


def _place(config: BuildEngineConfig) -> _Place:
    """Return the library and the GPU.

    Raises:
        NoTensorRTError: The library is not here; or, for TensorRT, no GPU.
    """
    if config.target == "tensorrt":
        return _Place(tensorrt_library(), current_gpu())
    library = rtx_library()
    try:
        return _Place(library, current_gpu())
    except NoTensorRTError:
        return _Place(library, None)


def _what_remains(config: BuildEngineConfig, absent: NoTensorRTError, lines: dict[str, str]) -> str:
    """Return the remaining steps for a person on a machine that cannot build."""
    jetpack = jetpack_here()
    here = f"This is {jetpack.name}, which has TensorRT {jetpack.tensorrt}.\n" if jetpack and jetpack.tensorrt else ""
    titles = {name: "TensorRT-RTX" if name == "rtx" else f"TensorRT {name}" for name in lines}
    by_hand = "\n".join(f"  {titles[name]}:  {line}" for name, line in lines.items())
    return (
        f"No engine was built: {absent}.\n{here}"
        f"{config.model} is in order and unchanged. Run the same command on the device that is to run the engine. Or "
        f"run this there, in the folder of the ONNX file (it checks no outputs and changes no bundle):\n"
        f"{by_hand}"
    )


def _build_into(inputs: Inputs, place: _Place) -> dict[str, Any]:
    """Build, check against the golden inputs where the engine can run, and register."""
    bundle, source, options, variant = inputs.bundle, inputs.source, inputs.options, inputs.variant
    assert bundle is not None  # noqa: S101  for the type checker
    golden = golden_arrays(bundle)  # before the build, which takes minutes
    known = _TIMING_CACHE in bundle.manifest.files
    cache = bundle.read(_TIMING_CACHE) if known else b""
    built = _build(source, options, place, cache)
    key = engine_key(variant, source, place, options)
    parity: Parity | None = None
    backend, reason = _load(built, key, source, options, place)
    if backend is not None:
        parity = check_parity(backend, golden, bundle.manifest, variant, options.profiles, tf32=options.tf32)
    current = Bundle.open(bundle.path)  # another command may have changed it meanwhile
    manifest = current.manifest
    chosen = manifest.variants.get(variant)
    if chosen is None or manifest.files[chosen.file].sha256 != source.sha256:
        raise CheckFailedError(f"variant {variant} of {bundle.path} was changed during the build; build it again")
    engine = _engine(key, variant, source, options, place)
    evidence = _evidence(built, parity, reason, source, options)
    host_code = options.version_compatible and not place.library.rtx
    entry = register_engine(BuiltEngine(sha256_bytes(built.plan), place.library.name, place.library.version, host_code))
    file = keep_engine(current, key, engine, built.plan, evidence, timing_cache=built.timing_cache)
    return {"engine": key, "file": file, "bytes": len(built.plan), "registry": str(entry), **evidence}


def keep_engine(
    bundle: Bundle, key: str, engine: Engine, plan: bytes, evidence: dict[str, Any], *, timing_cache: bytes = b""
) -> str:
    """Put an engine into its bundle; or beside one that is signed or cannot be written. Return its file."""
    if bundle.is_kept:
        target = add_engine(bundle.path, key, engine, plan, evidence)
        _log.info(
            "the bundle stays as it is (signed, not writable, or a copy), so the engine is kept in %s", target.parent
        )
        return str(target)
    manifest = bundle.manifest
    engines = manifest.evidence.get("engines", {})
    bundle.update(
        {engine.file: plan, **({_TIMING_CACHE: timing_cache} if timing_cache else {})},
        engines={**manifest.engines, key: engine},
        evidence={**manifest.evidence, "engines": {**engines, key: evidence}},
    )
    return engine.file


def _engine(key: str, variant: str, source: OnnxFile, options: BuildOptions, place: _Place) -> Engine:
    """Return the manifest's entry."""
    gpu = place.made_for
    return Engine(
        file=f"engines/{key}.engine",
        variant=variant,
        onnx_sha256=source.sha256,
        version=place.library.version,
        compute_capabilities=options.compute_capabilities if gpu is None else (gpu.compute_capability,),
        gpu="" if gpu is None else gpu.name,
        platform="" if gpu is None else platform_key(),
        profiles=options.profiles,
        library=place.library.name,
        height=options.height,
        width=options.width,
        version_compatible=options.version_compatible,
        hardware_compatibility=options.hardware_compatibility,
        dla_core=options.dla_core,
        stripped=options.strip_weights,
        tf32=options.tf32,
        refittable=options.refit or options.strip_weights,
    )


def _evidence(
    built: BuiltPlan, parity: Parity | None, reason: str, source: OnnxFile, options: BuildOptions
) -> dict[str, Any]:
    """Return the measurements of the build, and what the user chose to ignore, for the manifest."""
    return {
        "seconds": round(built.seconds, 1),
        "layers": built.layers,
        "layer_types": dict(built.layer_types),
        "layers_on_gpu": list(built.on_gpu) or None,
        "sparse_layers": _sparse_layers(source) if options.sparse_weights else None,
        "ignored_errors": list(source.ignored) or None,
        "parity": None if parity is None else asdict(parity),
        "not_run": reason or None,
    }


def _sparse_layers(source: OnnxFile) -> list[str]:
    """Return the layers whose weights suit sparse kernels; without any the option does nothing, which is logged."""
    import onnx

    from .sparsity import sparse_layers

    names, count = sparse_layers(onnx.load_model_from_string(source.data))
    _log.log(
        logging.INFO if names else logging.WARNING,
        "--sparse-weights: %d of %d layers have weights with 2:4 sparsity%s",
        len(names),
        count,
        "" if names else "; the option does nothing",
    )
    return names


def _build_file(source: OnnxFile, target: Path, options: BuildOptions, place: _Place) -> dict[str, Any]:
    """Build from an ONNX file, and describe the engine in a file beside it."""
    built = _build(source, options, place, b"")
    backend, reason = _load(built, target.name, source, options, place)
    if backend is not None:
        backend.close()
        _log.warning("it loads; its outputs were not checked: an ONNX file has no golden inputs, a bundle has")
    gpu = place.made_for
    description = {
        "file": target.name,
        "sha256": sha256_bytes(built.plan),
        "bytes": len(built.plan),
        "onnx_sha256": source.sha256,
        "library": place.library.name,
        "version": place.library.version,
        "compute_capabilities": list(options.compute_capabilities if gpu is None else (gpu.compute_capability,)),
        "gpu": "" if gpu is None else gpu.name,
        "platform": "" if gpu is None else platform_key(),
        "options": asdict(options),
        **_evidence(built, None, reason, source, options),
    }
    write_atomic(target, built.plan)
    write_atomic(target.with_name(target.name + ".json"), json.dumps(description, indent=1).encode() + b"\n")
    return {"engine": str(target), **description}


def _build(source: OnnxFile, options: BuildOptions, place: _Place, cache: bytes) -> BuiltPlan:
    gpu, library = place.gpu, place.library
    where = "desktop RTX GPUs" if library.rtx else gpu.name if gpu else ""
    _log.info("building with %s for %s; this takes %s", library.title, where, "seconds" if library.rtx else "minutes")
    built = build_plan(source.data, options, library, gpu=gpu, timing_cache=cache)
    if built.on_gpu:
        shown = ", ".join(built.on_gpu[:10]) + (" …" if len(built.on_gpu) > 10 else "")
        _log.warning(
            "%d of %d layers are not for the DLA and run on the GPU: %s", len(built.on_gpu), built.layers, shown
        )
    return built


def _load(
    built: BuiltPlan, label: str, source: OnnxFile, options: BuildOptions, place: _Place
) -> tuple[TensorRTBackend | None, str]:
    """Load the engine. One of TensorRT-RTX may be for other machines: then return why it cannot be loaded here."""
    if place.gpu is None:
        reason = "there is no GPU here"
    else:
        try:
            backend = TensorRTBackend(
                place.library,
                built.plan,
                label=label,
                host_code=options.version_compatible and not place.library.rtx,
                dla_core=options.dla_core,
                weights=source.data if options.strip_weights else None,
            )
        except BackendError as error:
            if not place.library.rtx:
                raise
            reason = str(error)
        else:
            return backend, ""
    _log.warning(
        "the engine was built and not run (%s): its outputs were not compared; on the machine that is to run it, "
        "krl-runtime selftest does that",
        reason,
    )
    return None, reason


def engine_key(variant: str, source: OnnxFile, place: _Place, options: BuildOptions) -> str:
    """Return an engine's key in a bundle, which names all that it depends on.

    As ``"int8-trt10.3.0-sm87-linux-aarch64-b1-8-32-1f3c9a20"``, or ``"fp16-rtx1.7.1.116-sm86-sm89-b1-1-1-1f3c9a20"``;
    ``sm86up`` is 8.6 and later. The last part is the beginning of the ONNX file's SHA-256.
    """
    batches = "-".join("b" + "-".join(map(str, sizes)) for sizes in options.profiles)
    gpu = place.made_for
    names = options.compute_capabilities if gpu is None else (gpu.compute_capability,)
    devices = ["sm" + name.replace(".", "") for name in names] or ["sm86up"]
    devices += [] if gpu is None else [platform_key()]
    library = f"{'rtx' if place.library.rtx else 'trt'}{place.library.version}"
    return "-".join([variant, library, *devices, batches, *options.suffixes, source.sha256[:8]])


def as_text(result: dict[str, Any]) -> str:
    """Return the facts of an engine for people."""
    shown = dict(result)
    if shown.get("layer_types"):
        shown["layer_types"] = ", ".join(f"{count} {kind}" for kind, count in shown["layer_types"].items())
    shown.pop("options", None)
    return "\n".join(
        f"{name.replace('_', ' ')}: {value}" for name, value in shown.items() if value not in (None, "", [])
    )
