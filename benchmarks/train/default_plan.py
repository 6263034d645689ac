"""Default options on few and many images, beside other batch sizes with all else at its default.

::

    python benchmarks/train/default_plan.py --data ../shared/data/cifar10 --counts 20 200 2000 --seeds 3

Each training is a run in ``--out`` and is not repeated. Top-1 is that of the epoch which is kept, on ``--val-limit``
images of the split ``val``. Several trainings share the processor: times say nothing here.
"""

from __future__ import annotations

import argparse
import json
import statistics
from pathlib import Path

import krl_train
from krl_train.config import LoopConfig, plan_loop
from krl_train.run import Run

DEFAULT = "default"


def top1(arguments: argparse.Namespace, count: int, batch: str, seed: int) -> float:
    """Train once, unless that was done, and return the top-1 in percent."""
    out = arguments.out / f"{arguments.model}-{count}-{batch}-{seed}"
    if not (out / "model.safetensors").is_file():
        options = {} if batch == DEFAULT else {"batch_size": int(batch)}
        krl_train.fit(
            model=arguments.model, data=arguments.data, limit=count, val_limit=arguments.val_limit, seed=seed,
            evaluate_every=arguments.evaluate_every, out=out, overwrite=True, **options,
        )  # fmt: skip
    return 100 * float(Run.open(out).record.metrics["top1"])


def main() -> None:
    """Train, and print a table and its values as JSON."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True, help="folder with train/CLASS and val/CLASS")
    parser.add_argument("--model", default="resnet8")
    parser.add_argument("--counts", type=int, nargs="+", default=[20, 200, 2000])
    parser.add_argument("--batch-sizes", nargs="+", default=["8", "16", "32", "128"])
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--val-limit", type=int, default=1000)
    parser.add_argument("--evaluate-every", type=int, default=5)
    parser.add_argument("--out", type=Path, default=Path("default-plan"))
    arguments = parser.parse_args()
    found: dict[int, dict[str, list[float]]] = {}
    for count in arguments.counts:
        plan = plan_loop(LoopConfig(), count)
        row = found.setdefault(count, {})
        for batch in (DEFAULT, *arguments.batch_sizes):
            # A batch size that is the default one is the same training.
            name = DEFAULT if batch == str(plan.batch_size) else batch
            row[batch] = [top1(arguments, count, name, seed) for seed in range(arguments.seeds)]
            mean = statistics.mean(row[batch])
            print(
                f"{count:>8} images  batch {batch:>8}  {mean:6.2f} %  {[round(value, 1) for value in row[batch]]}",
                flush=True,
            )
        print(f"{count:>8} images  default: batches of {plan.batch_size}, {plan.epochs} epochs", flush=True)
    print(json.dumps(found))


if __name__ == "__main__":
    main()
