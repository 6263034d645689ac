"""Pairs of images for translation: found, matched and read."""

from __future__ import annotations

from pathlib import Path

from krl_runtime.errors import DataError
from krl_runtime.images.folders import ImageFile, ImageFolder, find_images
from krl_train.config import DataConfig

from .patches import read_truths
from .truths import Truths

__all__ = ["list_pairs", "read_pairs"]


def list_pairs(root: Path, split: str, data: DataConfig) -> tuple[list[ImageFile], list[ImageFile]]:
    """List the pairs of one split: files of one name in ``A`` and ``B``, whatever their endings.

    Args:
        root: With ``A`` and ``B`` in it, which are split by the hash of the file in ``B``; or with ``train`` and
            ``val``, which have them.
        split: ``"train"`` or ``"val"``.
        data: How to split, and what to do with other files.

    Returns:
        What is given, and what is wanted.

    Raises:
        DataError: A folder is missing, holds no images, or an image has no partner.
    """
    if split not in ("train", "val"):
        raise DataError(f"{root}: split is {split!r}; accepted for pairs: train, val")
    whole = not (root / "train").is_dir()
    base = root if whole else root / split
    given, wanted = (
        {path.stem: path for path in find_images(base / name, on_bad=data.on_bad_image)} for name in ("A", "B")
    )
    lonely = sorted(set(given) ^ set(wanted))
    if lonely:
        raise DataError(
            f"{base}: {len(lonely)} images have no partner of their name in the other of A and B: "
            f"{', '.join(lonely[:10])}"
        )
    folder = ImageFolder(base, (), {"all": tuple(ImageFile(wanted[name]) for name in sorted(wanted))})
    chosen = folder.split(split if whole else "all", val_fraction=data.val_fraction)
    return [ImageFile(given[item.path.stem]) for item in chosen], list(chosen)


def read_pairs(root: Path, split: str, data: DataConfig, color: str) -> Truths:
    """Read the pairs of one split; see ``list_pairs`` and ``krl_train.data.patches.read_truths``.

    Raises:
        DataError: Images cannot be read, have no partner, or one of another size.
    """
    given, wanted = (
        read_truths(
            images,
            color,
            on_bad="refuse",  # an image that is left out would part the pairs
            memory_limit=data.memory_limit_mb * 2**20 // 2,  # half for each side of the pairs
            limit=data.limit if split == "train" else data.val_limit,
        )
        for images in list_pairs(root, split, data)
    )
    for name, first, second in zip(wanted.names, given.shapes, wanted.shapes, strict=True):
        if first != second:
            raise DataError(
                f"pair {name}: A has {first[1]}x{first[0]} pixels, B {second[1]}x{second[0]}; both need the same size"
            )
    return Truths(wanted.names, wanted.images, given.images)
