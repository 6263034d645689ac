"""Scores of a classifier's variant beside the reference: accuracy, agreement, recall of each class, and noise."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, ClassVar

import numpy as np
import numpy.typing as npt

from krl_runtime.bundle.output_kind import OutputKind, is_known, is_multi_label, margins, predictions_of, same

__all__ = [
    "ClassCounts",
    "PredictionScore",
    "PredictionTally",
    "better_than_chance",
    "drop_cell",
    "paired_drop",
    "resolution",
    "snr_db",
    "standard_error",
]

_EQUAL_DB = 200.0  # of outputs that are equal: their ratio would be infinite, and no JSON number


@dataclass(frozen=True)
class ClassCounts:
    """Images of one class.

    Attributes:
        index: Index of the class.
        count: Number of its images.
        right: Number that the variant predicts right.
        lost: Number that the reference predicts right and the variant does not.
        gained: Number that the variant predicts right and the reference does not.
    """

    index: int
    count: int
    right: int
    lost: int
    gained: int

    @property
    def recall(self) -> float:
        """Return the share of right predictions, 0 to 1."""
        return self.right / self.count

    @property
    def drop(self) -> float:
        """Return how much recall is lost against the reference, in percentage points."""
        return 100 * (self.lost - self.gained) / self.count


@dataclass(frozen=True)
class PredictionScore:
    """A classifier on a set of images.

    Attributes:
        top1: Share of right predictions, 0 to 1; ``None`` without labels.
        drop: Drop of ``top1`` against the reference, in percentage points; ``None`` without labels.
        drop_error: One standard error of ``drop``: of the paired difference. ``None`` without labels.
        agreement: Share of images, 0 to 1, with the reference's prediction; of a multi-label model with all its labels.
        snr_db: Power of the reference's logits over that of their error, in dB; 200 if they are equal. The mean over
            the classes is left out of both where a softmax follows, since it changes no prediction then.
        max_error: Largest absolute difference of an output from the reference's.
        classes: The classes that have images, in their order; empty without labels.
        further: Of a model with further heads, the share of images with the reference's prediction, for each by its
            name. ``snr_db`` is then the smallest of all heads, ``max_error`` the largest.
        refused: Share of images, 0 to 1, that are none of the classes to the variant; ``None`` if it refuses none.
        top1_of_known: Share of right predictions among the others; ``None`` without labels, or if all are refused.
    """

    top1: float | None
    drop: float | None
    drop_error: float | None
    agreement: float
    snr_db: float
    max_error: float
    classes: tuple[ClassCounts, ...] = ()
    further: Mapping[str, float] = field(default_factory=dict, hash=False)
    refused: float | None = None
    top1_of_known: float | None = None

    HEADER: ClassVar[tuple[str, ...]] = ("top-1", "drop in points", "agreement", "SNR in dB", "largest logit error")
    METRIC: ClassVar[str] = "top1"
    """Name of the metric that ``drop`` is of, among the fields."""
    METRIC_NAME: ClassVar[str] = "top-1"
    """The same for people."""

    @property
    def quality(self) -> float | None:
        """The metric that ``drop`` is of, 0 to 1; ``None`` without labels."""
        value: float | None = getattr(self, self.METRIC)
        return value

    @property
    def better_than_chance(self) -> bool:
        """Whether the predictions are clearly better than those of a constant or random one; not without labels."""
        return better_than_chance(self.classes)

    def to_dict(self) -> dict[str, Any]:
        """Return the score as plain JSON types, without the classes; those of many classes would fill a page."""
        refused = ("refused", "top1_of_known") if self.refused is None else ()
        hidden = {"classes", *(() if self.further else ("further",)), *refused}
        return {name: value for name, value in self.__dict__.items() if name not in hidden}

    def share_of(self, position: int) -> float:
        """Return the recall of one of ``classes``, 0 to 1."""
        return self.classes[position].recall

    def cells(self, reference: PredictionScore) -> tuple[str | None, ...]:
        """Return the score for people, beside that of the reference."""
        return (
            None if self.top1 is None else f"{self.top1:.2%}",
            drop_cell(self.drop, None if self is reference else self.drop_error, 2),
            f"{self.agreement:.2%}",
            f"{self.snr_db:.1f}",
            f"{self.max_error:.4g}",
        )


class PredictionTally:
    """Counts right predictions, and those equal to the reference's.

    Args:
        kind: Meaning of the outputs.
        least_score: See ``krl_runtime.bundle.output_kind.least_score``.
    """

    score_type: ClassVar[type[PredictionScore]] = PredictionScore

    def __init__(self, kind: OutputKind = "logits", least_score: float | None = None) -> None:
        self.kind, self.least_score = kind, least_score
        self.known, self.known_right = 0, 0
        self.count, self.same, self.error, self.labeled = 0, 0, 0.0, True
        self.signal, self.noise = 0.0, 0.0
        self.classes: npt.NDArray[np.int64] = np.zeros((0, 4), np.int64)

    def add(
        self, outputs: npt.NDArray[np.float32], reference: npt.NDArray[np.float32], truth: npt.NDArray[Any] | None
    ) -> None:
        """Count the predictions of one batch.

        Args:
            outputs: Outputs of the variant, ``[N, classes]``.
            reference: Outputs of the reference, ``[N, classes]``.
            truth: Labels ``[N]``, -1 where unknown, or ``None``.
        """
        predictions, expected = predictions_of(outputs), predictions_of(reference)
        self.count += len(outputs)
        self.same += int(same(self.kind, outputs, reference).sum())
        self.error = max(self.error, float(np.abs(outputs.astype(np.float64) - reference).max()))
        signal = margins(self.kind, reference)
        self.signal += float(np.square(self._centered(signal)).sum())
        self.noise += float(np.square(self._centered(margins(self.kind, outputs) - signal)).sum())
        self.labeled = self.labeled and truth is not None and bool((truth >= 0).all())
        if self.least_score is not None:
            accepted = is_known(self.kind, outputs, self.least_score)
            self.known += int(accepted.sum())
            self.known_right += int((accepted & (predictions == truth)).sum()) if self.labeled else 0
        if self.labeled:
            assert truth is not None  # noqa: S101  for the type checker
            right, known = predictions == truth, expected == truth
            counted = np.stack([np.ones(len(truth)), right, known & ~right, right & ~known], axis=1)
            classes = np.zeros((max(2, outputs.shape[1]), 4), np.int64)
            np.add.at(classes, truth, counted.astype(np.int64))
            self.classes = classes if not len(self.classes) else self.classes + classes

    def _centered(self, logits: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
        """Return logits ``[N, classes]`` less their mean over the classes, if a softmax follows."""
        alone = is_multi_label(self.kind) or logits.shape[1] == 1
        return logits if alone else logits - logits.mean(axis=1, keepdims=True)

    def score(self) -> PredictionScore:
        """Return the score of all batches."""
        agreement, snr = self.same / self.count, snr_db(self.signal, self.noise)
        refused = None if self.least_score is None else 1 - self.known / self.count
        if not self.labeled:
            return PredictionScore(None, None, None, agreement, snr, self.error, refused=refused)
        _, right, lost, gained = (int(total) for total in self.classes.sum(axis=0))
        classes = tuple(ClassCounts(index, *map(int, row)) for index, row in enumerate(self.classes) if row[0])
        drop, error = paired_drop(lost, gained, self.count)
        of_known = self.known_right / self.known if self.known else None
        return PredictionScore(
            right / self.count,
            drop,
            error,
            agreement,
            snr,
            self.error,
            classes,
            refused=refused,
            top1_of_known=of_known,
        )


def paired_drop(lost: int, gained: int, count: int) -> tuple[float, float]:
    """Return the drop of a share against the reference's, and one standard error of the paired difference, in points.

    Args:
        lost: Number of images that only the reference has right.
        gained: Number of images that only the variant has right.
        count: Number of all images, at least 1.

    Example:
        >>> paired_drop(4, 0, 100)[0], round(paired_drop(4, 0, 100)[1], 2)
        (4.0, 1.97)
    """
    variance = (lost + gained - (lost - gained) ** 2 / count) / max(1, count - 1)
    return 100 * (lost - gained) / count, 100 * math.sqrt(max(0.0, variance) / count)


def drop_cell(drop: float | None, error: float | None, digits: int) -> str | None:
    """Return a drop of accuracy for people, with its standard error if there is one.

    Example:
        >>> drop_cell(0.3, 0.21, 2), drop_cell(0.0, None, 3), drop_cell(None, None, 2)
        ('0.30 ± 0.21', '0.000', None)
    """
    if drop is None:
        return None
    return f"{drop:.{digits}f}" + ("" if error is None else f" ± {error:.{digits}f}")


def snr_db(signal: float, noise: float) -> float:
    """Return a signal-to-noise ratio in dB, 200 at most.

    Args:
        signal: Sum of the squared values of the reference.
        noise: Sum of the squared differences from it.

    Example:
        >>> snr_db(100.0, 1.0), snr_db(1.0, 0.0)
        (20.0, 200.0)
    """
    if noise <= signal * 10 ** (-_EQUAL_DB / 10):
        return _EQUAL_DB
    return 10 * math.log10(signal / noise) if signal > 0 else -_EQUAL_DB


def resolution(top1: float, count: int) -> tuple[float, float]:
    """Return the worth of one image, and one standard error of the accuracy, in percentage points.

    Args:
        top1: Share of right predictions, 0 to 1.
        count: Number of images.

    Example:
        >>> resolution(0.9, 400)
        (0.25, 1.5)
    """
    return 100 / count, 100 * (top1 * (1 - top1) / count) ** 0.5


def standard_error(share: float, count: int) -> float:
    """Return one standard error of a share that was measured on independent images, 0 to 1.

    A success and a failure are added (Agresti and Coull, 1998): without them a share of 1 would have no error at all.

    Args:
        share: Measured share, 0 to 1.
        count: Number of images.

    Example:
        >>> round(standard_error(0.9, 100), 4), round(standard_error(1.0, 10), 4)
        (0.0307, 0.0798)
    """
    better = (share * count + 1) / (count + 2)
    return math.sqrt(better * (1 - better) / (count + 2))


def better_than_chance(classes: Sequence[ClassCounts]) -> bool:
    """Return whether the predictions are clearly better than those of a constant or random one.

    Those have a mean recall of 1 over the number of classes; three standard errors above that are clear.
    """
    if len(classes) < 2:
        return False
    recalls = np.array([item.recall for item in classes])
    smoothed = [(item.right + 1) / (item.count + 2) for item in classes]  # a few right ones are not certain
    variances = [share * (1 - share) / item.count for share, item in zip(smoothed, classes, strict=True)]
    return bool(recalls.mean() - 1 / len(classes) > 3 * math.sqrt(sum(variances)) / len(classes))
