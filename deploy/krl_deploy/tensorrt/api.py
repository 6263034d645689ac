"""All differences between TensorRT 10, TensorRT 11 and TensorRT-RTX that matter to krl when it builds.

krl never requests a precision from TensorRT: the types are in the ONNX file, and networks are strongly typed. So it
needs nothing that TensorRT 11 and TensorRT-RTX lack: FP16 and INT8 flags, calibrators, per-layer precisions.

Branches depend on the library and its version, never on whether a name exists. ``BuilderFlag.FP16`` is gone from 11,
and code that looks for it silently builds FP32 there.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Final, cast

from krl_runtime.backends.cuda import version_tuple
from krl_runtime.backends.tensorrt.calls import check
from krl_runtime.backends.tensorrt.library import Library
from krl_runtime.errors import BackendError, UsageError

if TYPE_CHECKING:
    import tensorrt as trt
    import tensorrt_rtx as trt_rtx

__all__ = [
    "GENERATIONS",
    "generation",
    "has_timing_cache",
    "network_flags",
    "set_compute_capabilities",
    "set_hardware_compatibility",
    "trtexec_typing",
]

GENERATIONS: Final = (10, 11)
"""The major versions of TensorRT that krl knows."""

_RTX_GENERATIONS: Final = (1,)  # the only one there is


def generation(library: Library) -> int:
    """Return the major version of a library.

    Raises:
        BackendError: krl does not know it.
    """
    major = version_tuple(library.version)[0]
    if major not in (_RTX_GENERATIONS if library.rtx else GENERATIONS):
        known = "1.x" if library.rtx else "10.3 to 11.x"
        raise BackendError(f"{library.title} is installed; this krl knows versions {known}")
    return major


def network_flags(library: Library) -> int:
    """Return the argument of ``Builder.create_network`` for a strongly typed network.

    TensorRT 10 has to be asked. In 11 there is no other kind, and the flag is deprecated; in RTX there never was.
    """
    if TYPE_CHECKING:
        import tensorrt as trt
    trt = library.module
    if generation(library) == 10:
        return 1 << int(trt.NetworkDefinitionCreationFlag.STRONGLY_TYPED)
    return 0


def has_timing_cache(library: Library) -> bool:
    """Return whether a build measures kernels, so that a cache of the times helps the next one: not with RTX."""
    return not library.rtx


def trtexec_typing(major: int) -> tuple[str, ...]:
    """Return the options that make ``trtexec`` build a strongly typed network."""
    return ("--stronglyTyped",) if major == 10 else ()


def set_hardware_compatibility(library: Library, config: trt.IBuilderConfig, name: str) -> None:
    """Set ``"none"``, ``"ampere-plus"`` or ``"same-compute-capability"``; TensorRT-RTX has no such levels.

    Raises:
        UsageError: The last one with a TensorRT that does not have it: 10.3 does not, 10.16 does.
    """
    if library.rtx:
        return
    if TYPE_CHECKING:
        import tensorrt as trt
    trt = library.module
    levels = trt.HardwareCompatibilityLevel.__members__
    member = name.upper().replace("-", "_")
    if member not in levels:
        raise UsageError(f"{library.title} does not know --hardware-compatibility {name}; a newer one does")
    config.hardware_compatibility_level = levels[member]


def set_compute_capabilities(library: Library, config: trt.IBuilderConfig, names: Sequence[str]) -> None:
    """Set the GPUs that an engine of TensorRT-RTX is for.

    Args:
        library: TensorRT-RTX.
        config: The configuration of its builder.
        names: As ``"8.6"``; none leaves the library's default, 8.6 and later.

    Raises:
        UsageError: The library does not know one.
    """
    if TYPE_CHECKING:
        import tensorrt_rtx as trt_rtx
    trt_rtx = library.module
    if not names:
        return
    known = {
        f"{name[2:-1]}.{name[-1]}": value
        for name, value in trt_rtx.ComputeCapability.__members__.items()
        if name.startswith("SM")
    }
    unknown = [name for name in names if name not in known]
    if unknown:
        raise UsageError(f"--compute-capability is {unknown[0]}; {library.title} accepts: {', '.join(known)}")
    rtx_config = cast("trt_rtx.IBuilderConfig", config)
    rtx_config.num_compute_capabilities = len(names)
    for index, name in enumerate(names):
        check(rtx_config.set_compute_capability(known[name], index), f"compute capability {name} cannot be set")
