"""Images from networks: arrays that can be shown and saved."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from krl_runtime.errors import UsageError
from krl_runtime.files import atomic_path
from krl_runtime.images.modes import ChannelOrder, image_of

if TYPE_CHECKING:
    import numpy.typing as npt
    from PIL import Image

__all__ = ["Raster", "grid"]

_FORMATS = {".png": "PNG", ".webp": "WEBP", ".tif": "TIFF", ".tiff": "TIFF", ".jpg": "JPEG", ".jpeg": "JPEG"}
_MODES = {1: "L", 2: "LA", 3: "RGB", 4: "RGBA"}


@dataclass(frozen=True, eq=False)
class Raster:
    """An image from a network.

    Attributes:
        pixels: uint8 ``[H, W, channels]``: gray, gray and alpha, RGB, or RGB and alpha, in ``channel_order``.
        icc_profile: The color profile of the pixels, which is written with them; ``None`` for sRGB, or unknown.
        channel_order: Order of the colors in ``pixels``.

    Example:
        >>> image = Raster(np.zeros((2, 3, 4), np.uint8))
        >>> image.width, image.height, image.mode
        (3, 2, 'RGBA')
        >>> str(image)
        '3x2 RGBA'
    """

    pixels: npt.NDArray[np.uint8] = field(repr=False)
    icc_profile: bytes | None = field(default=None, repr=False)
    channel_order: ChannelOrder = "rgb"

    @property
    def width(self) -> int:
        """Width in pixels."""
        return int(self.pixels.shape[1])

    @property
    def height(self) -> int:
        """Height in pixels."""
        return int(self.pixels.shape[0])

    @property
    def mode(self) -> str:
        """Pillow's name of the color mode: ``"L"``, ``"LA"``, ``"RGB"`` or ``"RGBA"``."""
        return _MODES[self.pixels.shape[2]]

    @property
    def image(self) -> Image.Image:
        """The image as a Pillow image."""
        image = image_of(self.pixels, self.channel_order)
        if self.icc_profile is not None:
            image.info["icc_profile"] = self.icc_profile
        return image

    def save(self, path: str | Path) -> Path:
        """Write a file atomically.

        Args:
            path: The file. Its suffix is the format: ``.png``, ``.webp`` (lossless), ``.tif`` or ``.jpg``.

        Returns:
            The path.

        Raises:
            UsageError: The suffix is another one, or ``.jpg`` for an image with transparency.
        """
        path = Path(path)
        kind = _FORMATS.get(path.suffix.lower())
        if kind is None or (kind == "JPEG" and "A" in self.mode):
            accepted = ", ".join(_FORMATS if kind is None else (".png", ".webp", ".tif"))
            raise UsageError(f"an image in mode {self.mode} cannot be written as {path.name}; accepted: {accepted}")
        options: dict[str, Any] = {"quality": 95} if kind == "JPEG" else {"lossless": True} if kind == "WEBP" else {}
        with atomic_path(path) as temporary, temporary.open("wb") as file:
            self.image.save(file, kind, icc_profile=self.icc_profile, **options)
        return path

    def __str__(self) -> str:
        """Return size and mode."""
        return f"{self.width}x{self.height} {self.mode}"

    def __repr__(self) -> str:
        """Return size and mode, and not the pixels."""
        return f"Raster({self})"


def grid(images: Sequence[Raster], columns: int | None = None, *, gap: int = 2) -> Raster:
    """Return images of one size side by side, row by row, on white.

    Args:
        images: One or more images.
        columns: Images in a row; left out: the grid is about square.
        gap: Pixels between images.

    Raises:
        UsageError: There is no image, they differ in size, mode or order of colors, or ``columns`` is less than 1.

    Example:
        >>> images = [Raster(np.zeros((8, 8, 1), np.uint8))] * 5
        >>> str(grid(images))
        '28x18 L'
        >>> str(grid(images, columns=5, gap=0))
        '40x8 L'
    """
    shapes = {image.pixels.shape for image in images}
    orders = {image.channel_order for image in images}
    columns = math.ceil(math.sqrt(len(images))) if columns is None else columns
    if len(shapes) != 1 or len(orders) != 1 or columns < 1:
        raise UsageError(
            f"{len(images)} images of {len(shapes)} sizes in {columns} columns make no grid; accepted: one or more "
            "images of one size and one order of colors, 1 column or more"
        )
    height, width, channels = shapes.pop()
    columns = min(columns, len(images))
    rows = -(-len(images) // columns)
    whole = np.full((rows * (height + gap) - gap, columns * (width + gap) - gap, channels), 255, np.uint8)
    for index, image in enumerate(images):
        top, left = index // columns * (height + gap), index % columns * (width + gap)
        whole[top : top + height, left : left + width] = image.pixels
    return Raster(whole, channel_order=orders.pop())
