"""Retrieval by embeddings: nearest neighbors, recall at k, and agreement of a variant with the reference.

Similarity is the cosine, the dot product of vectors of length 1. All of it is NumPy, in blocks of bounded memory.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar, Final

import numpy as np
import numpy.typing as npt

from .neighbors import BLOCK, TIE, Vectors, cosines, directed, nearest, neighbors, unit_vectors
from .predictions import drop_cell, paired_drop, snr_db, standard_error

__all__ = [
    "RetrievalScore",
    "RetrievalTally",
    "agreement",
    "label_matches",
    "mean_average_precision_at_r",
    "neighbors",
    "recall_at",
    "unit_vectors",
]

_QUERIES: Final = 1000  # of MAP@R: its standard error is then below a point, and sorting takes long
_FURTHER: Final = 5  # neighbors of the second recall, the usual one beside the first


def label_matches(
    embeddings: npt.NDArray[Any], labels: npt.NDArray[Any], k: int
) -> tuple[npt.NDArray[np.bool_], npt.NDArray[np.bool_]]:
    """Return which of the nearest other images have an image's label.

    Images without a label are no neighbors. One whose label no other image has is a neighbor, and not counted.

    Args:
        embeddings: ``[N, D]``.
        labels: ``[N]`` integers, -1 where unknown.
        k: Number of neighbors, at least 1.

    Returns:
        Matches ``[N, k]``, all false of an image that is not counted or has no direction; and which are counted
        ``[N]``: those with a label that another image has.
    """
    known = np.flatnonzero(labels >= 0)
    of_known, vectors = labels[known], unit_vectors(embeddings[known])
    indices, _ = nearest(vectors, vectors, k, exclude_self=True)
    matches, counted = np.zeros((len(labels), k), np.bool_), np.zeros(len(labels), np.bool_)
    counted[known] = _others(of_known) > 0
    has_direction = directed(vectors)
    same = (of_known[indices] == of_known[:, None]) & has_direction[:, None] & has_direction[indices]
    matches[known, : indices.shape[1]] = same
    return matches, counted


def _others(labels: npt.NDArray[Any]) -> npt.NDArray[np.int64]:
    """Return how many other images have each image's label, ``[N]``."""
    _, place, counts = np.unique(labels, return_inverse=True, return_counts=True)
    return np.asarray(counts[place.reshape(-1)] - 1, np.int64)


def recall_at(
    embeddings: npt.NDArray[Any], labels: npt.NDArray[Any], k: int
) -> tuple[npt.NDArray[np.bool_], npt.NDArray[np.bool_]]:
    """Return for each image whether one of its ``k`` nearest other images has its label: recall at k, leave-one-out.

    Args:
        embeddings: ``[N, D]``.
        labels: ``[N]`` integers, -1 where unknown.
        k: Number of neighbors, at least 1.

    Returns:
        Hits ``[N]``, and which images are counted ``[N]``; see ``label_matches``. The recall is
        ``hits[counted].mean()``.

    Example:
        >>> hits, counted = recall_at(np.array([[1, 0], [9, 1], [0, 1]]), np.array([0, 0, 1]), 1)
        >>> hits.tolist(), counted.tolist()
        ([True, True, False], [True, True, False])
    """
    matches, counted = label_matches(embeddings, labels, k)
    return np.asarray(matches.any(axis=1)), counted


def mean_average_precision_at_r(embeddings: npt.NDArray[Any], labels: npt.NDArray[Any]) -> float | None:
    """Return the mean average precision at R, where R is the number of other images with an image's label.

    It rewards an order with all of them first (Musgrave et al., A Metric Learning Reality Check, 2020). The mean is
    over 1,000 images at most, evenly spread; each is looked for among all others.

    Args:
        embeddings: ``[N, D]``.
        labels: ``[N]`` integers, -1 where unknown.

    Returns:
        0 to 1; ``None`` where no label is on two images.
    """
    known = np.flatnonzero(labels >= 0)
    of_known, vectors = labels[known], unit_vectors(embeddings[known])
    relevant = _others(of_known) if len(known) else np.zeros(0, np.int64)
    chosen = np.flatnonzero(relevant > 0)
    if not len(chosen):
        return None
    chosen = chosen[np.linspace(0, len(chosen) - 1, min(_QUERIES, len(chosen))).astype(np.int64)]
    has_direction, total = directed(vectors), 0.0
    for query in chosen:
        near = vectors @ vectors[query]
        near[query] = -np.inf
        first = np.argpartition(-near, relevant[query] - 1)[: relevant[query]]
        order = first[np.argsort(-near[first], kind="stable")]
        same = (of_known[order] == of_known[query]) & has_direction[query] & has_direction[order]
        total += float((same.cumsum() / np.arange(1, len(same) + 1) * same).sum() / len(same))
    return total / len(chosen)


