"""The students of a search: of each architecture the widest that fits, and how they are ranked before training."""

from __future__ import annotations

import logging
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path

from krl_compress.config import DistillConfig, SearchConfig
from krl_compress.distillation.distill import prepare
from krl_compress.distillation.job import Job
from krl_compress.pruning.networks import network_of
from krl_runtime.errors import ModelError, UsageError
from krl_runtime.progress import progress_bar
from krl_train.config import DATA_SETS, DataConfig, InputConfig, UnpackConfig
from krl_train.run import Run
from krl_train.verbs import unpack

from .budgets import Budget, show_amount
from .costs import Cost, Meter, Precision, excess
from .space import SIZED, Family, Student, default_architectures
from .state import State
from .trials import Deadline
from .widths import Fit, widest

__all__ = [
    "STARTS",
    "StudentCosts",
    "as_distillation",
    "check_teacher",
    "families",
    "fit_students",
    "images_folder",
    "meeting",
    "shortlist",
]

_log = logging.getLogger("krl")

STARTS = "students"  # folder inside the search's: for each student the run that its trainings start from


def as_distillation(config: SearchConfig, student: str, size: tuple[int, ...] | None = None) -> DistillConfig:
    """Return the options of a search as those of a distillation."""
    return DistillConfig(
        teacher=(config.teacher,),
        student=student,
        out=config.out,
        losses=config.losses,
        cache=config.cache,
        data=config.data,
        input=InputConfig(size=size),
        augment=config.augment,
        optim=config.optim,
        loop=config.loop,
    )


def check_teacher(teacher: Run) -> None:
    """Refuse teachers that a search has no candidates for.

    Raises:
        UsageError: It takes several inputs.
    """
    if teacher.record.inputs:
        raise UsageError(
            f"teacher {teacher.path} takes several inputs, and a search has networks of the image alone; distill one "
            f"from it, and search with that: krl-compress distill --teacher {teacher.path} --student NAME --out STUDENT"
        )


def families(config: SearchConfig, teacher: Run, job: Job) -> Iterator[Family]:
    """Yield the architectures at each size, and the teacher itself, which loses channels.

    Args:
        config: The options.
        teacher: The teacher.
        job: Distillation of a student that starts from the teacher.

    Raises:
        UsageError: An architecture is not known, or does not fit the data.
    """
    record, images = teacher.record, teacher.record.preprocessing
    if config.sizes and record.task not in SIZED:
        raise UsageError(
            f"--sizes are for {' and '.join(SIZED)}, and teacher {config.teacher} is of the task {record.task}"
        )
    sizes: Sequence[tuple[int, ...] | None] = [(size,) for size in config.sizes] or [None]
    names = (
        config.architectures.split(",")
        if config.architectures
        else default_architectures(record.task, images.height, images.width)
    )
    for size in sizes:
        for text in names:
            name, fixed = _architecture(text)
            try:
                fresh = prepare(as_distillation(config, name, size)).record
                family = Family.fresh(fresh, multiple=config.multiple, seed=config.loop.seed, fixed=fixed)
            except ModelError as error:
                if config.architectures:
                    raise
                _log.info("%s is left out: %s", name, error)
                continue
            yield family
    if config.prune_teacher:
        start = replace(job.record, model=record.model, preprocessing=images)
        yield Family("teacher", start, network_of(teacher), multiple=config.multiple, trained=True)


def _architecture(text: str) -> tuple[str, float | None]:
    """Return an architecture and the share of its channels that it keeps, of ``NAME`` or ``NAME@SHARE``.

    Raises:
        UsageError: The share is not one.
    """
    name, at, share = text.strip().partition("@")
    try:
        fixed = float(share) if at else None
    except ValueError:
        fixed = 0.0
    if not name or (fixed is not None and not 0 < fixed <= 1):
        raise UsageError(f"--architectures {text}: accepted: NAME, or NAME@SHARE with a share of the channels up to 1")
    return name, fixed


def images_folder(data: DataConfig, run: Run, unpacked: Path) -> Path | None:
    """Return a folder or list with images, for golden inputs and calibration.

    Args:
        data: Where the images are, as the user says.
        run: A run, on whose data they are if the user says nothing.
        unpacked: Folder for the images of a named data set.

    Returns:
        ``None`` for generators, whose bundles need no images.
    """
    if run.record.task == "generation":
        return None
    name = str(data.data or run.record.data["source"])
    if name not in DATA_SETS:
        return Path(name)
    if not unpacked.exists():
        root = data.data_root if data.data else Path(run.record.data["root"])
        unpack(UnpackConfig(unpacked, replace(data, data=name, data_root=root)))
    return unpacked


