"""The digits of scikit-learn under a second labeling, as image files: even and odd."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from PIL import Image
from sklearn.datasets import load_digits

__all__ = ["PARITY", "write_parity"]

PARITY = ("even", "odd")


def write_parity(root: Path, *, per_class: int = 20, val_per_class: int = 30) -> Path:
    """Write ``train/even``, ``train/odd`` and the same of ``val``, of 8×8 gray pixels."""
    digits = load_digits()
    levels = np.round(digits.images * (255 / 16)).astype(np.uint8)
    for index, name in enumerate(PARITY):
        images = levels[digits.target % 2 == index]
        for split, chosen in (("val", images[:val_per_class]), ("train", images[-per_class:])):
            folder = root / split / name
            folder.mkdir(parents=True)
            for number, image in enumerate(chosen):
                Image.fromarray(image).save(folder / f"{number:03d}.png")
    return root
