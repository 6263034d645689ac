r"""A classifier of CIFAR-10 carried to a few photographs of flowers, by each method of transfer learning.

::

    krl-train import --model resnet20 --weights DATA/models/cifar10_resnet20-12fca82f.th --data DATA/cifar10 \
        --out transfer/source
    python benchmarks/train/transfer.py --data-root DATA --source transfer/source --out transfer

Without ``--source`` the classifier of CIFAR-10 is trained first. Each training is a run in ``--out`` and is not
repeated. All have the same number of epochs, the default learning rate, and ``--shots`` images of each class, drawn by
the seed. Top-1 is that of the last epoch, so that no epoch is chosen by the images which are measured: the fifth of the
target that is held out. The standard error is that of the mean over seeds; all share the images that are measured.

The 30 trainings of the default table take about half an hour on two cores: an estimate from single ones.
"""

from __future__ import annotations

import argparse
import math
import statistics
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import krl_train
from krl_train.run import Run

MODEL = "resnet20"
SCRATCH, JOINT = "scratch", "joint"
METHODS: Mapping[str, Mapping[str, Any]] = {
    SCRATCH: {},
    "linear": {"transfer": "linear"},
    "full": {},
    "staged": {"transfer": "staged"},
    "L2-SP": {"l2_sp": 0.01},  # not tuned
    "joint": {"source_weight": 0.5},  # not tuned; a batch of CIFAR-10 beside each batch of flowers
}
"""Options of each row of the table."""


def train_source(arguments: argparse.Namespace) -> Path:
    """Return the run on CIFAR-10: the one that is given, else one that is trained here, unless that was done."""
    if arguments.source is not None:
        return Path(arguments.source)
    out = Path(arguments.out / "source")
    if not (out / "model.safetensors").is_file():
        data = arguments.data_root / "cifar10"
        krl_train.fit(model=MODEL, data=data, epochs=arguments.source_epochs, out=out, overwrite=True)
    return out


def top1(arguments: argparse.Namespace, source: Path, method: str, shots: int, seed: int) -> float:
    """Train once, unless that was done, and return the top-1 in percent."""
    out = arguments.out / f"{method}-{shots}-{arguments.size}-{arguments.epochs}-{seed}"
    if not (out / "model.safetensors").is_file():
        start = {"model": Run.open(source).record.model.name} if method == SCRATCH else {"from_": str(source)}
        if method == JOINT:
            start["source_data"] = str(arguments.data_root / "cifar10")
        krl_train.fit(
            data=arguments.target, shots=shots, size=(arguments.size,), epochs=arguments.epochs, seed=seed,
            evaluate_every=arguments.epochs, keep="last", out=out, overwrite=True, **start, **METHODS[method],
        )  # fmt: skip
    return 100 * float(Run.open(out).record.metrics["top1"])


def cell(values: Sequence[float]) -> str:
    """Return the mean and its standard error."""
    error = statistics.stdev(values) / math.sqrt(len(values)) if len(values) > 1 else math.nan
    return f"{statistics.mean(values):.1f} ± {error:.1f}"


def main() -> None:
    """Train, and print a table in Markdown."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data-root", type=Path, default=Path("../shared/data"), help="has cifar10/ and flowers128/")
    parser.add_argument("--source", type=Path, help="run on the source; trained on DATA-ROOT/cifar10 if left out")
    parser.add_argument("--source-epochs", type=int, default=10)
    parser.add_argument("--target", type=Path, help="folder of classes (default: DATA-ROOT/flowers128/train)")
    parser.add_argument("--out", type=Path, default=Path("transfer"))
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--epochs", type=int, default=60)
    parser.add_argument("--shots", type=int, nargs="+", default=[10, 50])
    parser.add_argument("--size", type=int, default=64, help="side of the images in pixels")
    parser.add_argument("--methods", nargs="+", default=list(METHODS), choices=list(METHODS))
    arguments = parser.parse_args()
    arguments.target = arguments.target or arguments.data_root / "flowers128" / "train"
    source = train_source(arguments)
    print(f"| method | {' | '.join(f'{shots} images of each class' for shots in arguments.shots)} |")
    print(f"|---|{'---|' * len(arguments.shots)}")
    for method in arguments.methods:
        seeds = range(arguments.seeds)
        cells = [cell([top1(arguments, source, method, shots, seed) for seed in seeds]) for shots in arguments.shots]
        print(f"| {method} | {' | '.join(cells)} |", flush=True)


if __name__ == "__main__":
    main()
