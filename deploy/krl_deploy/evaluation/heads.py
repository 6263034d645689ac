"""Scores of a classifier with several heads: the first one by its labels, the others by their agreement with FP32."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import numpy.typing as npt

from krl_deploy.data.arrays import apart
from krl_runtime.bundle.heads import Head
from krl_runtime.bundle.output_kind import OutputKind
from krl_runtime.evaluation.labels import tally_of
from krl_runtime.evaluation.predictions import PredictionScore, PredictionTally

__all__ = ["HeadsTally"]


class HeadsTally:
    """Counts the predictions of all heads, whose outputs are side by side.

    Args:
        kind: Meaning of the first head's outputs.
        classes: Number of its classes.
        further: The other heads.
        least_score: Of the first head; see ``krl_runtime.bundle.output_kind.least_score``.
    """

    def __init__(
        self, kind: OutputKind, classes: int, further: Sequence[Head], least_score: float | None = None
    ) -> None:
        self.first = tally_of(kind, least_score)
        self.others = {head.name: PredictionTally() for head in further}
        self.widths = [classes, *(len(head.labels) for head in further)]

    def add(
        self, outputs: npt.NDArray[np.float32], reference: npt.NDArray[np.float32], truth: npt.NDArray[Any] | None
    ) -> None:
        """Count one batch; the truth is that of the first head."""
        made, wanted = apart(outputs, self.widths), apart(reference, self.widths)
        self.first.add(made[0], wanted[0], truth)
        for place, tally in enumerate(self.others.values(), start=1):
            tally.add(made[place], wanted[place], None)

    def score(self) -> PredictionScore:
        """Return the score of all batches."""
        first, others = self.first.score(), {name: tally.score() for name, tally in self.others.items()}
        return replace(
            first,
            snr_db=min(first.snr_db, *(score.snr_db for score in others.values())),
            max_error=max(first.max_error, *(score.max_error for score in others.values())),
            further={name: score.agreement for name, score in others.items()},
        )
