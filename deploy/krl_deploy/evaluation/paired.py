"""A variant beside FP32, input by input: what few inputs resolve, unlike two accuracies that are subtracted."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, TypeAlias

import numpy as np
import numpy.typing as npt

__all__ = ["EXACT", "Paired", "PairedTally", "Pairs"]

EXACT = 1e-9
"""Rounding of a mean: 97 of 100 are 97 %, and not 96.99…99."""

_EQUAL = 200.0  # dB, for outputs without an error; no logarithm has such a number

Pairs: TypeAlias = "tuple[npt.NDArray[np.float64], npt.NDArray[np.float64] | None]"
"""How alike each output is to FP32's (1 or 0, or dB), and each one's accuracy drop; ``None`` if it is not known."""


@dataclass(frozen=True)
class Paired:
    """A variant beside FP32 on the same inputs.

    Attributes:
        count: Number of inputs.
        alike: Share, 0 to 1, with FP32's prediction, or mean PSNR in dB to its images.
        drop: Mean of the paired differences of accuracy, in points or dB; ``None`` if the truth is not known.
        error: One standard error of ``drop``.
        snr: Signal-to-noise ratio of the outputs in dB.
    """

    count: int
    alike: float
    drop: float | None
    error: float
    snr: float


class PairedTally:
    """Counts one batch after the other.

    Args:
        pairs: Of the task; see ``krl_deploy.evaluation.Task.pairs``.
    """

    def __init__(
        self,
        pairs: Callable[[npt.NDArray[np.float32], npt.NDArray[np.float32], npt.NDArray[Any] | None], Pairs],
    ) -> None:
        self.pairs = pairs
        self.alike: list[npt.NDArray[np.float64]] = []
        self.drops: list[npt.NDArray[np.float64] | None] = []
        self.signal = self.noise = 0.0

    def add(
        self, outputs: npt.NDArray[np.float32], reference: npt.NDArray[np.float32], truth: npt.NDArray[Any] | None
    ) -> None:
        """Count one batch; see ``krl_deploy.evaluation.Tally.add``."""
        alike, drops = self.pairs(outputs, reference, truth)
        self.alike.append(alike)
        self.drops.append(drops)
        exact = reference.astype(np.float64)
        self.signal += float(np.square(exact).sum())
        self.noise += float(np.square(outputs - exact).sum())

    def paired(self) -> Paired:
        """Return the comparison on all batches; drops count only if all of them are known."""
        alike = np.concatenate(self.alike)
        known = [drops for drops in self.drops if drops is not None]
        drops = np.concatenate(known) if len(known) == len(self.drops) else None
        error = 0.0 if drops is None or len(drops) < 2 else float(drops.std(ddof=1) / np.sqrt(len(drops)))
        snr = _EQUAL if self.noise == 0 else 10 * float(np.log10(max(self.signal / self.noise, 10 ** (-_EQUAL / 10))))
        return Paired(len(alike), float(alike.mean()), None if drops is None else float(drops.mean()), error, snr)
