"""``krl-compress study``: methods compared on the same budget, data and seeds, beside the student without a teacher."""

from __future__ import annotations

import json
import logging
import os
import shlex
import statistics
import subprocess
import sys
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from typing import Any

from krl_runtime.cli.tables import table
from krl_runtime.errors import RunError, TrainingError, UsageError
from krl_runtime.files import sha256_bytes, sha256_file, write_atomic
from krl_runtime.progress import progress_bar
from krl_train.custom import source_of
from krl_train.processes import refuse_several
from krl_train.run import RECORD, Run

from .config import RECIPES, StudyConfig
from .teachers.kinds import file_sha256

__all__ = ["HEADER", "rows_as_cells", "show", "study"]

_log = logging.getLogger("krl")

BASELINE = "baseline"
_CODE = "code.sha256"  # file in a study's folder: the hash of the code that its runs were made with
_PACKAGES = ("krl_runtime", "krl_train", "krl_compress")  # all that a result depends on


@dataclass(frozen=True)
class _Trial:
    """One training of a study."""

    student: str
    method: str
    seed: int
    out: Path


def study(config: StudyConfig) -> dict[str, Any]:
    """Train every student with every method and seed, or go on where an earlier call stopped, and compare.

    Every training is a process of its own, so that its memory can be measured and nothing carries over. Runs of an
    earlier call count only if they were made with the same teacher, options, data and code.

    Returns:
        What ``study.json`` says: ``rows`` with ``student``, ``method``, ``top1`` (mean over seeds, 0 to 1),
        ``deviation`` (sample standard deviation), ``gain`` over the baseline in points, ``seconds``,
        ``peak_memory_mib``.

    Raises:
        UsageError: A method is not known, or torchrun started several processes.
        RunError: The folder holds runs that were made otherwise.
        TrainingError: A training failed; its own message stands above.
    """
    refuse_several("a study runs")
    methods = [BASELINE, *(name for name in config.methods.split(",") if name and name != BASELINE)]
    known = {path.stem for path in RECIPES.glob("*.yaml")}
    unknown = [name for name in methods if name not in known]
    if unknown:
        raise UsageError(f"--methods {', '.join(unknown)}: not known; accepted: {', '.join(sorted(known))}")
    trials = [
        _Trial(student, method, seed, config.out / _folder(student) / method / f"seed-{seed}")
        for seed in range(config.seeds)
        for student in config.student
        for method in methods
    ]
    todo = [trial for trial in trials if not _finished(trial)]
    _check_earlier([trial for trial in trials if trial not in todo], config)
    with progress_bar("study", len(trials), len(trials) - len(todo)) as advance:
        for trial in todo:
            _log.info("%s, %s, seed %d", trial.student, trial.method, trial.seed)
            _train(trial, config)
            advance()
    runs = {trial: Run.open(trial.out) for trial in trials}
    _same_budget(runs)
    result = {"teacher": config.teacher, "options": config.options, "rows": _rows(runs, config.student, methods)}
    write_atomic(config.out / "study.json", json.dumps(result, indent=1).encode() + b"\n")
    write_atomic(config.out / "study.md", _markdown(result).encode())
    for student in config.student:
        _plot(
            {trial: run for trial, run in runs.items() if trial.student == student},
            config.out / f"{_folder(student)}.png",
        )
    return result


def _folder(student: str) -> str:
    """Return a student's folder in the study's: its name, or that of the run it starts from with the weights' hash."""
    if not (Path(student) / RECORD).is_file():
        return student.replace(":", ".")
    return f"{Path(student).resolve().name}-{Run.open(student).record.weights_sha256[:8]}"


def _finished(trial: _Trial) -> bool:
    try:
        Run.open(trial.out)
    except RunError:
        return False
    return True


def _check_earlier(finished: list[_Trial], config: StudyConfig) -> None:
    """Refuse runs of an earlier call that this one would not make again.

    Teacher and code are compared for each of them. Options and data are compared for one, by resuming it: the budget is
    the same in all.
    """
    code, file = _code(), config.out / _CODE
    before = file.read_text("utf-8").strip() if file.is_file() else None
    advice = f"the runs in {config.out} are of another study; give another --out"
    if finished and before != code:
        was = "is not recorded" if before is None else f"was {before[:16]}"
        raise RunError(f"krl's code {was}, and is {code[:16]} (SHA-256): {advice}")
    for trial in finished:
        record = Run.open(trial.out).record
        for item in record.sources:
            now = source_of(str(item["name"]), str(item["use"]))["sha256"]
            if now != item["sha256"]:
                raise RunError(f"the source of {item['use']} {item['name']} has changed: {advice}")
        teacher = Path(config.teacher)
        made_with = (record.parent or {}).get("teachers", ({},))[0]
        is_run = (teacher / RECORD).is_file()
        now = Run.open(teacher).record.weights_sha256 if is_run else file_sha256(config.teacher)
        if trial.method != BASELINE and now not in (None, made_with.get("weights_sha256"), made_with.get("sha256")):
            raise RunError(f"{trial.out} was not made with teacher {config.teacher}: {advice}")
    if finished:
        try:
            _train(finished[0], config)
        except TrainingError as error:
            raise RunError(f"{advice}. {error}") from error
    write_atomic(file, f"{code}\n".encode())


