"""Random rectangles of images: cut out and resized, or erased; by torchvision's rules."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TypeAlias

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from .draws import Draws

__all__ = ["Erasing", "ResizedCrop"]

_ATTEMPTS = 10  # as in torchvision: rectangles that do not fit into the image are drawn again
# Draws of each kind begin at a number of their own. There are 2 for each attempt, and 3 more.
_CROP_DRAWS, _ERASE_DRAWS = 100, 200
_AREA, _RATIO, _TOP, _LEFT, _WHETHER = 0, _ATTEMPTS, 2 * _ATTEMPTS, 2 * _ATTEMPTS + 1, 2 * _ATTEMPTS + 2

Whole: TypeAlias = npt.NDArray[np.int64]
Range: TypeAlias = tuple[float, float]


@dataclass(frozen=True)
class ResizedCrop:
    """A random rectangle of an image, resized to the view: torchvision's ``RandomResizedCrop``, with antialiasing.

    Attributes:
        scale: Least and largest share of the image's area.
        ratio: Least and largest width / height.
    """

    scale: Range
    ratio: Range

    def boxes(self, draws: Draws, height: int, width: int) -> tuple[Whole, Whole, Whole, Whole]:
        """Return top, left, height and width of each image's rectangle, ``[N]`` each.

        Where none of ten drawn rectangles fits, it is the largest one in the middle whose ratio is allowed.

        Args:
            draws: Random numbers.
            height: Of the images.
            width: Of the images.
        """
        widths, heights = _sides(draws, _CROP_DRAWS, height * width, self.scale, self.ratio)
        fits = (widths > 0) & (widths <= width) & (heights > 0) & (heights <= height)
        first, found = _first(fits)
        least, most = self.ratio
        tallest, widest = (max(1, round(side)) for side in (min(height, width / least), min(width, height * most)))
        heights = np.where(found, heights[first, np.arange(len(first))], tallest)
        widths = np.where(found, widths[first, np.arange(len(first))], widest)
        tops = np.where(found, draws.below(_CROP_DRAWS + _TOP, height - heights + 1), (height - heights) // 2)
        lefts = np.where(found, draws.below(_CROP_DRAWS + _LEFT, width - widths + 1), (width - widths) // 2)
        return tops, lefts, heights, widths

    def __call__(self, images: Tensor, draws: Draws, mirrored: npt.NDArray[np.bool_], size: tuple[int, int]) -> Tensor:
        """Return the views.

        Args:
            images: ``[N, C, H, W]`` of uint8.
            draws: Random numbers.
            mirrored: Which views are mirrored, ``[N]``.
            size: Height and width of the views.

        Returns:
            ``[N, C, height, width]`` of uint8, in channels-last layout.
        """
        from torchvision.transforms.v2 import functional

        count, channels, height, width = images.shape
        views = images.new_empty(count, *size, channels).permute(0, 3, 1, 2)
        boxes = zip(*(part.tolist() for part in self.boxes(draws, height, width)), strict=True)
        for image, view, box, mirror in zip(images, views, boxes, mirrored.tolist(), strict=True):
            cut = functional.resized_crop(image, *box, size=list(size), antialias=True)
            view.copy_(cut.flip(2) if mirror else cut)
        return views


@dataclass(frozen=True)
class Erasing:
    """A random rectangle of a view, filled with one color: torchvision's ``RandomErasing``.

    torchvision fills normalized images with 0, which is the mean color.

    Attributes:
        probability: Share of the views.
        scale: Least and largest share of the view's area.
        ratio: Least and largest height / width.
        fill: The color, 0 to 255, one value for each channel.
    """

    probability: float
    scale: Range
    ratio: Range
    fill: tuple[float, ...]

    def boxes(self, draws: Draws, height: int, width: int) -> tuple[Whole, Whole, Whole, Whole]:
        """Return top, left, height and width of each view's rectangle, ``[N]`` each; 0 and 0 where there is none.

        Args:
            draws: Random numbers.
            height: Of the views.
            width: Of the views.
        """
        heights, widths = _sides(draws, _ERASE_DRAWS, height * width, self.scale, self.ratio)
        first, found = _first((heights < height) & (widths < width))
        erased = found & (draws.uniform(_ERASE_DRAWS + _WHETHER) < self.probability)
        heights, widths = (np.where(erased, sides[first, np.arange(len(first))], 0) for sides in (heights, widths))
        tops = draws.below(_ERASE_DRAWS + _TOP, height - heights + 1)
        lefts = draws.below(_ERASE_DRAWS + _LEFT, width - widths + 1)
        return tops, lefts, heights, widths

    def __call__(self, views: Tensor, draws: Draws) -> Tensor:
        """Return the views ``[N, C, H, W]`` of uint8 or float32, 0 to 255, after changing them in place."""
        from torchvision.transforms.v2 import functional

        color = torch.tensor(self.fill, device=views.device)[:, None, None]
        color = color.to(views.dtype) if views.is_floating_point() else color.round().to(views.dtype)
        boxes = zip(*(part.tolist() for part in self.boxes(draws, *views.shape[2:])), strict=True)
        for view, (top, left, height, width) in zip(views, boxes, strict=True):
            if height and width:
                functional.erase(view, top, left, height, width, color, inplace=True)
        return views


def _sides(draws: Draws, start: int, area: int, scale: Range, ratio: Range) -> tuple[Whole, Whole]:
    """Return sides ``[attempts, N]`` of random rectangles, the first divided by the second having a random ratio.

    Areas are uniform, ratios uniform in their logarithm.
    """
    numbers = range(_ATTEMPTS)
    areas = np.stack([area * draws.between(start + _AREA + number, *scale) for number in numbers])
    logarithms = [draws.between(start + _RATIO + number, *map(math.log, ratio)) for number in numbers]
    ratios = np.exp(np.stack(logarithms))
    long, short = np.rint(np.sqrt(areas * ratios)), np.rint(np.sqrt(areas / ratios))
    return long.astype(np.int64), short.astype(np.int64)


def _first(fits: npt.NDArray[np.bool_]) -> tuple[Whole, npt.NDArray[np.bool_]]:
    """Return the first attempt that fits, and whether there is one, ``[N]`` each."""
    return fits.argmax(0), np.logical_or.reduce(fits)
