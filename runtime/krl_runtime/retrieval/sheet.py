"""A sheet of images: each query beside its neighbors, with names and similarities."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from pathlib import Path
from typing import Final

from PIL import Image

from krl_runtime.errors import ImageError, UsageError
from krl_runtime.files import inside
from krl_runtime.images.cells import SIDE, Cell, cell_sheet
from krl_runtime.images.preprocessing import open_image
from krl_runtime.pipelines.raster import Raster
from krl_runtime.progress import progress

from .gallery import SearchResult

__all__ = ["sheet"]

_log = logging.getLogger("krl")

_MOST_ROWS: Final = 100  # of a sheet: 15,000 pixels high, which viewers still open
_GRAY: Final = (200, 200, 200)  # neither white, which is around images, nor like one


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
    rows = (_row(query, result, gallery) for query, result in progress(shown, "drawing the sheet"))
    return Raster(cell_sheet(rows, len(shown), columns))


def _row(query: Path, result: SearchResult, gallery: Path) -> list[Cell]:
    return [
        Cell(_image(query), query.name, result.prediction, warns=not result.known),
        *(
            Cell(_item(gallery, item.name), item.name, f"{item.similarity:.3f} {item.label}")
            for item in result.neighbors
        ),
    ]


def _item(gallery: Path, name: str) -> Image.Image:
    try:
        return _image(inside(gallery, name))
    except ValueError as error:
        _log.warning("the sheet lacks %s: %s", name, error)
        return Image.new("RGB", (SIDE, SIDE), _GRAY)


def _image(path: Path) -> Image.Image:
    """Return an image; a gray square if it cannot be read."""
    try:
        return open_image(path, mode="RGB")
    except ImageError as error:
        _log.warning("the sheet lacks %s", error)
        return Image.new("RGB", (SIDE, SIDE), _GRAY)
