"""``krl-compress search``: the best student within budgets, by successive halving over distillations."""

from __future__ import annotations

import logging
import math
import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from krl_compress.config import SEARCH_RECORD, DistillConfig, SearchConfig
from krl_compress.distillation.classification import ClassifierJob
from krl_compress.distillation.distill import prepare
from krl_compress.distillation.embedding import EmbeddingJob
from krl_compress.distillation.job import Job
from krl_compress.pruning.networks import network_of
from krl_runtime.bundle import Bundle
from krl_runtime.cli.config_files import options_of
from krl_runtime.cli.options import repeated_options
from krl_runtime.errors import CheckFailedError, RunError, UsageError
from krl_train.config import plan_loop, to_plain
from krl_train.processes import refuse_several
from krl_train.run import Run

from .budgets import Budget, parse_budgets, parse_seconds
from .candidates import (
    STARTS,
    StudentCosts,
    as_distillation,
    check_teacher,
    families,
    fit_students,
    images_folder,
    meeting,
    shortlist,
)
from .costs import CONVERSIONS, Meter, Precision, add_variants, excess, make_bundle, meter_of
from .report import pareto, write_report
from .space import Student
from .state import Point, State, Trial
from .trials import Deadline, Distill, TimeIsUp, distill_student

__all__ = ["search"]

_log = logging.getLogger("krl")

_TRIALS = "trials"  # folder inside the search's: a run for each student and number of epochs
_MEASUREMENTS = 3  # of the best bundle at most, as long as it is over the budget
_NOISE = 0.05  # of a latency measured again: differences of this size are seen between two runs of the same file
_DROPS = {"drop_points": 0.01, "map_drop_points": 0.01, "recall_drop_points": 0.01, "drop_db": 1.0}
"""Names of the drop in a variant's evidence, and the factor from its unit to that of the quality."""
_VAL = 2000  # images at most that a variant is measured on, as krl-deploy quantize does


@dataclass
class _Search:
    """A search at work."""

    config: SearchConfig
    teacher: Run
    job: Job
    budgets: Sequence[Budget]
    state: State
    meter: Meter
    distill: Distill
    images: Path | None
    deadline: Deadline

    @property
    def folder(self) -> Path:
        return self.config.out

    def train(self, student: Student, epochs: int) -> Trial:
        """Distill a student, and measure it in each precision in which it meets the budgets."""
        done = self.state.trial(student.key, epochs)
        if done is not None:
            return done
        begin = time.monotonic()
        start = self.folder / STARTS / student.key
        out = self.folder / _TRIALS / student.key / str(epochs)
        run = self.distill(self.config.teacher, start, out, _options(self.config, epochs), self.deadline)
        own, error = self.measured(run)
        quality: dict[Precision, float] = {}
        errors: dict[Precision, float | None] = {}
        precisions = meeting(self.state.costs[student.key], self.budgets)
        drops = {"fp32": 0.0, **self.drops(run, [precision for precision in precisions if precision != "fp32"])}
        for precision in precisions:
            if precision in drops:
                quality[precision], errors[precision] = own - drops[precision], error
        trial = Trial(student.key, epochs, str(run.path), quality, errors, time.monotonic() - begin)
        self.state.trials.append(trial)
        self.state.write(self.folder)
        best = max(quality.values(), default=0.0)
        _log.info("%s, %d epochs: %.4f", student.key, epochs, best)
        return trial

    def measured(self, run: Run) -> tuple[float, float | None]:
        """Return how good a student is in floating point, and the standard error where one is known."""
        name, _ = self.job.metric()
        metrics = run.record.metrics
        if name not in metrics:
            metrics = self.job.measure(network_of(run))
        return float(metrics[name]), metrics.get(f"{name}_standard_error")

    def drops(self, run: Run, precisions: Sequence[Precision]) -> dict[Precision, float]:
        """Return by how much a student is worse in each precision, of the worst file, in units of its quality."""
        if not precisions:
            return {}
        bundle = make_bundle(run, run.path.with_suffix(".krl"), self.images)
        failed = add_variants(bundle, self.images, precisions, count=self.config.data.val_limit or _VAL)
        evidence = Bundle.open(bundle).manifest.evidence
        found: dict[Precision, float] = {}
        for precision in precisions:
            if precision not in failed:
                key, factor = next(item for item in _DROPS.items() if item[0] in evidence[precision])
                found[precision] = evidence[precision][key] * factor
        return found


