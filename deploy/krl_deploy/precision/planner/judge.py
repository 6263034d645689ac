"""The judge of the planner: plans beside FP32 on the planning data, which is neither calibrated nor judged on."""

from __future__ import annotations

from collections.abc import Mapping
from functools import cached_property

import numpy as np
import numpy.typing as npt

from krl_deploy.data.arrays import length
from krl_deploy.evaluation import Scored, Task
from krl_deploy.evaluation.comparison import outputs_of
from krl_deploy.graph.session import open_cpu
from krl_runtime.errors import DataError, ModelError
from krl_runtime.files import sha256_bytes

from .search import Attempt
from .subject import Subject

__all__ = ["Judge"]


class Judge:
    """Compares plans with FP32 on the same inputs; FP32 runs over them once.

    Raises:
        DataError: There is no planning data.
    """

    def __init__(self, subject: Subject, task: Task) -> None:
        self.subject, self.task = subject, task
        self.batches = list(task.planning_batches())
        self.count = sum(length(inputs) for inputs, _ in self.batches)
        if not self.count:
            raise DataError("no image is left to plan on: none of the files can be decoded")

    @cached_property
    def reference(self) -> list[npt.NDArray[np.float32]]:
        """Outputs of FP32."""
        session = open_cpu(self.subject.fp32)
        return [outputs_of(session, inputs) for inputs, _ in self.batches]

    @cached_property
    def identity(self) -> str:
        """Hash of the planning data."""
        parts = []
        for inputs, truth in self.batches:
            arrays = [inputs] if isinstance(inputs, np.ndarray) else list(inputs.values())
            parts += [np.ascontiguousarray(array) for array in [*arrays, *([] if truth is None else [truth])]]
        return sha256_bytes("".join(f"{part.shape}{sha256_bytes(part.tobytes())}" for part in parts).encode())

    def attempt(self, keep: Mapping[str, str]) -> Attempt:
        """Write a plan, and judge all of its files."""
        emitted = self.subject.emit(keep)
        if emitted.fault is not None:
            return Attempt(len(keep), refused=emitted.fault)
        try:
            scores = {name: self._score(session) for name, session in emitted.sessions.items()}
        except ModelError as failure:
            return Attempt(len(keep), refused=str(failure))
        reasons = {name: self.task.why_refused(self.subject.precision, score) for name, score in scores.items()}
        refused = "; ".join(f"{name}: {why}" for name, why in reasons.items() if why is not None)
        key = "agreement" if self.task.predicts else "psnr_to_fp32"
        alike, snr = (min(getattr(score, name) for score in scores.values()) for name in (key, "snr_db"))
        worst = max(scores.values(), key=lambda score: -np.inf if score.drop is None else score.drop)
        drop, error = worst.drop, worst.drop_error
        return Attempt(len(keep), drop, error, snr_db=snr, refused=refused or None, **{key: alike})

    def _score(self, session: object) -> Scored:
        tally = self.task.tally()
        for (inputs, truth), reference in zip(self.batches, self.reference, strict=True):
            tally.add(outputs_of(session, inputs), reference, truth)
        return tally.score()
