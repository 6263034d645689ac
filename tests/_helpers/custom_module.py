"""A module as a user writes it: a network, data sets and losses, put into a folder of its own."""

from __future__ import annotations

import importlib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import ModuleType

import pytest

SOURCE = '''
import numpy as np
import torch
from PIL import Image
from torch import nn


class Tiny(nn.Module):
    def __init__(self, num_classes, in_channels=3, width=8, activation=torch.relu):
        super().__init__()
        self.activation = activation
        self.conv = nn.Conv2d(in_channels, width, 3, padding=1)
        self.head = nn.Linear(width * 16, num_classes)

    def forward(self, x):
        x = nn.functional.adaptive_avg_pool2d(self.activation(self.conv(x)), 4)
        return self.head(x.flatten(1))


def wide(num_classes):
    return Tiny(num_classes, width=16)


def made(count, seed):
    """Squares of one of three colors, which are the classes."""
    rng = np.random.default_rng(seed)
    labels = np.arange(count) % 3
    images = rng.integers(0, 60, (count, 12, 12, 3)).astype(np.uint8)
    for image, label in zip(images, labels):
        image[3:9, 3:9, label] = 220
    return images, labels


class Squares(torch.utils.data.Dataset):
    classes = ["red", "green", "blue"]

    def __init__(self, count=90, seed=0):
        self.images, self.labels = made(count, seed)

    def __len__(self):
        return len(self.images)

    def __getitem__(self, index):
        return Image.fromarray(self.images[index]), int(self.labels[index])


def split_squares(split):
    return Squares(90 if split == "train" else 30, seed=int(split == "val"))


def softened(student, teacher, *, temperature=2.0):
    soft = (teacher / temperature).softmax(1)
    return nn.functional.kl_div((student / temperature).log_softmax(1), soft, reduction="batchmean")


def where_right(student, teacher, labels):
    right = (teacher.argmax(1) == labels).float()
    return (nn.functional.cross_entropy(student, labels, reduction="none") * right).mean()
'''


@contextmanager
def user_module(folder: Path, name: str, source: str = SOURCE) -> Iterator[ModuleType]:
    """Write a module and import it; afterwards it cannot be imported any more."""
    folder.mkdir(exist_ok=True)
    (folder / f"{name}.py").write_text(source)
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(folder)
        importlib.invalidate_caches()
        module = importlib.import_module(name)
        patch.setitem(importlib.sys.modules, name, module)
        yield module
    importlib.sys.modules.pop(name, None)
