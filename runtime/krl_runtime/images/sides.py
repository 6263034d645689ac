"""Sides of images that a network of open size can take, and padding up to them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final

import numpy as np

if TYPE_CHECKING:
    import numpy.typing as npt

__all__ = ["LONGEST_SIDE", "Sides", "padded"]

LONGEST_SIDE: Final = 1024
"""A manifest may ask for padding up to this: networks halve an image up to ten times at most."""


@dataclass(frozen=True)
class Sides:
    """Lengths that height and width may have.

    Attributes:
        smallest: The smallest one, such as 4 for a network that pads by reflecting 3 pixels.
        multiple: All are its multiples, such as 8 for a network that halves an image three times and joins the parts.
    """

    smallest: int = 1
    multiple: int = 1

    @classmethod
    def of(cls, settings: Mapping[str, Any]) -> Sides:
        """Return the lengths that a manifest's settings name; any, where they name none."""
        return cls(settings.get("smallest_side", 1), settings.get("multiple", 1))

    def settings(self) -> dict[str, int]:
        """Return the settings of the manifest; those of networks that take any length are left out."""
        named = {"smallest_side": self.smallest, "multiple": self.multiple}
        return {name: value for name, value in named.items() if value != 1}

    def fit(self, length: int) -> int:
        """Return the smallest length that is not below a given one.

        Example:
            >>> Sides(smallest=4, multiple=8).fit(1), Sides(smallest=4, multiple=8).fit(17), Sides().fit(17)
            (8, 24, 17)
        """
        return -(-max(length, self.smallest) // self.multiple) * self.multiple


def padded(pixels: npt.NDArray[np.uint8], height: int, width: int) -> npt.NDArray[np.uint8]:
    """Return pixels ``[C, H, W]`` with their last row and column repeated up to a size, if they are smaller."""
    missing = [max(0, size - given) for size, given in zip((height, width), pixels.shape[1:], strict=True)]
    return np.pad(pixels, ((0, 0), (0, missing[0]), (0, missing[1])), mode="edge") if any(missing) else pixels
