"""Maps of importance as colors, and laid over an image."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final

import numpy as np
from PIL import Image

if TYPE_CHECKING:
    import numpy.typing as npt

__all__ = ["heat_colors", "overlay"]

# matplotlib's inferno at 0, 1/4 … 1: its lightness rises evenly, so that it can be read without color.
_COLORS: Final = ((0, 0, 4), (87, 16, 110), (188, 55, 84), (249, 142, 9), (252, 255, 164))
_SHARE: Final = 0.6  # of the colors where the map is 1; the image still shows through


def heat_colors(values: npt.NDArray[Any]) -> npt.NDArray[np.uint8]:
    """Return colors from dark (0) to light (1).

    Args:
        values: Of any shape; what is outside of 0 to 1 is taken as the end.

    Returns:
        ``[..., 3]`` of uint8, RGB.
    """
    colors = np.array(_COLORS, np.float64)
    places = np.linspace(0, 1, len(colors))
    channels = [np.interp(values, places, colors[:, channel]) for channel in range(3)]
    return np.asarray(np.stack(channels, -1).round(), np.uint8)


def overlay(pixels: npt.NDArray[np.uint8], heat: npt.NDArray[Any]) -> npt.NDArray[np.uint8]:
    """Lay a map over an image: the more it says, the more its color covers the gray image.

    Args:
        pixels: ``[H, W, C]`` of uint8, gray or RGB.
        heat: ``[h, w]``, 0 or more, of any scale and size; what is below 0 counts as 0.

    Returns:
        ``[H, W, 3]`` of uint8.
    """
    height, width = pixels.shape[:2]
    values = np.maximum(np.asarray(heat, np.float32), 0)
    values = values / max(float(values.max(initial=0)), np.finfo(np.float32).tiny)
    scaled = Image.fromarray(values).resize((width, height), Image.Resampling.BILINEAR)
    shown = np.clip(np.asarray(scaled, np.float64), 0, 1)
    gray = pixels.mean(axis=2, keepdims=True)
    share = _SHARE * shown[..., None]
    return np.asarray(((1 - share) * gray + share * heat_colors(shown)).round(), np.uint8)
