"""Images for restoration: whole ones as ground truth, and random patches of them with their degraded inputs.

A patch depends on the seed, the epoch and its number alone: not on the batch it is in, nor on the process that cuts it.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from krl_runtime.errors import DataError, ImageError
from krl_runtime.files import sha256_bytes
from krl_runtime.images.folders import ImageFile, ImageFolder, OnBadImage, find_images, report_bad
from krl_runtime.images.formats import open_header
from krl_runtime.images.luma import corrupt, degrade, luma, to_uint8
from krl_runtime.images.preprocessing import open_image
from krl_runtime.progress import progress
from krl_train.config import DataConfig, LoopConfig, plan_loop, steps_per_epoch
from krl_train.worker import Worker

__all__ = ["GRAY_MODES", "PatchBatch", "PatchStream", "Truths", "are_gray", "list_images", "read_image", "read_truths"]

GRAY_MODES = ("1", "L", "LA", "I;16")
_LOOKED_AT = 16  # images whose headers show whether a folder is gray


@dataclass(frozen=True)
class Truths:
    """Undamaged images.

    Attributes:
        names: File names.
        images: uint8 ``[H, W]`` or ``[H, W, 3]`` each, of any sizes.
        inputs: What each is to be made from, of the same sizes, where that is given and not made of it.
    """

    names: tuple[str, ...]
    images: tuple[npt.NDArray[np.uint8], ...]
    inputs: tuple[npt.NDArray[np.uint8], ...] | None = None

    def __len__(self) -> int:
        """Return the number of images."""
        return len(self.names)

    @property
    def identity(self) -> str:
        """Hash of the pixels of all images, in their order."""
        hashes = [f"{item.shape}:{sha256_bytes(item.tobytes())}" for item in (*self.images, *(self.inputs or ()))]
        return sha256_bytes(",".join(hashes).encode())

    @property
    def hashes(self) -> list[str]:
        """SHA-256 of each image's shape and pixels, as they were read."""
        return [sha256_bytes(f"{item.shape}:".encode() + item.tobytes()) for item in self.images]

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


