"""Training a student for a search: a distillation in a process of its own, which a deadline can end."""

from __future__ import annotations

import logging
import os
import shlex
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TypeAlias

from krl_runtime.errors import RunError, TrainingError
from krl_train.run import RECORD, Run

__all__ = ["Deadline", "Distill", "TimeIsUp", "distill_student"]

_log = logging.getLogger("krl")

_GRACE = 20.0  # seconds for a training to end after it was interrupted: it writes nothing large then


class TimeIsUp(Exception):  # noqa: N818  no error: the search ends with the best so far
    """The deadline of a search has passed."""


@dataclass(frozen=True)
class Deadline:
    """A time at which a search ends.

    Attributes:
        at: On ``clock``, in seconds; ``None`` is never.
        clock: Tells the time.
    """

    at: float | None = None
    clock: Callable[[], float] = time.monotonic

    @property
    def left(self) -> float | None:
        """Seconds that are left; ``None`` where there is no deadline."""
        return None if self.at is None else self.at - self.clock()

    def check(self) -> None:
        """Raise ``TimeIsUp`` once it has passed."""
        if self.left is not None and self.left <= 0:
            raise TimeIsUp


Distill: TypeAlias = Callable[[str, Path, Path, Sequence[str], Deadline], Run]
"""Trains a student; see ``distill_student``."""


def distill_student(teacher: str, start: Path, out: Path, options: Sequence[str], deadline: Deadline) -> Run:
    """Distill a student, go on where an earlier call stopped, or return the run that is finished.

    Args:
        teacher: The teacher.
        start: The run that the student starts from.
        out: The student's run.
        options: Further options of ``krl-compress distill``.
        deadline: When to stop; the training then goes on from its last checkpoint in a later call.

    Raises:
        TimeIsUp: The deadline passed before it was finished.
        TrainingError: The training failed; its own message stands above.
    """
    try:
        return Run.open(out)
    except RunError:
        pass
    deadline.check()
    command = [sys.executable, "-m", "krl_compress", "distill", "--teacher", teacher, "--student", str(start)]
    command += ["--out", str(out), *options, *(["--resume"] if (out / RECORD).is_file() else [])]
    level = os.environ.get("KRL_LOG_LEVEL", "ERROR")  # what is warned of short trainings is meant here
    environment = {**os.environ, "KRL_LOG_LEVEL": level}
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, env=environment)
    try:
        code = process.wait(deadline.left)
    except subprocess.TimeoutExpired:
        _end(process)
        raise TimeIsUp from None
    except BaseException:
        _end(process)
        raise
    if code:
        raise TrainingError(
            f"the distillation of {start.name} failed with exit code {code}; what was done is kept, the same command "
            f"with --resume goes on from there. It ran: {shlex.join(command)}"
        )
    return Run.open(out)


def _end(process: subprocess.Popen[bytes]) -> None:
    """Interrupt a training as Ctrl+C does, and kill it if that does not help."""
    process.send_signal(signal.SIGINT if os.name == "posix" else signal.SIGTERM)
    try:
        process.wait(_GRACE)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()
