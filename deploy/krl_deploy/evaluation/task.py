"""The protocol between a task and the conversion of its model to another precision."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, fields
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Protocol, TypeAlias

import numpy as np
import numpy.typing as npt

from krl_deploy.data.arrays import Inputs
from krl_runtime.images.folders import OnBadImage

if TYPE_CHECKING:
    from krl_runtime.bundle import Bundle
    from krl_runtime.evaluation.gate import Verdict

__all__ = [
    "Batch",
    "CalibrationData",
    "EvaluationOptions",
    "Scored",
    "Tally",
    "Task",
    "judged",
    "largest_drop",
]

Batch: TypeAlias = "tuple[Inputs, npt.NDArray[Any] | None]"
"""Inputs ``[N, ...]`` and their truth: labels ``[N]``, -1 if unknown; or one image; or ``None``."""


class Scored(Protocol):
    """The score of one variant of a model: a dataclass of plain numbers."""

    HEADER: ClassVar[tuple[str, ...]]
    """Column names of the cells, for a table."""

    @property
    def drop(self) -> float | None:
        """Drop of accuracy against the reference, in points or dB; ``None`` if the truth is not known."""
        ...

    @property
    def drop_error(self) -> float | None:
        """One standard error of ``drop``: of the paired difference."""
        ...

    @property
    def snr_db(self) -> float:
        """Power of the reference's outputs over that of their error, in dB."""
        ...

    def cells(self, reference: Any) -> tuple[str | None, ...]:
        """Return the score for people, beside that of the reference."""
        ...

    def to_dict(self) -> dict[str, Any]:
        """Return the score as plain JSON types."""
        ...


class Tally(Protocol):
    """Counts one batch after the other, and gives a score."""

    def add(
        self, outputs: npt.NDArray[np.float32], reference: npt.NDArray[np.float32], truth: npt.NDArray[Any] | None
    ) -> None:
        """Count one batch.

        Args:
            outputs: Outputs of the measured variant, ``[N, ...]``.
            reference: Outputs of the reference, of the same shape.
            truth: See ``Batch``.
        """
        ...

    def score(self) -> Scored:
        """Return the score of all batches; see ``Scored``."""
        ...


@dataclass(frozen=True)
class EvaluationOptions:
    """Options for calibration and evaluation data, as the user gave them; see ``krl_deploy.config``."""

    data: Path | None
    val_limit: int
    val_fraction: float
    on_bad_image: OnBadImage
    limit: int = 512
    max_drop: float | None = None
    max_recall_drop: float | None = None
    min_psnr: float | None = None
    from_generator: Path | None = None
    accept_unmeasured: bool = False
    planning: int = 0
    """Number of images to plan mixed precision on, which are neither calibrated nor judged on; 0 for none."""

    @classmethod
    def of(cls, config: Any) -> EvaluationOptions:
        """Return the options of a command's configuration that has fields of these names."""
        return cls(**{item.name: getattr(config, item.name) for item in fields(cls) if hasattr(config, item.name)})


@dataclass(frozen=True)
class CalibrationData:
    """Calibration data.

    Attributes:
        inputs: Inputs of the model ``[N, ...]``.
        identity: Hash of the inputs.
        source: Origin of the inputs, as ``"images"``.
    """

    inputs: Inputs
    identity: str
    source: str


class Task(ABC):
    """A bundle's task: its data, the comparison of variants, and the accuracy drop.

    Attributes:
        name: Name of the evaluation data, for people.
        doubts: Reasons why the evaluation data says nothing of a variant, whatever is measured.
        predicts: Whether outputs are logits of classes; else they are images.
        metric: Name of the metric that the drop is of.
    """

    name: str
    doubts: tuple[str, ...] = ()
    predicts: ClassVar[bool] = False
    metric: str = "PSNR"

    @abstractmethod
    def __init__(self, bundle: Bundle, options: EvaluationOptions) -> None: ...

    @property
    @abstractmethod
    def calibration_data(self) -> CalibrationData:
        """Calibration data, checked. It is made once and kept.

        Raises:
            DataError: The data cannot be used, or is not real.
        """

    @abstractmethod
    def batches(self) -> Iterator[Batch]:
        """Yield the evaluation data.

        Raises:
            DataError: The data cannot be used.
        """

    @abstractmethod
    def planning_batches(self) -> Iterator[Batch]:
        """Yield the data to plan mixed precision on, which is neither calibrated nor judged on.

        Raises:
            DataError: The data cannot be used.
            UsageError: There is none, or ``EvaluationOptions.planning`` does not ask for it.
        """

    @abstractmethod
    def why_refused(self, precision: str, score: Any) -> str | None:
        """Return why a plan of mixed precision is not accepted; ``None`` if it is.

        Args:
            precision: ``"fp16"`` or ``"int8"``.
            score: Of one of its files, on the planning data.
        """

    @abstractmethod
    def tally(self) -> Tally:
        """Return an empty tally."""

    @abstractmethod
    def verdict(self, precision: str, count: int, scores: Mapping[str, Any]) -> Verdict:
        """Return whether variants pass the gate.

        Args:
            precision: ``"fp16"`` or ``"int8"``.
            count: Number of inputs that were judged.
            scores: By the name of the file; the first one is the reference.
        """

    def remark(self, count: int, scores: Mapping[str, Any]) -> str:
        """Return the resolution of a measurement and the recall of classes for people; may be empty.

        Args:
            count: Number of inputs that were judged.
            scores: As of ``verdict``.
        """
        return ""

    @abstractmethod
    def evidence(self, scores: Mapping[str, Any], verdict: Verdict) -> dict[str, Any]:
        """Return the evidence of the gate for a bundle."""


def judged(verdict: Verdict) -> dict[str, Any]:
    """Return the limits of a verdict and its doubts, for a bundle's evidence."""
    return {"limits": dict(verdict.limits), "judged": verdict.judged, "doubts": list(verdict.doubts)}


def largest_drop(scores: Mapping[str, Scored]) -> float | None:
    """Return the largest drop of any variant, rounded, since 1 of 100 images is 1 point and not 1.00…09.

    Args:
        scores: By the name of the file; the first one is the reference.

    Returns:
        ``None`` where the truth is not known.
    """
    _, *variants = scores.values()
    drops = [score.drop for score in variants if score.drop is not None]
    return round(max(drops), 9) if len(drops) == len(variants) else None
