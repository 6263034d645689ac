"""Scores of a variant that makes images, beside the reference: PSNR to the true images and to the reference's."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import asdict, dataclass
from typing import Any, ClassVar

import numpy as np
import numpy.typing as npt

from krl_runtime.images.luma import mean_psnr

__all__ = ["ImageScore", "ImageTally"]


@dataclass(frozen=True)
class ImageScore:
    """Images that one variant of a model makes.

    Attributes:
        psnr: In dB to the true images, the mean over images; ``None`` if they are not known.
        drop_error: One standard error of the drop of ``psnr`` against the reference, in dB: of the paired difference.
            ``None`` without true images.
        psnr_to_fp32: In dB to those of the reference, the mean over images; 200 if they are equal.
        max_error: Largest absolute difference of a value from the reference's, in levels of 255.
    """

    psnr: float | None
    drop_error: float | None
    psnr_to_fp32: float
    max_error: float

    HEADER: ClassVar[tuple[str, ...]] = ("PSNR in dB", "drop in dB", "dB to fp32", "largest error")

    def to_dict(self) -> dict[str, Any]:
        """Return the score as plain JSON types."""
        return asdict(self)

    def cells(self, reference: ImageScore) -> tuple[str | None, ...]:
        """Return the score for people, beside that of the reference."""
        drop = None
        if self.psnr is not None and reference.psnr is not None:
            drop = f"{reference.psnr - self.psnr:.3f}"
            drop += "" if self is reference else f" ± {self.drop_error:.3f}"
        return (
            None if self.psnr is None else f"{self.psnr:.3f}",
            drop,
            f"{self.psnr_to_fp32:.2f}",
            f"{self.max_error:.4g}",
        )


class ImageTally:
    """Sums PSNR.

    Args:
        quality: PSNR in dB of one output ``[C, H, W]`` and its truth.
    """

    def __init__(self, quality: Callable[[npt.NDArray[np.float32], npt.NDArray[Any]], float]) -> None:
        self.quality = quality
        self.truths: list[float] = []
        self.drops: list[float] = []
        self.references: list[float] = []
        self.error = 0.0

    def add(
        self, outputs: npt.NDArray[np.float32], reference: npt.NDArray[np.float32], truth: npt.NDArray[Any] | None
    ) -> None:
        """Count one batch ``[N, C, H, W]``. A truth is that of the batch's only image."""
        pairs = zip(outputs, reference, strict=True)
        self.references += [mean_psnr(one[None], other[None]) for one, other in pairs]
        self.error = max(self.error, float(np.abs(outputs - reference).max()))
        if truth is not None:
            self.truths.append(self.quality(outputs[0], truth))
            self.drops.append(self.quality(reference[0], truth) - self.truths[-1])

    def score(self) -> ImageScore:
        """Return the score of all batches."""
        alike = float(np.mean(self.references))
        if len(self.truths) != len(self.references):
            return ImageScore(None, None, alike, self.error)
        error = float(np.std(self.drops)) / math.sqrt(len(self.drops))
        return ImageScore(float(np.mean(self.truths)), error, alike, self.error)