def _center(image: npt.NDArray[np.uint8], side: int | None) -> npt.NDArray[np.uint8]:
    if side is None:
        return image
    top, left = (max(0, (length - side) // 2) for length in image.shape[:2])
    return image[top : top + side, left : left + side]


def list_images(root: str | Path, config: DataConfig) -> ImageFolder:
    """List a folder of images without regard to classes.

    Args:
        root: With ``train/`` and ``val/`` in it, or with images at any depth.
        config: Says what to do with other files.

    Raises:
        DataError: The folder is missing or holds no images.
    """
    folder = Path(root)
    splits = {}
    for split, names in {"train": ("train",), "val": ("val", "valid", "validation", "test")}.items():
        found = next((folder / name for name in names if (folder / name).is_dir()), None)
        if found is not None:
            splits[split] = found
    if len(splits) < 2:
        splits = {"all": folder}
    listed = {name: find_images(place, on_bad=config.on_bad_image) for name, place in splits.items()}
    return ImageFolder(folder, (), {name: tuple(map(ImageFile, paths)) for name, paths in listed.items()})


def are_gray(folder: ImageFolder) -> bool:
    """Return whether images are stored as gray, as far as some of them show."""
    paths = [image.path for images in folder.splits.values() for image in images]
    modes = set()
    for path in paths[:: max(1, len(paths) // _LOOKED_AT)]:
        try:
            modes.add(open_header(path).mode)
        except ImageError:  # reading the images names it
            continue
    return bool(modes) and modes <= set(GRAY_MODES)


def read_image(path: Path, color: str) -> npt.NDArray[np.uint8]:
    """Read one image as a restorer takes it.

    Args:
        path: The file.
        color: ``"rgb"``; ``"gray"`` (Pillow's gray); or ``"y"``, the luma of BT.601 with studio swing, for which a
            image that is stored as gray is taken as it is, as the field's scripts do.

    Returns:
        uint8 ``[H, W, 3]`` for rgb, else ``[H, W]``.

    Raises:
        ImageError: It is not an image that can be read.
    """
    if color == "rgb":
        return np.asarray(open_image(path, mode="RGB"))
    gray = np.asarray(open_image(path, mode="L"))
    if color == "gray":
        return gray
    return gray if open_header(path).mode in GRAY_MODES else to_uint8(luma(np.asarray(open_image(path, mode="RGB"))))


def read_truths(
    images: Sequence[ImageFile], color: str, *, on_bad: OnBadImage, memory_limit: int, limit: int | None = None
) -> Truths:
    """Read images into memory.

    Args:
        images: The files.
        color: See ``read_image``.
        on_bad: What to do with files that cannot be read.
        memory_limit: Bytes that all of them may take.
        limit: Number of images at most, the first ones.

    Raises:
        DataError: No image can be read, one cannot and ``on_bad`` is ``"refuse"``, or they do not fit into memory.
    """
    names: list[str] = []
    read: list[npt.NDArray[np.uint8]] = []
    bad: list[ImageError] = []
    size = 0
    for image in progress(images[:limit], "reading images"):
        try:
            pixels = read_image(image.path, color)
        except ImageError as error:
            bad.append(error)
            continue
        size += pixels.nbytes
        if size > memory_limit:
            raise DataError(
                f"after {len(read)} of {len(images)} images the memory limit of {memory_limit // 2**20} MiB is "
                "reached; raise --memory-limit-mb, or take fewer with --limit"
            )
        names.append(image.path.name)
        read.append(pixels)
    report_bad(bad, on_bad)
    if not read:
        raise DataError("no image is left: none of the files can be read")
    return Truths(tuple(names), tuple(read))


@dataclass(frozen=True)
class PatchBatch:
    """One step's patches, on the device.

    Attributes:
        pixels: Degraded patches, uint8 ``[N, C, h, w]``.
        truth: What they were, uint8 ``[N, C, scale * h, scale * w]``.
        epoch: From 0.
    """

    pixels: Tensor
    truth: Tensor
    epoch: int


class PatchStream:
    """Random patches of images: as many in an epoch as lie side by side in them.

    Args:
        truths: The images.
        scale: By how much the truth is larger than the input.
        degradation: What else is done to the input; see ``krl_runtime.images.luma.corrupt``.
        size: Height and width of an input patch.
        loop: Batch size, by the number of patches if it is left out, and the seed of all that is random.
        augment: Whether patches are mirrored and turned by right angles at random.
        on_bad: What to do with images that are smaller than a patch.

    Raises:
        DataError: An image is smaller than a patch and not to be skipped, or none is left.
    """

    def __init__(
        self,
        truths: Truths,
        scale: int,
        degradation: Mapping[str, Any],
        size: tuple[int, int],
        loop: LoopConfig,
        *,
        augment: bool = True,
        on_bad: OnBadImage = "refuse",
    ) -> None:
        self.scale, self.degradation, self.size = scale, dict(degradation), size
        self.seed, self.augment = loop.seed, augment
        height, width = size[0] * scale, size[1] * scale
        fits = [min(item.shape[0] - height, item.shape[1] - width) >= 0 for item in truths.images]
        report_bad(
            [
                f"{name} has {item.shape[1]}x{item.shape[0]} pixels, less than a patch of {width}x{height} (--size "
                f"{size[0]}, times the scale {scale})"
                for name, item, large in zip(truths.names, truths.images, fits, strict=True)
                if not large
            ],
            on_bad,
        )
        if not any(fits):
            raise DataError(f"no image is as large as a patch of {width}x{height} pixels; give a smaller --size")
        large_ones = [index for index, large in enumerate(fits) if large]
        self._pairs = [truths.pair(index, scale, {"kind": "none"}) for index in large_ones]
        counts = [(small.shape[0] // size[0]) * (small.shape[1] // size[1]) for small, _ in self._pairs]
        self._ends = np.cumsum(counts)
        self.count = int(self._ends[-1])
        self.loop = plan_loop(loop, self.count)

    @property
    def steps(self) -> int:
        """Number of steps in one epoch."""
        return steps_per_epoch(self.count, self.loop.batch_size)

    def epoch(self, epoch: int, first_step: int, worker: Worker) -> Iterator[PatchBatch]:
        """Yield this process's share of the batches of one epoch, from ``first_step`` on."""
        order = np.random.default_rng((self.seed, epoch)).permutation(self.count)
        for step in range(first_step, self.steps):
            patches = [
                self._patch(epoch, int(index)) for index in worker.share(order, step, self.steps, self.loop.batch_size)
            ]
            pixels, truth = (
                _to_tensor(list(side)).to(worker.device, memory_format=_layout(worker))
                for side in zip(*patches, strict=True)
            )
            yield PatchBatch(pixels, truth, epoch)

    def _patch(self, epoch: int, index: int) -> tuple[npt.NDArray[np.uint8], npt.NDArray[np.uint8]]:
        """Cut, turn and degrade one patch: input and truth, ``[h, w]`` or ``[h, w, 3]``."""
        random = np.random.default_rng((self.seed, epoch, index))
        small, truth = self._pairs[int(np.searchsorted(self._ends, index, side="right"))]
        height, width = self.size
        top, left = random.integers((small.shape[0] - height + 1, small.shape[1] - width + 1))
        turns, mirrored = random.integers((4, 2)) if self.augment else (0, 0)
        if height != width:
            turns -= turns % 2  # an oblong patch stays as it lies

        def cut(image: npt.NDArray[np.uint8], times: int) -> npt.NDArray[np.uint8]:
            y, x = int(top) * times, int(left) * times
            part = np.rot90(image[y : y + height * times, x : x + width * times], int(turns))
            return part[:, ::-1] if mirrored else part

        return corrupt(cut(small, 1), self.degradation, (self.seed, epoch, index, 1)), cut(truth, self.scale)


def _to_tensor(patches: Sequence[npt.NDArray[np.uint8]]) -> Tensor:
    stacked = torch.from_numpy(np.stack(patches))
    return stacked[:, None] if stacked.ndim == 3 else stacked.permute(0, 3, 1, 2).contiguous()


def _layout(worker: Worker) -> torch.memory_format:
    return torch.channels_last if worker.channels_last else torch.contiguous_format