def search(config: SearchConfig, *, meter: Meter | None = None, distill: Distill = distill_student) -> State:
    """Find the best student that meets the budgets.

    Of each architecture, and of the teacher itself, the widest network that meets the budgets is found by measuring
    bundles of untrained ones. These students are distilled for a few epochs; a third of them goes on to three times as
    many, until one is distilled in full. Its bundle is measured once more.

    Args:
        config: The options.
        meter: Tells what a student costs; measures here or on a board by default.
        distill: Trains a student; in a process of its own by default.

    Returns:
        What ``search.json`` says; its ``result`` has the winner.

    Raises:
        UsageError: No student meets the budgets (the message has the nearest), or an option cannot be used.
        RunError: The teacher is not a run, or the folder has another search.
        CheckFailedError: No student was trained before the time was up.
        TrainingError: A training failed; its own message stands above.
    """
    refuse_several("a search runs")
    budgets = parse_budgets(config.budget)
    limit = None if config.time_limit is None else parse_seconds(config.time_limit, "--time-limit")
    teacher = Run.open(config.teacher)
    check_teacher(teacher)
    config = replace(config, precisions=_precisions(config, teacher))
    job = prepare(as_distillation(config, config.teacher))
    begin = time.monotonic()
    state = _open_state(config, teacher)
    before = state.seconds
    deadline = Deadline(None if limit is None else begin + limit)
    images = images_folder(config.data, teacher, config.out / "images")
    meter = meter or meter_of(config.measuring, images, config.precisions)
    at_work = _Search(config, teacher, job, budgets, state, meter, distill, images, deadline)
    complete = True
    try:
        _halve(at_work)
    except TimeIsUp:
        complete = False
        _log.warning("the time of %s is up; the best so far counts, and --resume goes on", config.time_limit)
    state.result = _finish(at_work, complete=complete)
    state.front = sorted(pareto(state.points()))
    state.seconds = before + time.monotonic() - begin
    state.write(config.out)
    write_report(state, budgets, config.out)
    return state


def _precisions(config: SearchConfig, teacher: Run) -> tuple[Precision, ...]:
    """Return the precisions to try.

    Raises:
        UsageError: Another one than FP32 is asked for of a generator.
    """
    generates = teacher.record.task == "generation"
    if generates and set(config.precisions) - {"fp32"}:
        raise UsageError(
            f"--precisions {' '.join(config.precisions)}: how far a generator's rounded images are from the teacher's "
            "is not measured by a search; search in fp32, and convert the winner (krl-deploy fp16, quantize)"
        )
    return config.precisions or (("fp32",) if generates else ("fp32", "int8"))


def _open_state(config: SearchConfig, teacher: Run) -> State:
    """Return the state of an earlier call, or a new one."""
    asked = to_plain(replace(config, time_limit=None, resume=False, json=False))
    teacher_sha256 = teacher.record.weights_sha256
    if not config.resume:
        if config.out.exists() and any(config.out.iterdir()):
            raise RunError(f"{config.out} exists already; go on with --resume, or give another --out")
        state = State(asked, teacher_sha256)
        state.write(config.out)
        return state
    if not (config.out / SEARCH_RECORD).is_file():
        raise RunError(f"{config.out} has no search to go on with ({SEARCH_RECORD} is missing); leave --resume out")
    state = State.read(config.out)
    before = state.configuration
    changed = sorted(key for key in {*asked, *before} if asked.get(key) != before.get(key))
    if state.teacher_sha256 != teacher_sha256:
        changed.append("weights of the teacher")
    if changed:
        raise RunError(f"{config.out} has a search with other options ({', '.join(changed)}); give another --out")
    return state


def _halve(work: _Search) -> None:
    """Train students in rounds, each with a third of the students and three times the epochs."""
    config = work.config
    students = _students(work)
    for epochs in _rounds(config, work.job):
        trials = [work.train(student, epochs) for student in students]
        ranked = sorted(zip(trials, students, strict=True), key=lambda each: _best(each[0]), reverse=True)
        students = [student for _, student in ranked[: max(1, round(len(students) / config.reduction))]]


