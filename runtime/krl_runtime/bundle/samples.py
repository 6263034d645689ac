"""Samples of a list of images for a classifier with further inputs, read with the device's code."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy.typing as npt

from krl_runtime.errors import DataError, KrlError, UsageError
from krl_runtime.images.folders import ImageFile, ImageFolder, OnBadImage, decode, read_each, report_bad
from krl_runtime.images.labeled import open_data
from krl_runtime.images.preprocessing import Preprocessing

from .further_inputs import IMAGE, FurtherInput, column_names, sample_arrays
from .tensors import Arrays, stacked

__all__ = ["decode_samples", "open_samples", "sample_of"]


def open_samples(data: Path, inputs: Sequence[FurtherInput], *, on_bad: OnBadImage) -> ImageFolder:
    """Open the data of a classifier: a folder or a list of images; further inputs need columns of a list.

    Raises:
        DataError: It is not there, or cannot be used; see ``open_folder``.
    """
    return open_data(data, on_bad=on_bad, columns=column_names(inputs))


def sample_of(image: ImageFile) -> dict[str, Any]:
    """Return an image of a list as a sample: the image and the columns that were asked for, by name."""
    return {IMAGE: image.path, **image.fields}


def decode_samples(
    images: Sequence[ImageFile],
    preprocessing: Preprocessing,
    inputs: Sequence[FurtherInput] = (),
    *,
    on_bad: OnBadImage = "refuse",
    description: str | None = "decoding images",
) -> tuple[Arrays, tuple[ImageFile, ...]]:
    """Read images and their further inputs, with the code that the device uses.

    Args:
        images: Of a folder that ``open_samples`` opened for these inputs.
        preprocessing: From an image to ``uint8``.
        inputs: The further inputs; without any, only pixels are returned.
        on_bad: Action for images that cannot be decoded, and for values that are not accepted.
        description: Text of the progress bar; ``None`` shows none.

    Returns:
        The inputs of the graph ``[N, ...]``, and the ``N`` images.

    Raises:
        DataError: No image can be used, or one cannot and ``on_bad`` is ``"refuse"``.
    """
    if not inputs:
        return decode(images, preprocessing, on_bad=on_bad, description=description)

    def read(image: ImageFile) -> dict[str, npt.NDArray[Any]]:
        try:
            return sample_arrays(sample_of(image), inputs, preprocessing)
        except UsageError as error:
            raise UsageError(f"{image.path}: {error}") from error

    good: list[tuple[ImageFile, Arrays]] = []
    bad: list[KrlError] = []
    for image, result in read_each(images, read, description):
        if isinstance(result, KrlError):
            bad.append(result)
        else:
            good.append((image, result))
    report_bad(bad, on_bad)
    if not good:
        raise DataError("no image is left: none of the files can be used")
    return stacked([arrays for _, arrays in good]), tuple(image for image, _ in good)
