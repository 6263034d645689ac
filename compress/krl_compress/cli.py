"""The command ``krl-compress``."""

from __future__ import annotations

import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from krl_runtime.cli.commandline import next_command, print_json
from krl_runtime.cli.dispatch import Program, dispatch, value_of
from krl_runtime.cli.recipes import show_recipes
from krl_runtime.cli.tables import table
from krl_train.cli import figure_note
from krl_train.config import RECORD, TRAINING_RECIPES, RecipesConfig
from krl_train.processes import leave_group

from . import verbs
from .config import (
    RECIPES,
    SEARCH_RECORD,
    DistillConfig,
    JointConfig,
    MutualConfig,
    PruneConfig,
    SearchConfig,
    StudyConfig,
)
from .teachers.kinds import task_of

__all__ = ["main"]

_COLUMNS = (
    "top1",
    "map",
    "recall_at_1",
    "recall_at_5",
    "map_at_r",
    "f1_macro",
    "loss",
    "psnr",
    "rgb_psnr",
    "psnr_mean",
    "ssim",
    "gain",
    "energy",
    "diversity",
    "fid",
    "kid",
    "coverage",
    "agreement",
    "parameters",
    "macs",
    "train_seconds",
)


def distill(config: DistillConfig) -> None:
    """Train a small student with a large teacher, or with several."""
    result = verbs.distill(config)
    if config.json:
        print_json(result.to_dict())
    else:
        print(f"{result.run}: {result.model}")
        rows = [(f"teacher {name}", found) for name, found in zip(config.teacher, result.teachers, strict=True)]
        if result.baseline:
            rows.append(("student without teacher", result.baseline))
        if result.details["rounded"]:
            rows.append(("student before, in floating point", result.details["float"]))
            rows.append(("student before, rounded to INT8", result.details["rounded"]))
        print(_comparison([*rows, ("student", result.student)]) + figure_note(result.student))
    next_command(f"krl-deploy export {result.run} -o NAME.krl")


def mutual(config: MutualConfig) -> None:
    """Train networks that teach each other."""
    _show(verbs.mutual(config), config.json)


def joint(config: JointConfig) -> None:
    """Train a teacher and, at the same time, a student that learns from it."""
    _show(verbs.joint(config), config.json)


def prune(config: PruneConfig) -> None:
    """Remove channels of a network, and distill what is left from the whole one."""
    result = verbs.prune(config)
    if config.json:
        print_json(result.to_dict())
    else:
        print(f"{result.run}: {result.model}, pruned")
        if result.details["sensitivity"]:
            print(_sensitivity(result.details["sensitivity"]) + "\n")
        rows = [("whole", result.teacher)]
        rows += [(f"step {number}, as pruned", step) for number, step in enumerate(result.steps, 1)]
        print(_comparison([*rows, ("pruned", result.student)]))
        if result.details["sparsity"]:
            sparse = result.details["sparsity"]
            print(f"2:4 sparse: {sparse['layers']} layers, {sparse['zeros']:.1%} of the weights are zero")
    next_command(f"krl-deploy export {result.run} -o NAME.krl")


def _sensitivity(found: Mapping[str, Any]) -> str:
    """Return a table of how good the network is with each layer pruned alone."""
    shares = list(dict.fromkeys(share for row in found["layers"] for share in row["pruned"]))
    name = found["metric"] + (" in dB" if found["unit"] == "dB" else "")
    header = ("layer", "channels", *(f"{name}, {float(share):.0%} less" for share in shares))
    rows = [(row["layer"], row["channels"], *(row["pruned"].get(share) for share in shares)) for row in found["layers"]]
    return table(header, [*rows, ("whole", None, *[found["whole"]] * len(shares))])


def search(config: SearchConfig) -> None:
    """Find the best student that meets a budget of latency, memory, size or operations."""
    result = verbs.search(config)
    if config.json:
        print_json(result.to_dict())
    else:
        print(result.text)
        found = result.details["result"]
        print(f"\n{result.bundle}: {found['student']} in {result.precision}, {found['metric']} {found['quality']:.4f}")
    next_command(f"krl-runtime evaluate {result.bundle} IMAGES")


def study(config: StudyConfig) -> None:
    """Compare methods on the same budget, data and seeds."""
    result = verbs.study(config)
    print_json(result.to_dict()) if config.json else print(result.text)
    next_command(f"krl-deploy export {config.out}/RUN -o NAME.krl")


def recipes(config: RecipesConfig) -> None:
    """List the recipes, or show one."""
    command = "krl-compress distill --recipe NAME --teacher RUN --student NAME --out STUDENT"
    show_recipes(config.name, (RECIPES, TRAINING_RECIPES), command)


def _show(result: verbs.TogetherResult, json: bool) -> None:
    if json:
        print_json(result.to_dict())
    else:
        print(_comparison([(f"{found['run']}: {found['model']}", found) for found in result.runs]))
    next_command(f"krl-deploy export {result.runs[0]['run']} -o NAME.krl")


def _comparison(rows: Sequence[tuple[str, Mapping[str, Any]]]) -> str:
    """Return a table of what was measured, with the columns that some row has."""
    columns = [column for column in _COLUMNS if any(column in metrics for _, metrics in rows)]
    return table(("", *columns), [(name, *(metrics.get(column) for column in columns)) for name, metrics in rows])


COMMANDS: dict[str, Callable[[Any], int | None]] = {
    "distill": distill,
    "mutual": mutual,
    "joint": joint,
    "prune": prune,
    "search": search,
    "study": study,
    "recipes": recipes,
}


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command and return its exit code."""
    program = Program(
        "krl-compress",
        "Make large image models small.",
        COMMANDS,
        recipes=(RECIPES, TRAINING_RECIPES),
        task_of={"distill": _task_of_teacher, "prune": _task_of_run},
        record=RECORD,
        records={"search": SEARCH_RECORD},
    )
    return leave_group(dispatch(program, _with_channels(sys.argv[1:] if argv is None else argv)))


def _with_channels(arguments: Sequence[str]) -> list[str]:
    """Read ``--keep SHARE`` of prune as ``--keep-channels SHARE``; ``--keep best`` and ``last`` are of the training."""
    found = list(arguments)
    if found[:1] != ["prune"]:
        return found
    for index, item in enumerate(found):
        name, equals, value = item.partition("=")
        given = value if equals else next(iter(found[index + 1 : index + 2]), "")
        if name == "--keep" and given[:1] in (*"0123456789.", "-"):
            found[index] = f"--keep-channels{equals}{value}"
    return found


def _task_of_teacher(arguments: Sequence[str]) -> str:
    teacher = value_of(arguments, "--teacher")
    task = "classification" if teacher is None else task_of(teacher)
    return "gan" if task == "generation" else task


def _task_of_run(arguments: Sequence[str]) -> str:
    run = next((item for item in arguments if Path(item, RECORD).is_file()), None)
    task = "classification" if run is None else task_of(run)
    return "gan" if task == "generation" else task


if __name__ == "__main__":
    sys.exit(main())
