"""Scores of a variant that makes images, beside the reference: PSNR to the true images and to the reference's."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import asdict, dataclass
from typing import Any, ClassVar

import numpy as np
import numpy.typing as npt

from krl_runtime.images.luma import mean_psnr

from .predictions import drop_cell, snr_db

__all__ = ["ImageScore", "ImageTally"]


@dataclass(frozen=True)
class ImageScore:
    """Images that one variant of a model makes.

    Attributes:
        psnr: In dB to the true images, the mean over images; ``None`` if they are not known.
        drop: Drop of ``psnr`` against the reference, in dB, the mean over images; ``None`` without true images.
        drop_error: One standard error of ``drop``: of the paired difference. ``None`` without true images.
        psnr_to_fp32: In dB to those of the reference, the mean over images; 200 if they are equal.
        snr_db: Power of the reference's values over that of their error, in dB; 200 if they are equal.
        max_error: Largest absolute difference of a value from the reference's, in levels of 255.
    """

    psnr: float | None
    drop: float | None
    drop_error: float | None
    psnr_to_fp32: float
    snr_db: float
    max_error: float

    HEADER: ClassVar[tuple[str, ...]] = ("PSNR in dB", "drop in dB", "dB to fp32", "largest error")

    def to_dict(self) -> dict[str, Any]:
        """Return the score as plain JSON types."""
        return asdict(self)

    def cells(self, reference: ImageScore) -> tuple[str | None, ...]:
        """Return the score for people, beside that of the reference."""
        return (
            None if self.psnr is None else f"{self.psnr:.3f}",
            drop_cell(self.drop, None if self is reference else self.drop_error, 3),
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
        self.error = self.signal = self.noise = 0.0

    def add(
        self, outputs: npt.NDArray[np.float32], reference: npt.NDArray[np.float32], truth: npt.NDArray[Any] | None
    ) -> None:
        """Count one batch ``[N, C, H, W]``. A truth is that of the batch's only image."""
        pairs = zip(outputs, reference, strict=True)
        self.references += [mean_psnr(one[None], other[None]) for one, other in pairs]
        difference = outputs.astype(np.float64) - reference
        self.error = max(self.error, float(np.abs(difference).max()))
        self.signal += float(np.square(reference, dtype=np.float64).sum())
        self.noise += float(np.square(difference).sum())
        if truth is not None:
            self.truths.append(self.quality(outputs[0], truth))
            self.drops.append(self.quality(reference[0], truth) - self.truths[-1])

    def score(self) -> ImageScore:
        """Return the score of all batches."""
        alike, snr, count = float(np.mean(self.references)), snr_db(self.signal, self.noise), len(self.truths)
        if count != len(self.references):
            return ImageScore(None, None, None, alike, snr, self.error)
        error = float(np.std(self.drops, ddof=1)) / math.sqrt(count) if count > 1 else 0.0
        return ImageScore(float(np.mean(self.truths)), float(np.mean(self.drops)), error, alike, snr, self.error)
