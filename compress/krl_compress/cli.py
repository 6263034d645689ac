"""The command ``krl-compress``."""

from __future__ import annotations

import sys
from collections.abc import Callable, Sequence
from typing import Any

from krl_runtime.commandline import dispatch, print_json, table

from .config import DistillConfig

__all__ = ["main"]


def distill(config: DistillConfig) -> None:
    """Train a small student with a large teacher."""
    from .distill import distill as run_distill

    run = run_distill(config)
    metrics = run.record.metrics
    result: dict[str, Any] = {
        "run": str(run.path),
        "model": run.record.model.name,
        "teacher": metrics["teacher"],
        "baseline": metrics.get("baseline"),
        "student": {name: value for name, value in metrics.items() if name not in ("teacher", "baseline")},
    }
    if config.json:
        print_json(result)
        return
    print(f"{run.path}: {run.record.model.name}")
    names = {"teacher": "teacher", "baseline": "student without teacher", "student": "student"}
    columns = ("top1", "loss", "parameters", "macs", "train_seconds")
    rows = [(title, *(result[name].get(column) for column in columns)) for name, title in names.items() if result[name]]
    print(table(("", *columns), rows))


COMMANDS: dict[str, Callable[[Any], int | None]] = {"distill": distill}


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command and return its exit code."""
    return dispatch("krl-compress", "Make large image models small.", COMMANDS, argv)


if __name__ == "__main__":
    sys.exit(main())
