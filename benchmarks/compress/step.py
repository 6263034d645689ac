"""One training step of distillation beside the loop that people write: float32, per-image transforms, live teacher.

    python benchmarks/compress/step.py                 # resnet18 (CIFAR stem) -> resnet8, resnet56 -> resnet8

All steps run in turn in one process, 128 images of 32×32 in each. ``krl`` is the package's own stream, distiller and
loop (mixed precision where the processor computes in it, channels last, views of a whole batch at once); ``stored`` is
the same with ``--cache-teacher``; ``plain`` trains the student on labels alone. Time does not depend on the weights.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from statistics import median
from typing import Any

os.environ.setdefault("OMP_NUM_THREADS", "1")

import numpy as np
import torch
from PIL import Image
from torch import nn

from krl_compress.distillers import Distiller, FrozenTeacher, parse_loss
from krl_compress.teachers.store import StoredTeacher
from krl_runtime.images.preprocessing import Preprocessing
from krl_train.config import AugmentConfig, OptimConfig, PlannedLoop
from krl_train.data import Augmentation, PixelSet
from krl_train.loop import BatchStream, Trainer
from krl_train.models import Network, build_model
from krl_train.tasks import ClassificationTask, Objective, Supervised

BATCH, CLASSES, COUNT = 128, 10, 1024
PREPROCESSING = Preprocessing(32, 32, mean=(0.491, 0.482, 0.447), std=(0.247, 0.243, 0.262))
PAIRS = {"resnet18": "resnet8", "resnet56": "resnet8"}
TERMS = [parse_loss("ce:weight=0.1"), parse_loss("kd:weight=0.9,temperature=4")]

Step = Callable[[], object]


def backbone(name: str) -> nn.Module:
    """Return a network; resnet18 with the 3×3 stem that everybody gives it for images of this size."""
    model = build_model(name, CLASSES)
    if name == "resnet18":
        model.conv1 = nn.Conv2d(3, 64, 3, padding=1, bias=False)
        model.maxpool = nn.Identity()
    return model


def naive(teacher: nn.Module, student: nn.Module, images: np.ndarray, labels: np.ndarray) -> Step:
    """The usual loop: a data set of PIL images with torchvision's transforms, everything in float32."""
    from torchvision import transforms

    change = transforms.Compose(
        [
            transforms.RandomCrop(32, padding=4),
            transforms.RandomHorizontalFlip(),
            transforms.ToTensor(),
            transforms.Normalize(PREPROCESSING.mean, PREPROCESSING.std),
        ]
    )
    opened = [Image.fromarray(image) for image in images.transpose(0, 2, 3, 1)]
    optimizer = torch.optim.SGD(student.parameters(), lr=0.05, momentum=0.9, weight_decay=5e-4)
    teacher.eval()

    def step() -> None:
        chosen = [random.randrange(len(opened)) for _ in range(BATCH)]
        inputs = torch.stack([change(opened[index]) for index in chosen])
        targets = torch.tensor([int(labels[index]) for index in chosen])
        with torch.no_grad():
            theirs = teacher(inputs)
        mine = student(inputs)
        soft = nn.functional.kl_div(
            nn.functional.log_softmax(mine / 4, 1), nn.functional.softmax(theirs / 4, 1), reduction="batchmean"
        )
        loss = 0.1 * nn.functional.cross_entropy(mine, targets) + 0.9 * 16 * soft
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()

    return step


def ours(objective: Objective, data: PixelSet, augmentation: Augmentation, precision: str, views: int | None) -> Step:
    """A step of the package's own loop."""
    stream = BatchStream(data, augmentation, BATCH, 0, views)
    loop = PlannedLoop(epochs=1, batch_size=BATCH, precision=precision, device="cpu")
    task = ClassificationTask(
        objective, OptimConfig(warmup=0.0), steps=10**6, batch_size=BATCH, val=data, labels=("x",) * CLASSES
    )
    trainer = Trainer(loop, task, stream, None)
    task.begin_epoch(0)

    def batches() -> Iterator[Any]:
        epoch = 0
        while True:
            yield from stream.epoch(epoch, 0, trainer.worker)
            epoch += 1

    upcoming = batches()
    return lambda: float(task.step(next(upcoming), trainer._update)["loss"])


def contenders(teacher: str, student: str, precision: str, folder: Path) -> dict[str, Step]:
    torch.manual_seed(0)
    rng = np.random.default_rng(0)
    images = rng.integers(0, 256, (COUNT, 3, 32, 32), np.uint8)
    labels = rng.integers(0, CLASSES, COUNT)
    data = PixelSet(images, labels.tolist())
    augmentation = Augmentation.resolve(AugmentConfig(), PREPROCESSING, flip=True, seed=0)

    def network(name: str) -> Network:
        return Network(backbone(name), replace(PREPROCESSING))

    frozen = FrozenTeacher(network(teacher))
    stored = StoredTeacher(frozen, "weights", data, augmentation, views=2, folder=folder)
    stored.fill(torch.device("cpu"))
    return {
        "naive": naive(backbone(teacher), backbone(student), images, labels),
        "krl": ours(Distiller(network(student), frozen, TERMS), data, augmentation, precision, None),
        "stored": ours(Distiller(network(student), stored, TERMS), data, augmentation, precision, 2),
        "plain": ours(Supervised(network(student)), data, augmentation, precision, None),
    }


def measure(steps: dict[str, Step], rounds: int, clock: Callable[[], float]) -> dict[str, list[float]]:
    """Return the milliseconds of every step; in each round all contenders take their turn, in random order."""
    names, order = list(steps), random.Random(0)
    taken: dict[str, list[float]] = {name: [] for name in names}
    for name in names:
        steps[name]()
    for _ in range(rounds):
        order.shuffle(names)
        for name in names:
            start = clock()
            steps[name]()
            taken[name].append((clock() - start) * 1e3)
    return taken


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=15, metavar="N", help="steps of each")
    parser.add_argument("--threads", type=int, default=1, metavar="N", help="of torch")
    parser.add_argument("--precision", choices=("auto", "fp32", "bf16"), default="auto", help="of krl's loop")
    parser.add_argument("--cpu-time", action="store_true", help="the process's own seconds: for a loaded machine")
    parser.add_argument("--json", action="store_true", help="print one JSON object on standard output")
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    clock = time.process_time if arguments.cpu_time else time.perf_counter
    results: dict[str, Any] = {}
    for teacher, student in PAIRS.items():
        with tempfile.TemporaryDirectory() as folder:
            taken = measure(contenders(teacher, student, arguments.precision, Path(folder)), arguments.rounds, clock)
        pair = f"{teacher} -> {student}"
        results[pair] = {
            "ms": {name: median(values) for name, values in taken.items()},
            "live_teacher_over_naive": median(taken["naive"]) / median(taken["krl"]),
            "stored_teacher_over_naive": median(taken["naive"]) / median(taken["stored"]),
            "stored_over_plain": median(taken["stored"]) / median(taken["plain"]),
        }
        if not arguments.json:
            row = results[pair]
            print(pair + "   " + "   ".join(f"{name} {value:.0f} ms" for name, value in row["ms"].items()))
            print(
                f"  live teacher {row['live_teacher_over_naive']:.2f} times as fast as the naive loop, stored "
                f"{row['stored_teacher_over_naive']:.2f}; stored over plain {row['stored_over_plain']:.2f}",
                flush=True,
            )
    if arguments.json:
        json.dump({"threads": arguments.threads, "load": os.getloadavg()[0], "pairs": results}, sys.stdout, indent=2)
        print()


if __name__ == "__main__":
    main()
