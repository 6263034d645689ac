"""Lists of images with attributes and further images."""

from __future__ import annotations

import csv
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

__all__ = ["SIDE", "write_list"]

SIDE = 8


def write_list(folder: Path, count: int = 160, *, columns: bool = True) -> Path:
    """Write gray images, whose class is in the attributes alone: a weight and a kind that adds to it.

    ``other`` is a further image that is bright where the class is the second one.
    """
    random = np.random.default_rng(0)
    rows: list[dict[str, Any]] = []
    for number in range(count):
        kind, weight = ("coin", "note")[number % 2], float(random.uniform(0, 10))
        label = int(weight + 3 * (kind == "note") > 6.5)
        file, other = f"{number:03}.png", f"other-{number:03}.png"
        Image.fromarray(random.integers(90, 99, (SIDE, SIDE, 3), np.uint8)).save(folder / file)
        Image.fromarray(random.integers(0, 90, (SIDE, SIDE, 3), np.uint8) + np.uint8(150 * label)).save(folder / other)
        row = {"image": file, "label": ("no", "yes")[label], "split": "val" if number % 4 == 0 else "train"}
        rows.append({**row, "kind": kind, "weight": f"{weight:.3f}", "other": other} if columns else row)
    path = folder / "list.csv"
    with path.open("w", newline="") as file_:
        writer = csv.DictWriter(file_, list(rows[0]))
        writer.writeheader()
        writer.writerows(rows)
    return path
