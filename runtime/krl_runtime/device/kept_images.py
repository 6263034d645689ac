"""Images that several variants are measured on: where there is room they are decoded once."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from functools import partial
from typing import TYPE_CHECKING, Any, Final

from krl_runtime.bundle.further_inputs import FurtherInput, tensor_spec
from krl_runtime.bundle.samples import decode_samples
from krl_runtime.bundle.tensors import zeros
from krl_runtime.images.folders import ImageFile, OnBadImage
from krl_runtime.images.labeled import decoded
from krl_runtime.images.preprocessing import Preprocessing
from krl_runtime.progress import progress

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt

__all__ = ["KEPT_BYTES", "KeptImages"]

KEPT_BYTES: Final = 1 << 28
"""Of decoded images that are kept for the next variant: a sixteenth of the smallest board's 4 GiB."""


class KeptImages:
    """Images and their labels.

    Args:
        images: The files.
        preprocessing: From an image to ``uint8``.
        on_bad: Action for files that cannot be decoded.
        several: Of a multi-label model the number of labels; see ``krl_runtime.images.labeled.truth_of``.
        inputs: Further inputs of the model beside the image.
    """

    def __init__(
        self,
        images: Sequence[ImageFile],
        preprocessing: Preprocessing,
        on_bad: OnBadImage,
        several: int | None = None,
        inputs: Sequence[FurtherInput] = (),
    ) -> None:
        self._images, self._preprocessing, self._on_bad, self._several = images, preprocessing, on_bad, several
        self._decode = partial(decode_samples, inputs=inputs)
        self._kept: list[tuple[Any, npt.NDArray[np.int64]]] = []
        further = zeros([tensor_spec(each) for each in inputs])
        size = math.prod(preprocessing.shape) + sum(array.nbytes for array in further.values())
        self._fits = len(images) * size <= KEPT_BYTES

    def batches(self, description: str) -> Iterator[tuple[Any, npt.NDArray[np.int64]]]:
        """Yield decoded images ``[N, C, H, W]``, or all inputs by name, and their labels.

        Raises:
            DataError: An image cannot be decoded and is refused.
        """
        if self._kept:
            yield from progress(self._kept, description)
            return
        made = []
        for batch in decoded(
            self._images,
            self._preprocessing,
            on_bad=self._on_bad,
            several=self._several,
            description=description,
            decode=self._decode,
        ):
            if self._fits:
                made.append(batch)
            yield batch
        self._kept = made
