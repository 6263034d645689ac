"""Options of ``krl-train explain``."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

import tyro

from krl_runtime.cli.options import Advanced, option_name
from krl_runtime.errors import UsageError

from .base import DataConfig, OutOption

__all__ = ["ExplainConfig"]


@dataclass(frozen=True, kw_only=True)
class ExplainConfig:
    """Options of ``krl-train explain``."""

    run: tyro.conf.Positional[Path]
    """The run's folder."""
    images: tyro.conf.Positional[tuple[Path, ...]] = ()
    """Images, or folders of them, to explain the predictions of."""
    out: OutOption
    """The folder to make, for PNG files and explain.json."""
    teacher: Path | None = None
    """Run to compare layer by layer, on the data's validation images: where its knowledge arrived."""
    neighbors: int = 5
    """Training images that are nearest to each image in feature space; 0: none."""
    neighbors_from: Path | None = None
    """Folder of images to look for them in, instead of the training images."""
    condition: str | None = None
    """Of a generator: the condition that one part after the other is changed of, as kind=rose,color=white."""
    compared_images: Advanced[int] = 512
    """Images, or latents, that the layers of two runs are compared on."""
    ig_steps: Advanced[int] = 50
    """Steps of the path of integrated gradients."""
    device: Literal["auto", "cpu", "cuda"] = "auto"
    """Where to compute."""
    overwrite: bool = False
    """Replace the explanation in --out."""
    json: bool = False
    """Print the result as one JSON object."""
    data: DataConfig = field(default_factory=DataConfig)

    def __post_init__(self) -> None:
        """Check the ranges."""
        for name, least in (("neighbors", 0), ("compared_images", 16), ("ig_steps", 2)):
            if getattr(self, name) < least:
                raise UsageError(f"{option_name(name)} is {getattr(self, name)}; accepted: {least} or more")
