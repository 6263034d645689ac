"""Random numbers of a view: functions of the seed, the image's index and the view's number alone."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

__all__ = ["Draws"]


@dataclass(frozen=True)
class Draws:
    """Random numbers of one view of each image of a batch; neither the batch nor the process plays a part.

    Attributes:
        seed: Seed of all views.
        indices: The images' indices in the data set, ``[N]``.
        view: Number of the view.
    """

    seed: int
    indices: npt.NDArray[np.int64]
    view: int

    def uniform(self, draw: int) -> npt.NDArray[np.float64]:
        """Return numbers in [0, 1), one for each image, by the splitmix64 hash of all arguments.

        Args:
            draw: Number of the draw; another one for each use.
        """
        with np.errstate(over="ignore"):
            x = self.indices.astype(np.uint64)
            for value in (self.seed, self.view, draw):
                x = x + np.uint64((value * 0x9E3779B97F4A7C15 + 0x9E3779B97F4A7C15) % 2**64)
                x = (x ^ (x >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
                x = (x ^ (x >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
                x = x ^ (x >> np.uint64(31))
        return np.asarray((x >> np.uint64(11)).astype(np.float64) * 2.0**-53)

    def between(self, draw: int, low: float, high: float) -> npt.NDArray[np.float64]:
        """Return numbers in [low, high), one for each image."""
        return low + self.uniform(draw) * (high - low)

    def below(self, draw: int, count: npt.NDArray[np.int64] | int) -> npt.NDArray[np.int64]:
        """Return whole numbers from 0 to below ``count``, which may be another for each image."""
        return (self.uniform(draw) * count).astype(np.int64)
