"""Data sets by name or by folder."""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeAlias

import numpy as np
import numpy.typing as npt

from krl_runtime.bundle.further_inputs import FurtherInput, column_names
from krl_runtime.bundle.output_kind import OutputKind
from krl_runtime.errors import DataError, ImageError, UsageError, require
from krl_runtime.files import sha256_bytes
from krl_runtime.images.folders import ImageFile, ImageFolder, balanced, open_folder
from krl_runtime.images.formats import open_header
from krl_runtime.images.hashes import hash_files
from krl_runtime.images.preprocessing import Preprocessing
from krl_runtime.images.splits import hold_out
from krl_train.config import DataConfig, check_data
from krl_train.custom import is_custom, warn_of_change

from .custom import CustomImages, open_custom
from .fingerprints import fingerprints
from .further import attach
from .mirroring import keeps_class_mirrored
from .patches import GRAY_MODES
from .pixels import PixelSet
from .shots import Shots

if TYPE_CHECKING:
    from krl_train.run import RunRecord

__all__ = ["HELD_OUT", "LARGEST_NATIVE", "Source", "load_set", "load_split", "open_source"]

_log = logging.getLogger("krl")

_TORCHVISION = {"mnist": "MNIST", "fashion-mnist": "FashionMNIST", "cifar10": "CIFAR10", "cifar100": "CIFAR100"}
LARGEST_NATIVE = 64
"""Pixels a side: data sets up to here are used as they are, photographs are cropped."""
HELD_OUT = "held_out_classes"
"""In a record's data: the classes that were for validation alone; absent where there are none."""

Columns: TypeAlias = tuple[Sequence[str], Sequence[str]]
Arrays = tuple[npt.NDArray[np.uint8], npt.NDArray[np.int64]]


