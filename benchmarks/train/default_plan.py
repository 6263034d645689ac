"""Default options on few and many images, beside other options with all else at its default.

::

    python benchmarks/train/default_plan.py --data ../shared/data/cifar10 --counts 20 200 2000 --seeds 3
    python benchmarks/train/default_plan.py --data ../shared/data/cifar10 --counts 20000 --seeds 1 --fixed epochs=8
    python benchmarks/train/default_plan.py --data ../shared/data/cifar10 --options ema=0.99 rotate=15,zoom=1.2

Each training is a run in ``--out`` and is not repeated. Top-1 is that of the epoch which is kept, on ``--val-limit``
images of the split ``val``. The standard error is that of the mean over seeds; all share the validation images, so that
it says nothing of other images. Several trainings share the processor: times say nothing here.
"""

from __future__ import annotations

import argparse
import json
import math
import statistics
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import krl_train
from krl_train.config import LoopConfig, plan_loop
from krl_train.run import Run

DEFAULT = "default"
_BATCH_SIZES = [f"batch_size={size}" for size in (8, 16, 32, 128)]


def options_of(text: str) -> dict[str, Any]:
    """Return the options that a text such as ``rotate=15,zoom=1.2`` names; none for ``default``."""
    pairs = [pair.split("=") for pair in text.split(",") if pair != DEFAULT]
    return {name: json.loads(value) for name, value in pairs}


def top1(arguments: argparse.Namespace, count: int, text: str, seed: int) -> float:
    """Train once, unless that was done, and return the top-1 in percent."""
    words = [text] if arguments.fixed == DEFAULT else [arguments.fixed, text]
    out = arguments.out / "-".join([arguments.model, str(count), *words, str(seed)])
    if not (out / "model.safetensors").is_file():
        options = {**options_of(arguments.fixed), **options_of(text)}
        loop = {name: options[name] for name in ("epochs", "batch_size") if name in options}
        epochs = plan_loop(LoopConfig(**loop), count).epochs
        krl_train.fit(
            model=arguments.model, data=arguments.data, limit=count, val_limit=arguments.val_limit, seed=seed,
            evaluate_every=math.ceil(epochs / arguments.evaluations), out=out, overwrite=True, **options,
        )  # fmt: skip
    return 100 * float(Run.open(out).record.metrics["top1"])


def same_as_default(text: str, plan: Mapping[str, Any]) -> bool:
    """Return whether options are those that are planned anyway."""
    return all(plan.get(name, "") == value for name, value in options_of(text).items())


def main() -> None:
    """Train, and print a table and its values as JSON."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True, help="folder with train/CLASS and val/CLASS")
    parser.add_argument("--model", default="resnet8")
    parser.add_argument("--counts", type=int, nargs="+", default=[20, 200, 2000])
    parser.add_argument("--options", nargs="+", default=_BATCH_SIZES, help="what to compare, as NAME=VALUE,…")
    parser.add_argument("--fixed", default=DEFAULT, help="options of all trainings, as NAME=VALUE,…")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--val-limit", type=int, default=1000)
    parser.add_argument("--evaluations", type=int, default=10)
    parser.add_argument("--out", type=Path, default=Path("default-plan"))
    arguments = parser.parse_args()
    found: dict[int, dict[str, list[float]]] = {}
    for count in arguments.counts:
        plan = plan_loop(LoopConfig(**options_of(arguments.fixed)), count)
        row = found.setdefault(count, {})
        for text in dict.fromkeys((DEFAULT, *arguments.options)):
            name = DEFAULT if same_as_default(text, vars(plan)) else text
            row[text] = [top1(arguments, count, name, seed) for seed in range(arguments.seeds)]
            mean, spread = statistics.mean(row[text]), statistics.stdev(row[text]) if len(row[text]) > 1 else math.nan
            error = spread / math.sqrt(len(row[text]))
            values = " ".join(f"{value:.1f}" for value in row[text])
            print(f"{count:>8} images  {text:>20}  {mean:6.2f} ± {error:4.2f} %  ({values})", flush=True)
        print(f"{count:>8} images  default: batches of {plan.batch_size}, {plan.epochs} epochs", flush=True)
    print(json.dumps(found))


if __name__ == "__main__":
    main()
