"""CPU time of the views of an image, by kind, beside torchvision's transforms of the same tensors, interleaved.

::

    python benchmarks/train/view_cost.py --photographs ../shared/data/natural224

One thread computes everything: a training divides the work among threads that read batches ahead. Images have 256 x 256
pixels in memory, as krl keeps them for an input of 224 pixels; torchvision has them contiguous, as its decoder does.
"""

from __future__ import annotations

import argparse
import json
import os
import time
from collections.abc import Callable
from pathlib import Path
from statistics import median

os.environ.setdefault("OMP_NUM_THREADS", "1")

import numpy as np
import torch
from torch import Tensor
from torchvision.transforms import v2

from krl_runtime.cli.tables import table
from krl_runtime.images.preprocessing import Preprocessing
from krl_train.config import AugmentConfig
from krl_train.data import Augmentation

SIDE, FRACTION = 224, 0.875
CROP = {"random_resized_crop": True}
KINDS: dict[str, tuple[dict[str, object], list[object]]] = {
    "shift and mirror (default)": ({}, [v2.RandomCrop(SIDE)]),
    "resized crop": (CROP, [v2.RandomResizedCrop(SIDE)]),
    "randaugment": ({"auto_augment": "randaugment"}, [v2.RandomCrop(SIDE), v2.RandAugment()]),
    "trivialaugment": ({"auto_augment": "trivialaugment"}, [v2.RandomCrop(SIDE), v2.TrivialAugmentWide()]),
    "color jitter 0.4": ({"color_jitter": (0.4,)}, [v2.RandomCrop(SIDE), v2.ColorJitter(0.4, 0.4, 0.4)]),
    "color jitter with hue": (
        {"color_jitter": (0.4, 0.4, 0.4, 0.1)},
        [v2.RandomCrop(SIDE), v2.ColorJitter(0.4, 0.4, 0.4, 0.1)],
    ),
    "erasing 0.25": ({"erase": 0.25}, [v2.RandomCrop(SIDE), v2.RandomErasing(0.25)]),
    "resized crop, randaugment, erasing": (
        {**CROP, "auto_augment": "randaugment", "erase": 0.25},
        [v2.RandomResizedCrop(SIDE), v2.RandAugment(), v2.RandomErasing(0.25)],
    ),
}
"""By name: krl's options, and torchvision's transforms but for the mirroring, which all have."""


def main() -> None:
    """Measure, and print a table and its values as JSON."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--photographs", type=Path, required=True, help="folder of images, at any depth")
    parser.add_argument("--count", type=int, default=64, help="images in a batch")
    parser.add_argument("--rounds", type=int, default=7)
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    pixels = read(arguments.photographs, arguments.count)
    contenders: dict[tuple[str, str], Callable[[int], Tensor]] = {}
    for name, (options, transforms) in KINDS.items():
        contenders[name, "krl"] = ours(pixels, AugmentConfig(**options))  # type: ignore[arg-type]
        contenders[name, "torchvision"] = theirs(pixels, transforms)
    spent: dict[tuple[str, str], list[float]] = {key: [] for key in contenders}
    for number in range(arguments.rounds + 1):
        for key, make in contenders.items():
            start = time.thread_time()
            make(number)
            if number:  # the first round warms up
                spent[key].append(1000 * (time.thread_time() - start) / len(pixels))
    rows = []
    for name in KINDS:
        mine, other = (median(spent[name, whose]) for whose in ("krl", "torchvision"))
        rows.append((name, f"{mine:.2f}", f"{other:.2f}", f"{mine / other:.2f}"))
    print(table(("views", "krl, ms an image", "torchvision, ms an image", "ratio"), rows))
    print(json.dumps({"load": os.getloadavg(), "cpus": os.cpu_count(), "rows": rows}))


def read(folder: Path, count: int) -> Tensor:
    """Return photographs with their margins, ``[count, 3, 256, 256]``."""
    files = sorted(path for path in folder.rglob("*") if path.suffix.lower() in (".jpg", ".png"))[:count]
    preprocessing = Preprocessing(SIDE, SIDE, crop_fraction=FRACTION)
    margin = Augmentation.resolve(AugmentConfig(), preprocessing, flip=True, seed=0).margin
    images = np.stack([preprocessing.interleaved(file, margin=margin) for file in files])
    return torch.from_numpy(images).permute(0, 3, 1, 2)


def ours(pixels: Tensor, config: AugmentConfig) -> Callable[[int], Tensor]:
    """Return what makes krl's views of an epoch."""
    preprocessing = Preprocessing(SIDE, SIDE, crop_fraction=FRACTION)
    augmentation = Augmentation.resolve(config, preprocessing, flip=True, seed=0)
    return lambda epoch: augmentation(pixels, np.arange(len(pixels)), epoch)


def theirs(pixels: Tensor, transforms: list[object]) -> Callable[[int], Tensor]:
    """Return what makes torchvision's views, image by image as in a data set."""
    first, *others = transforms
    change, images = v2.Compose([first, v2.RandomHorizontalFlip(), *others]), pixels.contiguous()
    return lambda _: torch.stack([change(image) for image in images])


if __name__ == "__main__":
    main()
