"""The images of a split: in memory where they fit, in a file of decoded images or decoded in each epoch else."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from krl_runtime.errors import DataError
from krl_runtime.files import sha256_bytes
from krl_runtime.images.folders import ImageFile, OnBadImage, identity
from krl_runtime.images.preprocessing import Preprocessing
from krl_train.worker import Worker

from .reading import read_images
from .rows import JoinedRows, MemoryRows, Rows

__all__ = ["PixelSet"]


class PixelSet:
    """Images of one split, as a network takes them, with room for random crops.

    Attributes:
        labels: Class indices, ``[N]`` of int64; -1 for an image without a label. Of multi-label data ``[N, labels]`` of
            int8, 1 where an image has a label and 0 where not; a row of -1 for an image whose labels are not known.
        identity: Hash of the images and labels, in their order.
        margin: Extra pixels on every side of each image.
        files: Where each image was read; empty for images that do not come from files.
        further: What is beside each image, for networks with several inputs: further images of the same size and
            margin, or numbers ``[N, width]`` of float32.
    """

    further: tuple[PixelSet | Tensor, ...] = ()

    def __init__(self, pixels: npt.NDArray[np.uint8], labels: Sequence[int], margin: int = 0) -> None:
        """Keep decoded images ``[N, C, H + 2 * margin, W + 2 * margin]`` in memory."""
        self._rows: Rows = MemoryRows(np.ascontiguousarray(pixels.transpose(0, 2, 3, 1)))
        self._hashes: list[str] = []
        self.files: tuple[Path, ...] = ()
        self.labels = torch.tensor(list(labels), dtype=torch.int64)
        self.identity = identity(pixels, labels)
        self.margin = margin

    @classmethod
    def from_images(
        cls,
        images: Sequence[ImageFile],
        preprocessing: Preprocessing,
        *,
        margin: int,
        on_bad: OnBadImage,
        memory_limit: int,
        disk_limit: int = 0,
        several: int | None = None,
    ) -> PixelSet:
        """Read image files; see ``read_images``.

        Args:
            images: What to read.
            preprocessing: From an image to ``uint8``.
            margin: Extra pixels on every side.
            on_bad: What to do with files that cannot be decoded.
            memory_limit: Bytes of decoded images that may be kept in memory.
            disk_limit: Bytes that all files of decoded images may take on disk; 0 for none.
            several: Of multi-label data the number of labels; ``None`` where each image has one class.

        Raises:
            DataError: No image can be decoded, or one cannot and ``on_bad`` is ``"refuse"``.
        """
        read = read_images(
            images, preprocessing, margin=margin, on_bad=on_bad, memory_limit=memory_limit, disk_limit=disk_limit
        )
        return _PixelsOf(
            read.rows,
            _labels_of(read.images, several),
            read.identity,
            margin,
            [image.path for image in read.images],
            read.hashes,
        )

    def joined(self, other: PixelSet) -> PixelSet:
        """Return these images and then those of another set with the same size and margin."""
        rows = JoinedRows(self._rows, len(self), other._rows)
        if self.labels.ndim != other.labels.ndim:
            raise DataError("images of one class each and images of several labels cannot be trained on together")
        joined = sha256_bytes(f"{self.identity}:{other.identity}".encode())
        return _PixelsOf(rows, torch.cat([self.labels, other.labels]), joined, self.margin)

    def __len__(self) -> int:
        """Return the number of images."""
        return len(self.labels)

    @property
    def images(self) -> tuple[PixelSet, ...]:
        """All sets of images: this one, and the further ones."""
        return self, *(each for each in self.further if isinstance(each, PixelSet))

    def shown(self, indices: npt.NDArray[np.int64], worker: Worker) -> tuple[Tensor, tuple[Tensor, ...]]:
        """Return images as a device sees them, and what is beside them, where a process computes.

        Args:
            indices: Which ones.
            worker: The process.

        Returns:
            Images ``[n, C, H, W]`` without their margin, and what ``beside`` returns.
        """
        first, *others = (each.inside(indices).to(worker.device) for each in self.images)
        beside = self.beside(torch.from_numpy(indices), others, worker)
        return first.contiguous(memory_format=worker.layout), beside

    def inside(self, indices: npt.NDArray[np.int64]) -> Tensor:
        """Return images ``[n, C, H, W]`` of uint8 without their margin, on the CPU."""
        pixels, margin = self.pixels(indices), self.margin
        return pixels[:, :, margin:-margin, margin:-margin] if margin else pixels

    def beside(self, positions: Tensor, images: Sequence[Tensor], worker: Worker) -> tuple[Tensor, ...]:
        """Return the further inputs of some images, where a process computes.

        Args:
            positions: Which ones, ``[n]`` of int64, on the CPU.
            images: Their further images as they are shown, ``[n, C, H, W]`` each.
            worker: The process.

        Returns:
            In the order of ``further``, each ``[n, ...]``.
        """
        shown = iter(images)
        return tuple(
            next(shown).contiguous(memory_format=worker.layout)
            if isinstance(each, PixelSet)
            else each[positions].to(worker.device)
            for each in self.further
        )

    @property
    def multi_label(self) -> bool:
        """Whether an image can have several labels, or none."""
        return self.labels.ndim == 2

    @property
    def labeled(self) -> Tensor:
        """Whether the label or the labels of each image are known, ``[N]`` of bool."""
        return self.labels[:, 0] >= 0 if self.multi_label else self.labels >= 0

    def pixels(self, indices: npt.NDArray[np.int64], *, pinned: bool = False) -> Tensor:
        """Return images.

        Args:
            indices: Which ones.
            pinned: Whether to put them into page-locked memory, from which a GPU copies while the CPU goes on.

        Returns:
            ``[len(indices), C, H + 2 * margin, W + 2 * margin]`` of uint8, on the CPU, in channels-last layout.
        """
        out = torch.empty(len(indices), *self._rows.shape, dtype=torch.uint8, pin_memory=pinned)
        self._rows.take(indices, out)
        return out.permute(0, 3, 1, 2)

    def file_hashes(self) -> list[str]:
        """Return the SHA-256 of each image's file; nothing for images that do not come from files."""
        return self._hashes

    def statistics(self) -> tuple[tuple[float, ...], tuple[float, ...]]:
        """Return mean and standard deviation of each channel over (up to 5,000 of) the images, in units of 0 to 1."""
        step = max(1, len(self) // 5000)
        pixels = self.pixels(np.arange(0, len(self), step)).numpy()
        axes = (0, 2, 3)
        mean = pixels.mean(axes, dtype=np.float64) / 255
        std = np.maximum(pixels.std(axes, dtype=np.float64) / 255, 1 / 255)
        return tuple(round(float(value), 4) for value in mean), tuple(round(float(value), 4) for value in std)


def _labels_of(images: Sequence[ImageFile], several: int | None) -> Tensor:
    """Return the labels as ``PixelSet`` has them."""
    if several is None:
        return torch.tensor([image.label for image in images], dtype=torch.int64)
    labels = torch.zeros(len(images), several, dtype=torch.int8)
    for row, image in zip(labels, images, strict=True):
        if image.present is None:
            row.fill_(-1)
        else:
            row[list(image.present)] = 1
    return labels


class _PixelsOf(PixelSet):
    """Images that come from anywhere."""

    def __init__(
        self,
        rows: Rows,
        labels: Tensor,
        identity: str,
        margin: int,
        files: Sequence[Path] = (),
        hashes: Sequence[str] = (),
    ) -> None:
        self._rows, self._hashes, self.files = rows, list(hashes), tuple(files)
        self.labels, self.identity, self.margin = labels, identity, margin
