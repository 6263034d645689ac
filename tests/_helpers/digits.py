"""The digits of scikit-learn as image files, and a small network that has learned them in seconds."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
from PIL import Image
from sklearn.datasets import load_digits

from krl_runtime.images.preprocessing import Preprocessing
from krl_train.run import ModelSpec, Run, RunRecord

LABELS = tuple(str(digit) for digit in range(10))
PREPROCESSING = Preprocessing(16, 16, channels=1, mean=(0.3,), std=(0.35,))


def write_digits(root: Path, *, per_class: int = 60, val_per_class: int = 30) -> Path:
    """Write ``train/DIGIT/*.png`` and ``val/DIGIT/*.png`` of 8×8 gray pixels.

    Images of one writer follow each other; both parts have images of all writers, so that what was learned holds.
    """
    digits = load_digits()
    count = per_class + val_per_class
    for digit in range(10):
        images = digits.images[digits.target == digit][:count]
        held_out = np.zeros(count, bool)
        held_out[np.arange(val_per_class) * count // val_per_class] = True
        parts = {"val": images[held_out], "train": images[~held_out]}
        for split, chosen in parts.items():
            folder = root / split / str(digit)
            folder.mkdir(parents=True)
            for index, image in enumerate(chosen):
                Image.fromarray(np.round(image * (255 / 16)).astype(np.uint8)).save(folder / f"{index:03d}.png")
    return root


def pixels_of(root: Path, preprocessing: Preprocessing = PREPROCESSING) -> tuple[np.ndarray, np.ndarray]:
    """Return the images of ``root/DIGIT`` and their classes."""
    files = sorted(root.glob("*/*.png"))
    return np.stack([preprocessing(file) for file in files]), np.array([int(file.parent.name) for file in files])


def train_run(path: Path, data: Path, *, model: str = "dscnn-0.5", steps: int = 150, source: str = "digits") -> Run:
    """Train on ``data/train`` until the network has settled, on every processor, and write a run."""
    torch.manual_seed(0)
    spec = ModelSpec(model, 10, 1)
    network = spec.build(PREPROCESSING)
    pixels, labels = (torch.from_numpy(array) for array in pixels_of(data / "train"))
    optimizer = torch.optim.SGD(network.parameters(), lr=0.1, momentum=0.9, weight_decay=1e-4)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, steps)
    for _ in range(steps):
        chosen = torch.randint(len(pixels), (64,))
        loss = torch.nn.functional.cross_entropy(network(pixels[chosen]), labels[chosen])
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        schedule.step()
    return Run.write(path, record(spec, source), network.backbone.state_dict())


def record(spec: ModelSpec, source: str = "digits", preprocessing: Preprocessing = PREPROCESSING) -> RunRecord:
    """Return the record of a run on ``source``, a data set's name or a folder."""
    return RunRecord(
        task="classification",
        model=spec,
        preprocessing=preprocessing,
        labels=LABELS,
        command="krl-train fit",
        configuration={},
        seed=0,
        data={"source": source, "root": "data", "val_fraction": 0.2, "on_bad_image": "refuse"},
        metrics={"top1": 0.9},
    )