def agreement(outputs: npt.NDArray[Any], reference: npt.NDArray[Any]) -> npt.NDArray[np.bool_]:
    """Return for each output whether its own reference is the nearest of all references.

    The share of them is the agreement of a variant with FP32. It needs no labels. References that are as near as the
    own one within 1e-6, as those of equal images are, do no harm.

    Args:
        outputs: Embeddings of a variant, ``[N, D]``.
        reference: Those of the reference for the same images, ``[N, D]``.

    Returns:
        ``[N]``; false of an output without a direction.

    Example:
        >>> agreement(np.array([[1, 0.1], [1, 0.2]]), np.array([[1, 0], [0, 1]])).tolist()
        [True, False]
    """
    mine, theirs = unit_vectors(outputs), unit_vectors(reference)
    own = cosines(mine, theirs)
    best, step = np.zeros(len(mine)), max(1, BLOCK // max(1, len(theirs)))
    for start in range(0, len(mine), step):
        best[start : start + step] = (mine[start : start + step] @ theirs.T).max(axis=1)
    return np.asarray((own >= best - TIE) & directed(mine))


@dataclass(frozen=True)
class RetrievalScore:
    """An embedding network on a set of images.

    Attributes:
        count: Number of images.
        counted: Number of those with a label that another one has: what the recall is of.
        agreement: Share of images, 0 to 1, that are nearest to their own reference of all; see ``agreement``.
        snr_db: Power of the reference's embeddings less their mean, which tells no image from another, over that of
            the error, in dB; 200 if they are equal.
        mean_cosine: Mean similarity of an output to its reference, -1 to 1.
        max_error: Largest absolute difference of a value from the reference's, in vectors of length 1.
        recall_at_1: Share of the counted ones, 0 to 1, whose nearest other image has their label; ``None`` if
            none is counted, as all of the following.
        recall_at_1_error: One standard error of it.
        recall_at_5: The same of the five nearest: one of them has the label.
        recall_at_5_error: One standard error of it.
        map_at_r: See ``mean_average_precision_at_r``.
        chance: Share that a random order would have for ``recall_at_1``.
        drop: Drop of ``recall_at_1`` against the reference, in percentage points.
        drop_error: One standard error of ``drop``: of the paired difference.
    """

    count: int
    counted: int
    agreement: float
    snr_db: float
    mean_cosine: float
    max_error: float
    recall_at_1: float | None = None
    recall_at_1_error: float | None = None
    recall_at_5: float | None = None
    recall_at_5_error: float | None = None
    map_at_r: float | None = None
    chance: float | None = None
    drop: float | None = None
    drop_error: float | None = None

    HEADER: ClassVar[tuple[str, ...]] = (
        "recall@1",
        "drop in points",
        "recall@5",
        "agreement",
        "SNR in dB",
        "mean cosine",
    )
    METRIC: ClassVar[str] = "recall_at_1"
    """Name of the metric that ``drop`` is of, among the fields."""
    METRIC_NAME: ClassVar[str] = "recall@1"
    """The same for people."""

    @property
    def quality(self) -> float | None:
        """The metric that ``drop`` is of, 0 to 1; ``None`` without labels."""
        return self.recall_at_1

    @property
    def better_than_chance(self) -> bool:
        """Whether ``recall_at_1`` is three standard errors above that of a random order; not without labels."""
        if self.recall_at_1 is None or self.recall_at_1_error is None or self.chance is None:
            return False
        return self.recall_at_1 - self.chance > 3 * self.recall_at_1_error

    def to_dict(self) -> dict[str, Any]:
        """Return the score as plain JSON types."""
        return dict(self.__dict__)

    def cells(self, reference: RetrievalScore) -> tuple[str | None, ...]:
        """Return the score for people, beside that of the reference."""
        return (
            None if self.recall_at_1 is None else f"{self.recall_at_1:.2%}",
            drop_cell(self.drop, None if self is reference else self.drop_error, 2),
            None if self.recall_at_5 is None else f"{self.recall_at_5:.2%}",
            f"{self.agreement:.2%}",
            f"{self.snr_db:.1f}",
            f"{self.mean_cosine:.5f}",
        )


class RetrievalTally:
    """Keeps the embeddings of a variant and of the reference, and scores them when all are there."""

    def __init__(self) -> None:
        self.outputs: list[Vectors] = []
        self.references: list[Vectors] = []
        self.truth: list[npt.NDArray[np.int64]] = []

    def add(
        self, outputs: npt.NDArray[np.float32], reference: npt.NDArray[np.float32], truth: npt.NDArray[Any] | None
    ) -> None:
        """Keep the embeddings of one batch.

        Args:
            outputs: Embeddings of the variant, ``[N, D]``.
            reference: Embeddings of the reference, ``[N, D]``.
            truth: Labels ``[N]``, -1 where unknown, or ``None``.
        """
        self.outputs.append(unit_vectors(outputs))
        self.references.append(unit_vectors(reference))
        self.truth.append(np.full(len(outputs), -1, np.int64) if truth is None else truth.astype(np.int64))

    def score(self) -> RetrievalScore:
        """Return the score of all batches; recall only where a label is on two images."""
        outputs, references = np.concatenate(self.outputs), np.concatenate(self.references)
        truth = np.concatenate(self.truth)
        errors = outputs.astype(np.float64) - references
        spread = references.astype(np.float64) - references.mean(axis=0, dtype=np.float64)
        plain = {
            "agreement": float(agreement(outputs, references).mean()),
            "snr_db": snr_db(float(np.square(spread).sum()), float(np.square(errors).sum())),
            "mean_cosine": float(cosines(outputs, references).mean()),
            "max_error": float(np.abs(errors).max(initial=0.0)),
        }
        matches, counted = label_matches(outputs, truth, _FURTHER)
        number = int(counted.sum())
        if not number:
            return RetrievalScore(len(outputs), 0, **plain)
        theirs, _ = label_matches(references, truth, 1)
        mine, others = matches[counted], theirs[counted, 0]
        first, further = mine[:, 0], mine.any(axis=1)
        recalls = (float(first.mean()), float(further.mean()))
        drop, drop_error = paired_drop(int((others & ~first).sum()), int((first & ~others).sum()), number)
        labeled = truth[truth >= 0]
        return RetrievalScore(
            len(outputs),
            number,
            **plain,
            recall_at_1=recalls[0],
            recall_at_1_error=standard_error(recalls[0], number),
            recall_at_5=recalls[1],
            recall_at_5_error=standard_error(recalls[1], number),
            map_at_r=mean_average_precision_at_r(outputs, truth),
            chance=float(_others(labeled).sum() / (len(labeled) - 1) / number),
            drop=drop,
            drop_error=drop_error,
        )
