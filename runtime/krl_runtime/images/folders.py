"""Folders and lists of images: listing, splitting and reading them, for training and deployment."""

from __future__ import annotations

import logging
import os
import unicodedata
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Literal, TypeAlias, TypeVar

import numpy as np
import numpy.typing as npt

from krl_runtime.errors import DataError, ImageError, KrlError, UsageError
from krl_runtime.files import sha256_bytes
from krl_runtime.processor import cpu_count
from krl_runtime.progress import progress

from .formats import IMAGE_SUFFIXES
from .hashes import hash_files
from .lists import LIST_SUFFIXES, ImageList, is_list, read_list
from .preprocessing import Preprocessing
from .splits import find_splits, hold_out, subfolders

__all__ = [
    "ImageFile",
    "ImageFolder",
    "OnBadImage",
    "balanced",
    "decode",
    "find_images",
    "identity",
    "open_folder",
    "read_each",
    "report_bad",
]

_log = logging.getLogger("krl")
_T = TypeVar("_T")

OnBadImage: TypeAlias = Literal["refuse", "skip"]
"""How to treat files that are not readable images: refuse the whole set, or name and skip them."""

_IGNORED = frozenset({"thumbs.db", "desktop.ini"})
_SHOWN = 10  # files in a message; the log would otherwise be the whole folder


@dataclass(frozen=True)
class ImageFile:
    """One image file.

    Attributes:
        path: The file.
        label: Index of its class in the folder's ``labels``; -1 without labels, and where there can be several.
        present: In multi-label data the indices of all labels that it has, the rarest of the data first; else ``None``.
        fields: Of a list, further columns that were asked for, by name: text, of images the path of the file.
    """

    path: Path
    label: int = -1
    present: tuple[int, ...] | None = None
    fields: Mapping[str, str] = field(default_factory=dict, hash=False)

    @property
    def group(self) -> int:
        """Index of the label that the image is counted to where images are divided: its class, or its rarest label."""
        return self.present[0] if self.present else self.label


@dataclass(frozen=True)
class ImageFolder:
    """A data set on disk: a folder, or a list of images.

    Attributes:
        root: The folder or the list.
        labels: Class names, sorted; empty for images without classes.
        splits: ``"train"`` and ``"val"`` if the folder has them, else ``"all"``.
        multi_label: Whether an image can have several labels, or none; only lists say so.
    """

    root: Path
    labels: tuple[str, ...]
    splits: dict[str, tuple[ImageFile, ...]]
    multi_label: bool = False

    @property
    def base(self) -> Path:
        """The folder that the images lie in."""
        return self.root.parent if self.root.is_file() else self.root

    def split(self, name: str, *, val_fraction: float = 0.1) -> tuple[ImageFile, ...]:
        """Return the images of one split.

        A folder without ``train/`` and ``val/`` is split by the hash of each file's content, class by class; see
        ``splits.hold_out``. So the names do not matter, and copies of an image cannot leak to the other split.

        Args:
            name: ``"train"``, ``"val"`` or ``"all"``.
            val_fraction: Share of the images in ``"val"``, in (0, 1), if the folder is not split.

        Raises:
            DataError: The split would be empty, or its name is not known.
        """
        if name in self.splits:
            return self.splits[name]
        if name == "all":
            return tuple(image for split in self.splits.values() for image in split)
        if name not in ("train", "val"):
            raise DataError(f"{self.root}: unknown split {name!r}; accepted: train, val, all")
        if "all" not in self.splits:
            raise DataError(f"{self.root} has no split {name}; it has: {', '.join(self.splits)}")
        images = self.splits["all"]
        hashes = hash_files([image.path for image in images])
        held = hold_out([image.group for image in images], hashes, val_fraction)
        chosen = tuple(image for image, out in zip(images, held, strict=True) if out == (name == "val"))
        if not chosen:
            raise DataError(
                f"{self.root}: with val_fraction {val_fraction} the {name} split of its {len(self.splits['all'])} "
                "images is empty; add images, change the fraction, or make train/ and val/ folders (of a list, a "
                "column 'split')"
            )
        return chosen