def _code() -> str:
    """Return the hash of krl's own code: what training, distillation and decoding of images are written in."""
    digests = []
    for name in _PACKAGES:
        root = Path(str(import_module(name).__file__)).parent
        files = sorted(path for path in root.rglob("*") if path.suffix in (".py", ".yaml"))
        digests += [f"{name}/{path.relative_to(root).as_posix()}:{sha256_file(path)}" for path in files]
    return sha256_bytes("\n".join(digests).encode())


def _train(trial: _Trial, config: StudyConfig) -> None:
    command = [sys.executable, "-m", "krl_compress", "distill", "--recipe", trial.method, *shlex.split(config.options)]
    command += ["--teacher", config.teacher, "--student", trial.student, "--seed", str(trial.seed)]
    command += ["--out", str(trial.out)]
    if (trial.out / RECORD).is_file():
        command.append("--resume")
    level = os.environ.get("KRL_LOG_LEVEL", "WARNING")
    done = subprocess.run(command, stdout=subprocess.DEVNULL, env={**os.environ, "KRL_LOG_LEVEL": level})
    if done.returncode:
        raise TrainingError(
            f"{trial.student} with {trial.method}, seed {trial.seed}, failed with exit code {done.returncode}; what "
            f"was done is kept in {config.out}, the same command goes on from there. It ran: {shlex.join(command)}"
        )


def _same_budget(runs: dict[_Trial, Run]) -> None:
    """Refuse to compare runs that an earlier call made with other options."""
    budgets = {
        json.dumps([run.record.configuration["loop"]["epochs"], run.record.data["train"]]) for run in runs.values()
    }
    if len(budgets) > 1:
        raise RunError("the study's folder holds runs of other epochs or data; give another --out to compare fairly")


def _rows(runs: dict[_Trial, Run], students: tuple[str, ...], methods: list[str]) -> list[dict[str, Any]]:
    rows = []
    for student in students:
        base = 0.0
        for method in methods:
            metrics = [
                run.record.metrics for trial, run in runs.items() if (trial.student, trial.method) == (student, method)
            ]
            top1 = [each["top1"] for each in metrics]
            mean = statistics.fmean(top1)
            base = mean if method == BASELINE else base
            rows.append(
                {
                    "student": student,
                    "method": method,
                    "top1": mean,
                    "deviation": statistics.stdev(top1) if len(top1) > 1 else None,
                    "gain": None if method == BASELINE else 100 * (mean - base),
                    "seconds": statistics.fmean(each["train_seconds"] for each in metrics),
                    "peak_memory_mib": max(each["peak_memory_mib"] for each in metrics),
                    "seeds": len(top1),
                }
            )
    return rows


def rows_as_cells(rows: list[dict[str, Any]]) -> list[tuple[str, ...]]:
    """Return a study's rows as people read them: student, method, top-1 ± deviation, gain, seconds, memory."""
    return [
        (
            row["student"],
            row["method"],
            f"{100 * row['top1']:.2f}" + (f" ± {100 * row['deviation']:.2f}" if row["deviation"] is not None else ""),
            "-" if row["gain"] is None else f"{row['gain']:+.2f}",
            f"{row['seconds']:.0f}",
            f"{row['peak_memory_mib']:.0f}",
        )
        for row in rows
    ]


HEADER = ("student", "method", "top-1 %", "gain", "seconds", "peak MiB")


def _markdown(result: dict[str, Any]) -> str:
    lines = [f"| {' | '.join(HEADER)} |", "|" + "---|" * len(HEADER)]
    lines += [f"| {' | '.join(cells)} |" for cells in rows_as_cells(result["rows"])]
    seeds = result["rows"][0]["seeds"]
    options = f"Teacher {result['teacher']}, options `{result['options']}`, {seeds} seeds, last epoch"
    note = f"{options}; ± is the sample standard deviation."
    return "\n".join([*lines, "", note, ""])


def show(result: dict[str, Any]) -> str:
    """Return a study's table as plain text."""
    return table(HEADER, rows_as_cells(result["rows"]))


def _plot(runs: dict[_Trial, Run], path: Path) -> None:
    """Draw validation accuracy against training time, the mean over seeds, a line for each method."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(7, 4.5), layout="constrained")
    axes = figure.add_subplot()
    for method in dict.fromkeys(trial.method for trial in runs):
        histories = [run.record.history for trial, run in runs.items() if trial.method == method]
        epochs = [entry for entry in zip(*histories, strict=True) if all("val_top1" in each for each in entry)]
        seconds, elapsed = [], 0.0
        for entry in zip(*histories, strict=True):
            elapsed += statistics.fmean(each["seconds"] for each in entry)
            seconds.append(elapsed)
        top1 = [100 * statistics.fmean(each["val_top1"] for each in entry) for entry in epochs]
        axes.plot(seconds[-len(top1) :], top1, label=method, linestyle="--" if method == BASELINE else "-")
    axes.set_xlabel("training time in seconds")
    axes.set_ylabel("top-1 on validation images, %")
    axes.grid(alpha=0.3)
    axes.legend()
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=120)
