"""Which engine of a bundle runs on this machine, and why not the others."""

from __future__ import annotations

import logging

from krl_runtime.backends.base import check_graph
from krl_runtime.backends.cuda import Gpu, current_gpu, platform_key, version_tuple
from krl_runtime.bundle import Bundle, Engine
from krl_runtime.errors import BackendError, NotAvailableError

from .backend import TensorRTBackend
from .library import Library, LibraryName, library_of
from .registry import find_engine
from .rtx import cache_file

__all__ = ["cause_against", "mismatch", "open_engine", "reads"]

_log = logging.getLogger("krl")

_ACROSS_MAJORS = ((10, 11),)
"""Major versions of TensorRT that built a version-compatible engine and that run it, if they differ; by NVIDIA's
support matrix of 11.4.1. Where the library refuses one nevertheless, its message is the cause."""

_RTX_DEFAULT = (8, 6)  # without --compute-capability an engine of TensorRT-RTX is for these GPUs and later ones


def open_engine(bundle: Bundle, variant: str, name: LibraryName = "tensorrt", device: int = 0) -> TensorRTBackend:
    """Open the bundle's engine that fits this machine.

    Args:
        bundle: The bundle. An engine is code: it is loaded if it was built here by this user, or if the bundle was
            opened with a trusted key. Its hash is checked before that.
        variant: Name of one of its variants.
        name: The library to run it.
        device: Number of the GPU, from 0.

    Raises:
        NotAvailableError: The library or a GPU is not there, or no engine fits (the message has a sentence for each).
        BackendError: The library refuses the engine that fits, or its inputs and outputs are not the manifest's.
        BundleError: The engine's file is missing, damaged or changed.
    """
    rtx = name == "tensorrt-rtx"
    engines = {
        key: engine for key, engine in bundle.engines.items() if engine.variant == variant and engine.library == name
    }
    build = f"run: krl-deploy build-engine {bundle.path} --precision {variant}"
    build = f"{build} --target rtx" if rtx else f"on this device {build}"
    if not engines:
        title = "TensorRT-RTX" if rtx else "TensorRT"
        raise NotAvailableError(f"the bundle has no {title} engine of variant {variant}; {build}")
    library, gpu = library_of(name), current_gpu(device)
    onnx = bundle.manifest.variants[variant].file
    causes = {key: cause_against(bundle, key, library, gpu) for key in engines}
    fitting = [key for key, cause in causes.items() if cause is None]
    if not fitting:
        raise NotAvailableError(f"{'; '.join(cause for cause in causes.values() if cause)}; {build}")
    # An engine made for this very GPU before a portable one, then the one that takes the largest batches.
    key = max(fitting, key=lambda key: (_closeness(engines[key], gpu), engines[key].batches[1], key))
    engine = engines[key]
    if not rtx and engine.gpu != gpu.name:
        _log.warning("engine %s was built on a %s; on this %s it may be slower", key, engine.gpu, gpu.name)
    opened = TensorRTBackend(
        library,
        bundle.engine_bytes(key),
        label=key,
        device=device,
        host_code=engine.version_compatible and not rtx,
        dla_core=engine.dla_core,
        weights=bundle.read(onnx) if engine.stripped else None,
        cache=cache_file(bundle.engine_entry(key).sha256, library, gpu.name) if rtx else None,
    )
    try:
        check_graph(bundle, variant, opened.inputs, opened.outputs)
    except BackendError:
        opened.close()
        raise
    return opened


def cause_against(bundle: Bundle, key: str, library: Library, gpu: Gpu) -> str | None:
    """Return why an engine of a bundle cannot be loaded here, in one sentence, or ``None`` if it should.

    Args:
        bundle: The bundle.
        key: The engine's key.
        library: The library here that it is for.
        gpu: The GPU here.
    """
    engine = bundle.engines[key]
    onnx = bundle.manifest.variants[engine.variant].file
    return mismatch(engine, library, gpu, bundle.manifest.files[onnx].sha256) or _untrusted(bundle, key, engine)


def _untrusted(bundle: Bundle, key: str, engine: Engine) -> str | None:
    """Return why an engine is not trusted, in one sentence, or ``None`` if it is.

    A manifest is not asked: whoever writes an engine writes the manifest as well.
    """
    built = find_engine(bundle.engine_entry(key).sha256)
    if built is None and not bundle.is_signed_engine(key):
        return (
            f"engine {key} was not built by this user on this machine, and the bundle is not loaded with a key that is "
            "trusted (trust=KEY, --trust KEY)"
        )
    if engine.version_compatible and engine.library == "tensorrt" and not (built and built.host_code):
        return f"engine {key} brings host code, its own runtime, which runs only where the engine was built"
    return None


def mismatch(engine: Engine, library: Library, gpu: Gpu, onnx_sha256: str) -> str | None:
    """Return why an engine does not run here, in one sentence, or ``None`` if it should.

    Args:
        engine: The manifest's entry.
        library: The library here.
        gpu: The GPU here.
        onnx_sha256: Hash of the ONNX file of the engine's variant as it is now.
    """
    if engine.onnx_sha256 != onnx_sha256:
        return f"engine {engine.file} was built from an older ONNX file of variant {engine.variant}"
    if engine.platform and engine.platform != platform_key():
        return f"engine built for {engine.platform}, this is {platform_key()}"
    if reads(engine, version_tuple(library.version)) and _takes(engine, gpu):
        return None
    capabilities = ", ".join(map(_sm, engine.compute_capabilities)) or f"{_sm('8.6')} and later"
    title = "TensorRT-RTX" if library.rtx else "TensorRT"
    return (
        f"engine built by {title} {engine.version} for {capabilities}, "
        f"this is {library.version} on {_sm(gpu.compute_capability)}"
    )


def reads(engine: Engine, here: tuple[int, ...]) -> bool:
    """Return whether a version of the library loads an engine: its own, or a newer one if it is version-compatible.

    Args:
        engine: The manifest's entry.
        here: The version's numbers, as ``(11, 4)``.
    """
    built = version_tuple(engine.version)
    majors = (built[0], here[0])
    compatible = engine.version_compatible and here >= built and (built[0] == here[0] or majors in _ACROSS_MAJORS)
    return here == built or compatible


def _takes(engine: Engine, gpu: Gpu) -> bool:
    """Return whether an engine is for a GPU."""
    if gpu.compute_capability in engine.compute_capabilities:
        return True
    capability = version_tuple(gpu.compute_capability)
    if engine.library == "tensorrt-rtx":
        return not engine.compute_capabilities and capability >= _RTX_DEFAULT
    return engine.hardware_compatibility == "ampere-plus" and capability >= (8, 0)


def _closeness(engine: Engine, gpu: Gpu) -> float:
    """Return how well an engine suits a GPU, from 0 (made for many) to 1 (made for this one)."""
    if engine.library == "tensorrt-rtx":
        return 1 / len(engine.compute_capabilities) if engine.compute_capabilities else 0
    return float(engine.gpu == gpu.name)


def _sm(compute_capability: str) -> str:
    return f"sm_{compute_capability.replace('.', '')}"