def find_images(folder: Path, *, on_bad: OnBadImage = "refuse") -> list[Path]:
    """Return the image files under a folder, at any depth, sorted by path.

    Raises:
        DataError: The folder is missing or holds no image; or it holds other files and ``on_bad`` is ``"refuse"``.
    """
    if not folder.is_dir():
        what = "is a file, not a folder" if folder.exists() else "does not exist"
        raise DataError(f"{folder} {what}; give a folder of images")
    images: list[Path] = []
    others: list[Path] = []
    for directory, folders, names in os.walk(folder):
        folders[:] = sorted(name for name in folders if not name.startswith("."))
        for name in sorted(names):
            if name.startswith(".") or name.lower() in _IGNORED:
                continue
            path = Path(directory, name)
            (images if path.suffix.lower() in IMAGE_SUFFIXES else others).append(path)
    report_bad([f"{path} is not an image" for path in others], on_bad)
    if not images:
        raise DataError(f"{folder} holds no images; accepted: {', '.join(sorted(IMAGE_SUFFIXES))}")
    return images


def open_folder(
    root: str | Path,
    *,
    on_bad: OnBadImage = "refuse",
    same_classes: bool = True,
    attributes: Sequence[str] = (),
    images: Sequence[str] = (),
) -> ImageFolder:
    """List a data set: ``train/CLASS/*`` and ``val/CLASS/*``, or ``CLASS/*``, or images without classes.

    Args:
        root: The folder; or a list of images, see ``read_list``.
        on_bad: Action for files that are not images by their name.
        same_classes: Whether ``train/`` and ``val/`` must have the same classes, as training needs them.
        attributes: Further columns of a list that ``ImageFile.fields`` gets; a folder has none.
        images: Further columns of a list with paths of images, likewise.

    Raises:
        DataError: The folder is missing, empty, mixes images with class folders, the list has a line that cannot be
            used, or the classes of ``train/`` and ``val/`` differ and must not. Or a further column is not there.
    """
    root = Path(root)
    if is_list(root):
        listed = read_list(root, attributes=attributes, images=images)
        return _open_list(root, listed, on_bad, same_classes=same_classes)
    if not root.is_dir():
        what = "is a file, not a folder" if root.exists() else "does not exist"
        raise DataError(
            f"data folder {root} {what}; give a folder of images, one folder for each class, or a list of images "
            f"({', '.join(LIST_SUFFIXES)})"
        )
    if attributes or images:
        names = ", ".join(map(repr, (*attributes, *images)))
        raise DataError(
            f"{root} is a folder, and further inputs of the model need the columns {names}; give a list of images "
            f"({', '.join(LIST_SUFFIXES)}) with these columns"
        )
    found = find_splits(root)
    if len(found) < 2:
        root = next(iter(found.values()), root)  # one split only, as some data sets ship
        labels, alone = _classes(root, on_bad)
        return ImageFolder(root, labels, {"all": alone})
    held_out = "val" if "val" in found else "test"
    if len(found) == 3:
        _log.info("%s is left aside; krl-train evaluate RUN --data %s measures on it", found["test"], found["test"])
    train_name, val_name = (str(found[role].relative_to(root)) for role in ("train", held_out))
    train_labels, train = _classes(found["train"], on_bad)
    val_labels, val = _classes(found[held_out], on_bad)
    if same_classes:
        _check_same_classes(root, f"{train_name}/", f"{val_name}/", set(train_labels), set(val_labels))
    labels = tuple(sorted({*train_labels, *val_labels}))
    parts = {"train": (train_labels, train), "val": (val_labels, val)}
    return ImageFolder(root, labels, {name: _renumbered(images, own, labels) for name, (own, images) in parts.items()})


