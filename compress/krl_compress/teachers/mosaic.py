"""Small images of a graph that takes large ones: many are put side by side, so that one run restores all of them."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

__all__ = ["Mosaic", "Restore", "radius_of"]

Restore = Callable[[npt.NDArray[np.uint8]], npt.NDArray[np.float32]]
"""Maps an image ``[C, H, W]`` of uint8 to ``[C, scale * H, scale * W]`` of float32, 0 to 255."""

_CHANGED = 0.5  # levels of 255: less would not be seen in an image of uint8
_LEVELS = 255  # the largest of uint8


@dataclass(frozen=True)
class Mosaic:
    """Restores images that are smaller than the graph's fixed sides.

    Each image is surrounded by copies of its outermost pixels, as many as an output pixel depends on, so that neighbors
    have no part in it.

    Attributes:
        restore: Restores one image of the fixed sides.
        sides: Height and width of that.
        scale: By how much a restored image is larger.
        gutter: Pixels around each image.
    """

    restore: Restore
    sides: tuple[int, int]
    scale: int
    gutter: int

    def fits(self, height: int, width: int) -> int:
        """Return how many images of a size one run restores; 0 where not even one fits with its surroundings."""
        rows, columns = self._grid(height, width)
        return rows * columns

    def __call__(self, images: npt.NDArray[np.uint8]) -> npt.NDArray[np.float32]:
        """Restore images ``[N, C, H, W]`` of which ``fits`` allows one or more."""
        count, channels, height, width = images.shape
        rows, columns = self._grid(height, width)
        gutter, scale = self.gutter, self.scale
        cells = np.pad(images, ((0, 0), (0, 0), (gutter, gutter), (gutter, gutter)), mode="edge")
        made = np.empty((count, channels, height * scale, width * scale), np.float32)
        for start in range(0, count, rows * columns):
            canvas = np.zeros((channels, *self.sides), np.uint8)
            places = []
            for number in range(start, min(count, start + rows * columns)):
                row, column = divmod(number - start, columns)
                top, left = row * cells.shape[2], column * cells.shape[3]
                canvas[:, top : top + cells.shape[2], left : left + cells.shape[3]] = cells[number]
                places.append((number, (top + gutter) * scale, (left + gutter) * scale))
            whole = self.restore(canvas)
            for number, top, left in places:
                made[number] = whole[:, top : top + height * scale, left : left + width * scale]
        return made

    def _grid(self, height: int, width: int) -> tuple[int, int]:
        return self.sides[0] // (height + 2 * self.gutter), self.sides[1] // (width + 2 * self.gutter)


def radius_of(restore: Restore, channels: int, sides: tuple[int, int], scale: int) -> int:
    """Return how many pixels away from an input pixel the output still depends on it, measured on one image.

    One pixel of a random image turns from black to white. Changes of less than half a level do not count.

    Args:
        restore: Restores an image of the sides.
        channels: Channels of the image.
        sides: Its height and width.
        scale: By how much the restored image is larger.
    """
    image = np.random.default_rng(0).integers(0, _LEVELS + 1, (channels, *sides), dtype=np.uint8)
    center = (sides[0] // 2, sides[1] // 2)
    black, white = image.copy(), image.copy()
    black[:, center[0], center[1]], white[:, center[0], center[1]] = 0, _LEVELS
    changed = np.argwhere((np.abs(restore(white) - restore(black)) > _CHANGED).any(axis=0)) // scale
    return int(np.abs(changed - center).max(initial=0))
