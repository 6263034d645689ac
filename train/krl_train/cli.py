"""The command ``krl-train``."""

from __future__ import annotations

import sys
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from krl_runtime.cli.commandline import print_json
from krl_runtime.cli.dispatch import Program, dispatch, value_of
from krl_runtime.cli.tables import table

from .config import RECORD, EvaluateConfig, FitConfig, ImportConfig, UnpackConfig
from .processes import leave_group

if TYPE_CHECKING:
    from .run import Run

__all__ = ["main"]


def fit(config: FitConfig) -> None:
    """Train a network on images: a classifier, or what --task says."""
    from .training.fit import fit as run_fit

    _show_run(run_fit(config), config.json)


def evaluate(config: EvaluateConfig) -> None:
    """Measure a run on its own data or on any other."""
    from .evaluation.evaluate import evaluate as run_evaluate

    result = run_evaluate(config)
    if config.json:
        print_json(result)
        return
    if "samples" in result:
        where = f" ({result['variant']})" if "variant" in result else ""
        print(f"{result['run']}{where}: {result['samples']} generated images")
        print(_metrics_table(result))
        return
    print(f"{result['run']} on {result['count']} images of {result['data']} ({result['split']})")
    print(_metrics_table(result))
    if "images" in result:
        _show_images(result["images"])
        return
    worst = sorted((value, name) for name, value in result["recall"].items() if value is not None)
    print("\n" + table(("class", "recall"), [(name, f"{value:.4f}") for value, name in worst]))


def _show_images(images: list[dict[str, Any]]) -> None:
    columns = ("name", "psnr", "ssim", "input_psnr", "input_ssim")
    print("\n" + table(columns, [[image[column] for column in columns] for image in images]))


def import_(config: ImportConfig) -> None:
    """Turn third-party weights into a run, and measure them."""
    from .importers.importing import import_weights

    _show_run(import_weights(config), config.json)


def unpack(config: UnpackConfig) -> None:
    """Write a named data set as a folder of PNG files, train/CLASS and val/CLASS."""
    from krl_runtime.files import atomic_folder

    from .data import open_source
    from .data.sources import unpack as write

    source = open_source(config.data)
    with atomic_folder(config.out) as folder:
        count = write(source, folder)
    print(f"{count} images in {config.out}")


def _show_run(run: Run, json: bool) -> None:
    summary: dict[str, Any] = {
        "run": str(run.path),
        "model": run.record.model.name,
        "labels": list(run.record.labels),
        **run.record.metrics,
    }
    if json:
        print_json(summary)
        return
    print(f"{run.path}: {run.record.model.name}")
    print(_metrics_table(run.record.metrics))


def _metrics_table(metrics: Mapping[str, Any]) -> str:
    """Show what is one number."""
    return table(
        ("metric", "value"), [(name, value) for name, value in metrics.items() if isinstance(value, int | float)]
    )


COMMANDS: dict[str, Callable[[Any], int | None]] = {
    "fit": fit,
    "evaluate": evaluate,
    "import": import_,
    "unpack": unpack,
}


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command and return its exit code."""
    program = Program(
        "krl-train",
        "Train large image models, or import third-party ones.",
        COMMANDS,
        task_of={"fit": lambda arguments: value_of(arguments, "--task") or "classification"},
        record=RECORD,
    )
    return leave_group(dispatch(program, argv))


if __name__ == "__main__":
    sys.exit(main())
