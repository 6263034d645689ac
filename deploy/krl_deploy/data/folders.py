"""Folders of real images, as deployment uses them: to calibrate on, to measure on, to keep as golden inputs."""

from __future__ import annotations

import logging
from collections.abc import Sequence

from krl_runtime.errors import DataError
from krl_runtime.files import sha256_file
from krl_runtime.images.folders import ImageFile, ImageFolder, balanced

__all__ = [
    "choose",
    "choose_any",
    "choose_disjoint",
    "choose_two",
    "without_copies",
]

_log = logging.getLogger("krl")


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
