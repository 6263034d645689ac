"""What is beside the images of a set, for networks with several inputs: attributes, further images, descriptors."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from krl_runtime.bundle.further_inputs import AttributeInput, DescriptorInput, FurtherInput, ImageInput
from krl_runtime.errors import DataError, UsageError
from krl_runtime.images.folders import ImageFile
from krl_runtime.images.listed_files import FilesBelow
from krl_runtime.progress import progress
from krl_train.config import CATEGORY, FurtherInputsConfig

from .pixels import PixelSet

__all__ = ["FITTED", "Reader", "attach", "fit_inputs"]

Reader = Callable[[Sequence[ImageFile]], PixelSet]
"""Reads further images as the first ones are read."""

_CHUNK = 256  # images that are decoded at once for their descriptors
FITTED = 2000
"""Training images whose descriptors are measured: mean and deviation are then known to a few percent."""


def attach(
    part: PixelSet,
    files: Sequence[ImageFile],
    inputs: Sequence[FurtherInput],
    read: Reader | None = None,
    folder: Path = Path(),
) -> None:
    """Give a set of images what is beside them.

    Args:
        part: The images, as they were read.
        files: Those of a list that they were read from; more of them may be there, none for images that are no files.
        inputs: The inputs beside the image.
        read: Reads the further images; ``None`` for data that is no list.
        folder: Folder of the list, which its paths are relative to.

    Raises:
        DataError: A row of the list lacks a column or has a value that is not accepted, or an image cannot be read.
    """
    known = {image.path: image for image in files}
    rows = [known[path] for path in part.files]
    part.further = tuple(_one(part, rows, item, read, folder) for item in inputs)


def _one(
    part: PixelSet, rows: Sequence[ImageFile], item: FurtherInput, read: Reader | None, folder: Path
) -> PixelSet | Tensor:
    if isinstance(item, DescriptorInput):
        return torch.from_numpy(np.concatenate([item.of(images) for images in _images(part, len(part))]))
    if read is None:
        raise DataError(
            f"the data has no {item.input}, which the network takes beside the image; accepted: a list of images (CSV, "
            "JSON) with that in its columns"
        )
    if isinstance(item, AttributeInput):
        return torch.from_numpy(item.encode([row.fields for row in rows]))
    below = FilesBelow(folder)
    return read([replace(row, path=_path(row, item.name, below)) for row in rows])


def _path(row: ImageFile, column: str, below: FilesBelow) -> Path:
    if not row.fields.get(column):
        raise DataError(f"image {row.path} has no {column!r}; give a list of images with that column, in each row")
    try:
        found = below.find(row.fields[column])
    except ValueError as error:
        raise DataError(f"image {row.path}, {column!r}: {error}; put the list above its images") from error
    if found is None:
        raise DataError(f"image {row.path}: its {column!r}, {row.fields[column]}, is not there")
    return found


def _images(part: PixelSet, count: int) -> Iterator[npt.NDArray[np.uint8]]:
    """Yield images ``[n, C, H, W]`` as a device sees them, evenly spread."""
    chosen = np.linspace(0, len(part) - 1, min(count, len(part))).astype(np.int64)
    chunks = [chosen[start : start + _CHUNK] for start in range(0, len(chosen), _CHUNK)]
    for indices in progress(chunks, "computing descriptors"):
        pixels, margin = part.pixels(indices), part.margin
        inner = pixels[:, :, margin:-margin, margin:-margin] if margin else pixels
        yield np.ascontiguousarray(inner.numpy())


def fit_inputs(
    config: FurtherInputsConfig, rows: Sequence[Mapping[str, Any]], images: Callable[[], PixelSet]
) -> list[FurtherInput]:
    """Return the inputs that the options ask for, with what the training data says of them.

    Args:
        config: The options.
        rows: What a list has in its columns, of each training image; none for data that is no list.
        images: Reads training images, for descriptors.

    Raises:
        UsageError: The data is no list, and columns are asked for; or it does not have one of them.
        DataError: A value is empty.
    """
    found: list[FurtherInput] = []
    columns = [*(name.removesuffix(CATEGORY) for name in config.attributes), *config.further_images]
    if columns:
        _check_columns(columns, rows)
    if config.attributes:
        categories = [name.removesuffix(CATEGORY) for name in config.attributes if name.endswith(CATEGORY)]
        names = [name.removesuffix(CATEGORY) for name in config.attributes]
        found.append(AttributeInput.fit(rows, names, categories=categories))
    found += [ImageInput(f"pixels_{name}", name) for name in config.further_images]
    if config.descriptors:
        found.append(DescriptorInput.fit(np.concatenate(list(_images(images(), FITTED))), config.descriptors))
    return found


def _check_columns(columns: Sequence[str], rows: Sequence[Mapping[str, Any]]) -> None:
    there = list(dict.fromkeys(name for row in rows for name in row))
    missing = [name for name in columns if name not in there]
    if missing:
        known = f"; its columns are {', '.join(there)}" if there else ""
        raise UsageError(
            f"{missing[0]!r} is no column of the data{known}; accepted: columns of a list of images (CSV, JSON), which "
            "--data names; krl-train unpack writes a data set as a folder that a list can name"
        )
