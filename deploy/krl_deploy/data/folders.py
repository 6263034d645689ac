"""Folders of real pictures, as deployment uses them: to calibrate on, to measure on, to keep as golden inputs."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from krl_runtime.errors import DataError
from krl_runtime.images.folders import OnBadImage, Picture, PictureFolder, balanced, open_folder

__all__ = ["choose", "choose_any", "open_data", "with_label_indices"]

_log = logging.getLogger("krl")

_NAMED = ("digits", "mnist", "fashion-mnist", "cifar10", "cifar100")


def open_data(data: Path, *, on_bad: OnBadImage) -> PictureFolder:
    """List a folder of pictures.

    Raises:
        DataError: It is not there (a data set's name gets the way to a folder), or cannot be used.
    """
    if not data.exists() and str(data) in _NAMED:
        raise DataError(
            f"{data} is the name of a data set, not a folder; write it as a folder first with "
            f"krl-train unpack --data {data} --out FOLDER, then give --data FOLDER"
        )
    return open_folder(data, on_bad=on_bad)


def choose(folder: PictureFolder, split: str, limit: int, *, val_fraction: float) -> list[Picture]:
    """Return pictures of one split, the same number of each class; of all pictures where there are too few to split.

    Args:
        folder: The data.
        split: ``"train"`` or ``"val"``.
        limit: Number of pictures at most.
        val_fraction: Share of ``"val"`` where the folder is not split.
    """
    try:
        pictures = folder.split(split, val_fraction=val_fraction)
    except DataError as error:
        pictures = folder.split("all")
        _log.warning("%s; all %d pictures are used instead", error, len(pictures))
    return [pictures[index] for index in balanced([picture.label for picture in pictures], limit)]


def choose_any(folder: PictureFolder, limit: int) -> list[Picture]:
    """Return pictures that nothing was learned from, as far as the folder tells: its ``"val"``, or else any."""
    pictures = folder.split("val" if "val" in folder.splits else "all")
    return [pictures[index] for index in balanced([picture.label for picture in pictures], limit)]


def with_label_indices(
    pictures: Sequence[Picture], folder: PictureFolder, labels: Sequence[str]
) -> tuple[Picture, ...]:
    """Return the pictures with the indices of a model's labels, matched by name.

    Where the folder has classes that the model does not know, nothing can be said of accuracy: that is logged, and
    the pictures get -1.
    """
    unknown = sorted(set(folder.labels) - set(labels))
    if unknown:
        _log.warning(
            "%s has classes that the model does not: %s; the model's: %s; accuracy is not measured, only agreement",
            folder.root,
            _some(unknown),
            _some(labels),
        )
    index = {name: position for position, name in enumerate(labels)}
    known = folder.labels and not unknown
    return tuple(replace(picture, label=index[folder.labels[picture.label]] if known else -1) for picture in pictures)


def _some(names: Sequence[str]) -> str:
    return ", ".join(names[:8]) + (f" and {len(names) - 8} more" if len(names) > 8 else "")
