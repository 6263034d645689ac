"""Images for restoration: read whole, and random patches of them with their degraded inputs.

A patch depends on the seed, the epoch and its number alone: not on the batch it is in, nor on the process that cuts it.
"""

from __future__ import annotations

import logging
from collections.abc import Generator, Iterator, Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from krl_runtime.errors import DataError, ImageError
from krl_runtime.images.folders import ImageFile, ImageFolder, OnBadImage, find_images, report_bad
from krl_runtime.images.formats import open_header
from krl_runtime.images.luma import corrupt, luma, to_uint8
from krl_runtime.images.preprocessing import open_image
from krl_runtime.progress import progress
from krl_train.config import DataConfig, LoopConfig, plan_loop, steps_per_epoch
from krl_train.worker import Worker

from .ahead import READ_AHEAD, pooled_order, prefetched, read_ahead
from .truths import DiskImages, Truths, image_hash

__all__ = [
    "GRAY_MODES",
    "LEAST_HELD",
    "PatchBatch",
    "PatchStream",
    "are_gray",
    "list_images",
    "read_image",
    "read_truths",
]

GRAY_MODES = ("1", "L", "LA", "I;16")
LEAST_HELD = 8
"""Images on disk that are held decoded at once, whatever the memory limit: 4 in use, and those that are read ahead."""
PREFETCHED = 2  # batches: one waits while the next is made
_MOST_HELD = 64  # decoded images at once: with more, a batch of 16 or 32 patches is hardly more varied
_LOOKED_AT = 16  # images whose headers show whether a folder is gray

_log = logging.getLogger("krl")

_Pair: TypeAlias = tuple[npt.NDArray[np.uint8], npt.NDArray[np.uint8]]


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
    if color == "gray" or (color == "y" and open_header(path).mode in GRAY_MODES):
        return np.asarray(open_image(path, mode="L"))
    rgb = np.asarray(open_image(path, mode="RGB"))
    return rgb if color == "rgb" else to_uint8(luma(rgb))


