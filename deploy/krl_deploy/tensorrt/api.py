"""All differences between TensorRT 10 and 11 that matter to krl.

krl never requests a precision from TensorRT: the types are in the ONNX file, and networks are strongly typed. So it
needs nothing that TensorRT 11 removed: FP16 and INT8 flags, calibrators, per-layer precisions.

Branches depend on the version number, never on whether a name exists. ``BuilderFlag.FP16`` is gone from 11, and code
that looks for it silently builds FP32 there.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from krl_runtime.backends.cuda import version_tuple
from krl_runtime.errors import BackendError, UsageError

if TYPE_CHECKING:
    import tensorrt as trt

__all__ = ["GENERATIONS", "generation", "hardware_compatibility_level", "network_flags", "trtexec_typing"]

GENERATIONS: Final = (10, 11)
"""The major versions that krl knows."""


def generation(version: str) -> int:
    """Return the major version of TensorRT.

    Raises:
        BackendError: krl does not know it.
    """
    major = version_tuple(version)[0]
    if major not in GENERATIONS:
        raise BackendError(f"TensorRT {version} is installed; this krl knows versions 10.3 to 11.x")
    return major


def network_flags(version: str) -> int:
    """Return the argument of ``Builder.create_network`` for a strongly typed network.

    TensorRT 10 has to be asked; in 11 there is no other kind, and the flag is deprecated.
    """
    import tensorrt as trt

    if generation(version) == 10:
        return 1 << int(trt.NetworkDefinitionCreationFlag.STRONGLY_TYPED)
    return 0


def trtexec_typing(major: int) -> tuple[str, ...]:
    """Return the options that make ``trtexec`` build a strongly typed network."""
    return ("--stronglyTyped",) if major == 10 else ()


def hardware_compatibility_level(name: str, version: str) -> trt.HardwareCompatibilityLevel:
    """Return TensorRT's value for ``"none"``, ``"ampere-plus"`` or ``"same-compute-capability"``.

    Raises:
        UsageError: The last one with a TensorRT that does not have it: 10.3 does not, 10.16 does.
    """
    import tensorrt as trt

    levels = trt.HardwareCompatibilityLevel.__members__
    member = name.upper().replace("-", "_")
    if member not in levels:
        raise UsageError(f"TensorRT {version} does not know --hardware-compatibility {name}; a newer one does")
    return levels[member]
