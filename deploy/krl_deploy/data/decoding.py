"""Decoding labeled images."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np
import numpy.typing as npt

from krl_runtime.errors import DataError
from krl_runtime.images.folders import ImageFile, OnBadImage, decode
from krl_runtime.images.preprocessing import Preprocessing
from krl_runtime.progress import progress

__all__ = ["decoded", "truth_of"]

_CHUNK = 256  # images that are held decoded at once: 38 MB at 224x224


def decoded(
    images: Sequence[ImageFile], preprocessing: Preprocessing, *, on_bad: OnBadImage, several: int | None = None
) -> Iterator[tuple[npt.NDArray[np.uint8], npt.NDArray[np.int64]]]:
    """Yield images and their labels, a few hundred at a time, so that any number of them can be measured on.

    Args:
        images: The image files.
        preprocessing: From an image to ``uint8``.
        on_bad: Action for files that cannot be decoded.
        several: Of a multi-label model the number of labels. The truth is then ``[N, labels]``, see ``truth_of``.

    Raises:
        DataError: An image cannot be decoded and ``on_bad`` is ``"refuse"``.
    """
    chunks = [images[start : start + _CHUNK] for start in range(0, len(images), _CHUNK)]
    for chunk in progress(chunks, "measuring accuracy"):
        try:
            pixels, used = decode(chunk, preprocessing, on_bad=on_bad, description=None)
        except DataError:
            if on_bad == "refuse":
                raise
            continue  # nothing in this chunk was readable, which has been logged
        yield pixels, truth_of(used, several)


def truth_of(images: Sequence[ImageFile], several: int | None) -> npt.NDArray[np.int64]:
    """Return the labels of images as the gate takes them.

    Args:
        images: With the indices of a model's labels.
        several: Of a multi-label model the number of labels, else ``None``.

    Returns:
        Class indices ``[N]``, -1 where not known; of a multi-label model ``[N, labels]``, 1 where an image has a label
        and 0 where not, a row of -1 where that is not known.
    """
    if several is None:
        return np.array([image.label for image in images])
    truth = np.full((len(images), several), -1)
    for row, image in zip(truth, images, strict=True):
        if image.present is not None:
            row[:] = 0
            row[list(image.present)] = 1
    return truth