def read_truths(
    images: Sequence[ImageFile], color: str, *, on_bad: OnBadImage, memory_limit: int, limit: int | None = None
) -> Truths:
    """Read images: into memory where they fit, else once to check them and again at each use.

    Args:
        images: The files.
        color: See ``read_image``.
        on_bad: What to do with files that cannot be read.
        memory_limit: Bytes that all of them may take; more stay on disk.
        limit: Number of images at most, the first ones.

    Raises:
        DataError: No image can be read, or one cannot and ``on_bad`` is ``"refuse"``.
    """

    def read(path: Path) -> npt.NDArray[np.uint8]:
        return read_image(path, color)

    def try_one(number: int) -> npt.NDArray[np.uint8] | ImageError:
        try:
            return read(images[number].path)
        except ImageError as error:
            return error

    chosen = images[:limit]
    paths: list[Path] = []
    shapes: list[tuple[int, ...]] = []
    hashes: list[str] = []
    kept: list[npt.NDArray[np.uint8]] | None = []
    bad: list[ImageError] = []
    size = 0
    results = read_ahead(try_one, np.arange(len(chosen)))
    for image, result in zip(progress(chosen, "reading images"), results, strict=True):
        if isinstance(result, ImageError):
            bad.append(result)
            continue
        paths.append(image.path)
        shapes.append(result.shape)
        size += result.nbytes
        if kept is not None:
            kept.append(result)
            if size > memory_limit:
                hashes, kept = [image_hash(item) for item in kept], None
        else:
            hashes.append(image_hash(result))
    report_bad(bad, on_bad)
    if not paths:
        raise DataError("no image is left: none of the files can be read")
    names = tuple(path.name for path in paths)
    colors = _in_color(paths, shapes) if color == "y" else None
    if kept is not None:
        return Truths(names, tuple(kept), colors=colors)
    _log.info(
        "%d images take %.0f MiB, more than the memory limit of %d MiB: they are read from disk when they are needed",
        *(len(paths), size / 2**20, memory_limit // 2**20),
    )
    return Truths(names, DiskImages(paths, shapes, hashes, read), colors=colors)


def _in_color(paths: Sequence[Path], shapes: Sequence[tuple[int, ...]]) -> DiskImages:
    """Return images that were read as luma, in RGB."""
    return DiskImages(paths, [(*shape, 3) for shape in shapes], (), lambda path: read_image(path, "rgb"))


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

    Of images in memory all patches are shuffled. Images on disk are decoded once in an epoch into a pool of a few, from
    which patches are taken in turn; see ``pooled_order``.

    Args:
        truths: The images.
        scale: By how much the truth is larger than the input.
        degradation: What else is done to the input; see ``krl_runtime.images.luma.corrupt``.
        size: Height and width of an input patch.
        loop: Batch size, by the number of patches if it is left out, and the seed of all that is random.
        augment: Whether patches are mirrored and turned by right angles at random.
        on_bad: What to do with images that are smaller than a patch.
        memory_limit: Bytes that the decoded images of the pool may take. The pool holds ``LEAST_HELD`` images or more.
        prefetch: Number of batches that a background thread makes ahead.

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
        memory_limit: int = 0,
        prefetch: int = PREFETCHED,
    ) -> None:
        self.scale, self.degradation, self.size = scale, dict(degradation), size
        self.seed, self.augment, self.prefetch = loop.seed, augment, prefetch
        self._truths, shapes = truths, truths.shapes
        self._large = _large_enough(truths.names, shapes, size, scale, on_bad)
        self._counts = np.array(
            [np.prod([shapes[index][axis] // scale // size[axis] for axis in (0, 1)]) for index in self._large]
        )
        self._ends = np.cumsum(self._counts)
        self.count = int(self._ends[-1])
        self.loop = plan_loop(loop, self.count)
        self._kept: list[_Pair] | None = None
        if truths.on_disk:
            largest = max(truths.pair_bytes(index, scale) for index in self._large)
            self.held = min(max(memory_limit // largest, LEAST_HELD), _MOST_HELD)
        else:
            self.held = len(self._large)
            self._kept = [self._read(number) for number in range(len(self._large))]

    @property
    def steps(self) -> int:
        """Number of steps in one epoch."""
        return steps_per_epoch(self.count, self.loop.batch_size)

    @property
    def order(self) -> str:
        """In words, from which images the next patches are taken; it follows from the memory limit."""
        pool = "all" if self._kept is not None else min(self.held - READ_AHEAD, len(self._large))
        return f"{pool} images at a time (--memory-limit-mb)"

    def epoch(self, epoch: int, first_step: int, worker: Worker) -> Iterator[PatchBatch]:
        """Yield this process's share of the batches of one epoch, from ``first_step`` on."""
        with closing(prefetched(self._batches(epoch, first_step, worker), self.prefetch)) as batches:
            for batch in batches:
                pixels, truth = (side.to(worker.device, memory_format=_layout(worker)) for side in batch)
                yield PatchBatch(pixels, truth, epoch)

    def _batches(self, epoch: int, first_step: int, worker: Worker) -> Generator[tuple[Tensor, Tensor], None, None]:
        """Yield input and truth of each batch, on the CPU."""
        order = self._order(epoch)
        shares = [worker.share(order, step, self.steps, self.loop.batch_size) for step in range(first_step, self.steps)]
        images = np.searchsorted(self._ends, np.concatenate([order[:0], *shares]), side="right")
        with closing(self._pairs(images)) as pairs:
            for share in shares:
                patches = [self._patch(epoch, index, *next(pairs)) for index in share.tolist()]
                pixels, truth = (_to_tensor(list(side)) for side in zip(*patches, strict=True))
                yield pixels, truth

    def _order(self, epoch: int) -> npt.NDArray[np.int64]:
        """Return the numbers of an epoch's patches in their order."""
        random = np.random.default_rng((self.seed, epoch))
        if self._kept is not None:
            return random.permutation(self.count)
        return pooled_order(self._counts, self.held - READ_AHEAD, random)

    def _pairs(self, images: npt.NDArray[np.int64]) -> Generator[_Pair, None, None]:
        """Yield input, not degraded yet, and truth of each of these images, given by their numbers among the large."""
        if self._kept is None:
            yield from read_ahead(self._read, images, self.held)
        else:
            yield from (self._kept[number] for number in images.tolist())

    def _read(self, number: int) -> _Pair:
        return self._truths.pair(self._large[number], self.scale, {"kind": "none"})

    def _patch(
        self, epoch: int, index: int, small: npt.NDArray[np.uint8], truth: npt.NDArray[np.uint8]
    ) -> tuple[npt.NDArray[np.uint8], npt.NDArray[np.uint8]]:
        """Cut, turn and degrade one patch of an image: input and truth, ``[h, w]`` or ``[h, w, 3]``."""
        random = np.random.default_rng((self.seed, epoch, index))
        height, width = self.size
        top, left = random.integers((small.shape[0] - height + 1, small.shape[1] - width + 1))
        turns, mirrored = random.integers((4, 2)) if self.augment else (0, 0)
        if height != width:
            turns -= turns % 2  # an oblong patch stays as it lies

        def cut(image: npt.NDArray[np.uint8], times: int) -> npt.NDArray[np.uint8]:
            y, x = int(top) * times, int(left) * times
            part = np.rot90(image[y : y + height * times, x : x + width * times], int(turns))
            return np.array(part[:, ::-1] if mirrored else part)  # a view would keep the whole image in memory

        return corrupt(cut(small, 1), self.degradation, (self.seed, epoch, index, 1)), cut(truth, self.scale)


def _large_enough(
    names: Sequence[str], shapes: Sequence[tuple[int, ...]], size: tuple[int, int], scale: int, on_bad: OnBadImage
) -> list[int]:
    """Return the numbers of the images that hold a patch; others are refused or logged."""
    height, width = size[0] * scale, size[1] * scale
    fits = [min(shape[0] - height, shape[1] - width) >= 0 for shape in shapes]
    report_bad(
        [
            f"{name} has {shape[1]}x{shape[0]} pixels, less than a patch of {width}x{height} (--size "
            f"{size[0]}, times the scale {scale})"
            for name, shape, large in zip(names, shapes, fits, strict=True)
            if not large
        ],
        on_bad,
    )
    if not any(fits):
        raise DataError(f"no image is as large as a patch of {width}x{height} pixels; give a smaller --size")
    return [index for index, large in enumerate(fits) if large]


def _to_tensor(patches: Sequence[npt.NDArray[np.uint8]]) -> Tensor:
    stacked = torch.from_numpy(np.stack(patches))
    return stacked[:, None] if stacked.ndim == 3 else stacked.permute(0, 3, 1, 2).contiguous()


def _layout(worker: Worker) -> torch.memory_format:
    return torch.channels_last if worker.channels_last else torch.contiguous_format
