"""A small classifier of photographs, trained from scratch with the default views and with others, for as many epochs.

::

    python benchmarks/train/views.py --data ../shared/data/flowers128/train --out views --seeds 3 --epochs 60

``--data`` is a folder of images, CLASS/*. Each training is a run in ``--out``, so that an interrupted benchmark goes on
where it stopped. Runs of the same seed start from the same weights and see the images in the same order. The standard
error of a gain is that of the mean over the seeds; all seeds have the same validation images.
"""

from __future__ import annotations

import argparse
import json
import shlex
import statistics
import subprocess
import sys
from pathlib import Path

from krl_runtime.cli.tables import table
from krl_train.run import WEIGHTS, Run

NETWORK, SIDE = "shufflenet_v2_x0_5", 128
# Flowers fill their photographs: a crop of less than a quarter seldom shows one.
CROP = "--random-resized-crop --crop-scale 0.25 1"
VIEWS = {
    "default": "",
    "resized crop": CROP,
    "resized crop, trivialaugment, erasing": f"{CROP} --auto-augment trivialaugment --erase 0.1",
    "resized crop, randaugment, erasing": f"{CROP} --auto-augment randaugment --erase 0.1",
    "resized crop, cutmix": f"{CROP} --cutmix 1",
}
"""By name, the options of the views; the first is what the others are compared with."""


def main() -> None:
    """Train what is missing, and print a table and its values as JSON."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--out", type=Path, default=Path("views"))
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--epochs", type=int, default=60)
    parser.add_argument("--limit", type=int, help="training images at most, to try this script")
    parser.add_argument("--views", nargs="+", choices=tuple(VIEWS)[1:], default=tuple(VIEWS)[1:])
    arguments = parser.parse_args()
    found: dict[str, list[Run]] = {}
    for name in ("default", *arguments.views):
        found[name] = [trained(arguments, name, seed) for seed in range(arguments.seeds)]
    tops = {name: [100 * float(run.record.metrics["top1"]) for run in runs] for name, runs in found.items()}
    rows = []
    for name, runs in found.items():
        gains = [mine - base for mine, base in zip(tops[name], tops["default"], strict=True)]
        error = statistics.stdev(gains) / len(gains) ** 0.5 if len(gains) > 1 else float("nan")
        loss = statistics.mean(float(run.record.history[-1]["loss"]) for run in runs)
        minutes = statistics.mean(run.record.metrics["train_seconds"] for run in runs) / 60
        shown = (f"{statistics.mean(tops[name]):.2f}", f"{statistics.mean(gains):+.2f}", f"{error:.2f}")
        rows.append((name, *shown, f"{loss:.3f}", f"{minutes:.1f}"))
    print(table(("views", "top-1, %", "gain", "standard error", "last training loss", "minutes"), rows))
    images = {"train": found["default"][0].record.plan["images"], "val": found["default"][0].record.metrics["count"]}
    print(json.dumps({"network": NETWORK, "side": SIDE, "epochs": arguments.epochs, "images": images, "top1": tops}))


def trained(arguments: argparse.Namespace, name: str, seed: int) -> Run:
    """Train in a process of its own, unless that was done."""
    short = "".join(letter if letter.isalnum() else "-" for letter in name).replace("--", "-")
    out = arguments.out / f"{short}-{seed}"
    if not (out / WEIGHTS).is_file():
        print(f"… {out.name}", file=sys.stderr, flush=True)
        command = [sys.executable, "-m", "krl_train", "fit", "--model", NETWORK, "--size", str(SIDE)]
        command += ["--data", str(arguments.data), "--epochs", str(arguments.epochs), "--seed", str(seed)]
        command += ["--limit", str(arguments.limit)] if arguments.limit else []
        command += ["--device", "cpu", "--out", str(out), "--overwrite", "--quiet", *shlex.split(VIEWS[name])]
        subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
    return Run.open(out)


if __name__ == "__main__":
    main()
