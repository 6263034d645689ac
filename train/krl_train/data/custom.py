"""A user's own data set: a map-style ``torch.utils.data.Dataset`` of image and label, read as krl needs it."""

from __future__ import annotations

import operator
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from PIL import Image
from torch import Tensor

from krl_runtime.errors import DataError, UsageError
from krl_runtime.files import sha256_bytes
from krl_runtime.images.preprocessing import Preprocessing, open_image
from krl_runtime.images.splits import hold_out
from krl_runtime.progress import progress
from krl_train.custom import accepted_arguments, in_user_code, load_object

from .pixels import PixelSet

__all__ = ["CustomImages", "open_custom"]

_GRAY_OR_RGB = (1, 3)  # channels of an image
_ACCEPTED = (
    "a Pillow image, a uint8 array [H, W] or [H, W, C], a uint8 tensor [C, H, W], or a floating-point one of 0 to 1, "
    "with 1 or 3 channels"
)


@dataclass(frozen=True)
class _Part:
    """One data set: its images' labels and hashes, and the images where all of them fit into memory.

    Attributes:
        name: For messages.
        dataset: Gives the images.
        classes: Its class names, ``None`` where it has none.
        labels: Class index of each image.
        hashes: SHA-256 of each image's pixels.
        shapes: Height, width and channels that occur.
        images: ``[H, W, C]`` of uint8 each; empty where they are read again.
    """

    name: str
    dataset: Any
    classes: tuple[str, ...] | None
    labels: list[int]
    hashes: list[str]
    shapes: set[tuple[int, ...]]
    images: list[npt.NDArray[np.uint8]]

    def image(self, index: int) -> npt.NDArray[np.uint8]:
        """Return one image, ``[H, W, C]``."""
        return self.images[index] if self.images else _item(self.name, self.dataset, index)[0]


@dataclass(frozen=True)
class CustomImages:
    """All images of a user's own data set.

    Attributes:
        name: ``package.module:name``.
        labels: Class names in the order of the class indices.
        parts: ``"train"`` and ``"val"`` where the data set is split, else ``"all"``.
    """

    name: str
    labels: tuple[str, ...]
    parts: dict[str, _Part]

    @property
    def size(self) -> tuple[int, int] | None:
        """Height and width, where all images have the same."""
        sizes = {shape[:2] for part in self.parts.values() for shape in part.shapes}
        height, width = sizes.pop() if len(sizes) == 1 else (0, 0)
        return (height, width) if height else None

    @property
    def channels(self) -> int:
        """1 where all images are gray, else 3."""
        return max(shape[2] for part in self.parts.values() for shape in part.shapes)

    def read(
        self,
        split: str,
        preprocessing: Preprocessing,
        *,
        margin: int,
        choose: Callable[[Sequence[int], Sequence[str]], list[int]],
        val_fraction: float,
        memory_limit: int,
    ) -> PixelSet:
        """Read one split.

        Args:
            split: ``"train"``, ``"val"`` or ``"all"``.
            preprocessing: From an image to ``uint8``.
            margin: Extra pixels on every side.
            choose: From the images' labels and the SHA-256 of each to the positions of those that are read.
            val_fraction: Share of the images that ``"val"`` gets where the data set is not split, by each image's hash.
            memory_limit: Bytes that the images may take.

        Raises:
            DataError: The split is empty, larger than the limit, or an image cannot be used.
        """
        places = self._places(split, val_fraction)
        if not places:
            raise DataError(f"data {self.name}: the {split} split is empty; add images, or change --val-fraction")
        labels = [part.labels[index] for part, index in places]
        chosen = choose(labels, [part.hashes[index] for part, index in places])
        channels, height, width = preprocessing.shape
        shape = (len(chosen), channels, height + 2 * margin, width + 2 * margin)
        if int(np.prod(shape, dtype=np.int64)) > memory_limit:
            raise DataError(
                f"data {self.name}: {len(chosen)} images of {channels}x{height}x{width} take more than "
                f"--memory-limit-mb {memory_limit >> 20}; raise it, lower --size or --limit, or write the images "
                "into a folder, which is read again in each epoch"
            )
        pixels = np.empty((shape[0], *shape[2:], channels), np.uint8).transpose(0, 3, 1, 2)  # as PixelSet keeps them
        for row, position in enumerate(progress(chosen, f"reading {split}")):
            part, index = places[position]
            pixels[row] = preprocessing(part.image(index), margin=margin)
        return PixelSet(pixels, [labels[position] for position in chosen], margin)

    def _places(self, split: str, val_fraction: float) -> list[tuple[_Part, int]]:
        """Return part and index of each image of a split."""
        whole = self.parts.get("all")
        if whole is None:
            chosen = list(self.parts.values()) if split == "all" else [self.parts[split]]
            return [(part, index) for part in chosen for index in range(len(part.labels))]
        held_out = hold_out(whole.labels, whole.hashes, val_fraction)
        return [(whole, index) for index, is_val in enumerate(held_out) if split == "all" or is_val == (split == "val")]


