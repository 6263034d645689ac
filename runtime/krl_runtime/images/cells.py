"""Sheets of small images with two lines of text below each."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

import numpy as np
from PIL import Image, ImageDraw, ImageFont, ImageOps

if TYPE_CHECKING:
    import numpy.typing as npt

__all__ = ["SIDE", "Cell", "cell_sheet"]

SIDE: Final = 128
"""Pixels of a small image: a row of six fits a screen."""
_LINE: Final = 12  # pixels of a line of text below it
_LETTERS: Final = 22  # of a line, about as wide as the image
_GAP: Final = 6  # pixels between images
_WHITE, _BLACK, _RED = (255, 255, 255), (0, 0, 0), (180, 0, 0)  # red: what a reader should see first


@dataclass(frozen=True)
class Cell:
    """A small image with text.

    Attributes:
        image: Shown on a white square.
        name: The first line; of a long one the end.
        text: The second line; of a long one the beginning.
        warns: Whether the second line is red.
    """

    image: Image.Image
    name: str
    text: str = ""
    warns: bool = False


def cell_sheet(rows: Iterable[Sequence[Cell]], count: int, columns: int) -> npt.NDArray[np.uint8]:
    """Return an image of rows of cells, ``[H, W, 3]`` of uint8.

    Args:
        rows: The rows; they may be made while they are drawn.
        count: Number of rows.
        columns: Cells of the longest row.
    """
    cell = (SIDE + _GAP, SIDE + 2 * _LINE + _GAP)
    whole = Image.new("RGB", (columns * cell[0] + _GAP, count * cell[1] + _GAP), _WHITE)
    draw = ImageDraw.Draw(whole)
    for row, cells in enumerate(rows):
        for column, each in enumerate(cells):
            left, top = _GAP + column * cell[0], _GAP + row * cell[1]
            whole.paste(_square(each.image), (left, top))
            lines = ((each.name[-_LETTERS:], _BLACK), (each.text[:_LETTERS], _RED if each.warns else _BLACK))
            for line, (words, ink) in enumerate(lines):
                place = (left, top + SIDE + line * _LINE)
                draw.text(place, _printable(words), fill=ink, font=ImageFont.load_default(10))
    return np.asarray(whole)


def _square(image: Image.Image) -> Image.Image:
    """Return an image on a white square; one of few pixels shows each of them."""
    enlarged = max(image.size) * 2 <= SIDE
    filter_ = Image.Resampling.NEAREST if enlarged else Image.Resampling.BILINEAR
    return ImageOps.pad(image.convert("RGB"), (SIDE, SIDE), filter_, color=_WHITE)


def _printable(text: str) -> str:
    """Return text with a question mark for letters that the font of Pillow lacks."""
    return text.encode("latin-1", "replace").decode("latin-1")
