"""A trained classifier with several inputs, and the list of smooth images that it was trained on."""

from __future__ import annotations

import csv
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

__all__ = ["train_fused", "write_smooth_list"]

SIDE = 12


def write_smooth_list(folder: Path, count: int = 480) -> Path:
    """Write smooth images, so that they may be calibrated on; the class is in the kind, the weight and ``other``."""
    folder.mkdir(parents=True, exist_ok=True)
    rng = np.random.default_rng(0)

    def picture(bright: float) -> Image.Image:
        corners = rng.uniform(0, 110, (3, 3, 3)) + bright
        return Image.fromarray(corners.astype(np.uint8)).resize((SIDE, SIDE), Image.Resampling.BICUBIC)

    rows: list[dict[str, Any]] = []
    for number in range(count):
        kind, weight = ("coin", "note")[number % 2], float(rng.uniform(0, 10))
        label = int(weight + 3 * (kind == "note") > 6.5)
        names = {name: f"{name}-{number:03}.png" for name in ("image", "other")}
        picture(60).save(folder / names["image"])
        picture(140 * label).save(folder / names["other"])
        split = "val" if number % 3 == 0 else "train"
        rows.append({**names, "label": ("no", "yes")[label], "split": split, "kind": kind, "weight": f"{weight:.3f}"})
    path = folder / "list.csv"
    with path.open("w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, list(rows[0]))
        writer.writeheader()
        writer.writerows(rows)
    return path


def train_fused(listed: Path, out: Path, *, fusion: Any = "late", epochs: int = 8) -> Path:
    """Train a tiny network on all kinds of inputs; return the run."""
    from krl_train.config import AugmentConfig, DataConfig, FitConfig, FurtherInputsConfig, LoopConfig
    from krl_train.training.fit import fit

    further = FurtherInputsConfig(
        attributes=("kind", "weight"),
        further_images=("other",),
        descriptors=("color-histogram", "hog"),
        input_fusion=fusion,
    )
    config = FitConfig(
        model="resnet8",
        out=out,
        data=DataConfig(data=str(listed)),
        loop=LoopConfig(epochs=epochs, batch_size=32, device="cpu", precision="fp32"),
        augment=AugmentConfig(augment=False),
        further=further,
    )
    return fit(config).path
