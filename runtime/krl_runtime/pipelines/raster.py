"""Images that networks made: kept as arrays, shown and saved as files."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from krl_runtime.errors import UsageError
from krl_runtime.files import atomic_path

if TYPE_CHECKING:
    import numpy.typing as npt
    from PIL import Image

__all__ = ["Raster", "grid"]

_FORMATS = {".png": "PNG", ".webp": "WEBP", ".tif": "TIFF", ".tiff": "TIFF", ".jpg": "JPEG", ".jpeg": "JPEG"}
_MODES = {1: "L", 2: "LA", 3: "RGB", 4: "RGBA"}


@dataclass(frozen=True, eq=False)
class Raster:
    """An image that a network made.

    Attributes:
        pixels: uint8 ``[H, W, channels]``: gray, gray and alpha, RGB, or RGB and alpha.
    """

    pixels: npt.NDArray[np.uint8] = field(repr=False)

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
        from PIL import Image

        return Image.fromarray(self.pixels[..., 0] if self.mode == "L" else self.pixels)

    def save(self, path: str | Path) -> Path:
        """Write a file, whole or not at all.

        Args:
            path: Its ending says what is written: ``.png``, ``.webp`` (without loss), ``.tif`` or ``.jpg``.

        Returns:
            The path.

        Raises:
            UsageError: The ending is another one, or JPEG is asked for and the image has transparency.
        """
        path = Path(path)
        kind = _FORMATS.get(path.suffix.lower())
        if kind is None or (kind == "JPEG" and "A" in self.mode):
            accepted = ", ".join(_FORMATS if kind is None else (".png", ".webp", ".tif"))
            raise UsageError(f"an image in mode {self.mode} cannot be written as {path.name}; accepted: {accepted}")
        options: dict[str, Any] = {"quality": 95} if kind == "JPEG" else {"lossless": True} if kind == "WEBP" else {}
        with atomic_path(path) as temporary, temporary.open("wb") as file:
            self.image.save(file, kind, **options)
        return path

    def __str__(self) -> str:
        """Return size and mode."""
        return f"{self.width}x{self.height} {self.mode}"


def grid(images: Sequence[Raster], columns: int | None = None, *, gap: int = 2) -> Raster:
    """Return images of one size side by side, row by row, on white.

    Args:
        images: At least one.
        columns: Images in a row; left out: as many as make the grid about square.
        gap: Pixels between them.

    Raises:
        UsageError: There is none, they differ in size or mode, or ``columns`` is less than 1.
    """
    shapes = {image.pixels.shape for image in images}
    columns = math.ceil(math.sqrt(len(images))) if columns is None else columns
    if len(shapes) != 1 or columns < 1:
        raise UsageError(
            f"{len(images)} images of {len(shapes)} sizes in {columns} columns make no grid; accepted: one or more "
            "images of one size, 1 column or more"
        )
    height, width, channels = shapes.pop()
    columns = min(columns, len(images))
    rows = -(-len(images) // columns)
    whole = np.full((rows * (height + gap) - gap, columns * (width + gap) - gap, channels), 255, np.uint8)
    for index, image in enumerate(images):
        top, left = index // columns * (height + gap), index % columns * (width + gap)
        whole[top : top + height, left : left + width] = image.pixels
    return Raster(whole)