def _open_list(path: Path, listed: ImageList, on_bad: OnBadImage, *, same_classes: bool) -> ImageFolder:
    """Return the data set that a list of images describes; see ``open_folder``."""
    report_bad(listed.missing, on_bad)
    splits: dict[str, list[ImageFile]] = {}
    for image in listed.images:
        label = image.labels[0] if image.labels and not listed.multi_label else -1
        file = ImageFile(image.path, label, image.labels if listed.multi_label else None, image.fields)
        splits.setdefault(image.role, []).append(file)
    if not splits:
        raise DataError(f"{path}: none of its images is there")
    if len(splits) < 2:
        (images,) = splits.values()
        return ImageFolder(path, listed.labels, {"all": tuple(images)}, listed.multi_label)
    held_out = "val" if "val" in splits else "test"
    if "train" not in splits:
        raise DataError(f"{path} has the splits {' and '.join(splits)}, and none to train on; name one of them train")
    if len(splits) == 3:
        _log.info("%d images of the split test of %s are left aside", len(splits["test"]), path)
    used = {"train": tuple(splits["train"]), "val": tuple(splits[held_out])}
    if listed.labels and not listed.multi_label and same_classes:
        train, val = ({image.label for image in images} for images in used.values())
        _check_same_classes(path, "train", held_out, *({listed.labels[each] for each in part} for part in (train, val)))
    return ImageFolder(path, listed.labels, used, listed.multi_label)


def _check_same_classes(root: Path, train_name: str, val_name: str, train: set[str], val: set[str]) -> None:
    if train != val:
        raise DataError(
            f"{root}: the classes of {train_name} and {val_name} differ; only in {train_name}: "
            f"{sorted(train - val) or 'none'}; only in {val_name}: {sorted(val - train) or 'none'}; both need the same"
        )


def _renumbered(images: Sequence[ImageFile], own: Sequence[str], labels: Sequence[str]) -> tuple[ImageFile, ...]:
    """Return images whose labels index ``own`` with labels that index ``labels``."""
    index = [labels.index(name) for name in own]
    return tuple(image if image.label < 0 else replace(image, label=index[image.label]) for image in images)


def _classes(folder: Path, on_bad: OnBadImage) -> tuple[tuple[str, ...], tuple[ImageFile, ...]]:
    """Return the labels and the images of ``CLASS/*``, or no labels and the images of a flat folder."""
    classes = subfolders(folder)
    loose = [
        path
        for path in sorted(folder.iterdir())
        if path.is_file() and path.suffix.lower() in IMAGE_SUFFIXES and not path.name.startswith(".")
    ]
    if classes and loose:
        raise DataError(
            f"{folder} mixes class folders ({', '.join(classes[:3])} …) with {len(loose)} loose images "
            f"({loose[0].name} …); put every image into the folder of its class"
        )
    if not classes:
        return (), tuple(ImageFile(path) for path in find_images(folder, on_bad=on_bad))
    composed = {unicodedata.normalize("NFC", name): name for name in classes}  # macOS stores names decomposed
    if len(composed) != len(classes):
        twice = next(name for name in classes if name not in composed.values())
        raise DataError(f"{folder} has two class folders whose names look alike, {twice!r}; rename one of them")
    images: list[ImageFile] = []
    for label, (_, name) in enumerate(sorted(composed.items())):
        try:
            found = find_images(folder / name, on_bad=on_bad)
        except DataError as error:
            raise DataError(f"class folder {folder / name}: {error}") from error
        images += [ImageFile(path, label) for path in found]
    return tuple(sorted(composed)), tuple(images)


def balanced(labels: Sequence[int], limit: int | None) -> list[int]:
    """Return the positions of at most ``limit`` items, the first ones of each class in turn; all without a limit.

    Example:
        >>> balanced([0, 0, 0, 1, 1, 2], 4)
        [0, 1, 3, 5]
    """
    if limit is None or limit >= len(labels):
        return list(range(len(labels)))
    counts: dict[int, int] = {}
    rank = []
    for position, label in enumerate(labels):
        counts[label] = counts.get(label, 0) + 1
        rank.append((counts[label], label, position))
    return sorted(position for *_, position in sorted(rank)[:limit])


