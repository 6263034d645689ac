"""Images that stay on disk: each is decoded when it is asked for."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import numpy as np
import numpy.typing as npt

from krl_runtime.errors import DataError
from krl_runtime.files import sha256_bytes

__all__ = ["DiskImages", "Images", "image_hash"]


class Images(Protocol):
    """Images by their number: a tuple of arrays, or ``DiskImages``. uint8 ``[H, W]`` or ``[H, W, 3]`` each."""

    def __len__(self) -> int:
        """Return the number of images."""
        ...

    def __getitem__(self, index: int, /) -> npt.NDArray[np.uint8]:
        """Return one image."""
        ...

    def __iter__(self) -> Iterator[npt.NDArray[np.uint8]]:
        """Yield the images in order."""
        ...


@dataclass(frozen=True)
class DiskImages:
    """Images that were decoded once, to check them, and are decoded again at each use.

    Attributes:
        paths: The files.
        shapes: Shape of each image.
        hashes: ``image_hash`` of each image, as it was read first.
        read: Decodes a file.
    """

    paths: Sequence[Path]
    shapes: Sequence[tuple[int, ...]]
    hashes: Sequence[str]
    read: Callable[[Path], npt.NDArray[np.uint8]]

    def __len__(self) -> int:
        """Return the number of images."""
        return len(self.paths)

    def __getitem__(self, index: int, /) -> npt.NDArray[np.uint8]:
        """Decode one image.

        Raises:
            ImageError: The file can no longer be read.
            DataError: It has another size than before.
        """
        image = self.read(self.paths[index])
        if image.shape != self.shapes[index]:
            raise DataError(
                f"image {self.paths[index]} had {_size(self.shapes[index])} pixels and now has {_size(image.shape)}; "
                "leave the images as they are while they are in use"
            )
        return image

    def __iter__(self) -> Iterator[npt.NDArray[np.uint8]]:
        """Decode the images in order, one at a time."""
        return (self[index] for index in range(len(self)))


def image_hash(image: npt.NDArray[np.uint8]) -> str:
    """Return the SHA-256 of an image's shape and pixels."""
    return sha256_bytes(f"{image.shape}:".encode() + image.tobytes())


def _size(shape: tuple[int, ...]) -> str:
    return f"{shape[1]}x{shape[0]}"
