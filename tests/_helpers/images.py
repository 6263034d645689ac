"""Small folders of real image files for tests."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from PIL import Image, ImageFilter

__all__ = ["SHARED_DATA", "blurred_noise", "make_folder", "make_split_folder"]

SHARED_DATA = Path(__file__).parents[2].parent / "shared" / "data"


def blurred_noise(side: int, seed: int | tuple[int, ...], radius: int) -> Image.Image:
    """Return an RGB image whose neighboring pixels are alike, as a photograph's are."""
    noise = np.random.default_rng(seed).integers(0, 256, (side, side, 3)).astype(np.uint8)
    return Image.fromarray(noise).filter(ImageFilter.GaussianBlur(radius))


def make_folder(
    root: Path,
    classes: tuple[str, ...] = ("cat", "dog"),
    count: int = 12,
    size: tuple[int, int] = (16, 16),
    seed: int = 0,
) -> Path:
    """Write ``root/CLASS/*.png``: noise with a mean of its own for each class, so that classes can be learned."""
    rng = np.random.default_rng(seed)
    for label, name in enumerate(classes):
        folder = root / name
        folder.mkdir(parents=True)
        for index in range(count):
            base = 40 + label * 150 // max(1, len(classes) - 1)
            pixels = rng.integers(base - 40, base + 40, (*size, 3)).astype(np.uint8)
            Image.fromarray(pixels).save(folder / f"{index:03d}.png")
    return root


def make_split_folder(root: Path, count: int = 12, classes: tuple[str, ...] = ("cat", "dog")) -> Path:
    """Write ``root/train/CLASS`` and ``root/val/CLASS``."""
    make_folder(root / "train", classes, count, seed=1)
    make_folder(root / "val", classes, count, seed=2)
    return root
