"""The configuration of ``krl-deploy compare``."""

from __future__ import annotations

import math
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, TypeAlias

import tyro

from krl_runtime.errors import UsageError
from krl_runtime.images.folders import OnBadImage

__all__ = ["CompareConfig", "ComparedBackend", "ComparedFile"]

ComparedFile: TypeAlias = Literal["fp32", "fp16", "int8", "int8.fp32", "int8.cpu"]
"""A file of a bundle, as the tables of ``fp16`` and ``quantize`` name it."""

ComparedBackend: TypeAlias = Literal["cpu", "openvino", "tensorrt", "tensorrt-rtx"]
"""A backend that runs parts of a graph: ONNX Runtime on the CPU, OpenVINO, or engines that are built for them."""


@dataclass(frozen=True)
class CompareConfig:
    """Options of ``krl-deploy compare``."""

    bundle: tyro.conf.Positional[Path]
    """The bundle NAME.krl."""
    a: ComparedFile = "fp32"
    """The reference: fp32, fp16, or one of the INT8 graphs, which are int8 (TensorRT's), int8.fp32 (the same with FP32
    around INT8) and int8.cpu (ONNX Runtime's)."""
    b: ComparedFile = "int8.cpu"
    """The variant that is compared with it."""
    a_backend: ComparedBackend = "cpu"
    """Backend that runs --a: ONNX Runtime on the CPU, OpenVINO, or on a GPU engines of TensorRT or TensorRT-RTX."""
    b_backend: ComparedBackend = "cpu"
    """Backend that runs --b; with the same variant and another backend the backends are compared. On a GPU an engine
    is built for each layer."""
    layers: bool = False
    """Compare the layers as well, and find the first one that is wrong."""
    data: Path | None = None
    """Folder or list of real images; left out: the golden inputs."""
    limit: int = 32
    """Compare on this many images at most, the same number of each class."""
    min_snr: float | None = None
    """A layer that by itself has a smaller SNR, in dB, is wrong; left out: 60 between files in FP32, 35 with FP16, 15
    with INT8. In its place it may have 5 dB less. If it is given and a layer has less, the exit code is 1."""
    plot: Path | None = None
    """With --layers: write a plot of the layers to this PNG file."""
    on_bad_image: OnBadImage = "refuse"
    """Files that are not readable images: refuse the folder, or name and skip them."""
    json: bool = False
    """Print the result as one JSON object."""

    def __post_init__(self) -> None:
        """Check the ranges, and that there is something to compare."""
        if (self.a, self.a_backend) == (self.b, self.b_backend):
            raise UsageError(
                f"--a and --b are both {self.a} on {self.a_backend}, which says nothing; give two variants, or one on "
                "two backends with --b-backend openvino"
            )
        if self.limit < 1:
            raise UsageError(f"--limit is {self.limit}; accepted: 1 or more")
        if self.min_snr is not None and not 0 < self.min_snr < math.inf:
            raise UsageError(f"--min-snr is {self.min_snr}; accepted: above 0 dB")
        for name, given in (("--plot", self.plot), ("--min-snr", self.min_snr)):
            if given is not None and not self.layers:
                raise UsageError(f"{name} is for the comparison of layers; give --layers as well")
