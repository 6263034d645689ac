"""Whole images as ground truth, in memory or on disk, and what restorers are to make them from."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt

from krl_runtime.errors import DataError
from krl_runtime.files import sha256_bytes
from krl_runtime.images.luma import corrupt, degrade

__all__ = ["DiskImages", "Images", "Truths", "image_hash"]


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
        hashes: ``image_hash`` of each image, as it was read first; empty where it is not compared.
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
            DataError: It has another size or other pixels than before.
        """
        image = self.read(self.paths[index])
        advice = "leave the images as they are while they are in use"
        if image.shape != self.shapes[index]:
            raise DataError(
                f"image {self.paths[index]} had {_size(self.shapes[index])} pixels and now has {_size(image.shape)}; "
                f"{advice}"
            )
        if self.hashes and image_hash(image) != self.hashes[index]:
            raise DataError(f"image {self.paths[index]} has other pixels than when it was first read; {advice}")
        return image

    def __iter__(self) -> Iterator[npt.NDArray[np.uint8]]:
        """Decode the images in order, one at a time."""
        return (self[index] for index in range(len(self)))


def image_hash(image: npt.NDArray[np.uint8]) -> str:
    """Return the SHA-256 of an image's shape and pixels."""
    return sha256_bytes(f"{image.shape}:".encode() + image.tobytes())


@dataclass(frozen=True)
class Truths:
    """Undamaged images.

    Attributes:
        names: File names.
        images: uint8 ``[H, W]`` or ``[H, W, 3]`` each, of any sizes; in memory or on disk.
        inputs: What each is to be made from, of the same sizes, where that is given and not made of it.
        colors: Where ``images`` are luma: the same in RGB, which evaluation alone reads.
    """

    names: tuple[str, ...]
    images: Images
    inputs: Images | None = None
    colors: Images | None = None

    def __len__(self) -> int:
        """Return the number of images."""
        return len(self.names)

    @property
    def on_disk(self) -> bool:
        """Whether images are decoded at each use."""
        return any(isinstance(item, DiskImages) for item in (self.images, self.inputs))

    @property
    def shapes(self) -> list[tuple[int, ...]]:
        """Shape of each image."""
        return list(self.images.shapes) if isinstance(self.images, DiskImages) else [item.shape for item in self.images]

    @cached_property
    def identity(self) -> str:
        """Hash of the pixels of all images, in their order."""
        return sha256_bytes(",".join([*self.hashes, *_hashes(self.inputs or ())]).encode())

    @cached_property
    def hashes(self) -> list[str]:
        """SHA-256 of each image's shape and pixels, as they were read."""
        return _hashes(self.images)

    def pair_bytes(self, index: int, scale: int) -> int:
        """Return how many bytes one image and its input take in memory."""
        size = math.prod(self.shapes[index])
        return 2 * size if self.inputs is not None else size if scale == 1 else size + size // scale**2

    def pair(
        self, index: int, scale: int, degradation: Mapping[str, Any], *, side: int | None = None
    ) -> tuple[npt.NDArray[np.uint8], npt.NDArray[np.uint8]]:
        """Return the input that one image is to be made from, and the image.

        Args:
            index: Number of the image; noise follows from it.
            scale: By how much the truth is larger than the input.
            degradation: See ``krl_runtime.images.luma.corrupt``.
            side: Take the center of this many pixels a side at most.

        Raises:
            UsageError: The image is too small for the scale.
        """
        if self.inputs is not None:
            return _center(self.inputs[index], side), _center(self.images[index], side)
        small, truth = degrade(_center(self.images[index], side), scale)
        return corrupt(small, degradation, (index,)), truth

    def describe(self) -> dict[str, Any]:
        """Return ``"count"`` and ``"identity"`` for ``run.json``."""
        return {"count": len(self), "identity": self.identity}


def _hashes(images: Images) -> list[str]:
    return list(images.hashes) if isinstance(images, DiskImages) else [image_hash(image) for image in images]


def _center(image: npt.NDArray[np.uint8], side: int | None) -> npt.NDArray[np.uint8]:
    if side is None:
        return image
    top, left = (max(0, (length - side) // 2) for length in image.shape[:2])
    return image[top : top + side, left : left + side]


def _size(shape: tuple[int, ...]) -> str:
    return f"{shape[1]}x{shape[0]}"
