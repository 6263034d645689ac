"""Decoded images: kept in memory where they fit, read again in each epoch where they do not."""

from __future__ import annotations

from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from krl_runtime.errors import ImageError
from krl_runtime.files import sha256_bytes
from krl_runtime.images.folders import ImageFile, OnBadImage, decode, identity, report_bad
from krl_runtime.images.hashes import hash_files
from krl_runtime.images.preprocessing import Preprocessing
from krl_runtime.processor import cpu_count
from krl_runtime.progress import progress

__all__ = ["PixelSet"]


class PixelSet:
    """Images of one split, as a network takes them, with room for random crops.

    Attributes:
        labels: Class indices, ``[N]`` of int64; -1 for an image without a label.
        identity: Hash of the images and labels, in their order.
        margin: Extra pixels on every side of each image.
        files: Where each image was read; empty for images that do not come from files.
    """

    def __init__(
        self, pixels: npt.NDArray[np.uint8], labels: Sequence[int], margin: int = 0, files: Sequence[Path] = ()
    ) -> None:
        """Keep decoded images ``[N, C, H + 2 * margin, W + 2 * margin]`` in memory."""
        self.files = tuple(files)
        self.labels = torch.tensor(list(labels), dtype=torch.int64)
        self.identity = identity(pixels, labels)
        self.margin = margin
        self._pixels: Tensor | None = torch.from_numpy(pixels)

    @classmethod
    def from_images(
        cls,
        images: Sequence[ImageFile],
        preprocessing: Preprocessing,
        *,
        margin: int,
        on_bad: OnBadImage,
        memory_limit: int,
    ) -> PixelSet:
        """Read image files.

        Args:
            images: What to read.
            preprocessing: From an image to ``uint8``.
            margin: Extra pixels on every side.
            on_bad: What to do with files that cannot be decoded.
            memory_limit: Bytes of decoded images that may be kept in memory.

        Raises:
            DataError: No image can be decoded, or one cannot and ``on_bad`` is ``"refuse"``.
        """
        channels, height, width = preprocessing.shape
        size = len(images) * channels * (height + 2 * margin) * (width + 2 * margin)
        if size <= memory_limit:
            pixels, kept = decode(images, preprocessing, margin=margin, on_bad=on_bad)
            return cls(pixels, [image.label for image in kept], margin, [image.path for image in kept])
        return _PixelsOnDisk(images, preprocessing, margin, on_bad)

    def joined(self, other: PixelSet) -> PixelSet:
        """Return these images and then those of another set with the same size and margin."""
        return _JoinedPixels(self, other)

    def __len__(self) -> int:
        """Return the number of images."""
        return len(self.labels)

    def pixels(self, indices: npt.NDArray[np.int64]) -> Tensor:
        """Return images ``[len(indices), C, H + 2 * margin, W + 2 * margin]`` of uint8, on the CPU."""
        assert self._pixels is not None  # noqa: S101  for the type checker; the subclass overrides this
        return self._pixels[torch.from_numpy(indices)]

    def file_hashes(self) -> list[str]:
        """Return the SHA-256 of each image's file; nothing for images that do not come from files."""
        return hash_files(self.files)

    def statistics(self) -> tuple[tuple[float, ...], tuple[float, ...]]:
        """Return mean and standard deviation of each channel over (up to 5,000 of) the images, in units of 0 to 1."""
        step = max(1, len(self) // 5000)
        pixels = self.pixels(np.arange(0, len(self), step)).numpy()
        axes = (0, 2, 3)
        mean = pixels.mean(axes, dtype=np.float64) / 255
        std = np.maximum(pixels.std(axes, dtype=np.float64) / 255, 1 / 255)
        return tuple(round(float(value), 4) for value in mean), tuple(round(float(value), 4) for value in std)


class _PixelsOnDisk(PixelSet):
    """Images that are decoded each time they are asked for, after all of them were tried once."""

    def __init__(
        self, images: Sequence[ImageFile], preprocessing: Preprocessing, margin: int, on_bad: OnBadImage
    ) -> None:
        self.margin = margin
        self._preprocessing = preprocessing
        self._pool = ThreadPoolExecutor(cpu_count())
        bad, good = [], []
        tried = self._pool.map(self._try, images)
        for image, result in zip(progress(images, "checking images"), tried, strict=True):
            if result is None:
                good.append(image)
            else:
                bad.append(result)
        report_bad(bad, on_bad)
        self._images = good
        self._hashes = hash_files([image.path for image in good])
        self.files = tuple(image.path for image in good)
        self.labels = torch.tensor([image.label for image in good], dtype=torch.int64)
        hashes = [f"{image.label}:{digest}" for image, digest in zip(good, self._hashes, strict=True)]
        self.identity = sha256_bytes(f"{preprocessing}:{margin}:{','.join(hashes)}".encode())

    def file_hashes(self) -> list[str]:
        return self._hashes

    def _try(self, image: ImageFile) -> ImageError | None:
        try:
            self._preprocessing(image.path)
        except ImageError as error:
            return error
        return None

    def pixels(self, indices: npt.NDArray[np.int64]) -> Tensor:
        channels, height, width = self._preprocessing.shape
        pixels = np.empty((len(indices), channels, height + 2 * self.margin, width + 2 * self.margin), np.uint8)
        chosen = [self._images[index].path for index in indices]
        read = self._pool.map(lambda path: self._preprocessing(path, margin=self.margin), chosen)
        for place, image in zip(pixels, read, strict=True):
            place[:] = image
        return torch.from_numpy(pixels)


class _JoinedPixels(PixelSet):
    """The images of one set, and then those of another."""

    def __init__(self, first: PixelSet, second: PixelSet) -> None:
        self._parts = first, second
        self.labels = torch.cat([first.labels, second.labels])
        self.identity = sha256_bytes(f"{first.identity}:{second.identity}".encode())
        self.margin = first.margin
        self.files = ()

    def pixels(self, indices: npt.NDArray[np.int64]) -> Tensor:
        first, second = self._parts
        inside = indices < len(first)
        mine, theirs = first.pixels(indices[inside]), second.pixels(indices[~inside] - len(first))
        pixels = torch.empty(len(indices), *mine.shape[1:], dtype=torch.uint8)
        pixels[torch.from_numpy(inside)], pixels[torch.from_numpy(~inside)] = mine, theirs
        return pixels