def open_custom(name: str, memory_limit: int) -> CustomImages:
    """Open a user's own data set and look at all its images.

    Args:
        name: ``package.module:name``, or the name of an object that was given in Python: a data set, or what returns
            one, which is called with ``split="train"`` and ``split="val"`` if it takes that.
        memory_limit: Bytes of images that are kept, so that they need not be read again.

    Raises:
        DataError: It cannot be imported or called, is no such data set, or an image or a label cannot be used.
    """
    try:
        target = load_object(name, "data")
        if not isinstance(target, type) and hasattr(target, "__getitem__"):
            datasets = {"all": target}
        else:
            given = accepted_arguments(target, {"split": "train"}, f"data {name}")
            datasets = {}
            for split in ("train", "val") if given else ("all",):
                with in_user_code(f"data {name}" + (f", called with split={split!r}," if given else ""), DataError):
                    datasets[split] = target(split=split) if given else target()
    except UsageError as error:
        raise DataError(str(error)) from error
    parts = {}
    for split, dataset in datasets.items():
        shown = name if split == "all" else f"{name}(split={split!r})"
        parts[split] = _scan(shown, dataset, memory_limit // len(datasets))
    return CustomImages(name, _labels(name, list(parts.values())), parts)


def _scan(name: str, dataset: Any, memory_limit: int) -> _Part:
    if isinstance(dataset, type) or not hasattr(dataset, "__getitem__") or not hasattr(dataset, "__len__"):
        raise DataError(
            f"data {name} gives a {type(dataset).__name__}; accepted: a torch.utils.data.Dataset with __len__ and "
            "__getitem__ (map-style), or any sequence of image and label"
        )
    with in_user_code(f"data {name}: its length", DataError):
        count = len(dataset)
    if not count:
        raise DataError(f"data {name} is empty")
    labels, hashes, shapes = [], [], set()
    images: list[npt.NDArray[np.uint8]] = []
    kept = 0
    for index in progress(range(count), "looking at the data set"):
        image, label = _item(name, dataset, index)
        labels.append(label)
        hashes.append(sha256_bytes(image.tobytes()))
        shapes.add(image.shape)
        kept += image.nbytes
        if kept <= memory_limit:
            images.append(image)
        else:
            images.clear()
    return _Part(name, dataset, _classes(name, dataset), labels, hashes, shapes, images)


def _item(name: str, dataset: Any, index: int) -> tuple[npt.NDArray[np.uint8], int]:
    what = f"data {name}, item {index}"
    with in_user_code(what, DataError):
        item = dataset[index]
    if not isinstance(item, tuple | list) or len(item) != 2:
        given = f"{len(item)} values" if isinstance(item, tuple | list) else f"a {type(item).__name__}"
        raise DataError(f"{what} is {given}; accepted: two, image and label")
    return _image(item[0], what), _label(item[1], what)


def _image(image: Any, what: str) -> npt.NDArray[np.uint8]:
    """Return an image as ``[H, W, C]`` of uint8, with one or three channels."""
    if isinstance(image, Image.Image):
        opened = open_image(image, mode=None)
        pixels = np.asarray(opened if opened.mode in ("L", "RGB") else open_image(opened, mode=opened.mode[:-1]))
    elif isinstance(image, Tensor):
        pixels = _from_tensor(image.detach().cpu(), what)
    else:
        pixels = np.asarray(image) if isinstance(image, np.ndarray) else np.empty(0)
    pixels = pixels[:, :, None] if pixels.ndim == 2 else pixels
    if pixels.dtype != np.uint8 or pixels.ndim != 3 or pixels.shape[2] not in _GRAY_OR_RGB or 0 in pixels.shape:
        raise DataError(f"{what}: the image is {_described(image)}; accepted: {_ACCEPTED}")
    return np.ascontiguousarray(pixels)


def _from_tensor(image: Tensor, what: str) -> npt.NDArray[Any]:
    if image.is_floating_point():
        low, high = (float(image.min()), float(image.max())) if image.numel() else (0.0, 0.0)
        if not (low >= 0 and high <= 1):
            raise DataError(
                f"{what}: the image is {_described(image)} with values from {low:.3g} to {high:.3g}; accepted: 0 to 1. "
                "krl normalizes images itself: leave out Normalize, or return uint8"
            )
        image = (image * 255).round().to(torch.uint8)
    return image.permute(1, 2, 0).numpy() if image.ndim == 3 else np.empty(0)


def _described(image: Any) -> str:
    if isinstance(image, np.ndarray | Tensor):
        kind = "a tensor" if isinstance(image, Tensor) else "an array"
        return f"{kind} of {str(image.dtype).removeprefix('torch.')} and shape {list(image.shape)}"
    return f"a {type(image).__name__}"


def _label(label: Any, what: str) -> int:
    try:
        number = None if isinstance(label, bool) else operator.index(label)
    except TypeError:
        number = None
    if number is None or number < 0:
        given = _described(label) if isinstance(label, np.ndarray | Tensor) and label.ndim else repr(label)
        raise DataError(f"{what}: the label is {given}; accepted: the number of a class, from 0")
    return number


def _classes(name: str, dataset: Any) -> tuple[str, ...] | None:
    classes = getattr(dataset, "classes", None)
    if classes is None:
        return None
    if isinstance(classes, str) or not isinstance(classes, Sequence) or len(set(map(str, classes))) < len(classes):
        raise DataError(f"data {name}: its classes are {classes!r}; accepted: a list of different names")
    return tuple(str(item) for item in classes)


def _labels(name: str, parts: Sequence[_Part]) -> tuple[str, ...]:
    """Return the class names, which all parts agree on."""
    highest = max(max(part.labels) for part in parts)
    known = {part.classes for part in parts}
    if len(known) > 1:
        raise DataError(f"data {name}: its train and val splits have other classes; give both the same list")
    classes = known.pop()
    if classes is None:
        return tuple(str(index) for index in range(highest + 1))
    if highest >= len(classes):
        raise DataError(f"data {name}: a label is {highest}, and there are {len(classes)} classes; they count from 0")
    return classes
