"""The meaning of a classifier's outputs: the scores that they stand for, and the prediction that they make."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, Final, Literal, TypeAlias, cast, get_args

import numpy as np

if TYPE_CHECKING:
    import numpy.typing as npt

__all__ = [
    "LEAST_SCORE",
    "OUTPUT_KIND",
    "THRESHOLD",
    "OutputKind",
    "is_known",
    "is_multi_label",
    "least_score",
    "margins",
    "output_kind",
    "predictions_of",
    "same",
    "scores_of",
]

OutputKind: TypeAlias = Literal["logits", "probabilities", "sigmoid", "sigmoid-logits"]
"""``"logits"``: the softmax of them are the scores; log-probabilities are logits as well. ``"probabilities"``: the
scores of classes of which one is right. ``"sigmoid"``: the scores of classes that are independent of each other.
``"sigmoid-logits"``: the sigmoids of them are such scores."""

OUTPUT_KIND: Final = "output_kind"
"""Name of the kind among a manifest's settings; where it is absent the outputs are logits."""

LEAST_SCORE: Final = "least_score"
"""Name, among a manifest's settings, of the score that the best class needs; an image below it shows none of them."""

THRESHOLD: Final = 0.5
"""An image has each label of a multi-label model whose score is above this: more likely than not."""

_LEAST = 1e-6  # of a probability whose logarithm is taken: float32 holds 1 less this, and none closer than 6e-8


def output_kind(settings: Mapping[str, Any]) -> OutputKind:
    """Return the kind that a manifest's settings name.

    Raises:
        ValueError: It is not known.

    Example:
        >>> output_kind({}), output_kind({"output_kind": "sigmoid"})
        ('logits', 'sigmoid')
    """
    kind = settings.get(OUTPUT_KIND, "logits")
    if kind not in get_args(OutputKind):
        raise ValueError(f"{OUTPUT_KIND} is {kind!r}; accepted: {', '.join(get_args(OutputKind))}")
    return cast("OutputKind", kind)


def is_multi_label(kind: OutputKind) -> bool:
    """Return whether an image can have several labels, or none."""
    return kind in ("sigmoid", "sigmoid-logits")


def least_score(settings: Mapping[str, Any]) -> float | None:
    """Return the score that the best class needs; ``None`` where every image shows one of the classes.

    Raises:
        ValueError: It is not a number above 0, up to 1, or the model is multi-label, which can find no label anyway.

    Example:
        >>> least_score({}), least_score({"least_score": 0.7})
        (None, 0.7)
    """
    least = settings.get(LEAST_SCORE)
    if least is None:
        return None
    number = isinstance(least, int | float) and not isinstance(least, bool) and math.isfinite(least)
    if not number or not 0 < least <= 1:
        raise ValueError(f"{LEAST_SCORE} is {least!r}; accepted: a number above 0, up to 1")
    if is_multi_label(output_kind(settings)):
        raise ValueError(f"{LEAST_SCORE} is {least!r}, for a model whose images can have no label; accepted: nothing")
    return float(least)


def is_known(kind: OutputKind, outputs: npt.NDArray[Any], least: float) -> npt.NDArray[np.bool_]:
    """Return of which images ``[N]`` the best class of outputs ``[N, classes]`` has at least a score.

    Example:
        >>> is_known("logits", np.float32([[0, 0], [4, 0]]), 0.6)
        array([False,  True])
    """
    return np.asarray(scores_of(kind, outputs).max(axis=-1) >= least)


def scores_of(kind: OutputKind, outputs: npt.NDArray[Any]) -> npt.NDArray[np.float64]:
    """Return the scores, 0 to 1, that outputs ``[N, classes]`` stand for.

    Example:
        >>> scores_of("logits", np.float32([[0, 0]])), scores_of("sigmoid-logits", np.float32([[0, 0]]))
        (array([[0.5, 0.5]]), array([[0.5, 0.5]]))
        >>> scores_of("sigmoid", np.float32([[0.25, 1]]))
        array([[0.25, 1.  ]])
    """
    values = outputs.astype(np.float64)
    if kind == "logits":
        # The largest logit becomes exp(0) = 1, so that nothing overflows.
        powers = np.exp(values - values.max(axis=-1, keepdims=True))
        return np.asarray(powers / powers.sum(axis=-1, keepdims=True))
    if kind == "sigmoid-logits":
        powers = np.exp(-np.abs(values))
        return np.where(values >= 0, 1 / (1 + powers), powers / (1 + powers))
    return values


def margins(kind: OutputKind, outputs: npt.NDArray[Any]) -> npt.NDArray[np.float64]:
    """Return outputs as logits, in which errors are alike whatever the score: those of scores near 0 and 1 hide them.

    Example:
        >>> margins("probabilities", np.float64([[0.5, 0.25]])).round(3)
        array([[-0.693, -1.386]])
    """
    values = outputs.astype(np.float64)
    if kind in ("logits", "sigmoid-logits"):
        return values
    clipped = np.clip(values, _LEAST, 1 - _LEAST)
    return np.asarray(np.log(clipped) - (np.log1p(-clipped) if kind == "sigmoid" else 0))


def predictions_of(outputs: npt.NDArray[Any]) -> npt.NDArray[np.int64]:
    """Return the predicted classes ``[N]`` of logits ``[N, classes]``; of a single logit whether it is positive.

    Example:
        >>> predictions_of(np.array([[1.0, 3.0], [2.0, 0.0]])), predictions_of(np.array([[-1.0], [2.0]]))
        (array([1, 0]), array([0, 1]))
    """
    return np.asarray(outputs.argmax(axis=-1) if outputs.shape[-1] > 1 else outputs[..., 0] > 0, np.int64)


def same(kind: OutputKind, outputs: npt.NDArray[Any], others: npt.NDArray[Any]) -> npt.NDArray[np.bool_]:
    """Return of which images two files predict the same, ``[N]``: the class, and of a multi-label model every label.

    The best label of an image that has several is no prediction: their scores are often all close to 1. That of an
    image without any label is.

    Example:
        >>> same("sigmoid", np.float64([[0.6, 0.4], [0.6, 0.4]]), np.float64([[0.9, 0.4], [0.9, 0.7]]))
        array([ True, False])
    """
    best = predictions_of(outputs) == predictions_of(others)
    if not is_multi_label(kind):
        return np.asarray(best)
    mine, theirs = (scores_of(kind, each) > THRESHOLD for each in (outputs, others))
    return np.asarray((mine == theirs).all(axis=-1) & (best | mine.any(axis=-1)))
