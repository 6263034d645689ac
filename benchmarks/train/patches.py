"""Patches a second and peak memory of a restorer's data: in memory and from disk, with and without prefetching.

::

    python benchmarks/train/patches.py --data ../shared/data/sr/t91

The images are enlarged into a temporary folder, and each round makes one epoch of patches in each way, one way after
another: alone, and with a step of training on each batch. The table has medians of patches a second, and medians of the
ratios to images in memory without prefetching in the same round. Peak memory is that of a process of its own, which
reads the images and makes one epoch, beyond what it took before (Linux).
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import statistics
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from itertools import product
from pathlib import Path

import torch
from PIL import Image

from krl_runtime.cli.tables import table
from krl_runtime.images.folders import ImageFile, find_images
from krl_train.config import LoopConfig
from krl_train.data import PatchBatch, PatchStream
from krl_train.data.patches import PREFETCHED, read_truths
from krl_train.models.restorers import build_restorer
from krl_train.run import ModelSpec
from krl_train.tasks.restoration import PixelLoss
from krl_train.training.restoration import restorer_preprocessing
from krl_train.worker import Worker

_EVERYTHING = 2**40  # bytes: more than all images


@dataclass(frozen=True)
class Way:
    """How patches are made: of images in memory or on disk, and how many batches ahead."""

    on_disk: bool
    prefetch: int

    @property
    def name(self) -> str:
        """Name in the table."""
        return f"{'from disk' if self.on_disk else 'in memory'}, {'' if self.prefetch else 'no '}prefetch"


WAYS = [Way(on_disk, prefetch) for on_disk, prefetch in product((False, True), (0, PREFETCHED))]


def stream_of(way: Way, folder: Path, options: argparse.Namespace) -> PatchStream:
    """Read the images for one way."""
    limit = options.memory_limit_mb * 2**20
    files = [ImageFile(path) for path in find_images(folder)]
    truths = read_truths(files, "rgb", on_bad="refuse", memory_limit=limit if way.on_disk else _EVERYTHING)
    if truths.on_disk != way.on_disk:
        raise SystemExit("the images fit into --memory-limit-mb; lower it")
    loop = LoopConfig(batch_size=options.batch_size)
    size = (options.size, options.size)
    kind = {"kind": "bicubic"}
    return PatchStream(truths, options.scale, kind, size, loop, memory_limit=limit, prefetch=way.prefetch)


def trainer(options: argparse.Namespace) -> Callable[[PatchBatch], None]:
    """Return a step of training."""
    spec = ModelSpec(options.model, 0, 3, {"scale": options.scale})
    objective = PixelLoss(build_restorer(spec, restorer_preprocessing(3, (options.size, options.size))))
    optimizer = torch.optim.AdamW(objective.parameters())

    def step(batch: PatchBatch) -> None:
        optimizer.zero_grad()
        objective(batch)["loss"].backward()
        optimizer.step()

    return step


def rate(stream: PatchStream, epoch: int, step: Callable[[PatchBatch], None] | None) -> float:
    """Return patches a second over one epoch."""
    started = time.perf_counter()
    for batch in stream.epoch(epoch, 0, Worker(torch.device("cpu"))):
        if step is not None:
            step(batch)
    return stream.count / (time.perf_counter() - started)


def _peak() -> int:
    """Return the largest memory that this process has had, in KiB."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith("VmHWM:"))


def peak_memory(way: Way, folder: Path, options: argparse.Namespace) -> float:
    """Return by how many MiB reading and an epoch raise the peak of this process."""
    torch.set_num_threads(1)
    before = _peak()
    rate(stream_of(way, folder, options), 0, None)
    return (_peak() - before) / 2**10


def prepare(options: argparse.Namespace, folder: Path) -> None:
    """Write enlarged images."""
    for path in find_images(options.data)[: options.images]:
        image = Image.open(path).convert("RGB")
        large = image.resize((image.width * options.enlarge, image.height * options.enlarge), Image.Resampling.BICUBIC)
        large.save(folder / f"{path.stem}.png")


def measure(options: argparse.Namespace, folder: Path) -> dict[str, dict[str, float]]:
    """Measure all ways in turn."""
    streams = {way.name: stream_of(way, folder, options) for way in WAYS}
    steps = {"alone": None, "training": trainer(options)}
    found = {name: {kind: [] for kind in steps} for name in streams}
    for epoch in range(options.rounds):
        for kind, step in steps.items():
            for name, stream in streams.items():
                found[name][kind].append(rate(stream, epoch, step))
    base = found[WAYS[0].name]
    result: dict[str, dict[str, float]] = {}
    for way in WAYS:
        with multiprocessing.get_context("spawn").Pool(1) as pool:
            memory = pool.apply(peak_memory, (way, folder, options))
        result[way.name] = {"peak_mib": round(memory)}
        for kind, rates in found[way.name].items() if options.rounds else ():
            ratios = [mine / first for mine, first in zip(rates, base[kind], strict=True)]
            result[way.name] |= {
                kind: round(statistics.median(rates)),
                f"{kind}_ratio": round(statistics.median(ratios), 2),
            }
    return result


def main() -> None:
    """Measure, and print a table and its values as JSON."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True, help="folder of images")
    parser.add_argument("--images", type=int, default=30, help="take this many of them")
    parser.add_argument("--enlarge", type=int, default=4)
    parser.add_argument("--scale", type=int, default=2)
    parser.add_argument("--size", type=int, default=24)
    parser.add_argument("--batch-size", type=int, default=64)
    parser.add_argument("--model", default="espcn-8")
    parser.add_argument("--memory-limit-mb", type=int, default=16)
    parser.add_argument("--rounds", type=int, default=3, help="0 measures memory alone")
    options = parser.parse_args()
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        prepare(options, folder)
        result = measure(options, folder)
    columns = ("alone", "alone_ratio", "training", "training_ratio", "peak_mib")
    print(table(("", *columns), [[name, *(row.get(column) for column in columns)] for name, row in result.items()]))
    print(json.dumps(result))


if __name__ == "__main__":
    main()
