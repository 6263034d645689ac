"""``krl-compress distill``: from teachers and data to a student's run."""

from __future__ import annotations

from collections.abc import Callable, Mapping

from krl_compress.config import DistillConfig
from krl_compress.teachers.kinds import task_of
from krl_runtime.cli.options import refuse_other_tasks
from krl_runtime.errors import UsageError
from krl_train.run import Run

from . import classification, embedding, generation, restoration
from .job import Job, carry_out

__all__ = ["distill", "prepare"]

_PREPARE: Mapping[str, Callable[[DistillConfig], Job]] = {
    "classification": classification.prepare,
    "embedding": embedding.prepare,
    "generation": generation.prepare,
    "restoration": restoration.prepare,
}
"""By the teacher's task, the function that prepares its distillation."""


def distill(config: DistillConfig) -> Run:
    """Train a student with a teacher, and without one if asked.

    Returns:
        The student's run; its metrics have the teacher's and the baseline's beside its own.

    Raises:
        KrlError: The teacher, the student, the data or the configuration cannot be used, or training failed.
    """
    return carry_out(prepare(config))


def prepare(config: DistillConfig) -> Job:
    """Read what a distillation needs, whatever the teacher's task; nothing is written.

    Raises:
        KrlError: The teacher, the student, the data or the configuration cannot be used.
    """
    task = task_of(config.teacher[0]) if config.teacher else "classification"
    if task not in _PREPARE:
        raise UsageError(f"teacher {config.teacher[0]} is of the task {task!r}; accepted: {', '.join(_PREPARE)}")
    refuse_other_tasks(config, "gan" if task == "generation" else task)
    return _PREPARE[task](config)
