"""``krl-deploy refit``: an engine with the weights of another student, without a build.

The kernels and their choice stay, so that it takes seconds. The graphs have to be the same but for the weights, and the
outputs are compared with the golden ones of the new bundle, as after a build.
"""

from __future__ import annotations

import time
from dataclasses import asdict, replace
from typing import TYPE_CHECKING, Any

from krl_runtime.backends.cuda import Gpu, current_gpu
from krl_runtime.backends.tensorrt.backend import TensorRTBackend
from krl_runtime.backends.tensorrt.calls import attempt, check, refit_engine, tensorrt_logger
from krl_runtime.backends.tensorrt.engines import cause_against
from krl_runtime.backends.tensorrt.library import Library, library_of
from krl_runtime.backends.tensorrt.registry import BuiltEngine, register_engine
from krl_runtime.bundle import Bundle, Engine
from krl_runtime.bundle.golden import golden_arrays
from krl_runtime.errors import ModelError, UsageError
from krl_runtime.files import sha256_bytes

from .config import RefitConfig
from .engines import as_text, keep_engine
from .parity import check_parity

if TYPE_CHECKING:
    import onnx

__all__ = ["difference", "refit"]

_STRUCTURE = frozenset({6, 7, 9})
"""Element types of constants that are no weights: ``TensorProto.INT32``, ``INT64`` and ``BOOL``."""


def refit(config: RefitConfig) -> tuple[dict[str, Any], str]:
    """Put the weights of a bundle into an engine of another one, check its outputs, and keep it.

    Returns:
        Facts of the engine as plain JSON types, and as text.

    Raises:
        KrlError: A bundle or option is wrong, no engine fits, its graph is another one, or the outputs differ.
    """
    bundle, donor = Bundle.open(config.model), Bundle.open(config.engine_of)
    bundle.verify()
    golden = golden_arrays(bundle)
    gpu = current_gpu()
    key, library = _choose(config, bundle, donor, gpu)
    engine = donor.engines[key]
    new = bundle.read(bundle.manifest.variants[engine.variant].file)
    _check_graphs(donor.read(donor.manifest.variants[engine.variant].file), new, config)
    start = time.monotonic()
    # One without weights takes them whenever it is loaded, and is the same for both.
    plan = donor.engine_bytes(key) if engine.stripped else _with_weights(library, donor.engine_bytes(key), new, key)
    seconds = time.monotonic() - start
    host_code = engine.version_compatible and not library.rtx
    backend = TensorRTBackend(
        library,
        plan,
        label=key,
        host_code=host_code,
        dla_core=engine.dla_core,
        weights=new if engine.stripped else None,
    )
    parity = check_parity(backend, golden, bundle.manifest, engine.variant, engine.profiles, tf32=engine.tf32)
    sha256 = sha256_bytes(new)
    own = f"{key[:-8]}{sha256[:8]}"
    entry = replace(engine, file=f"engines/{own}.engine", onnx_sha256=sha256)
    evidence = {
        "seconds": round(seconds, 1),
        "refitted_from": {"bundle": donor.manifest.name, "engine": key, "sha256": donor.engine_entry(key).sha256},
        "parity": asdict(parity),
    }
    registry = register_engine(BuiltEngine(sha256_bytes(plan), library.name, library.version, host_code))
    file = keep_engine(Bundle.open(bundle.path), own, entry, plan, evidence)
    found = {"engine": own, "file": file, "bytes": len(plan), "registry": str(registry), **evidence}
    return {"model": str(config.model), **found}, as_text(found)


def _choose(config: RefitConfig, bundle: Bundle, donor: Bundle, gpu: Gpu) -> tuple[str, Library]:
    """Return the key of the one engine that fits this machine and takes weights, and its library."""
    asked = {
        key: engine
        for key, engine in donor.engines.items()
        if config.engine in (None, key) and config.precision in (None, engine.variant)
    }
    if not asked:
        known = ", ".join(donor.engines) or "none"
        raise UsageError(f"bundle {donor.path} has no such engine; it has: {known}")
    libraries = {name: library_of(name) for name in {engine.library for engine in asked.values()}}
    causes = {key: _cause(bundle, donor, key, engine, libraries[engine.library], gpu) for key, engine in asked.items()}
    fitting = [key for key, cause in causes.items() if cause is None]
    if len(fitting) == 1:
        return fitting[0], libraries[asked[fitting[0]].library]
    if fitting:
        raise UsageError(f"{len(fitting)} engines of {donor.path} fit; choose one with --engine: {', '.join(fitting)}")
    listed = "; ".join(f"{key}: {cause}" for key, cause in causes.items())
    raise UsageError(f"no engine of {donor.path} can be refitted here: {listed}")


def _cause(bundle: Bundle, donor: Bundle, key: str, engine: Engine, library: Library, gpu: Gpu) -> str | None:
    """Return why an engine cannot be refitted here, ``None`` if it can."""
    if not engine.refittable:
        return "it was built without --refit and --strip-weights"
    if engine.variant not in bundle.manifest.variants:
        return f"bundle {bundle.path} has no variant {engine.variant}"
    return cause_against(donor, key, library, gpu)


def _with_weights(library: Library, plan: bytes, onnx: bytes, key: str) -> bytes:
    """Return an engine's bytes with the weights of an ONNX file."""
    if TYPE_CHECKING:
        import tensorrt as trt
    trt = library.module
    with attempt(f"refitting engine {key}"):
        runtime = trt.Runtime(tensorrt_logger(library))
        engine = check(runtime.deserialize_cuda_engine(plan), "TensorRT does not load it")
        check(engine.refittable, "it takes no new weights; build it with --refit")
        refit_engine(library, engine, onnx)
        return bytes(check(engine.serialize(), "it cannot be serialized"))


def _check_graphs(old: bytes, new: bytes, config: RefitConfig) -> None:
    """Check that two graphs are the same but for their weights.

    Raises:
        ModelError: They are not; the message has the first difference.
    """
    import onnx

    found = difference(onnx.load_model_from_string(old), onnx.load_model_from_string(new))
    if found:
        raise ModelError(
            f"{config.model} and {config.engine_of} have different graphs: {found}; an engine takes the weights "
            f"of the same architecture alone; build one with krl-deploy build-engine {config.model}"
        )


def difference(old: onnx.ModelProto, new: onnx.ModelProto) -> str:
    """Return the first difference of two graphs beside the values of their weights; empty if there is none."""
    if len(old.graph.node) != len(new.graph.node):
        return f"{len(old.graph.node)} and {len(new.graph.node)} nodes"
    for before, after in zip(old.graph.node, new.graph.node, strict=True):
        if before != after:
            return f"{before.op_type} of {before.output[0]} and {after.op_type} of {after.output[0]}"
    if (*old.graph.input, *old.graph.output) != (*new.graph.input, *new.graph.output):
        return "other inputs or outputs"
    weights = {tensor.name: tensor for tensor in old.graph.initializer}
    if weights.keys() != {tensor.name for tensor in new.graph.initializer}:
        return "weights of other names"
    for tensor in new.graph.initializer:
        other = weights[tensor.name]
        if (tensor.data_type, tensor.dims) != (other.data_type, other.dims):
            return f"weight {tensor.name} has shape {list(other.dims)} and {list(tensor.dims)}, or another type"
        if tensor.data_type in _STRUCTURE and tensor != other:
            return f"constant {tensor.name}, which shapes depend on"
    return ""
