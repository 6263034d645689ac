"""Steps of a training with torch.compile and without it, interleaved in one process, as a ratio of medians.

OMP_NUM_THREADS=1 python benchmarks/train/compiled.py --models resnet20 resnet18
"""

from __future__ import annotations

import argparse
import statistics
import time

import numpy as np
import torch

from krl_runtime.images.preprocessing import Preprocessing
from krl_train.config import AugmentConfig, OptimConfig, PlannedLoop
from krl_train.data import Augmentation, PixelSet
from krl_train.loop import BatchStream, Trainer
from krl_train.run import ModelSpec
from krl_train.tasks import ClassificationTask, Supervised

_WARM = 2  # steps before the clock: the first one compiles


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--models", nargs="+", default=["resnet20", "resnet18"])
    parser.add_argument("--size", type=int, default=32, help="side of the images in pixels")
    parser.add_argument("--batch-size", type=int, default=128)
    parser.add_argument("--rounds", type=int, default=11)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--device", default="cpu")
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    for model in arguments.models:
        _compare(model, arguments)


def _compare(model: str, arguments: argparse.Namespace) -> None:
    trainers = {compiled: _trainer(model, arguments, compiled) for compiled in (False, True)}
    batches = {name: next(iter(each.stream.epoch(0, 0, each.worker))) for name, each in trainers.items()}
    seconds: dict[bool, list[float]] = {False: [], True: []}
    start = {}
    for number in range(_WARM + arguments.rounds):
        for compiled, trainer in trainers.items():
            began = time.perf_counter()
            trainer._step(batches[compiled])
            if arguments.device == "cuda":
                torch.cuda.synchronize()
            took = time.perf_counter() - began
            start.setdefault(compiled, took)
            if number >= _WARM:
                seconds[compiled].append(took)
    plain, fast = (statistics.median(seconds[compiled]) for compiled in (False, True))
    ratios = sorted(a / b for a, b in zip(seconds[False], seconds[True], strict=True))
    print(
        f"{model}, {arguments.batch_size} images of {arguments.size}×{arguments.size}: {1000 * plain:.0f} ms plain, "
        f"{1000 * fast:.0f} ms compiled, ratio of medians {plain / fast:.2f} (of single rounds "
        f"{ratios[len(ratios) // 4]:.2f} to {ratios[3 * len(ratios) // 4]:.2f}); the first step took "
        f"{start[True]:.0f} s instead of {start[False]:.1f} s"
    )


def _trainer(model: str, arguments: argparse.Namespace, compiled: bool) -> Trainer:
    size = Preprocessing(arguments.size, arguments.size)
    random = np.random.default_rng(0)
    count = arguments.batch_size
    pixels = random.integers(0, 256, (count, 3, arguments.size, arguments.size), np.uint8)
    data = PixelSet(pixels, random.integers(0, 10, count).tolist())
    torch.manual_seed(0)
    network = ModelSpec(model, 10, 3).build(size)
    loop = PlannedLoop(epochs=1, batch_size=count, precision="fp32", device=arguments.device, compile=compiled)
    augmentation = Augmentation.resolve(AugmentConfig(), size, flip=True, seed=0)
    total = _WARM + arguments.rounds
    task = ClassificationTask(
        Supervised(network), OptimConfig(), steps=total, batch_size=count, val=data, labels=tuple("0123456789")
    )
    return Trainer(loop, task, BatchStream(data, augmentation, count, 0), None)


if __name__ == "__main__":
    main()
