"""The difference of one tensor between two networks, summed over batches."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from krl_runtime.errors import ModelError
from krl_runtime.evaluation.predictions import snr_db

__all__ = ["Difference"]

_NOT_FINITE_DB = -200.0  # the other end of the scale of snr_db, whose 200 dB are equal values


@dataclass
class Difference:
    """Sums over the values of a tensor in a reference ``a`` and in another network ``b``.

    Attributes:
        signal: Sum of the squares of ``a``.
        noise: Sum of the squared differences.
        other: Sum of the squares of ``b``.
        product: Sum of the products of both.
        largest: Largest absolute difference.
        not_finite: Number of values that are infinite or NaN in one of them, and not the same in the other.
    """

    signal: float = 0.0
    noise: float = 0.0
    other: float = 0.0
    product: float = 0.0
    largest: float = 0.0
    not_finite: int = 0

    def add(self, a: npt.NDArray[Any], b: npt.NDArray[Any]) -> None:
        """Add one batch.

        Args:
            a: Values of the reference, of any shape and float type.
            b: Values of the other network, of the same shape.

        Raises:
            ModelError: The shapes differ.
        """
        if a.shape != b.shape:
            raise ModelError(f"the values have the shape {list(a.shape)} in a, and {list(b.shape)} in b")
        one, two = a.astype(np.float64).ravel(), b.astype(np.float64).ravel()
        finite = np.isfinite(one) & np.isfinite(two)
        if not finite.all():
            # The same infinity in both, as of an attention mask, is no error.
            self.not_finite += int((~finite & (one != two) & ~(np.isnan(one) & np.isnan(two))).sum())
            one, two = one[finite], two[finite]
        if not one.size:
            return
        error = one - two
        self.signal += float(one @ one)
        self.noise += float(error @ error)
        self.other += float(two @ two)
        self.product += float(one @ two)
        self.largest = max(self.largest, float(np.abs(error).max()))

    @property
    def snr_db(self) -> float:
        """Return the power of ``a`` over that of the error, in dB: 200 if equal, -200 if values are not finite."""
        return _NOT_FINITE_DB if self.not_finite else snr_db(self.signal, self.noise)

    @property
    def cosine(self) -> float:
        """Return the cosine of the angle between both, -1 to 1, of the finite values; 1 if both are 0."""
        if self.signal == 0 or self.other == 0:
            return 1.0 if self.signal == self.other else 0.0
        return float(np.clip(self.product / np.sqrt(self.signal) / np.sqrt(self.other), -1, 1))

    def to_dict(self) -> dict[str, Any]:
        """Return it as plain JSON types."""
        found = {"snr_db": self.snr_db, "cosine": self.cosine, "max_error": self.largest}
        return {**found, "not_finite": self.not_finite} if self.not_finite else found
