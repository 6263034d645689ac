"""The digits of scikit-learn under a second labeling, even and odd, and a network that has learned both in seconds."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image
from sklearn.datasets import load_digits

from krl_train.models import SOURCE_CLASSES, TwoHeads
from krl_train.run import ModelSpec, Run

from .digits import LABELS, PREPROCESSING, pixels_of, record

__all__ = ["PARITY", "train_two_heads", "write_parity"]

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


def train_two_heads(path: Path, digits: Path, *, model: str = "dscnn-0.5", steps: int = 150) -> Run:
    """Train on the digits of ``digits/train`` by their parity, the target, and by their names, the source.

    Args:
        path: The run's folder.
        digits: What ``write_digits`` has written.
        model: Name of the network.
        steps: Batches of 64.
    """
    torch.manual_seed(0)
    spec = ModelSpec(model, len(PARITY), 1, {SOURCE_CLASSES: len(LABELS)})
    network = spec.build(PREPROCESSING)
    assert isinstance(network, TwoHeads)
    pixels, names = (torch.from_numpy(array) for array in pixels_of(digits / "train"))
    optimizer = torch.optim.SGD(network.parameters(), lr=0.1, momentum=0.9, weight_decay=1e-4)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, steps)
    for _ in range(steps):
        chosen = torch.randint(len(pixels), (64,))
        target, source = network.both(pixels[chosen])
        loss = F.cross_entropy(target, names[chosen] % 2) + F.cross_entropy(source, names[chosen])
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        schedule.step()
    made = replace(record(spec), labels=PARITY, source_labels=LABELS)
    return Run.write(path, made, network.backbone.state_dict())
