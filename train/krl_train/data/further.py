"""The inputs beside the images of a set, for networks with several inputs: attributes, further images, descriptors."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from krl_runtime.attributes import AttributeInput
from krl_runtime.bundle.further_inputs import FurtherInput, ImageInput
from krl_runtime.errors import DataError, UsageError
from krl_runtime.images.descriptors import DescriptorInput
from krl_runtime.images.folders import ImageFile
from krl_runtime.images.preprocessing import Preprocessing
from krl_runtime.progress import progress
from krl_train.config import CATEGORY, FurtherInputsConfig

from .pixels import PixelSet

__all__ = ["FITTED", "Reader", "attach", "fit_inputs"]

FITTED = 2000
"""Training images whose descriptors are measured: mean and deviation are then known to a few percent."""

Reader = Callable[[Sequence[ImageFile]], PixelSet]
"""Reads further images as the first ones are read."""


def attach(
    part: PixelSet, files: Sequence[ImageFile], inputs: Sequence[FurtherInput], read: Reader | None = None
) -> None:
    """Give a set of images its further inputs.

    Args:
        part: The images, as they were read.
        files: Those of a list that they were read from; more of them may be there, none for images that are no files.
        inputs: The inputs beside the image.
        read: Reads the further images; ``None`` for data that is no list.

    Raises:
        DataError: The data has no such columns, a value is not accepted, or an image cannot be read.
    """
    known = {image.path: image for image in files}
    rows = [known[path] for path in part.files] if files else []
    part.further = tuple(_one(part, rows, item, read) for item in inputs)


def _one(part: PixelSet, rows: Sequence[ImageFile], item: FurtherInput, read: Reader | None) -> PixelSet | Tensor:
    if isinstance(item, DescriptorInput):
        return torch.from_numpy(np.stack([item(image) for image in _images(part, len(part), "computing descriptors")]))
    missing = next((name for name in item.names if read is None or any(name not in row.fields for row in rows)), None)
    if read is None or missing is not None:
        raise DataError(
            f"the data has no {missing!r}, which the network takes beside the image; accepted: a list of images (CSV, "
            "JSON) with that column"
        )
    if isinstance(item, ImageInput):
        return read([replace(row, path=Path(row.fields[item.name])) for row in rows])
    return torch.from_numpy(np.stack([_encoded(row, item) for row in rows]))


def _encoded(row: ImageFile, item: AttributeInput) -> npt.NDArray[np.float32]:
    try:
        return item.encode(row.fields)
    except UsageError as error:
        raise DataError(f"image {row.path}: {error}") from error


def _images(part: PixelSet, count: int, description: str) -> Iterator[npt.NDArray[np.uint8]]:
    """Yield images ``[C, H, W]`` as a device sees them, evenly spread."""
    chosen = np.linspace(0, len(part) - 1, min(count, len(part))).astype(np.int64)
    for index in progress(chosen.tolist(), description):
        yield np.ascontiguousarray(part.inside(np.array([index]))[0].numpy())


def fit_inputs(
    config: FurtherInputsConfig,
    rows: Sequence[Mapping[str, str]],
    preprocessing: Preprocessing,
    images: Callable[[], PixelSet],
) -> list[FurtherInput]:
    """Return the inputs that the options ask for, with what the training data says of them.

    Args:
        config: The options.
        rows: What a list has in the columns beside each image.
        preprocessing: From an image to the network's input.
        images: Reads training images, for descriptors.

    Raises:
        UsageError: A descriptor is not for such images.
        DataError: A value is empty, or a category has too many.
    """
    found: list[FurtherInput] = []
    if config.attributes:
        categories = [name.removesuffix(CATEGORY) for name in config.attributes if name.endswith(CATEGORY)]
        found.append(AttributeInput.fit(rows, config.columns, categories))
    found += [ImageInput.of(name, preprocessing) for name in config.further_images]
    if config.descriptors:
        measured = _images(images(), FITTED, "measuring descriptors")
        found.append(DescriptorInput.fit(measured, config.descriptors))
    return found
