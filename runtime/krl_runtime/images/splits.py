"""Splits of a folder of images: which of its folders are splits and not classes, and a stratified split of one."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from pathlib import Path

from krl_runtime.errors import DataError

from .formats import IMAGE_SUFFIXES

__all__ = ["Role", "find_splits", "hold_out", "role_of", "subfolders"]

Role = str  # "train", "val" or "test"

_ROLES: Mapping[Role, frozenset[str]] = {
    "train": frozenset({"train", "training", "trn", "tr"}),
    "val": frozenset({"val", "valid", "validation", "validate", "dev", "eval", "evaluation"}),
    "test": frozenset({"test", "testing", "tst"}),
}
# Words that data sets put beside the name of a split: train_images, seg_test, ValidationSet, train2017.
_FILLERS = frozenset(
    {"set", "data", "dataset", "ds", "image", "images", "img", "imgs", "split", "folder", "dir", "seg", "files"}
)


def find_splits(root: Path) -> dict[Role, Path]:
    """Return the folders of a data set that are its splits by their names, whatever the spelling.

    Args:
        root: The data set.

    Returns:
        ``"train"`` and ``"val"``, ``"test"`` or both; nothing for a folder of classes or of images.

    Raises:
        DataError: The folders can be read as splits and as classes, or two of them as the same split.
    """
    folders = subfolders(root)
    roles: dict[Role, list[str]] = {}
    others = []
    for name in folders:
        role = role_of(name)
        if role is None:
            others.append(name)
        else:
            roles.setdefault(role, []).append(name)
    named = [name for names in roles.values() for name in names]
    nested = [name for name in named if subfolders(root / name)]
    if not named or (others and not nested) or (len(named) == 1 and len(folders) > 1 and not nested):
        return {}
    others = [name for name in others if _has_images(root / name)]  # runs and notes may lie beside the splits
    if others:
        raise DataError(
            f"{root} can be read in two ways: as the splits {_listed(named)}, which have folders of their own, beside "
            f"{_listed(others)}; or as the classes {_listed(folders)}. Move {_listed(others)} elsewhere, or rename the "
            "folders that are no splits"
        )
    twice = next((names for names in roles.values() if len(names) > 1), None)
    if twice is not None:
        raise DataError(f"{root} has {_listed(twice)}, which name the same split; join them, or move one elsewhere")
    if "train" not in roles and len(named) > 1:
        raise DataError(
            f"{root} has {_listed(named)}, which are splits by their names, and no train/; accepted: train/CLASS/* and "
            "val/CLASS/*, or CLASS/*. If these are classes, rename them"
        )
    return {role: _innermost(root / names[0]) for role, names in roles.items()}


def hold_out(labels: Sequence[int], hashes: Sequence[str], share: float) -> list[bool]:
    """Return for each image whether it is held out for validation: of each class the same share.

    The images of a class are ordered by the hashes of their files. So the split does not depend on names or order, and
    copies stay together. A class with two different images or more has at least one in each part.

    Args:
        labels: Class of each image.
        hashes: SHA-256 of each file.
        share: Share to hold out, above 0; all images from 1 on.

    Example:
        >>> hold_out([0, 0, 0, 0, 1, 1], ["3", "1", "2", "4", "6", "5"], 0.25)
        [False, True, False, False, False, True]
    """
    if share >= 1:
        return [True] * len(labels)
    held: list[bool] = [False] * len(labels)
    classes: dict[int, list[int]] = {}
    for position, label in enumerate(labels):
        classes.setdefault(label, []).append(position)
    for positions in classes.values():
        different = sorted({hashes[position] for position in positions})
        count = min(max(1, round(share * len(different))), len(different) - 1)
        chosen = set(different[:count])
        for position in positions:
            held[position] = hashes[position] in chosen
    return held


def subfolders(folder: Path) -> list[str]:
    """Return the names of the visible folders in a folder, sorted."""
    return sorted(entry.name for entry in folder.iterdir() if entry.is_dir() and not entry.name.startswith("."))


def _has_images(folder: Path) -> bool:
    """Return whether images lie in a folder itself, as in one of a class."""
    return any(entry.suffix.lower() in IMAGE_SUFFIXES for entry in folder.iterdir() if entry.is_file())


def role_of(name: str) -> Role | None:
    """Return the split that a name stands for, as in ``Testing``, ``ValidationSet`` or ``val_2017``, or ``None``."""
    spaced = re.sub(r"(?<=[a-z])(?=[A-Z])", " ", name)
    words = [word for word in re.split(r"[^a-z]+", spaced.lower()) if word and word not in _FILLERS]
    if len(words) != 1:
        return None
    word = words[0]
    for role, names in _ROLES.items():
        if word in names or any(word == f"{known}{filler}" for known in names for filler in ("set", "data", "images")):
            return role
    return None


def _innermost(folder: Path) -> Path:
    """Return the folder in which a split's classes are: some archives have ``train/train/CLASS``."""
    inner = subfolders(folder)
    if len(inner) == 1 and role_of(inner[0]) is not None and role_of(inner[0]) == role_of(folder.name):
        return _innermost(folder / inner[0])
    return folder


def _listed(names: Sequence[str]) -> str:
    shown = ", ".join(f"{name}/" for name in names[:6])
    return f"{shown}, …" if len(names) > 6 else shown
