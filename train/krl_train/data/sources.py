"""Data sets by name or by folder."""

from __future__ import annotations

import logging
import statistics
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from krl_runtime.bundle.output_kind import OutputKind
from krl_runtime.errors import DataError, ImageError, UsageError, require
from krl_runtime.files import sha256_bytes
from krl_runtime.images.folders import ImageFile, ImageFolder, balanced, open_folder
from krl_runtime.images.formats import open_header
from krl_runtime.images.hashes import hash_files
from krl_runtime.images.preprocessing import Preprocessing
from krl_runtime.images.splits import hold_out
from krl_train.config import DataConfig, InputConfig, check_data
from krl_train.custom import is_custom, warn_of_change
from krl_train.models import native_size, published_input

from .custom import CustomImages, open_custom
from .fingerprints import fingerprints
from .mirroring import keeps_class_mirrored
from .patches import GRAY_MODES
from .pixels import PixelSet
from .shots import Shots

if TYPE_CHECKING:
    from krl_train.run import RunRecord

__all__ = ["Source", "load_split", "open_source", "preprocessing_for"]

_log = logging.getLogger("krl")

_TORCHVISION = {"mnist": "MNIST", "fashion-mnist": "FashionMNIST", "cifar10": "CIFAR10", "cifar100": "CIFAR100"}
_LARGEST_NATIVE = 64  # pixels a side: data sets up to here are used as they are, photographs are cropped
_CROP_FRACTION = 0.875  # 224 of 256 pixels, as ImageNet's networks are evaluated

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
        if self.folder is not None:
            images = self.folder.split(split, val_fraction=self.config.val_fraction)
            paths = [image.path for image in images]
            chosen = self._choose(split, [image.group for image in images], lambda: hash_files(paths), limit)
            return PixelSet.from_images(
                [images[index] for index in chosen],
                preprocessing,
                margin=margin,
                on_bad=self.config.on_bad_image,
                memory_limit=self.config.memory_limit_mb * 2**20,
                disk_limit=self.config.disk_cache_mb * 2**20,
                several=len(self.labels) if self.multi_label else None,
            )
        if self.custom is not None:
            return self.custom.read(
                split,
                preprocessing,
                margin=margin,
                choose=lambda labels, hashes: self._choose(split, labels, lambda: hashes, limit),
                val_fraction=self.config.val_fraction,
                memory_limit=self.config.memory_limit_mb * 2**20,
            )
        parts = [self.arrays[name] for name in (("train", "val") if split == "all" else (split,))]
        images_array = np.concatenate([part[0] for part in parts])
        labels = np.concatenate([part[1] for part in parts])
        chosen = self._choose(split, labels.tolist(), lambda: _hashes(images_array), limit)
        return PixelSet(_prepare(images_array[chosen], preprocessing, margin), labels[chosen].tolist(), margin)

    def _choose(
        self, split: str, labels: Sequence[int], hashes: Callable[[], Sequence[str]], limit: int | None
    ) -> list[int]:
        """Return the positions of the images of a split that are read; ``hashes`` is called where it is needed."""
        if self.shots is None or split != "train":
            return balanced(labels, limit)
        drawn = self.shots.draw(labels, hashes())
        return [drawn[index] for index in balanced([labels[position] for position in drawn], limit)]

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
            **splits,
        }


def open_source(config: DataConfig, *, classes: bool = True, seed: int = 0) -> Source:
    """Open a data set by name or folder.

    Args:
        config: What the user asked for.
        classes: Whether two classes or more are needed; without, a folder may hold nothing but images.
        seed: Draws the images that ``config.shots`` asks for.

    Raises:
        UsageError: No data set is named.
        DataError: It is not known, not there, or cannot be used.
        MissingExtraError: The library that reads it is not installed.
    """
    source = _open(config, classes)
    if config.shots is None:
        return source
    source.require_one_class("--shots")
    return replace(source, shots=Shots(config.shots, seed))


def _open(config: DataConfig, classes: bool) -> Source:
    if config.data is None:
        raise UsageError(
            "no data is named; give --data digits, mnist, cifar10 …, a folder or a list (CSV, JSON) of images, or your "
            "own data set as package.module:name"
        )
    if config.val_data is not None:
        raise UsageError("--val-data is for restoration; here a folder has train/ and val/, or is split")
    if config.data == "digits":
        return _digits(config)
    if config.data in _TORCHVISION:
        return _torchvision(config)
    if is_custom(config.data):
        return _custom(config, config.data, classes)
    check_data(config.data)
    root = Path(config.data)
    folder = open_folder(root, on_bad=config.on_bad_image)
    if classes and not folder.labels:
        raise DataError(
            f"{root} has images but no classes; put the images of each class into a folder of its name, or give a list "
            "of images with a column 'label'"
        )
    if classes and len(folder.labels) < 2:
        raise DataError(f"{root} has one class, {folder.labels[0]!r}; a classifier needs two or more")
    size, channels = _peek(folder)
    flip = _keeps_labels_mirrored(folder)
    name, several = str(root.resolve()), folder.multi_label
    return Source(name, folder.labels, channels, size, flip=flip, config=config, folder=folder, multi_label=several)