def decode(
    images: Sequence[ImageFile],
    preprocessing: Preprocessing,
    *,
    margin: int = 0,
    on_bad: OnBadImage = "refuse",
    description: str | None = "decoding images",
) -> tuple[npt.NDArray[np.uint8], tuple[ImageFile, ...]]:
    """Decode images into one array, with the preprocessing that the device uses.

    Args:
        images: The image files.
        preprocessing: From an image to ``uint8``.
        margin: Extra pixels on every side; see ``Preprocessing.__call__``.
        on_bad: Action for files that cannot be decoded.
        description: Text of the progress bar; ``None`` shows none, for callers that decode a part at a time.

    Returns:
        The array ``[N, channels, height + 2 * margin, width + 2 * margin]`` of uint8, and its ``N`` images.

    Raises:
        DataError: No image can be decoded, or one cannot and ``on_bad`` is ``"refuse"``.
    """
    channels, height, width = preprocessing.shape
    pixels = np.empty((len(images), channels, height + 2 * margin, width + 2 * margin), np.uint8)
    good: list[ImageFile] = []
    bad: list[KrlError] = []

    for image, result in read_each(images, lambda image: preprocessing(image.path, margin=margin), description):
        if isinstance(result, KrlError):
            bad.append(result)
        else:
            pixels[len(good)] = result
            good.append(image)
    report_bad(bad, on_bad)
    if not good:
        raise DataError("no image is left: none of the files can be decoded")
    return pixels[: len(good)], tuple(good)


def read_each(
    images: Sequence[ImageFile], read: Callable[[ImageFile], _T], description: str | None
) -> Iterator[tuple[ImageFile, _T | KrlError]]:
    """Read images in threads; yield each with what was read of it, or why it cannot be used.

    Args:
        images: The image files.
        read: Reads one; an ``ImageError`` or ``UsageError`` says why it cannot.
        description: Text of the progress bar; ``None`` shows none.
    """

    def attempt(image: ImageFile) -> _T | KrlError:
        try:
            return read(image)
        except (ImageError, UsageError) as error:
            return error

    with ThreadPoolExecutor(cpu_count()) as pool:
        results = pool.map(attempt, images, chunksize=16)
        shown = images if description is None else progress(images, description)
        yield from zip(shown, results, strict=True)


def identity(pixels: npt.NDArray[np.uint8], labels: Iterable[Any]) -> str:
    """Return a hash of the decoded images and labels of training or calibration, in their order.

    Args:
        pixels: The images.
        labels: Class index of each, or a row of 0 and 1 for several labels.
    """
    array = np.ascontiguousarray(pixels)
    numbers = (np.asarray(label) for label in labels)
    shown = (int(each) if each.ndim == 0 else "".join(map(str, each.tolist())) for each in numbers)
    header = f"{array.shape}:{','.join(map(str, shown))}:".encode()
    return sha256_bytes(header + sha256_bytes(array.data.cast("B") if array.size else b"").encode())


def report_bad(bad: Sequence[object], on_bad: OnBadImage) -> None:
    """Refuse or log files that cannot be used, each by its name and cause.

    Args:
        bad: Errors or sentences; each one names its file.
        on_bad: Action for such files.

    Raises:
        DataError: There are such files and ``on_bad`` is ``"refuse"``.
    """
    if not bad:
        return
    shown = "; ".join(str(item) for item in bad[:_SHOWN])
    more = f"; and {len(bad) - _SHOWN} more" if len(bad) > _SHOWN else ""
    if on_bad == "refuse":
        raise DataError(
            f"{len(bad)} files cannot be used: {shown}{more}. Repair or remove them, or pass --on-bad-image skip"
        )
    _log.warning("skipped %d files: %s%s", len(bad), shown, more)
