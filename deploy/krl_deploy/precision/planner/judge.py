"""The judge of the planner: plans beside FP32 on the planning data, which is neither calibrated nor judged on."""

from __future__ import annotations

from collections.abc import Mapping
from functools import cached_property

import numpy as np
import numpy.typing as npt

from krl_deploy.data.arrays import length
from krl_deploy.evaluation import Task
from krl_deploy.evaluation.comparison import outputs_of
from krl_deploy.evaluation.paired import Paired, PairedTally
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
            files = {name: self._paired(session) for name, session in emitted.sessions.items()}
        except ModelError as failure:
            return Attempt(len(keep), refused=str(failure))
        reasons = {name: self.task.why_refused(self.subject.precision, paired) for name, paired in files.items()}
        refused = "; ".join(f"{name}: {why}" for name, why in reasons.items() if why is not None)
        alike, snr = (min(getattr(paired, key) for paired in files.values()) for key in ("alike", "snr"))
        worst = max(files.values(), key=lambda paired: -np.inf if paired.drop is None else paired.drop)
        key = "agreement" if self.task.predicts else "psnr_to_fp32"
        error = None if worst.drop is None else worst.error
        return Attempt(len(keep), worst.drop, error, snr_db=snr, refused=refused or None, **{key: alike})

    def _paired(self, session: object) -> Paired:
        tally = PairedTally(self.task.pairs)
        for (inputs, truth), reference in zip(self.batches, self.reference, strict=True):
            tally.add(outputs_of(session, inputs), reference, truth)
        return tally.paired()
