"""Options of ``krl-deploy build-engine`` and ``inspect-engine``."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal

import tyro

from krl_runtime.errors import UsageError

from .builder import BuildOptions

__all__ = ["BuildEngineConfig", "InspectEngineConfig"]


@dataclass(frozen=True)
class BuildEngineConfig:
    """Options of ``krl-deploy build-engine``."""

    model: tyro.conf.Positional[Path]
    """The bundle NAME.krl; or an ONNX file, whose types stand in it."""
    precision: Literal["fp32", "fp16", "int8"] | None = None
    """The variant of the bundle to build from."""
    output: Annotated[Path | None, tyro.conf.arg(aliases=["-o"])] = None
    """For an ONNX file: the engine to write; its description goes beside it, as ENGINE.json."""
    profile: str = "1,1,1"
    """Smallest, best and largest batch, as MIN,OPT,MAX; larger batches are run in parts."""
    workspace_mb: int | None = None
    """Memory in MiB that a layer may use for itself; by default, and at most, the GPU's free memory."""
    optimization_level: int = 3
    """From 0 (quick to build) to 5 (quick to run)."""
    dla_core: int | None = None
    """Run the layers that it supports on this DLA core of a Jetson Orin, and the rest on the GPU."""
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
    """Options of ``krl-deploy inspect-engine``."""

    model: tyro.conf.Positional[Path]
    """An engine file, or a bundle NAME.krl, to show; a bundle's engines are all shown."""
    json: bool = False
    """Print one JSON object."""
