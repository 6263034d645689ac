"""Labeled images that a model is measured on: their folder, the model's labels by name, and decoding."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from krl_runtime.errors import DataError
from krl_runtime.progress import progress

from .folders import ImageFile, ImageFolder, OnBadImage, decode, open_folder
from .preprocessing import Preprocessing

__all__ = [
    "decoded",
    "decoded_files",
    "open_data",
    "opposite_of",
    "some",
    "truth_of",
    "unknown_classes",
    "with_label_indices",
]

_log = logging.getLogger("krl")

_NAMED = ("digits", "mnist", "fashion-mnist", "cifar10", "cifar100")
_CHUNK = 256  # images that are held decoded at once: 38 MB at 224x224


def open_data(
    data: Path, *, on_bad: OnBadImage, columns: tuple[Sequence[str], Sequence[str]] = ((), ())
) -> ImageFolder:
    """List a folder of images, or read a list of images.

    Args:
        data: The folder or the list.
        on_bad: Action for files that are not images by their name.
        columns: Names of further columns that a list has to have: of attributes, and of images.

    Raises:
        DataError: It is not there (a data set's name gets the way to a folder), or cannot be used.
    """
    if not data.exists() and str(data) in _NAMED:
        raise DataError(
            f"{data} is the name of a data set, not a folder; write it as a folder first with "
            f"krl-train unpack --data {data} --out FOLDER, then give --data FOLDER"
        )
    attributes, images = columns
    return open_folder(data, on_bad=on_bad, same_classes=False, attributes=attributes, images=images)


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


def decoded(
    images: Sequence[ImageFile],
    preprocessing: Preprocessing,
    *,
    on_bad: OnBadImage,
    several: int | None = None,
    description: str = "measuring accuracy",
    decode: Callable[..., tuple[Any, tuple[ImageFile, ...]]] = decode,
) -> Iterator[tuple[Any, npt.NDArray[np.int64]]]:
    """Yield images and their labels, a few hundred at a time, so that any number of them can be measured on.

    Args:
        images: The image files.
        preprocessing: From an image to ``uint8``.
        on_bad: Action for files that cannot be decoded.
        several: Of a multi-label model the number of labels. The truth is then ``[N, labels]``, see ``truth_of``.
        description: Text of the progress bar.
        decode: Reads a part of them, as ``folders.decode`` does; its result may be more than pixels.

    Raises:
        DataError: An image cannot be decoded and ``on_bad`` is ``"refuse"``.
    """
    for inputs, used in decoded_files(images, preprocessing, on_bad=on_bad, description=description, decode=decode):
        yield inputs, truth_of(used, several)


def decoded_files(
    images: Sequence[ImageFile],
    preprocessing: Preprocessing,
    *,
    on_bad: OnBadImage,
    description: str,
    decode: Callable[..., tuple[Any, tuple[ImageFile, ...]]] = decode,
) -> Iterator[tuple[Any, tuple[ImageFile, ...]]]:
    """Yield images and their files, a few hundred at a time; see ``decoded``."""
    chunks = [images[start : start + _CHUNK] for start in range(0, len(images), _CHUNK)]
    for chunk in progress(chunks, description):
        try:
            yield decode(chunk, preprocessing, on_bad=on_bad, description=None)
        except DataError:
            if on_bad == "refuse":
                raise
            continue  # nothing in this chunk was readable, which has been logged


def truth_of(images: Sequence[ImageFile], several: int | None) -> npt.NDArray[np.int64]:
    """Return the labels of images as the gate takes them.

    Args:
        images: With the indices of a model's labels.
        several: Of a multi-label model the number of labels, else ``None``.

    Returns:
        Class indices ``[N]``, -1 where not known; of a multi-label model ``[N, labels]``, 1 where an image has a label
        and 0 where not, a row of -1 where that is not known.
    """
    if several is None:
        return np.array([image.label for image in images])
    truth = np.full((len(images), several), -1)
    for row, image in zip(truth, images, strict=True):
        if image.present is not None:
            row[:] = 0
            row[list(image.present)] = 1
    return truth


def some(names: Sequence[str]) -> str:
    """Return the first names of a list in words, and how many more there are."""
    return ", ".join(names[:8]) + (f" and {len(names) - 8} more" if len(names) > 8 else "")
