"""What is done with a student whatever its task: where it starts, and how it fares without a teacher."""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping
from dataclasses import fields, replace
from pathlib import Path
from typing import Any

from krl_compress.config import DistillConfig
from krl_runtime.errors import UsageError
from krl_train.run import RECORD, Run, RunRecord
from krl_train.training.fit import prepare_out

__all__ = ["refuse_generator_options", "starting_point", "train_baseline"]

_log = logging.getLogger("krl")


def refuse_generator_options(config: DistillConfig, teacher: str) -> None:
    """Refuse options that say how generators are trained, where the teacher is something else.

    Args:
        config: The options.
        teacher: What it is, for the message.

    Raises:
        UsageError: Such an option is not the default one; the message names all of them.
    """
    given = [
        f"--{each.name.replace('_', '-')}"
        for part in (config.generation, config.generator_student)
        for each in fields(part)
        if getattr(part, each.name) != getattr(type(part)(), each.name)
    ]
    if given:
        raise UsageError(f"{', '.join(given)}: for generators; the teacher is a {teacher}")


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


def train_baseline(
    config: DistillConfig, record: RunRecord, train: Callable[[RunRecord, Path], Run]
) -> Mapping[str, Any]:
    """Train the same student from the same start on the same budget without a teacher, unless that is done already.

    Args:
        config: Where the student goes; the baseline goes into ``baseline`` inside.
        record: The student's.
        train: Trains it, given the record and the folder.

    Returns:
        The baseline's metrics.

    Raises:
        KrlError: There is another run in the folder, or training failed.
    """
    out = config.out / "baseline"
    record = replace(record, command="krl-compress distill --baseline", parent=None)
    resume = config.resume and (out / RECORD).is_file()
    finished = prepare_out(out, record, resume=resume, overwrite=config.overwrite)
    if finished is not None:
        return finished.record.metrics
    _log.info("the student without the teacher, on the same budget:")
    return train(record, out).record.metrics
