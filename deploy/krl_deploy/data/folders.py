"""Folders of real images, as deployment uses them: to calibrate on, to measure on, to keep as golden inputs."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from krl_runtime.errors import DataError
from krl_runtime.files import sha256_file
from krl_runtime.images.folders import ImageFile, ImageFolder, OnBadImage, balanced, open_folder

__all__ = [
    "choose",
    "choose_any",
    "choose_disjoint",
    "choose_two",
    "open_data",
    "some",
    "with_label_indices",
    "without_copies",
]

_log = logging.getLogger("krl")

_NAMED = ("digits", "mnist", "fashion-mnist", "cifar10", "cifar100")


def open_data(data: Path, *, on_bad: OnBadImage) -> ImageFolder:
    """List a folder of images, or read a list of images.

    Raises:
        DataError: It is not there (a data set's name gets the way to a folder), or cannot be used.
    """
    if not data.exists() and str(data) in _NAMED:
        raise DataError(
            f"{data} is the name of a data set, not a folder; write it as a folder first with "
            f"krl-train unpack --data {data} --out FOLDER, then give --data FOLDER"
        )
    return open_folder(data, on_bad=on_bad, same_classes=False)


def choose(folder: ImageFolder, split: str, limit: int, *, val_fraction: float) -> list[ImageFile]:
    """Return images of one split, the same number of each class; all images if there are too few to split.

    Args:
        folder: The data.
        split: ``"train"`` or ``"val"``.
        limit: Number of images at most.
        val_fraction: Share of ``"val"`` where the folder is not split.
    """
    try:
        images = folder.split(split, val_fraction=val_fraction)
    except DataError as error:
        images = folder.split("all")
        _log.warning("%s; all %d images are used instead", error, len(images))
    return _balanced(images, limit)


def without_copies(images: Sequence[ImageFile], others: Sequence[ImageFile]) -> list[ImageFile]:
    """Return the images whose content none of the others has."""
    sizes, other_sizes = ([image.path.stat().st_size for image in each] for each in (images, others))
    both = set(sizes) & set(other_sizes)  # only files of the same size can be alike, so no others are read
    contents = {sha256_file(image.path) for image, size in zip(others, other_sizes, strict=True) if size in both}
    return [
        image
        for image, size in zip(images, sizes, strict=True)
        if size not in both or sha256_file(image.path) not in contents
    ]


def choose_two(
    folder: ImageFolder, limit: int, val_limit: int, *, val_fraction: float
) -> tuple[list[ImageFile], list[ImageFile], str]:
    """Return images to calibrate on and to judge on, and why they are not different ones; empty if they are.

    Args:
        folder: The data.
        limit: Number of calibration images at most.
        val_limit: Number of images to judge on at most.
        val_fraction: Share of ``"val"`` where the folder is not split.
    """
    train = choose(folder, "train", limit, val_fraction=val_fraction)
    val = choose(folder, "val", val_limit, val_fraction=val_fraction)
    different = without_copies(train, val)
    if not different:
        return train, val, "the images that it was judged on were calibrated on as well"
    if len(different) < len(train):
        _log.warning("%d images are not calibrated on, since it is judged on the same", len(train) - len(different))
    return different, val, ""


def choose_disjoint(
    folder: ImageFolder, limit: int, planning: int, val_limit: int, *, val_fraction: float
) -> tuple[list[ImageFile], list[ImageFile], list[ImageFile]]:
    """Return images to calibrate on, to plan on, and to judge on; no two of them have an image in common.

    Calibration gives up a part of its images if the train split has not enough for both. A copy of an image that is
    calibrated or judged on is not planned on.

    Args:
        folder: The data.
        limit: Number of calibration images at most; 0 for none.
        planning: Number of planning images at most.
        val_limit: Number of images to judge on at most.
        val_fraction: Share of ``"val"`` where the folder is not split.

    Raises:
        DataError: A set would be empty.
    """
    train, val = (folder.split(name, val_fraction=val_fraction) for name in ("train", "val"))
    count = min(planning, max(len(train) - limit, len(train) // 2))
    calibration, judged = _balanced(train, min(limit, len(train) - count)), _balanced(val, val_limit)
    if len(calibration) < min(limit, len(train)):
        _log.info("%d instead of %d images to calibrate on; the others are to plan on", len(calibration), limit)
    used = {image.path for image in calibration}
    planned = _balanced([image for image in train if image.path not in used], count)
    planned = without_copies(planned, [*calibration, *judged])
    calibration = without_copies(calibration, judged)
    if not planned or (limit and not calibration):
        raise DataError(
            f"{folder.root}: the {len(train)} images to train on are too few to calibrate and to plan on different "
            "ones; give more images, or leave --mixed-precision out"
        )
    return calibration, planned, judged


def _balanced(images: Sequence[ImageFile], limit: int) -> list[ImageFile]:
    return [images[index] for index in balanced([image.group for image in images], limit)]


def choose_any(folder: ImageFolder, limit: int) -> list[ImageFile]:
    """Return images that nothing was learned from, as far as the folder tells: its ``"val"``, or else any."""
    return _balanced(folder.split("val" if "val" in folder.splits else "all"), limit)


def opposite_of(label: str) -> str:
    """Return the name of the class of all that a model of one class does not know."""
    return f"not {label}"


def unknown_classes(folder: ImageFolder, labels: Sequence[str]) -> list[str]:
    """Return the folder's classes that a model does not know; one of one class and its opposite knows them all."""
    if len(labels) == 2 and labels[0] == opposite_of(labels[1]) and labels[1] in folder.labels:
        return []
    return sorted(set(folder.labels) - set(labels))


def with_label_indices(
    images: Sequence[ImageFile], folder: ImageFolder, labels: Sequence[str], *, multi_label: bool = False
) -> tuple[ImageFile, ...]:
    """Return the images with the indices of a model's labels, matched by name.

    Where the folder has classes that the model does not know, nothing can be said of accuracy: that is logged, and
    all images get -1. So does an image without a class. For a multi-label model see ``ImageFile.present``: labels that
    it does not know are left out, and an image of a class has the label of that class alone.

    Args:
        images: Of the folder.
        folder: Has the names of their labels.
        labels: The model's.
        multi_label: Whether the model's labels are independent of each other.
    """
    if multi_label:
        return _with_labels(images, folder, labels)
    if folder.multi_label:
        _log.warning(
            "the images of %s can have several labels, and the model predicts one class for each; accuracy is not "
            "measured, only agreement",
            folder.root,
        )
        return tuple(replace(image, present=None) for image in images)
    unknown = unknown_classes(folder, labels)
    if unknown:
        _log.warning(
            "%s has classes that the model does not: %s; the model's: %s; accuracy is not measured, only agreement",
            folder.root,
            some(unknown),
            some(labels),
        )
    # Of a model of one class all other classes are its opposite, and have the index 0.
    index = {**dict.fromkeys(folder.labels, 0), **{name: position for position, name in enumerate(labels)}}
    known = folder.labels and not unknown
    return tuple(
        replace(image, label=index[folder.labels[image.label]] if known and image.label >= 0 else -1)
        for image in images
    )


def _with_labels(images: Sequence[ImageFile], folder: ImageFolder, labels: Sequence[str]) -> tuple[ImageFile, ...]:
    """Return the images with all labels that a multi-label model knows; see ``with_label_indices``."""
    unknown = unknown_classes(folder, labels)
    known = set(folder.labels) & set(labels)
    if unknown:
        _log.warning(
            "%s has labels that the model does not: %s; %s",
            folder.root,
            some(unknown),
            f"they are left out (the model's: {some(labels)})" if known else "only agreement is measured",
        )
    if not known:
        return tuple(replace(image, label=-1, present=None) for image in images)
    if not folder.multi_label:
        _log.info("each image of %s is taken to have the label of its folder alone", folder.root)
    index = [labels.index(name) if name in known else -1 for name in folder.labels]

    def translated(image: ImageFile) -> ImageFile:
        has = image.present if folder.multi_label else (image.label,) if image.label >= 0 else None
        present = None if has is None else tuple(index[each] for each in has if index[each] >= 0)
        return replace(image, label=-1, present=present)

    return tuple(map(translated, images))


def some(names: Sequence[str]) -> str:
    """Return the first names of a list in words, and how many more there are."""
    return ", ".join(names[:8]) + (f" and {len(names) - 8} more" if len(names) > 8 else "")
