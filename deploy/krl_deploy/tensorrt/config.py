"""Options of ``krl-deploy build-engine``, ``inspect-engine`` and ``refit``."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal

import tyro

from krl_runtime.errors import UsageError

from .options import BuildOptions, Range

__all__ = ["BuildEngineConfig", "InspectEngineConfig", "RefitConfig"]


@dataclass(frozen=True)
class BuildEngineConfig:
    """Options of ``krl-deploy build-engine``."""

    model: tyro.conf.Positional[Path]
    """The bundle NAME.krl; or an ONNX file, whose types stand in it."""
    target: Literal["tensorrt", "rtx"] = "tensorrt"
    """TensorRT on the device that is to run the engine; or TensorRT-RTX for desktop GPUs, which builds on any
    machine."""
    precision: Literal["fp32", "fp16", "int8"] | None = None
    """The variant of the bundle to build from; with --target rtx fp16 if left out."""
    output: Annotated[Path | None, tyro.conf.arg(aliases=["-o"])] = None
    """For an ONNX file: the engine to write; its description goes beside it, as ENGINE.json."""
    profile: tuple[str, ...] = ("1,1,1",)
    """Smallest, best and largest batch, as MIN,OPT,MAX; larger batches are run in parts. Several, as in 1,1,1 8,16,32,
    make an engine with kernels for each."""
    height: str | None = None
    """For graphs that take images of any size: smallest, best and largest height, as MIN,OPT,MAX. Left out: for a
    restorer's bundle the parts that it cuts images into."""
    width: str | None = None
    """The same for the width."""
    tile: int | None = None
    """For a restorer's bundle: images of up to N x N pixels, in which larger ones run in parts if its receptive field
    is bounded. Short for --height and --width of the golden inputs' size,N,N."""
    compute_capability: tuple[str, ...] = ()
    """With --target rtx: the GPUs to build for, as 8.6,8.9,12.0; left out: 8.6 and later."""
    workspace_mb: int | None = None
    """Memory in MiB that a layer may use for itself, at most the GPU's free memory. Left out: all of it, or half of
    it on a Jetson, whose memory the CPU shares."""
    optimization_level: int = 3
    """From 0 (quick to build) to 5 (quick to run)."""
    tf32: bool = True
    """Let layers in FP32 multiply in TF32, which is faster and has FP16's digits. --no-tf32 keeps all of FP32's."""
    sparse_weights: bool = False
    """Try kernels for 2:4 sparsity in layers whose weights have it: two of every four input channels are 0."""
    dla_core: int | None = None
    """Run the layers that it supports on this DLA core of a Jetson Orin, and the rest on the GPU. From FP16; or from
    INT8 if all operators are quantized."""
    version_compatible: bool = False
    """Make an engine that newer TensorRT runs as well: of the same major version, and 11 one of 10."""
    hardware_compatibility: Literal["none", "ampere-plus", "same-compute-capability"] = "none"
    """Make an engine for other GPUs as well; not on Jetson."""
    refit: bool = False
    """Allow new weights to be put into the engine later."""
    strip_weights: bool = False
    """Leave the weights out of the engine; they are put in from the ONNX file when it is loaded."""
    ignore_errors: bool = False
    """Build although krl-deploy check finds errors; they are recorded with the engine."""
    time_limit: float | None = None
    """Seconds after which to give up."""
    emit_script: Path | None = None
    """Write a shell script that builds the same engine with trtexec, for TensorRT 10 and 11, or tensorrt_rtx."""
    prepare: bool = False
    """Where nothing can be built, do all but the build, print the commands, and exit with 0."""
    json: bool = False
    """Print one JSON object."""

    def options(self) -> BuildOptions:
        """Return the options of the build.

        Raises:
            UsageError: One is out of its range.
        """
        given: object = self.profile
        texts = (given,) if isinstance(given, str) else self.profile  # in Python one may be given alone
        return BuildOptions(
            profiles=tuple(_range("profile", text) for text in texts),
            height=None if self.height is None else _range("height", self.height),
            width=None if self.width is None else _range("width", self.width),
            compute_capabilities=tuple(
                part.strip() for item in self.compute_capability for part in item.split(",") if part.strip()
            ),
            workspace_bytes=None if self.workspace_mb is None else self.workspace_mb << 20,
            optimization_level=self.optimization_level,
            dla_core=self.dla_core,
            version_compatible=self.version_compatible,
            hardware_compatibility=self.hardware_compatibility,
            refit=self.refit,
            strip_weights=self.strip_weights,
            tf32=self.tf32,
            sparse_weights=self.sparse_weights,
            time_limit=self.time_limit,
        )


def _range(option: str, text: str) -> Range:
    """Return the three sizes of an option."""
    try:
        low, best, high = (int(part) for part in text.split(","))
    except ValueError as error:
        raise UsageError(f"--{option} is {text!r}; accepted: MIN,OPT,MAX, as in 1,8,32") from error
    return low, best, high


@dataclass(frozen=True)
class InspectEngineConfig:
    """Options of ``krl-deploy inspect-engine``."""

    model: tyro.conf.Positional[Path]
    """An engine file, or a bundle NAME.krl, whose engines are all shown; with --layers also an ONNX file."""
    layers: bool = False
    """Show each layer: on the device those of the engine; elsewhere those of the network that NVIDIA's parser makes."""
    precision: Literal["fp32", "fp16", "int8"] | None = None
    """With --layers: the variant of the bundle; left out: of every engine, or of every variant if there is none."""
    json: bool = False
    """Print one JSON object."""


@dataclass(frozen=True)
class RefitConfig:
    """Options of ``krl-deploy refit``."""

    model: tyro.conf.Positional[Path]
    """The bundle with the new weights, which gets the engine."""
    engine_of: Path
    """The bundle whose engine takes them, with the same architecture; built with --refit or --strip-weights."""
    precision: Literal["fp32", "fp16", "int8"] | None = None
    """The variant; may be left out if one engine alone fits."""
    engine: str | None = None
    """Key of the engine; may be left out if one alone fits. krl-deploy inspect-engine shows the keys."""
    json: bool = False
    """Print one JSON object."""
