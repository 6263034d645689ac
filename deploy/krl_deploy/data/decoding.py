"""Decoding labeled images."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np
import numpy.typing as npt

from krl_runtime.errors import DataError
from krl_runtime.images.folders import ImageFile, OnBadImage, decode
from krl_runtime.images.preprocessing import Preprocessing
from krl_runtime.progress import progress

__all__ = ["decoded"]

_CHUNK = 256  # images that are held decoded at once: 38 MB at 224x224


def decoded(
    images: Sequence[ImageFile], preprocessing: Preprocessing, *, on_bad: OnBadImage
) -> Iterator[tuple[npt.NDArray[np.uint8], npt.NDArray[np.int64]]]:
    """Yield images and their labels, a few hundred at a time, so that any number of them can be measured on.

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
        yield pixels, np.array([image.label for image in used])
