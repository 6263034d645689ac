"""Scores of a multi-label model: mean average precision, and precision, recall and F1 of each label."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, ClassVar

import numpy as np
import numpy.typing as npt

from krl_runtime.bundle.output_kind import THRESHOLD, OutputKind, is_multi_label, scores_of
from krl_runtime.errors import DataError

from .average_precision import average_precision, mean_average_precision, resampled, with_floor
from .predictions import ClassCounts, PredictionScore, PredictionTally

__all__ = ["LabelQuality", "LabelScore", "LabelTally", "measure_labels", "tally_of"]

Array = npt.NDArray[Any]


@dataclass(frozen=True)
class LabelQuality:
    """How well one label is found at the threshold of 0.5.

    Attributes:
        index: Index of the label.
        images: Number of images that have it.
        average_precision: Mean precision over its images, 0 to 1; ``None`` without an image that has it.
        right: Number of images that have it, of those that get it.
        predicted: Number of images that get it.
    """

    index: int
    images: int
    average_precision: float | None
    right: int
    predicted: int

    @property
    def precision(self) -> float | None:
        """Share of the images that get it which have it, 0 to 1; ``None`` where none gets it."""
        return self.right / self.predicted if self.predicted else None

    @property
    def recall(self) -> float | None:
        """Share of the images that have it which get it, 0 to 1; ``None`` where none has it."""
        return self.right / self.images if self.images else None

    @property
    def f1(self) -> float | None:
        """Harmonic mean of precision and recall, 0 to 1; ``None`` where no image has it."""
        return 2 * self.right / (self.images + self.predicted) if self.images else None

    def to_dict(self) -> dict[str, Any]:
        """Return plain JSON types, rounded to six digits."""
        shares = ("average_precision", "f1", "precision", "recall")
        values = {name: getattr(self, name) for name in shares}
        return {
            "images": self.images,
            **{name: None if value is None else round(value, 6) for name, value in values.items()},
        }


def label_qualities(scores: Array, present: Array, truth: Array) -> tuple[LabelQuality, ...]:
    """Return the quality of each label.

    Args:
        scores: What ranks the images, ``[N, labels]``.
        present: Whether each image gets each label.
        truth: Whether each image has each label.
    """
    found = []
    for index in range(scores.shape[1]):
        has, gets = truth[:, index] > 0, present[:, index]
        precision = float(average_precision(scores[:, index], has)[0]) if has.any() else None
        found.append(LabelQuality(index, int(has.sum()), precision, int((has & gets).sum()), int(gets.sum())))
    return tuple(found)


def measure_labels(kind: OutputKind, outputs: Array, truth: Array, labels: Sequence[str]) -> dict[str, Any]:
    """Measure a multi-label model.

    Args:
        kind: Meaning of the outputs.
        outputs: ``[N, labels]``.
        truth: 1 where an image has a label, 0 where not, ``[N, labels]``.
        labels: Names.

    Returns:
        ``count``, ``map`` (mean average precision over the labels that some image has, 0 to 1) with
        ``map_standard_error``, ``f1_macro`` (mean over those labels), ``f1_micro`` (of all labels together),
        ``exact_match`` (share of images with exactly their labels), each at the threshold of 0.5; ``labels`` by name as
        ``LabelQuality.to_dict``, and ``labels_without_images``.

    Raises:
        DataError: No image has any label.
    """
    if not (truth > 0).any():
        raise DataError(f"none of the {len(truth)} images has a label, so that nothing can be measured; give others")
    present = scores_of(kind, outputs) > THRESHOLD
    qualities = label_qualities(outputs, present, truth)
    known = [item for item in qualities if item.images]
    weights = resampled(len(outputs))
    right, either = (sum(getattr(item, name) for item in qualities) for name in ("right", "predicted"))
    shares = {
        "map": float(mean_average_precision(outputs, truth)[0]),
        "map_standard_error": with_floor(float(mean_average_precision(outputs, truth, weights).std()), len(outputs)),
        "f1_macro": float(np.mean([item.f1 or 0.0 for item in known])),
        "f1_micro": 2 * right / max(1, either + sum(item.images for item in qualities)),
        "exact_match": float((present == (truth > 0)).all(axis=1).mean()),
    }
    return {
        "count": len(outputs),
        **{name: round(value, 6) for name, value in shares.items()},
        "labels": {labels[item.index]: item.to_dict() for item in qualities},
        "labels_without_images": [labels[item.index] for item in qualities if not item.images],
    }


@dataclass(frozen=True)
class LabelScore(PredictionScore):
    """A multi-label model on a set of images.

    ``top1`` is ``None``; ``drop`` is that of ``map``; ``classes`` are the labels that images have, with the recall at
    the threshold of 0.5.

    Attributes:
        map: Mean average precision over the labels that some image has, 0 to 1; ``None`` without labels.
        map_error: One standard error of it.
        chance: What a random order of the images would have for it: the mean share of images that have a label.
        f1_macro: Mean F1 of those labels at the threshold of 0.5.
        qualities: Of all labels.
    """

    map: float | None = None
    map_error: float | None = None
    chance: float | None = None
    f1_macro: float | None = None
    qualities: tuple[LabelQuality, ...] = field(default=(), repr=False)

    HEADER: ClassVar[tuple[str, ...]] = (
        "mAP",
        "drop in points",
        "F1 macro",
        "agreement",
        "SNR in dB",
        "largest logit error",
    )
    METRIC: ClassVar[str] = "map"
    METRIC_NAME: ClassVar[str] = "mAP"

    @property
    def better_than_chance(self) -> bool:
        """Whether it is three standard errors better than a random order."""
        if self.map is None or self.chance is None or self.map_error is None:
            return False
        return self.map - self.chance > 3 * self.map_error

    def to_dict(self) -> dict[str, Any]:
        """Return the score as plain JSON types, without the labels; those of many would fill a page."""
        return {name: value for name, value in super().to_dict().items() if name not in ("top1", "qualities")}

    def share_of(self, position: int) -> float:
        """Return the F1 of one of ``classes``, 0 to 1."""
        return self.qualities[self.classes[position].index].f1 or 0.0

    def cells(self, reference: PredictionScore) -> tuple[str | None, ...]:
        """Return the score for people, beside that of the reference."""
        first, *others = super().cells(reference)
        del first
        f1 = None if self.f1_macro is None else f"{self.f1_macro:.3f}"
        return (None if self.map is None else f"{self.map:.2%}", others[0], f1, *others[1:])


class LabelTally(PredictionTally):
    """Counts what ``PredictionTally`` does, and keeps the outputs to order the images of each label by them.

    Args:
        kind: Meaning of the outputs, of labels that are independent of each other.
    """

    score_type = LabelScore

    def __init__(self, kind: OutputKind) -> None:
        super().__init__(kind)
        self.outputs: list[Array] = []
        self.references: list[Array] = []
        self.truth: list[Array] = []

    def add(self, outputs: npt.NDArray[np.float32], reference: npt.NDArray[np.float32], truth: Array | None) -> None:
        """Count one batch.

        Args:
            outputs: Outputs of the variant, ``[N, labels]``.
            reference: Outputs of the reference, ``[N, labels]``.
            truth: ``[N, labels]``, 1 where an image has a label and 0 where not; a row of -1 for an image whose labels
                are not known; or ``None``.
        """
        super().add(outputs, reference, None)
        if truth is None or truth.ndim != 2 or (truth < 0).any():
            self.truth.clear()
            self.unknown = True
        if not self.unknown:
            assert truth is not None  # noqa: S101  for the type checker
            self.outputs.append(outputs)
            self.references.append(reference)
            self.truth.append(truth)

    unknown = False
    """Whether the labels of an image are not known."""

    def score(self) -> LabelScore:
        """Return the score of all batches."""
        plain = super().score()
        base = (None, plain.agreement, plain.snr_db, plain.max_error)
        if self.unknown or not self.truth:
            return LabelScore(base[0], None, None, *base[1:])
        outputs, references, truth = (np.concatenate(each) for each in (self.outputs, self.references, self.truth))
        has = truth > 0
        if not has.any():  # no label to order images by
            return LabelScore(base[0], None, None, *base[1:])
        gets, got = (scores_of(self.kind, each) > THRESHOLD for each in (outputs, references))
        weights = resampled(len(outputs))
        mine, theirs = (mean_average_precision(each, truth, weights) for each in (outputs, references))
        value, reference = (float(mean_average_precision(each, truth)[0]) for each in (outputs, references))
        qualities = label_qualities(outputs, gets, truth)
        known = [item for item in qualities if item.images]
        counts = [_counts(item.index, has[:, item.index], gets[:, item.index], got[:, item.index]) for item in known]
        return LabelScore(
            None,
            100 * (reference - value),
            100 * float((theirs - mine).std()),
            *base[1:],
            tuple(counts),
            map=value,
            map_error=with_floor(float(mine.std()), len(outputs)),
            chance=float(has[:, [item.index for item in known]].mean()),
            f1_macro=math.fsum(item.f1 or 0.0 for item in known) / len(known),
            qualities=qualities,
        )


def _counts(index: int, has: Array, gets: Array, got: Array) -> ClassCounts:
    """Return how many of the images that have a label get it, from a variant and from the reference."""
    return ClassCounts(
        index, int(has.sum()), int((has & gets).sum()), int((has & got & ~gets).sum()), int((has & gets & ~got).sum())
    )


def tally_of(kind: OutputKind, least_score: float | None = None) -> PredictionTally:
    """Return an empty tally for outputs of a kind, and a least score of known images, which several labels have not."""
    return LabelTally(kind) if is_multi_label(kind) else PredictionTally(kind, least_score)