@dataclass(frozen=True)
class Source:
    """A data set that can be read.

    Attributes:
        name: Its name, or the folder's absolute path.
        labels: Class names in the order of the class indices.
        channels: 1 where all images are known to be gray, else 3.
        size: Height and width where all images are known to share them and they are small.
        flip: Whether mirrored images keep their class, as far as the names of the classes say.
        config: What the user asked for.
        folder: The listed folder, for images on disk.
        arrays: ``"train"`` and ``"val"`` for named sets: images ``[N, H, W, C]`` of uint8, and class indices.
        custom: The images of a user's own data set.
        shots: Which of the training images are used, where that is not all.
        multi_label: Whether an image can have several labels, or none.
        further: Inputs beside the image that are read as well.
        held_out: Classes whose images are all for validation, and none of the others is.
    """

    name: str
    labels: tuple[str, ...]
    channels: int
    size: tuple[int, int] | None
    flip: bool
    config: DataConfig
    folder: ImageFolder | None = None
    arrays: Mapping[str, Arrays] = field(default_factory=dict)
    custom: CustomImages | None = None
    shots: Shots | None = None
    multi_label: bool = False
    held_out: tuple[str, ...] = ()
    further: tuple[FurtherInput, ...] = ()

    @property
    def is_split(self) -> bool:
        """Whether the data set itself says what is for training and what for validation."""
        if self.custom is not None:
            return "all" not in self.custom.parts
        return self.folder is None or "all" not in self.folder.splits

    @property
    def output_kind(self) -> OutputKind:
        """Meaning of the outputs of a classifier that is trained on it."""
        return "sigmoid-logits" if self.multi_label else "logits"

    def require_one_class(self, what: str) -> None:
        """Check that each image has one class.

        Args:
            what: What needs that, as ``"--label-smoothing"``.

        Raises:
            UsageError: An image can have several labels.
        """
        if self.multi_label:
            raise UsageError(
                f"{what} needs one class for each image, and the images of {self.name} can have several labels; leave "
                "it out, or give a list with a column 'label'"
            )

    def holding_out(self, classes: Sequence[str]) -> Source:
        """Return the data set with classes that are for validation alone; the others are then for training alone.

        Raises:
            UsageError: A class is not there, it is the only one, or fewer than two would be left to train on.
        """
        if len(set(classes)) == 1 and classes[0] in self.labels:
            raise UsageError(
                f"--held-out-classes holds out {classes[0]!r} alone, and among images of one class each finds its own; "
                "hold out two or more"
            )
        unknown = [name for name in classes if name not in self.labels]
        left = len(self.labels) - len(set(classes))
        if unknown or (classes and left < 2):
            what = f"names {unknown[0]!r}, which {self.name} does not have" if unknown else f"leaves {left} to train on"
            known = ", ".join(self.labels[:20]) + (" …" if len(self.labels) > 20 else "")
            raise UsageError(f"--held-out-classes {what}; accepted: some of {known}, so that two or more are left")
        return replace(self, held_out=tuple(dict.fromkeys(classes)))

    def read(self, split: str, preprocessing: Preprocessing, *, margin: int = 0, limit: int | None = None) -> PixelSet:
        """Read one split.

        Args:
            split: ``"train"``, ``"val"`` or ``"all"``.
            preprocessing: From an image to ``uint8``.
            margin: Extra pixels on every side, for random crops.
            limit: Number of images at most, the same number of each class.

        Raises:
            DataError: The split is empty, or an image cannot be decoded and is not to be skipped.
        """
        whole = self._whole(split)
        if self.folder is not None:
            images = self.folder.split(whole, val_fraction=self.config.val_fraction)
            paths = [image.path for image in images]
            chosen = self._choose(split, [image.group for image in images], lambda: hash_files(paths), limit)
            read = partial(
                PixelSet.from_images,
                preprocessing=preprocessing,
                margin=margin,
                on_bad=self.config.on_bad_image,
                memory_limit=self.config.memory_limit_mb * 2**20,
                disk_limit=self.config.disk_cache_mb * 2**20,
                several=len(self.labels) if self.multi_label else None,
            )
            files = [images[index] for index in chosen]
            part = read(files)
            attach(part, files, self.further, partial(read, on_bad="refuse"))
            return part
        if self.custom is not None:
            part = self.custom.read(
                whole,
                preprocessing,
                margin=margin,
                choose=lambda labels, hashes: self._choose(split, labels, lambda: hashes, limit),
                val_fraction=self.config.val_fraction,
                memory_limit=self.config.memory_limit_mb * 2**20,
            )
            attach(part, (), self.further)
            return part
        parts = [self.arrays[name] for name in (("train", "val") if whole == "all" else (whole,))]
        images_array = np.concatenate([part[0] for part in parts])
        labels = np.concatenate([part[1] for part in parts])
        chosen = self._choose(split, labels.tolist(), lambda: _hashes(images_array), limit)
        part = PixelSet(_prepare(images_array[chosen], preprocessing, margin), labels[chosen].tolist(), margin)
        attach(part, (), self.further)
        return part

    def _choose(
        self, split: str, labels: Sequence[int], hashes: Callable[[], Sequence[str]], limit: int | None
    ) -> list[int]:
        """Return the positions of the images of a split that are read; ``hashes`` is called where it is needed."""
        chosen = self._of_classes(split, labels)
        if self.shots is not None and split == "train":
            digests = hashes()
            drawn = self.shots.draw([labels[index] for index in chosen], [digests[index] for index in chosen])
            chosen = [chosen[index] for index in drawn]
        return [chosen[index] for index in balanced([labels[position] for position in chosen], limit)]

    def _whole(self, split: str) -> str:
        """Return the split that the images of a split are taken from, by class where classes are held out."""
        if not self.held_out or split == "all" or (split == "train" and self.is_split):
            return split
        return "all"

    def _of_classes(self, split: str, labels: Sequence[int]) -> list[int]:
        """Return the positions of images whose classes are in a split.

        Raises:
            DataError: There are none.
        """
        if not self.held_out or split == "all":
            return list(range(len(labels)))
        held_out = {self.labels.index(name) for name in self.held_out}
        chosen = [index for index, label in enumerate(labels) if (label in held_out) == (split == "val")]
        if not chosen:
            raise DataError(f"{self.name} has no image of the classes {', '.join(self.held_out)}; hold out others")
        return chosen

    def describe(self, sets: Mapping[str, PixelSet]) -> dict[str, Any]:
        """Return the record of the data for ``run.json``: its name, how it was read, counts and identities.

        Of images from files it has the hash of all files with their labels, and of those to train on their
        fingerprints.
        """
        splits: dict[str, dict[str, Any]] = {}
        for name, part in sets.items():
            splits[name] = {"count": len(part), "identity": part.identity}
            if part.files:
                hashes = part.file_hashes()
                labeled = zip(part.labels.tolist(), hashes, strict=True)
                splits[name]["files"] = sha256_bytes(
                    ",".join(f"{label}:{digest}" for label, digest in labeled).encode()
                )
                if name in ("train", "unlabeled"):
                    splits[name]["fingerprints"] = fingerprints(hashes)
        return {
            "source": self.name,
            "root": str(self.config.data_root.resolve()),
            "val_fraction": self.config.val_fraction,
            "on_bad_image": self.config.on_bad_image,
            **({} if self.shots is None else {"shots": asdict(self.shots)}),
            **({} if not self.held_out else {HELD_OUT: list(self.held_out)}),
            **splits,
        }


