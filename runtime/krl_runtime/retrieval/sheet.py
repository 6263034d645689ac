"""A sheet of images: each query beside its neighbors, with names and similarities."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from pathlib import Path
from typing import Final

import numpy as np
from PIL import Image, ImageDraw, ImageFont, ImageOps

from krl_runtime.errors import ImageError, UsageError
from krl_runtime.files import inside
from krl_runtime.images.preprocessing import open_image
from krl_runtime.pipelines.raster import Raster
from krl_runtime.progress import progress

from .gallery import SearchResult

__all__ = ["sheet"]

_log = logging.getLogger("krl")

_SIDE: Final = 128  # pixels of a small image: a row of a query and five neighbors fits a screen
_LINE: Final = 12  # pixels of a line of text below it
_LETTERS: Final = 22  # of a line, about as wide as the image
_GAP: Final = 6  # pixels between images
_MOST_ROWS: Final = 100  # of a sheet: 15,000 pixels high, which viewers still open
_WHITE, _GRAY, _BLACK, _RED = (255, 255, 255), (200, 200, 200), (0, 0, 0), (180, 0, 0)  # red: none of these


def sheet(results: Mapping[Path, SearchResult], gallery: Path) -> Raster:
    """Return an image with a row for each query: the query, and its neighbors from the nearest on.

    An image that cannot be read, or that lies outside of the gallery, is a gray square; that is logged.

    Args:
        results: By the query's file; the first hundred are shown.
        gallery: Folder that the names of the items are relative to.

    Raises:
        UsageError: The gallery is no folder.
    """
    if not gallery.is_dir():
        raise UsageError(f"--gallery {gallery} is no folder; give the folder that was indexed")
    if len(results) > _MOST_ROWS:
        _log.warning("the sheet shows the first %d of %d queries", _MOST_ROWS, len(results))
    shown = list(results.items())[:_MOST_ROWS]
    columns = 1 + max(len(result.neighbors) for _, result in shown)
    cell = (_SIDE + _GAP, _SIDE + 2 * _LINE + _GAP)
    whole = Image.new("RGB", (columns * cell[0] + _GAP, len(shown) * cell[1] + _GAP), _WHITE)
    draw = ImageDraw.Draw(whole)
    for row, (query, result) in enumerate(progress(shown, "drawing the sheet")):
        cells = [(_small(query), query.name, result.prediction, _BLACK if result.known else _RED)]
        cells += [
            (_item(gallery, item.name), item.name, f"{item.similarity:.3f} {item.label}", _BLACK)
            for item in result.neighbors
        ]
        for column, (image, name, text, color) in enumerate(cells):
            left, top = _GAP + column * cell[0], _GAP + row * cell[1]
            whole.paste(image, (left, top))
            for line, (words, ink) in enumerate(((name[-_LETTERS:], _BLACK), (text[:_LETTERS], color))):
                place = (left, top + _SIDE + line * _LINE)
                draw.text(place, _printable(words), fill=ink, font=ImageFont.load_default(10))
    return Raster(np.asarray(whole))


def _item(gallery: Path, name: str) -> Image.Image:
    try:
        return _small(inside(gallery, name))
    except ValueError as error:
        _log.warning("the sheet lacks %s: %s", name, error)
        return Image.new("RGB", (_SIDE, _SIDE), _GRAY)


def _small(path: Path) -> Image.Image:
    """Return an image on a white square; a gray square if it cannot be read."""
    try:
        image = open_image(path, mode="RGB")
    except ImageError as error:
        _log.warning("the sheet lacks %s", error)
        return Image.new("RGB", (_SIDE, _SIDE), _GRAY)
    return ImageOps.pad(image, (_SIDE, _SIDE), Image.Resampling.BILINEAR, color=_WHITE)


def _printable(text: str) -> str:
    """Return text with a question mark for letters that the font of Pillow lacks."""
    return text.encode("latin-1", "replace").decode("latin-1")