def _students(work: _Search) -> list[Student]:
    """Return the students to train: those that meet the budgets, or that an earlier call of this search found."""
    config, state = work.config, work.state
    found = list(families(config, work.teacher, work.job))
    if state.shortlist:
        known = {family.name: family for family in found}
        facts = [state.students[key] for key in state.shortlist]
        return [known[each["family"]].at(each["channels"]) for each in facts]
    costs = StudentCosts(state, work.meter, work.folder, work.deadline)
    students = shortlist(fit_students(config, found, work.budgets, costs), config.shortlist)
    state.shortlist = [student.key for student in students]
    state.write(work.folder)
    return students


def _rounds(config: SearchConfig, job: Job) -> list[int]:
    """Return the epochs of each round; the last one has all."""
    full = config.loop.epochs
    if full is None:
        if not isinstance(job, ClassifierJob | EmbeddingJob):
            raise UsageError("the last round has --epochs, which are not planned for this task; give --epochs")
        full = plan_loop(config.loop, len(job.training.train), len(job.training.val)).epochs
    shares = [config.reduction ** (config.rounds - 1 - round_) for round_ in range(config.rounds)]
    return list(dict.fromkeys(max(1, round(full / share)) for share in shares))


def _best(trial: Trial) -> float:
    return max(trial.quality.values(), default=-math.inf)


def _options(config: SearchConfig, epochs: int) -> list[str]:
    """Return the options of a distillation, as on its command line."""
    plain = to_plain(replace(config, loop=replace(config.loop, epochs=epochs)))
    sections = {name: plain[name] for name in ("losses", "cache", "data", "augment", "optim", "loop")}
    repeated = set(repeated_options(DistillConfig))
    return [part for option, values in options_of(sections, repeated) for part in (option, *values)]


def _finish(work: _Search, *, complete: bool) -> dict[str, Any]:
    """Make the bundle of the best student and measure it; one that then fails makes room for the next.

    Those that were trained longest come first.

    Raises:
        CheckFailedError: No student was trained, or each of them fails.
    """
    refused: dict[str, str] = {}
    for point in sorted(work.state.points(), key=lambda point: (point.trial.epochs, point.quality), reverse=True):
        bundle = work.folder / "winner.krl"
        try:
            cost = _deploy(work, point, bundle)
        except CheckFailedError as error:
            name = f"{point.trial.student} in {point.precision}"
            refused[name] = str(error)
            _log.warning("%s is not chosen: %s", name, error)
            continue
        return {
            "student": point.trial.student,
            "precision": point.precision,
            "run": point.trial.run,
            "bundle": str(bundle),
            "epochs": point.trial.epochs,
            "quality": point.quality,
            "standard_error": point.trial.errors[point.precision],
            "metric": work.job.metric()[0],
            "unit": work.job.metric()[1],
            "teacher": work.teacher.record.metrics.get(work.job.metric()[0]),
            "cost": cost,
            "refused": refused,
            "complete": complete,
        }
    reasons = "; ".join(f"{name}: {reason}" for name, reason in refused.items()) or "no student was trained in time"
    raise CheckFailedError(f"the search in {work.folder} has no winner ({reasons}); go on with --resume")


def _deploy(work: _Search, point: Point, out: Path) -> dict[str, Any]:
    """Write the bundle of a student with its variant, through the accuracy gate, and measure it again.

    Raises:
        CheckFailedError: The gate refuses the variant, or the bundle does not meet the budgets.
    """
    run = Run.open(point.trial.run)
    bundle = make_bundle(run, out, work.images)
    if point.precision in CONVERSIONS:
        CONVERSIONS[point.precision](bundle=bundle, data=work.images, max_drop=work.config.max_drop)
    shares = []
    for _ in range(_MEASUREMENTS):  # other work on the machine, which only adds time, may be over by the next one
        cost = work.meter.measure(bundle, point.precision, point.cost.macs, point.cost.parameters, run)
        shares.append(excess(cost, work.budgets))
        if shares[-1] <= 1 + _NOISE:
            return cost.to_dict()
    raise CheckFailedError(f"its bundle, measured again, uses {min(shares):.2f} times the budget")
