"""Options of a build, for every library."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import TypeAlias

from krl_runtime.backends.tensorrt.library import LibraryName
from krl_runtime.errors import UsageError

__all__ = ["BuildOptions", "Range"]

Range: TypeAlias = tuple[int, int, int]
"""Smallest, best and largest size."""


@dataclass(frozen=True)
class BuildOptions:
    """How to build; the types of the network are not among it, they stand in the ONNX file.

    Attributes:
        profiles: Smallest, best and largest batch of each optimization profile; TensorRT tunes kernels for each.
        height: Smallest, best and largest height of images, if the graph takes any; ``None`` if it has a fixed one.
        width: The same for the width.
        workspace_bytes: Memory that a layer may use for itself while it runs.
        optimization_level: 0 (quick to build) to 5 (quick to run).
        dla_core: DLA core for the layers that it supports; the rest run on the GPU.
        version_compatible: Make an engine that newer TensorRT of the same major version runs as well.
        hardware_compatibility: ``"none"``, ``"ampere-plus"`` or ``"same-compute-capability"``.
        refit: Allow new weights to be put into the engine later.
        strip_weights: Leave the weights out; they are put in from the ONNX file when the engine is loaded.
        tf32: Let layers in FP32 multiply in TF32, with 10 bits of the mantissa.
        sparse_weights: Try kernels for weights of which two in every four are 0.
        time_limit: Seconds after which to give up.
        compute_capabilities: GPUs that an engine of TensorRT-RTX is for, as ``"8.6"``; none: 8.6 and later.
    """

    profiles: tuple[Range, ...] = ((1, 1, 1),)
    height: Range | None = None
    width: Range | None = None
    workspace_bytes: int | None = None
    optimization_level: int = 3
    dla_core: int | None = None
    version_compatible: bool = False
    hardware_compatibility: str = "none"
    refit: bool = False
    strip_weights: bool = False
    tf32: bool = True
    sparse_weights: bool = False
    time_limit: float | None = None
    compute_capabilities: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        """Check every field.

        Raises:
            UsageError: One is out of its range, or two contradict each other.
        """
        ranges = [("profile", sizes) for sizes in self.profiles] + [("height", self.height), ("width", self.width)]
        for name, sizes in ranges:
            if sizes is not None and not 1 <= sizes[0] <= sizes[1] <= sizes[2]:
                shown = ",".join(map(str, sizes))
                raise UsageError(f"--{name} is {shown}; accepted: 1 <= MIN <= OPT <= MAX")
        if not 1 <= len(set(self.profiles)) == len(self.profiles):
            raise UsageError(
                "--profile has no range, or the same one twice; accepted: one or more, as in 1,1,1 8,16,32"
            )
        _, best, _ = self.profiles[0]
        wrong = [name for name in self.compute_capabilities if not re.fullmatch(r"\d+\.\d", name)]
        if wrong:
            raise UsageError(f"--compute-capability is {wrong[0]!r}; accepted: as in 8.6,8.9,12.0")
        if not 0 <= self.optimization_level <= 5:
            raise UsageError(f"--optimization-level is {self.optimization_level}; accepted: 0 to 5")
        if self.workspace_bytes is not None and self.workspace_bytes < 1:
            raise UsageError("--workspace-mb is too small; accepted: 1 or more")
        if self.time_limit is not None and not self.time_limit > 0:
            raise UsageError(f"--time-limit is {self.time_limit:g}; accepted: seconds, more than 0")
        if self.dla_core is not None and self.dla_core < 0:
            raise UsageError(f"--dla-core is {self.dla_core}; accepted: 0 or more")
        if self.dla_core is not None and self.profiles != ((best, best, best),):
            raise UsageError(f"--dla-core needs one fixed batch, as in --profile {best},{best},{best}")

    def check_library(self, name: LibraryName, *, gpu: bool) -> None:
        """Check that the options are for a library.

        Args:
            name: The library.
            gpu: Whether a GPU is here.

        Raises:
            UsageError: One is not.
        """
        if name == "tensorrt":
            if self.compute_capabilities:
                raise UsageError(
                    "--compute-capability is for --target rtx; TensorRT builds for the GPU that is here (see "
                    "--hardware-compatibility)"
                )
            return
        for option, given in (
            ("--dla-core", self.dla_core is not None),
            ("--version-compatible", self.version_compatible),
            ("--hardware-compatibility", self.hardware_compatibility != "none"),
        ):
            if given:
                raise UsageError(f"{option} is for TensorRT; TensorRT-RTX has no such thing; leave it out")
        refit = "--strip-weights" if self.strip_weights else "--refit" if self.refit else ""
        if refit and not gpu:
            raise UsageError(
                f"{refit} needs a GPU while TensorRT-RTX builds, and none can be used here; leave it out, or run the "
                "same command on a machine with an RTX GPU"
            )
        if refit and len(self.compute_capabilities) > 1:
            shown = ",".join(self.compute_capabilities)
            raise UsageError(f"--compute-capability is {shown}; accepted with {refit}: one at most")

    @property
    def suffixes(self) -> tuple[str, ...]:
        """Suffixes of the key that distinguish the engine from one that was built without options."""
        return tuple(
            name
            for name, given in (
                (f"h{_joined(self.height)}", self.height is not None),
                (f"w{_joined(self.width)}", self.width is not None),
                (f"dla{self.dla_core}", self.dla_core is not None),
                ("vc", self.version_compatible),
                (self.hardware_compatibility, self.hardware_compatibility != "none"),
                ("refit", self.refit),
                ("notf32", not self.tf32),
                ("sparse", self.sparse_weights),
                ("stripped", self.strip_weights),
            )
            if given
        )


def _joined(sizes: Range | None) -> str:
    return "-".join(map(str, sizes or ()))
