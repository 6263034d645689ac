"""Lists of small images with several labels, for tests."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from PIL import Image

__all__ = ["PLACES", "write_labeled_list"]

PLACES = {"bottom": (slice(4, 8), slice(0, 4)), "right": (slice(0, 4), slice(4, 8)), "top": (slice(0, 4), slice(0, 4))}
"""Labels, sorted, and where an image of 8 by 8 pixels is bright that has them."""


def write_labeled_list(root: Path, counts: dict[str, int], seed: int = 0) -> Path:
    """Write images and ``root/list.csv``; an image may have no label, one, or several.

    Args:
        root: The folder.
        counts: Number of images of each split.
        seed: Of the images.
    """
    rng = np.random.default_rng(seed)
    (root / "images").mkdir(parents=True)
    lines = ["image,labels,split"]
    for split, count in counts.items():
        for number in range(count):
            labels = [name for name in PLACES if rng.random() < 0.4]
            pixels = rng.integers(0, 90, (8, 8, 3))
            for name in labels:
                pixels[PLACES[name]] += 120
            file = f"images/{split}{number:03d}.png"
            Image.fromarray(pixels.astype(np.uint8)).save(root / file)
            lines.append(f"{file},{'|'.join(labels)},{split}")
    (root / "list.csv").write_text("\n".join(lines) + "\n", encoding="utf-8")
    return root / "list.csv"