def open_source(config: DataConfig, *, classes: bool = True, seed: int = 0, columns: Columns = ((), ())) -> Source:
    """Open a data set by name or folder.

    Args:
        config: What the user asked for.
        classes: Whether two classes or more are needed; without, a folder may hold nothing but images.
        seed: Draws the images that ``config.shots`` asks for.
        columns: Names of a list's columns with attributes, and of those with further images.

    Raises:
        UsageError: No data set is named.
        DataError: It is not known, not there, or cannot be used.
        MissingExtraError: The library that reads it is not installed.
    """
    source = _open(config, classes, columns)
    if config.shots is None:
        return source
    source.require_one_class("--shots")
    return replace(source, shots=Shots(config.shots, seed))


def _open(config: DataConfig, classes: bool, columns: Columns) -> Source:
    if config.data is None:
        raise UsageError(
            "no data is named; give --data digits, mnist, cifar10 …, a folder or a list (CSV, JSON) of images, or your "
            "own data set as package.module:name"
        )
    if config.val_data is not None:
        raise UsageError("--val-data is for restoration; here a folder has train/ and val/, or is split")
    if any(columns) and (config.data == "digits" or config.data in _TORCHVISION or is_custom(config.data)):
        raise UsageError(
            f"--data {config.data} has no column {[*columns[0], *columns[1]][0]!r}; give a list of images (CSV, JSON), "
            "which can name the files that krl-train unpack writes"
        )
    if config.data == "digits":
        return _digits(config)
    if config.data in _TORCHVISION:
        return _torchvision(config)
    if is_custom(config.data):
        return _custom(config, config.data, classes)
    check_data(config.data)
    root = Path(config.data)
    folder = open_folder(root, on_bad=config.on_bad_image, attributes=columns[0], images=columns[1])
    if classes and not folder.labels:
        raise DataError(
            f"{root} has images but no classes; put the images of each class into a folder of its name, or give a list "
            "of images with a column 'label'"
        )
    if classes and len(folder.labels) < 2:
        raise DataError(f"{root} has one class, {folder.labels[0]!r}; two or more are needed")
    size, channels = _peek(folder)
    flip = _keeps_labels_mirrored(folder)
    name, several = str(root.resolve()), folder.multi_label
    return Source(name, folder.labels, channels, size, flip=flip, config=config, folder=folder, multi_label=several)


def _keeps_labels_mirrored(folder: ImageFolder) -> bool:
    if not folder.multi_label:
        return keeps_class_mirrored(folder.labels)
    return all(keeps_class_mirrored([label]) for label in folder.labels)  # an image can have any of them


def _custom(config: DataConfig, name: str, classes: bool) -> Source:
    images = open_custom(name, config.memory_limit_mb * 2**20)
    if classes and len(images.labels) < 2:
        raise DataError(f"data {images.name} has one class, {images.labels[0]!r}; two or more are needed")
    size = images.size if images.size is not None and max(images.size) <= LARGEST_NATIVE else None
    flip = keeps_class_mirrored(images.labels)
    return Source(images.name, images.labels, images.channels, size, flip=flip, config=config, custom=images)


def load_split(record: RunRecord, split: str, limit: int | None = None) -> tuple[npt.NDArray[np.uint8], list[int]]:
    """Read again the data that a run was trained on.

    Args:
        record: The run's record.
        split: ``"train"`` or ``"val"``.
        limit: Number of images at most, the same number of each class.

    Returns:
        The images as the network takes them, ``[N, C, H, W]`` of uint8, and their class indices.

    Raises:
        DataError: The data is not where it was.
    """
    part = load_set(record, split, limit)
    return np.ascontiguousarray(part.pixels(np.arange(len(part))).numpy()), part.labels.tolist()


