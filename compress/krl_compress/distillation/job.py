"""The shared part of every distillation, whatever its task; a ``Job`` is the part of one task."""

from __future__ import annotations

import copy
import logging
from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, TypeVar

from torch import Tensor, nn

from krl_compress.config import DistillConfig
from krl_train.config import OptimConfig
from krl_train.run import RECORD, Run, RunRecord
from krl_train.tasks.optim import default_learning_rate
from krl_train.training.folder import prepare_out

__all__ = ["COMMAND", "MEASURED_LOSSES", "Job", "carry_out", "fine_tuned", "parents", "starting_point"]

_log = logging.getLogger("krl")

COMMAND = "krl-compress distill"
MEASURED_LOSSES = 1024
"""Training images or patches that ``training_losses`` looks at: more change few ranks of channels, a judgment."""
# Of the usual rate, for a pruned network, which at the whole rate forgets what it knew: a resnet20 with 38 % of its
# operations has a top-1 of 99.2 % after 5 epochs at a fifth, and of 93.9 % at the whole rate (docs/pruning.md).
_SHARE_OF_RATE = 0.2
_BASELINE = "baseline"  # folder of the student without a teacher, inside the run's


_Job = TypeVar("_Job", bound="Job")


@dataclass
class Job(ABC):
    """A distillation that was found possible: teachers, data and student are read, and nothing is written yet.

    Attributes:
        config: What the user asked for.
        record: What the student's ``run.json`` will say, but for the results.
        start: The run that the student begins with, if any.
        fine_tunes: Whether the start is the teacher itself with little missing; without ``--lr`` a classifier then
            moves in smaller steps.
    """

    config: DistillConfig
    record: RunRecord
    start: Run | None
    fine_tunes = False

    @abstractmethod
    def measure_teachers(self) -> list[dict[str, Any]]:
        """Return the metrics of each teacher."""

    def measure_start(self) -> dict[str, Any]:
        """Return a report on the student before training; nothing by default."""
        return {}

    def quality(self, metrics: Mapping[str, Any]) -> tuple[float, str] | None:
        """Return how good a network is (higher is better), and that as text; ``None`` where no figure says it."""
        del metrics
        return None

    @abstractmethod
    def measure(self, network: nn.Module) -> dict[str, Any]:
        """Return the metrics of a network that is like the student; it is in eval mode and on the CPU afterwards."""

    @abstractmethod
    def metric(self) -> tuple[str, str]:
        """Return the name of the figure among those of ``measure`` that counts, and its unit: ``"%"`` or ``"dB"``.

        What is in per cent has values from 0 to 1. In both, more is better.
        """

    @abstractmethod
    def training_losses(self, network: nn.Module) -> Iterator[Tensor]:
        """Return the losses of a network on parts of the training data, without a teacher; their sum is the mean loss.

        Args:
            network: Like the student; it is moved to the device of the training.

        Raises:
            UsageError: The task has no such loss.
        """

    def after_pruning(self: _Job, start: Run, out: Path, *, resume: bool) -> _Job:
        """Return the distillation of a student that begins with what pruning left of the teacher.

        Args:
            start: The run.
            out: Folder of the student's run.
            resume: Whether to continue what is there.
        """
        job = copy.copy(self)
        job.fine_tunes = True
        job.start = start
        job.record = replace(job.record, model=start.record.model)
        job.config = replace(job.config, out=out, resume=resume)
        return job

    @abstractmethod
    def train_alone(self, record: RunRecord, out: Path) -> Run:
        """Train the same student from the same start on the same budget without a teacher, into ``out``."""

    @abstractmethod
    def train(self, record: RunRecord) -> Run:
        """Train the student with the teachers; ``record`` has the metrics that were measured before."""


def carry_out(job: Job) -> Run:
    """Measure the teachers, train the student without them if asked, and train it with them.

    Returns:
        The student's run; its metrics have the teachers' and the baseline's beside its own.

    Raises:
        KrlError: There is another run in the folder, or training failed.
    """
    config, record = job.config, job.record
    finished = prepare_out(config.out, record, resume=config.resume, overwrite=config.overwrite)
    if finished is not None:
        return finished
    measured = job.measure_teachers()
    metrics: dict[str, Any] = {"teacher": measured[0], "teachers": measured, **job.measure_start()}
    if config.baseline:
        metrics["baseline"] = _train_baseline(job).record.metrics
    student = job.train(replace(record, metrics=metrics))
    if config.baseline:
        _warn_below_baseline(job, student)
    return student


def _warn_below_baseline(job: Job, student: Run) -> None:
    """Warn of a student that is worse than the same network without a teacher, and name what may help."""
    metrics = student.record.metrics
    mine, alone = job.quality(metrics), job.quality(metrics["baseline"])
    if mine is None or alone is None or mine[0] >= alone[0]:
        return
    teachers = [job.quality(teacher) for teacher in metrics["teachers"]]
    if all(teacher is not None and teacher[0] <= alone[0] for teacher in teachers):
        advice = "no teacher is better than that: train it longer, or give another --teacher"
    else:
        advice = "other losses may do better (--recipe, krl-compress study), as may more --epochs or images"
    _log.warning(
        "the student has %s, and without the teacher %s: keep the one without (krl-deploy export %s -o NAME.krl); %s",
        mine[1],
        alone[1],
        student.path / _BASELINE,
        advice,
    )


def _train_baseline(job: Job) -> Run:
    """Train the student without a teacher into ``baseline`` inside its folder, unless that is done already."""
    config, out = job.config, job.config.out / _BASELINE
    sources = tuple(item for item in job.record.sources if item["use"] in ("model", "data"))
    data = {name: value for name, value in job.record.data.items() if name != "unlabeled"}
    record = replace(job.record, command=f"{COMMAND} --baseline", parent=None, sources=sources, data=data)
    resume = config.resume and (out / RECORD).is_file()
    finished = prepare_out(out, record, resume=resume, overwrite=config.overwrite)
    if finished is not None:
        return finished
    _log.info("the student without the teacher, on the same budget:")
    return job.train_alone(record, out)


def fine_tuned(optim: OptimConfig, batch_size: int) -> OptimConfig:
    """Return how a network is moved that has learned most already: in smaller steps, unless the user says a rate.

    Args:
        optim: What the user asked for.
        batch_size: Images in one step over all processes.
    """
    if optim.lr is not None:
        return optim
    return replace(optim, lr=_SHARE_OF_RATE * default_learning_rate(optim, batch_size))


def starting_point(student: str) -> tuple[Run | None, str]:
    """Return the run that a student starts from, if it is one, and the name of the network.

    Args:
        student: A run's folder, or the name of a network.

    Raises:
        RunError: The run cannot be used.
    """
    if not (Path(student) / RECORD).is_file():
        return None, student
    start = Run.open(student)
    return start, start.record.model.name


def parents(teachers: Sequence[Mapping[str, str]], start: Run | None) -> dict[str, Any]:
    """Return the runs that a student comes from, for its record.

    Args:
        teachers: Identity of each.
        start: The run that it starts from, if any.
    """
    return {"teachers": list(teachers), **({"start": start.identity} if start else {})}
