"""Unlabeled images in the distillation of a classifier: recordings that the teacher alone says something about."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from krl_compress.distillers import FrozenTeacher, WeightedLoss
from krl_runtime.errors import DataError, ImageError
from krl_runtime.files import sha256_bytes
from krl_runtime.images.folders import ImageFile, find_images
from krl_runtime.images.hashes import hash_files
from krl_runtime.images.preprocessing import Preprocessing
from krl_runtime.processor import cpu_count
from krl_train.config import LoopConfig, PlannedLoop, plan_loop, steps_per_epoch
from krl_train.data import PixelSet
from krl_train.data.splits import Training

__all__ = ["add_unlabeled", "class_of_each", "log_share", "plan_alone", "see_the_teacher"]

_log = logging.getLogger("krl")

_TOGETHER = 256  # images in memory at a time while they are hashed, or seen by the teacher

Files = Mapping[str, Path]  # by the SHA-256 of their bytes


def add_unlabeled(
    training: Training, folders: Sequence[Path], preprocessing: Preprocessing
) -> tuple[Training, dict[str, Any]]:
    """Add unlabeled images to a classifier's training images.

    Images that are also among the validation images would leak, and those that are also among the training images
    have a label there: both are left out, and so is each further copy of an image. Images are put in the order of
    their hashes, so that the names of files and folders mean nothing.

    Args:
        training: The labeled data; its validation images stay as they are.
        folders: Searched at any depth.
        preprocessing: Of the student.

    Returns:
        The data with them, label -1, and what ``run.json`` says of them.

    Raises:
        DataError: A folder is not there, files in it cannot be used, or no image is left.
    """
    options, margin = training.source.config, training.train.margin
    paths = _find(folders, skip=options.on_bad_image == "skip")
    files = dict(sorted(zip(hash_files(paths), paths, strict=True), key=lambda item: item[0]))
    leaking = _among_validation(files, training, preprocessing)
    known = _among_training(files, training, preprocessing) - leaking
    left_out = {"validation": len(leaking), "training": len(known), "copies": len(paths) - len(files)}
    reasons = ("are validation images", "are training images, which have labels", "are copies of others")
    for count, reason in zip(left_out.values(), reasons, strict=True):
        if count:
            _log.info("%d of the %d unlabeled images %s; they are left out", count, len(paths), reason)
    chosen = [ImageFile(path) for digest, path in files.items() if digest not in leaking | known]
    if not chosen:
        raise DataError(f"--unlabeled: none of the {len(paths)} images is left; give a folder with others")
    channels, height, width = preprocessing.shape
    labeled_bytes = len(training.train) * channels * (height + 2 * margin) * (width + 2 * margin)
    pixels = PixelSet.from_images(
        chosen,
        preprocessing,
        margin=margin,
        on_bad=options.on_bad_image,
        memory_limit=options.memory_limit_mb * 2**20 - labeled_bytes,
        disk_limit=options.disk_cache_mb * 2**20,
        several=len(training.source.labels) if training.source.multi_label else None,
    )
    described = training.source.describe({"unlabeled": pixels})["unlabeled"]
    return replace(training, train=training.train.joined(pixels)), {**described, "left_out": left_out}


def _find(folders: Sequence[Path], *, skip: bool) -> list[Path]:
    paths: dict[Path, Path] = {}  # by where they really are: folders may lie in each other
    for folder in folders:
        try:
            found = find_images(folder, on_bad="skip" if skip else "refuse")
        except DataError as error:
            raise DataError(f"--unlabeled: {error}") from error
        paths |= {path.resolve(): path for path in found}
    return list(paths.values())


def _among_validation(files: Files, training: Training, preprocessing: Preprocessing) -> set[str]:
    """Return the hashes of files that are validation images, also of such that ``--val-limit`` leaves out."""
    source = training.source
    if source.folder is not None:
        held_out = source.folder.split("val", val_fraction=source.config.val_fraction)
        return files.keys() & set(hash_files([image.path for image in held_out]))
    every = training.val if source.config.val_limit is None else source.read("val", preprocessing)
    return _same_pixels(files, every, preprocessing)


def _among_training(files: Files, training: Training, preprocessing: Preprocessing) -> set[str]:
    """Return the hashes of files that are training images; not of such that ``--limit`` leaves out."""
    if training.train.files:
        return files.keys() & set(training.train.file_hashes())
    return _same_pixels(files, training.train, preprocessing)


def _same_pixels(files: Files, images: PixelSet, preprocessing: Preprocessing) -> set[str]:
    """Return the hashes of files that a network sees as one of some images, which are not in files themselves."""
    known: set[str] = set()
    for start in range(0, len(images), _TOGETHER):
        pixels = images.pixels(np.arange(start, min(start + _TOGETHER, len(images)))).numpy()
        known |= {sha256_bytes(image.tobytes()) for image in pixels}

    def is_known(path: Path) -> bool:
        try:
            return sha256_bytes(preprocessing(path, margin=images.margin).tobytes()) in known
        except ImageError:  # reading the images names it
            return False

    with ThreadPoolExecutor(cpu_count()) as pool:
        found = pool.map(is_known, files.values())
        return {digest for digest, same in zip(files, found, strict=True) if same}


def see_the_teacher(terms: Sequence[WeightedLoss]) -> bool:
    """Whether a loss looks at anything but labels; else neither teachers nor unlabeled images count."""
    return any(term.kind.sees != "labels" for term in terms)


def class_of_each(terms: Sequence[WeightedLoss], teacher: object, training: Training, device: torch.device) -> Tensor:
    """Return the class of each training image, for losses that need one of all of them (CRD).

    Args:
        terms: The losses.
        teacher: Says the class of unlabeled images, which it sees without augmentation.
        training: The data.
        device: Where to compute.

    Returns:
        ``[M]`` of int64; -1 for unlabeled images where no loss needs their class.
    """
    train = training.train
    unlabeled = np.flatnonzero(~train.labeled.numpy())
    needed = any(term.kind.sees == "crd" for term in terms)
    if not len(unlabeled) or not needed or not isinstance(teacher, FrozenTeacher):
        return train.labels
    labels = train.labels.clone()
    for start in range(0, len(unlabeled), _TOGETHER):
        indices = unlabeled[start : start + _TOGETHER]
        views = training.augmentation.center(train.pixels(indices).to(device))
        labels[torch.from_numpy(indices)] = teacher.logits(views).argmax(1).cpu()
    return labels


def log_share(train: PixelSet) -> None:
    """Log how many images of the plan are unlabeled."""
    unlabeled = int((~train.labeled).sum())
    if unlabeled:
        _log.info("plan: of %d images %d are unlabeled", len(train), unlabeled)


def plan_alone(loop: LoopConfig, labeled: int, every: int, val: int) -> PlannedLoop:
    """Return the plan of a training on the labeled images alone: as many steps as on all, up to half an epoch.

    Evaluations are as many, too, because the best of them is kept.

    Args:
        loop: What the user asked for; the batch size follows from the labeled images where it is left out.
        labeled: Number of labeled images.
        every: Number of all images.
        val: Number of validation images.
    """
    whole, alone = plan_loop(loop, every, val), plan_loop(loop, labeled, val)
    steps = whole.epochs * steps_per_epoch(every, whole.batch_size)
    epochs = max(1, round(steps / steps_per_epoch(labeled, alone.batch_size)))
    between = max(1, round(whole.evaluate_every * epochs / whole.epochs))
    _log.info("%d labeled images alone, for as many steps as with the unlabeled ones: %d", labeled, steps)
    return replace(alone, epochs=epochs, evaluate_every=between)