def load_set(record: RunRecord, split: str, limit: int | None = None) -> PixelSet:
    """Read again the data that a run was trained on, with what is beside the images; see ``load_split``."""
    config = DataConfig(
        data=record.data["source"],
        data_root=Path(record.data["root"]),
        val_fraction=record.data["val_fraction"],
        on_bad_image=record.data["on_bad_image"],
    )
    further = record.model.further(record.preprocessing)
    source = open_source(config, columns=column_names(further)).holding_out(record.data.get(HELD_OUT, ()))
    warn_of_change(record.sources, "data", source.name, "the run")
    source = replace(source, further=further)
    return source.read(split, record.preprocessing, limit=limit)


def _prepare(images: npt.NDArray[np.uint8], preprocessing: Preprocessing, margin: int) -> npt.NDArray[np.uint8]:
    same = images.shape[1:] == (preprocessing.height, preprocessing.width, preprocessing.channels)
    if same and margin == 0:
        return np.ascontiguousarray(images.transpose(0, 3, 1, 2))  # what the preprocessing would return
    return np.stack([preprocessing(image, margin=margin) for image in images])


def _peek(folder: ImageFolder) -> tuple[tuple[int, int] | None, int]:
    """Look at a few files: their common size if it is small, and whether they are all gray."""
    images: list[ImageFile] = [image for split in folder.splits.values() for image in split]
    sizes, modes = set(), set()
    for image in images[:: max(1, len(images) // 16)]:
        try:
            opened = open_header(image.path)
        except ImageError:  # reading the split names it
            continue
        sizes.add((opened.height, opened.width))
        modes.add(opened.mode)
    size = sizes.pop() if len(sizes) == 1 else None
    gray = bool(modes) and modes <= set(GRAY_MODES)
    return (size if size is not None and max(size) <= LARGEST_NATIVE else None), (1 if gray else 3)


def _hashes(images: npt.NDArray[np.uint8]) -> list[str]:
    """Return the SHA-256 of each image's pixels."""
    return [sha256_bytes(item.tobytes()) for item in images]


def _digits(config: DataConfig) -> Source:
    datasets = require("sklearn.datasets", extra="train", purpose="the embedded digits data set")
    digits = datasets.load_digits()
    # 17 levels, 0 to 16
    images = np.round(digits.images * (255 / 16)).astype(np.uint8)[..., None]
    labels = digits.target.astype(np.int64)
    held_out = np.array(hold_out(labels.tolist(), _hashes(images), config.val_fraction))
    arrays = {"train": (images[~held_out], labels[~held_out]), "val": (images[held_out], labels[held_out])}
    names = tuple(str(name) for name in digits.target_names)
    flip = keeps_class_mirrored(names)
    return Source("digits", names, 1, (8, 8), flip=flip, config=config, arrays=arrays)


def _torchvision(config: DataConfig) -> Source:
    datasets = require("torchvision.datasets", extra="train", purpose=f"data set {config.data}")
    name = str(config.data)
    kind = getattr(datasets, _TORCHVISION[name])
    arrays: dict[str, Arrays] = {}
    labels: tuple[str, ...] = ()
    for split in ("train", "val"):
        try:
            part = kind(root=str(config.data_root), train=split == "train", download=config.download)
        except (RuntimeError, OSError) as error:  # not found or corrupted; urllib's errors are OSErrors
            raise DataError(
                f"data set {name} is not usable in {config.data_root} ({error}); give its place with --data-root, "
                "or --download"
            ) from error
        images = np.asarray(part.data, dtype=np.uint8)
        arrays[split] = (images if images.ndim == 4 else images[..., None], np.asarray(part.targets, np.int64))
        labels = tuple(str(item) for item in part.classes)
    first = arrays["train"][0]
    return Source(
        name,
        labels,
        first.shape[3],
        (first.shape[1], first.shape[2]),
        flip=keeps_class_mirrored(labels),
        config=config,
        arrays=arrays,
    )
