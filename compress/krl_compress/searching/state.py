"""The state of a search, in a file, so that it can go on after an interruption."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from krl_compress.config import SEARCH_RECORD
from krl_runtime.errors import RunError
from krl_runtime.files import write_atomic

from .costs import Cost, Precision

__all__ = ["Point", "State", "Trial"]

_KIND = "krl-search"
_COMMAND = "krl-compress search"
_SCHEMA_VERSION = 1  # rises with each change of the format


@dataclass(frozen=True)
class Trial:
    """A training of a student, and how good it is as deployed.

    Attributes:
        student: Key of the student.
        epochs: Passes over the training images.
        run: The run's folder.
        quality: For each precision that was measured top-1, mAP or PSNR.
        errors: Standard error of each; ``None`` where none is known.
        seconds: Time of the training.
    """

    student: str
    epochs: int
    run: str
    quality: Mapping[Precision, float]
    errors: Mapping[Precision, float | None]
    seconds: float


@dataclass(frozen=True)
class Point:
    """A student in one precision, as trained last: a point of the plot."""

    trial: Trial
    precision: Precision
    cost: Cost

    @property
    def quality(self) -> float:
        """How good it is."""
        return self.trial.quality[self.precision]


@dataclass
class State:
    """The state of a search: all that was measured and trained so far.

    Attributes:
        configuration: The options; a search with others does not go on with this one.
        teacher_sha256: Hash of the teacher's weights.
        costs: By student, what it costs in each precision that was measured; ``None`` in one that cannot be had.
        students: By key, facts of the students that were fitted.
        shortlist: Keys of the students that are trained; empty until all were fitted.
        trials: The trainings, in their order.
        result: The winner, once there is one.
        front: Student and precision of those that no other one beats in both quality and latency.
        seconds: Time that all calls took together.
    """

    configuration: Mapping[str, Any]
    teacher_sha256: str
    costs: dict[str, dict[Precision, Cost | None]] = field(default_factory=dict)
    students: dict[str, dict[str, Any]] = field(default_factory=dict)
    shortlist: list[str] = field(default_factory=list)
    trials: list[Trial] = field(default_factory=list)
    result: dict[str, Any] = field(default_factory=dict)
    seconds: float = 0.0
    front: list[tuple[str, str]] = field(default_factory=list)

    def points(self) -> Iterator[Point]:
        """Yield each student that was trained in each precision, by its longest training."""
        longest = {trial.student: trial for trial in sorted(self.trials, key=lambda trial: trial.epochs)}
        for trial in longest.values():
            for precision in trial.quality:
                cost = self.costs[trial.student][precision]
                if cost is not None:
                    yield Point(trial, precision, cost)

    def trial(self, student: str, epochs: int) -> Trial | None:
        """Return a training that is done."""
        return next((each for each in self.trials if (each.student, each.epochs) == (student, epochs)), None)

    def to_dict(self) -> dict[str, Any]:
        """Return everything as plain JSON types."""
        return {
            "kind": _KIND,
            "schema_version": _SCHEMA_VERSION,
            "command": _COMMAND,
            "configuration": dict(self.configuration),
            "teacher_sha256": self.teacher_sha256,
            "seconds": self.seconds,
            "students": self.students,
            "costs": {
                key: {precision: cost and cost.to_dict() for precision, cost in costs.items()}
                for key, costs in self.costs.items()
            },
            "shortlist": self.shortlist,
            "trials": [vars(trial) for trial in self.trials],
            "result": self.result,
            "front": [list(each) for each in self.front],
        }

    def write(self, folder: Path) -> None:
        """Write the file, whole or not at all."""
        write_atomic(folder / SEARCH_RECORD, json.dumps(self.to_dict(), indent=1).encode() + b"\n")

    @classmethod
    def read(cls, folder: Path) -> State:
        """Read the file.

        Raises:
            RunError: It is damaged, or not one of this version.
        """
        file = folder / SEARCH_RECORD
        try:
            values = json.loads(file.read_bytes())
            if values["kind"] != _KIND or values["schema_version"] != _SCHEMA_VERSION:
                raise RunError(f"{file} was not written by this krl; give another --out")
            costs = {
                key: {precision: cost and Cost(**cost) for precision, cost in costs.items()}
                for key, costs in values["costs"].items()
            }
            trials = [Trial(**trial) for trial in values["trials"]]
            front = [(student, precision) for student, precision in values["front"]]
            return cls(
                values["configuration"],
                values["teacher_sha256"],
                costs,
                values["students"],
                values["shortlist"],
                trials,
                values["result"],
                values["seconds"],
                front,
            )
        except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
            raise RunError(f"{file} is damaged ({type(error).__name__}: {error}); give another --out") from error
