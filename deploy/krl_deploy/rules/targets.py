"""Targets that a model can be checked for: a JetPack, a version of TensorRT, or ONNX Runtime's CPU provider."""

from __future__ import annotations

import difflib
import re
from dataclasses import dataclass

from krl_runtime.backends.cuda import version_tuple
from krl_runtime.backends.tensorrt.library import MINIMUM_TENSORRT
from krl_runtime.device.platforms import JETPACKS, JetPack, jetpack_here
from krl_runtime.errors import UsageError

__all__ = ["NEWEST_TENSORRT", "ONNXRUNTIME_CPU", "RTX", "Target", "parse_target", "target_here"]

ONNXRUNTIME_CPU = "onnxruntime-cpu"
NEWEST_TENSORRT = (11, 5)
"""The newest TensorRT that the rules know of."""


@dataclass(frozen=True)
class Target:
    """A device or library to run a model on.

    Attributes:
        name: Name of the target.
        tensorrt: Version of TensorRT; empty for ONNX Runtime's CPU provider.
        boards: Families of Jetson boards; empty for any GPU.
        source: Source of the version, if it is not in the name.
        rtx: Whether it is TensorRT-RTX; ``tensorrt`` is the version whose rules hold for it.
    """

    name: str
    tensorrt: tuple[int, ...] = ()
    boards: tuple[str, ...] = ()
    source: str = ""
    rtx: bool = False

    @property
    def title(self) -> str:
        """Name with version and boards, as ``"jetpack-6.2 (TensorRT 10.3, Orin)"``."""
        version = f"TensorRT {'.'.join(map(str, self.tensorrt))}" if self.boards else ""
        if self.rtx:
            version = f"TensorRT-RTX, by the rules of TensorRT {'.'.join(map(str, self.tensorrt))}"
        inside = ", ".join(part for part in (version, *self.boards) if part)
        return f"{self.name} ({inside})" if inside else self.name


RTX = Target("rtx", NEWEST_TENSORRT, rtx=True)
"""TensorRT-RTX on desktop GPUs. Its parser is that of the newest TensorRT."""


def parse_target(name: str) -> Target:
    """Return the target of this name.

    Args:
        name: ``"jetpack-6.2"``, ``"tensorrt-10.16"``, ``"rtx"`` or ``"onnxruntime-cpu"``.

    Raises:
        UsageError: There is no such target, or krl does not run there.

    Example:
        >>> parse_target("tensorrt-10.16").tensorrt
        (10, 16)
        >>> parse_target("jetpack-6.2").title
        'jetpack-6.2 (TensorRT 10.3, Orin)'
        >>> parse_target("onnxruntime-cpu").tensorrt
        ()
    """
    if name == ONNXRUNTIME_CPU:
        return Target(name)
    if name == RTX.name:
        return RTX
    match = re.fullmatch(r"(jetpack|tensorrt)-(\d+(?:\.\d+)+)", name)
    if match is None:
        close = difflib.get_close_matches(name, _examples(), n=1)
        hint = f" (did you mean {close[0]}?)" if close else ""
        raise UsageError(f"--target is {name!r}{hint}; accepted: {', '.join(_examples())}, or another version of these")
    version = version_tuple(match[2])
    return _jetpack(name, version) if match[1] == "jetpack" else _tensorrt(name, version)


def target_here(tensorrt: str | None) -> Target:
    """Return this machine as a target.

    Args:
        tensorrt: Version of the installed TensorRT; ``None`` for the newest known one.
    """
    if tensorrt is None:
        return Target(f"tensorrt-{'.'.join(map(str, NEWEST_TENSORRT))}", NEWEST_TENSORRT)
    jetpack = jetpack_here()
    return Target(f"tensorrt-{tensorrt}", version_tuple(tensorrt), jetpack.boards if jetpack else ())


def _tensorrt(name: str, version: tuple[int, ...]) -> Target:
    if not MINIMUM_TENSORRT <= version < (NEWEST_TENSORRT[0] + 1,):
        raise UsageError(f"--target is {name}; krl knows TensorRT 10.3 to 11.x")
    return Target(name, version)


def _jetpack(name: str, version: tuple[int, ...]) -> Target:
    belongs = [(len(known), item) for item in JETPACKS for known in _known(item) if version[: len(known)] == known]
    jetpack = max(belongs, key=lambda found: found[0])[1] if belongs else None  # 7.2.2 is not a patch of 7.2
    if jetpack is None:
        known = ", ".join(version for item in JETPACKS for version in item.versions)
        raise UsageError(f"--target is {name}; krl knows JetPack {known}")
    if version_tuple(jetpack.tensorrt) < MINIMUM_TENSORRT:
        has = jetpack.tensorrt or "not confirmed"
        raise UsageError(f"--target is {name}, whose TensorRT is {has}; krl needs TensorRT 10.3: JetPack 6.1 or later")
    return Target(name, version_tuple(jetpack.tensorrt), jetpack.boards, jetpack.source)


def _known(jetpack: JetPack) -> list[tuple[int, ...]]:
    """Return the versions of a JetPack; patches of them count as the same, unless they are listed themselves."""
    return [version_tuple(version) for version in jetpack.versions]


def _examples() -> list[str]:
    jetpacks = [
        f"jetpack-{version}"
        for jetpack in JETPACKS
        if version_tuple(jetpack.tensorrt) >= MINIMUM_TENSORRT
        for version in jetpack.versions
    ]
    return [*jetpacks, "tensorrt-10.3", "tensorrt-10.16", "tensorrt-11.5", RTX.name, ONNXRUNTIME_CPU]