class StudentCosts:
    """Tells what students cost; each is written as a run and measured once.

    Args:
        state: What is known already; it is added to and written.
        meter: Measures a run.
        folder: The search's folder.
        deadline: When the search ends.
    """

    def __init__(self, state: State, meter: Meter, folder: Path, deadline: Deadline) -> None:
        self._state, self._meter, self._folder, self._deadline = state, meter, folder, deadline
        self._asked: list[Cost] = []

    def __call__(self, student: Student, precision: Precision) -> Cost | None:
        """Return the cost in a precision; ``None`` where that cannot be had.

        Raises:
            TimeIsUp: The deadline has passed.
        """
        known = self._state.costs.setdefault(student.key, {})
        if precision not in known:
            self._deadline.check()
            run = student.write(self._folder / STARTS / student.key)
            known[precision] = self._meter(run, precision, student.macs, student.parameters)
            spec = student.record.model
            self._state.students[student.key] = {
                "family": student.family,
                "architecture": spec.name,
                "channels": student.channels,
                "input": list(student.record.preprocessing.shape),
                "start": str(run.path),
            }
            self._state.write(self._folder)
        cost = known[precision]
        self._asked += [] if cost is None else [cost]
        return cost

    def most_macs(self, budgets: Sequence[Budget]) -> float:
        """Return the operations with which even the fastest student that was asked for would use up the budgets."""
        return max((cost.macs / excess(cost, budgets) for cost in self._asked), default=math.inf)


def fit_students(
    config: SearchConfig, found: Sequence[Family], budgets: Sequence[Budget], costs: StudentCosts
) -> list[Student]:
    """Return the students that meet the budgets in some precision: of each family the widest in each.

    Raises:
        UsageError: None does; the message has the nearest.
        TimeIsUp: The deadline passed.
    """
    fits: list[Fit] = []
    with progress_bar("measuring students", len(found)) as advance:
        for family in found:
            fits += _fit(family, config.precisions, budgets, costs)
            advance()
    students = {fit.student.key: fit.student for fit in fits if fit.meets}
    if not students:
        raise UsageError(_nearest(fits, budgets, costs))
    return list(students.values())


def _fit(
    family: Family, precisions: Sequence[Precision], budgets: Sequence[Budget], costs: StudentCosts
) -> Iterator[Fit]:
    """Yield the widest networks of a family: in the first precision, and in others that cost less at that width."""
    first: Fit | None = None
    for precision in precisions:
        if first is not None and first.meets:
            cost = costs(first.student, precision)
            if cost is None or excess(cost, budgets) >= first.excess:
                continue  # it allows no wider network
        fit = widest(family, precision, budgets, costs, costs.most_macs(budgets))
        if fit is None:
            continue
        yield fit
        first = first or fit
        if not fit.meets:
            _log.info("%s in %s meets no budget: %.2f times too much", family.name, precision, fit.excess)


def _nearest(fits: Sequence[Fit], budgets: Sequence[Budget], costs: StudentCosts) -> str:
    asked = ", ".join(map(str, budgets))
    if not fits:
        return f"no student can be made in the --precisions that are asked for ({asked}); give others"
    fit = min(fits, key=lambda fit: fit.excess)
    cost = costs(fit.student, fit.precision)
    has = ", ".join(
        f"{budget.quantity} {show_amount(budget.quantity, (cost.of(budget.quantity) if cost else None) or 0)}"
        for budget in budgets
    )
    return (
        f"no student meets the budget ({asked}); the nearest is {fit.student.key} in {fit.precision}: {has}; give a "
        "larger --budget, other --architectures, a smaller --multiple, or smaller --sizes"
    )


def shortlist(students: Sequence[Student], most: int) -> list[Student]:
    """Return the students that are worth a training: those of the most operations, within the same budget.

    The count of operations is a proxy that needs no data; more elaborate ones hardly beat it
    (https://iclr-blog-track.github.io/2022/03/25/zero-cost-proxies/).

    Args:
        students: All that meet the budgets.
        most: Number of students at most.
    """
    ranked = sorted(students, key=lambda student: student.macs, reverse=True)
    for student in ranked[most:]:
        _log.info("%s is not trained: %d others have more operations (--shortlist)", student.key, most)
    return ranked[:most]


def meeting(costs: Mapping[Precision, Cost | None], budgets: Sequence[Budget]) -> list[Precision]:
    """Return the precisions in which a student meets the budgets."""
    return [precision for precision, cost in costs.items() if cost is not None and excess(cost, budgets) <= 1]
