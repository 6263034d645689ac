"""Batches of photographs from JPEG files: krl's stream beside torchvision's transforms in a DataLoader, interleaved.

::

    python benchmarks/train/feeding.py --photographs ../shared/data/natural224

Photographs are enlarged to 500 x 375 and written as JPEG into a temporary folder, each several times as different
crops. Both sides make random crops of 224 pixels, half of them mirrored, as normalized float32 batches. The first epoch
begins with nothing but the files: krl hashes, checks and decodes them then; torchvision lists them and starts its
workers. Later epochs follow in the same processes. krl is measured with images that fit in memory, with images that
are kept in a file, and with images that are decoded in each epoch, as where the disk has no room.
"""

from __future__ import annotations

import argparse
import json
import os
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from statistics import median
from tempfile import TemporaryDirectory

os.environ.setdefault("OMP_NUM_THREADS", "1")

import numpy as np
import torch
from PIL import Image
from torch import nn

from krl_runtime.images.preprocessing import Preprocessing
from krl_train.config import AugmentConfig, DataConfig
from krl_train.data import Augmentation, open_source
from krl_train.loop import BatchStream
from krl_train.models import Network
from krl_train.worker import Worker

SIDE, FRACTION = 224, 0.875
ORIGINAL = (500, 375)  # width and height of many of ImageNet's photographs
QUALITY = 90
GIB = 2**10  # in MiB
Epochs = Iterator[int]
"""Runs an epoch at each step and yields the number of its images."""


def main() -> None:
    """Measure, and print a table and its values as JSON."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--photographs", type=Path, required=True, help="folder of images, at any depth")
    parser.add_argument("--count", type=int, default=400, help="images that are written")
    parser.add_argument("--batch-size", type=int, default=32)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--epochs", type=int, default=4, help="in each round; the first counts for itself")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    with TemporaryDirectory() as folder:
        root = Path(folder)
        write(arguments.photographs, root / "data", arguments.count)
        contenders: dict[str, Callable[[Path], Epochs]] = {
            "torchvision": lambda _: theirs(root / "data", arguments.batch_size),
            "krl, in memory": lambda cache: ours(root / "data", arguments.batch_size, cache, 4 * GIB, 4 * GIB),
            "krl, in a file": lambda cache: ours(root / "data", arguments.batch_size, cache, 0, 4 * GIB),
            "krl, decoded": lambda cache: ours(root / "data", arguments.batch_size, cache, 0, 0),
        }
        seconds = measure(contenders, root, arguments.rounds, arguments.epochs)
    rows = {name: summary(values, seconds["torchvision"], arguments.count) for name, values in seconds.items()}
    for name, row in rows.items():
        print(f"{name:<16}" + "  ".join(f"{key} {value:8.2f}" for key, value in row.items()))
    print(json.dumps({"load": os.getloadavg(), "cpus": os.cpu_count(), "rows": rows}))


def write(photographs: Path, folder: Path, count: int) -> None:
    """Write enlarged crops of photographs as ``CLASS/*.jpg``, in two classes."""
    files = sorted(path for path in photographs.rglob("*") if path.suffix.lower() in (".jpg", ".png"))
    random = np.random.default_rng(0)
    for label in ("one", "two"):
        (folder / label).mkdir(parents=True)
    for number in range(count):
        photograph = Image.open(files[number % len(files)]).convert("RGB")
        share = random.uniform(0.8, 1)
        box = (0, 0, photograph.width * share, photograph.height * share)
        image = photograph.resize(ORIGINAL, Image.Resampling.BICUBIC, box=box)
        image.save(folder / ("one", "two")[number % 2] / f"{number:05d}.jpg", quality=QUALITY)


def ours(folder: Path, batch_size: int, cache: Path, memory: int, disk: int) -> Epochs:
    """Yield epochs of krl, with limits in MiB; the network's normalization is part of a batch."""
    os.environ["KRL_CACHE_DIR"] = str(cache)
    preprocessing = Preprocessing(SIDE, SIDE, crop_fraction=FRACTION)
    source = open_source(DataConfig(data=str(folder), memory_limit_mb=memory, disk_cache_mb=disk))
    augmentation = Augmentation.resolve(AugmentConfig(), preprocessing, flip=True, seed=0)
    data = source.read("all", preprocessing, margin=augmentation.margin)
    normalize = Network(nn.Identity(), preprocessing)
    stream, epoch = BatchStream(data, augmentation, batch_size, 0), 0
    worker = Worker(torch.device("cpu"), channels_last=True)
    while True:
        with torch.inference_mode():
            yield sum(len(normalize(batch.pixels)) for batch in stream.epoch(epoch, 0, worker))
        epoch += 1


def theirs(folder: Path, batch_size: int) -> Epochs:
    """Yield epochs of torchvision's ``ImageFolder`` in a ``DataLoader`` with two workers."""
    from torch.utils.data import DataLoader
    from torchvision import datasets, transforms

    change = transforms.Compose(
        [
            transforms.Resize(round(SIDE / FRACTION)),
            transforms.RandomCrop(SIDE),
            transforms.RandomHorizontalFlip(),
            transforms.ToTensor(),
            transforms.Normalize((0.485, 0.456, 0.406), (0.229, 0.224, 0.225)),
        ]
    )
    loader = DataLoader(
        datasets.ImageFolder(str(folder), change), batch_size, shuffle=True, num_workers=2, persistent_workers=True
    )
    while True:
        yield sum(len(images) for images, _ in loader)


def measure(
    contenders: dict[str, Callable[[Path], Epochs]], root: Path, rounds: int, epochs: int
) -> dict[str, list[list[float]]]:
    """Return the seconds of each epoch, by contender and round; the contenders take turns, epoch by epoch."""
    seconds: dict[str, list[list[float]]] = {name: [] for name in contenders}
    for number in range(rounds):
        running: dict[str, Epochs] = {}
        for epoch in range(epochs):
            for name, begin in contenders.items():
                start = time.perf_counter()
                if epoch == 0:
                    running[name] = begin(root / f"cache-{number}-{name}")
                next(running[name])
                took = time.perf_counter() - start
                seconds[name] += [[took]] if epoch == 0 else []
                if epoch:
                    seconds[name][-1].append(took)
    return seconds


def summary(mine: list[list[float]], base: list[list[float]], count: int) -> dict[str, float]:
    """Return images a second in the first epoch and in later ones, and their ratios to the base, as medians."""
    parts = {"first": slice(0, 1), "later": slice(1, None)}
    rates = {
        name: [[count / took for run in runs for took in run[part]] for runs in (mine, base)]
        for name, part in parts.items()
    }
    return {
        **{f"{name} images/s": median(own) for name, (own, _) in rates.items()},
        **{f"{name} ratio": median(own) / median(other) for name, (own, other) in rates.items()},
    }


if __name__ == "__main__":
    main()