def preprocessing_for(
    config: InputConfig,
    source: Source,
    model: str,
    *,
    pretrained: bool = False,
    trained: Preprocessing | None = None,
) -> Preprocessing:
    """Fill in what the configuration leaves open about the network's input.

    Args:
        config: What the user asked for.
        source: The data; its size counts for networks that take any, and it is measured for mean and std.
        model: Name of the network.
        pretrained: Whether the network starts from published weights, or from third-party ones: ``trained`` is then
            what those state, and ImageNet's normalization for networks for small images.
        trained: The input that the weights were trained with, which the network starts from; it stays as it is where
            the user does not say otherwise.
    """
    native = native_size(model)
    if pretrained and native is not None:
        trained = published_input(model)
    if trained is not None:
        kept = _kept(config, trained)
        if (kept.mean, kept.std) != (trained.mean, trained.std):
            _log.warning(
                "the weights were trained with mean %s and std %s; the normalization asked for is mean %s and std %s",
                *(trained.mean, trained.std, kept.mean, kept.std),
            )
        return kept
    if config.size is not None:
        height, width = config.size[0], config.size[-1]
    elif native is None:
        if source.size is None and is_custom(model):
            raise UsageError(f"--size is needed: krl does not know which size of images {model} takes")
        height, width = source.size or (32, 32)
    else:
        height = width = native
    channels = config.channels or (source.channels if native is None else 3)
    base = _kept(replace(config, size=(height, width), channels=channels), Preprocessing(height, width))
    if pretrained or (config.mean and config.std):
        return base
    sample = source.read("train", base, limit=2000)
    mean, std = sample.statistics()
    return replace(base, mean=config.mean or mean, std=config.std or std)


def _kept(config: InputConfig, trained: Preprocessing) -> Preprocessing:
    """Return an input with what the user says about it changed."""
    size = config.size or (trained.height, trained.width)
    small = min(size) <= _LARGEST_NATIVE
    channels = config.channels or trained.channels
    fraction = trained.crop_fraction if config.size is None else 1.0 if small else _CROP_FRACTION
    return Preprocessing(
        height=size[0],
        width=size[-1],
        channels=channels,
        resize=config.resize or trained.resize,
        crop_fraction=config.crop_fraction or fraction,
        interpolation=config.interpolation or trained.interpolation,
        decode_tolerance=trained.decode_tolerance if config.decode_tolerance is None else config.decode_tolerance,
        mean=config.mean or _for_channels(trained.mean, channels),
        std=config.std or _for_channels(trained.std, channels),
    )


def _for_channels(values: tuple[float, ...], channels: int) -> tuple[float, ...]:
    """Return a mean or deviation for another number of channels: gray is taken for the mean of R, G and B."""
    return values if len(values) == channels else (statistics.fmean(values),) * channels


def _keeps_labels_mirrored(folder: ImageFolder) -> bool:
    if not folder.multi_label:
        return keeps_class_mirrored(folder.labels)
    return all(keeps_class_mirrored([label]) for label in folder.labels)  # an image can have any of them


def _custom(config: DataConfig, name: str, classes: bool) -> Source:
    images = open_custom(name, config.memory_limit_mb * 2**20)
    if classes and len(images.labels) < 2:
        raise DataError(f"data {images.name} has one class, {images.labels[0]!r}; a classifier needs two or more")
    size = images.size if images.size is not None and max(images.size) <= _LARGEST_NATIVE else None
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
    config = DataConfig(
        data=record.data["source"],
        data_root=Path(record.data["root"]),
        val_fraction=record.data["val_fraction"],
        on_bad_image=record.data["on_bad_image"],
    )
    source = open_source(config)
    warn_of_change(record.sources, "data", source.name, "the run")
    part = source.read(split, record.preprocessing, limit=limit)
    return np.ascontiguousarray(part.pixels(np.arange(len(part))).numpy()), part.labels.tolist()


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
    return (size if size is not None and max(size) <= _LARGEST_NATIVE else None), (1 if gray else 3)


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
