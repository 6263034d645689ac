"""Terms of a distillation objective: a loss by name, its weight and warm-up, and what it needs to see."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

from torch import Tensor

from krl_compress import losses
from krl_compress.config import LOSS_OPTIONS, split_loss
from krl_runtime.cli.suggestions import suggest
from krl_runtime.errors import UsageError
from krl_train.custom import is_custom
from krl_train.tasks.cross_entropy import binary_cross_entropy, cross_entropy

from .custom import custom_function

__all__ = ["REGISTRY", "Loss", "WeightedLoss", "check_labels", "parse_loss", "rkd", "teacher_weight"]

LabelsOfImage = Literal["one", "several", "any"]
"""Data that a loss is for: images of one class each, images of any number of labels, or both."""

Sees = Literal["labels", "logits", "logits+labels", "map", "maps", "review", "embedding", "crd", "truth", "restored"]
"""Inputs of a loss: labels with the student's logits; both nets' logits; those and labels; the last shared map;
every shared map; all maps reviewed; the classifier's input; that and the samples' indices; the student's image with
the truth, or with the teacher's."""


@dataclass(frozen=True)
class Loss:
    """A loss of the literature, with its default weight.

    Attributes:
        function: The pure function (for ``"crd"`` and ``"review"`` the module that wraps it).
        sees: What it is given.
        weight: The weight where ``--loss`` gives none: its gradient is then of the order of the cross-entropy's.
        couples: Whether a sample's loss depends on the others in the batch, so that processes must share them.
        adapter: What brings the student's map to the teacher's shape: ``"regressor"``, ``"projection"`` (1×1), or none.
        labels: How many labels an image may have: one where it takes the class, or a softmax over the classes.
    """

    function: Callable[..., Any]
    sees: Sees
    weight: float = 1.0
    couples: bool = False
    adapter: Literal["regressor", "projection"] | None = None
    labels: LabelsOfImage = "one"

    def options(self) -> dict[str, Any]:
        """Return the hyperparameters by name, with their defaults."""
        parameters = inspect.signature(self.function).parameters.values()
        fixed = {"chunk", "seed", "middle", "class_weights", "whole"}
        return {
            item.name: item.default
            for item in parameters
            if item.kind is inspect.Parameter.KEYWORD_ONLY and item.name not in fixed
        }


def rkd(student: Tensor, teacher: Tensor, *, distance: float = 25.0, angle: float = 50.0) -> Tensor:
    """Return relational distillation with the usual weights of its two parts (classification); see ``rkd_angle``."""
    return distance * losses.rkd_distance(student, teacher) + angle * losses.rkd_angle(student, teacher)


# Weights: those of the papers and of RepDistiller's scripts where the gradient is then between a fifth and five times
# that of the cross-entropy, for a fresh student and after 30 steps; else the one that makes the geometric mean of both
# about 1. Measured by benchmarks/compress/gradients.py; the table is in docs/distillation.md. The papers' weights are
# in the docstring of each function, and in the recipes.
REGISTRY: Mapping[str, Loss] = {
    "ce": Loss(cross_entropy, "labels"),
    "kd": Loss(losses.kd, "logits", weight=0.9),
    "logistic": Loss(losses.logistic, "logits", labels="any"),
    "soft_bce": Loss(losses.soft_bce, "logits"),
    "hard_label": Loss(losses.hard_label, "logits", weight=0.5),
    "logit_mse": Loss(losses.logit_mse, "logits", weight=0.2, labels="any"),
    "dist": Loss(losses.dist, "logits", weight=2.0, couples=True),
    "ttm": Loss(losses.ttm, "logits", weight=1.0),
    "wttm": Loss(losses.wttm, "logits", weight=0.8),
    "mlkd": Loss(losses.mlkd, "logits", weight=0.02, couples=True),
    "dkd": Loss(losses.dkd, "logits+labels", weight=0.09),
    "nkd": Loss(losses.nkd, "logits+labels"),
    "rld": Loss(losses.rld, "logits+labels", weight=0.09),
    "wsld": Loss(losses.wsld, "logits+labels"),
    "fitnet": Loss(losses.hint, "map", weight=5.0, adapter="regressor", labels="any"),
    "wkd_f": Loss(losses.wkd_f, "map", weight=0.02, adapter="projection", labels="any"),
    "at": Loss(losses.at, "maps", weight=100.0, labels="any"),
    "nst": Loss(losses.nst, "map", weight=15.0, labels="any"),
    "sp": Loss(losses.sp, "map", weight=1000.0, couples=True, labels="any"),
    "reviewkd": Loss(losses.Review, "review", labels="any"),
    "rkd": Loss(rkd, "embedding", weight=0.1, couples=True, labels="any"),
    "pkt": Loss(losses.pkt, "embedding", weight=70000.0, couples=True, labels="any"),
    "cc": Loss(losses.cc, "embedding", weight=60.0, couples=True, labels="any"),
    "crd": Loss(losses.CRD, "crd", weight=0.8, couples=True),
    "bce": Loss(binary_cross_entropy, "labels", labels="several"),
}
"""The losses by the name that ``--loss`` takes."""


@dataclass(frozen=True)
class WeightedLoss:
    """A term as it is asked for.

    Attributes:
        name: Key of ``REGISTRY``, or the name of a user's own function.
        weight: Factor of the loss.
        warmup: Epochs over which the weight grows linearly to its value; the first epoch counts as one.
        standardize: Whether both nets' logits are standardized first (https://arxiv.org/abs/2403.01427).
        adaptive: Whether the weight falls as the student overtakes the teacher; see ``teacher_weight``.
        options: Hyperparameters of the loss.
        custom: The loss, where it is a user's own.
    """

    name: str
    weight: float
    warmup: int = 0
    standardize: bool = False
    adaptive: bool = False
    options: Mapping[str, float] = field(default_factory=dict)
    custom: Loss | None = None

    @property
    def kind(self) -> Loss:
        """The loss."""
        return self.custom or REGISTRY[self.name]

    def factor(self, epoch: int) -> float:
        """Return the weight in one epoch, counted from 0."""
        return self.weight * (min((epoch + 1) / self.warmup, 1.0) if self.warmup else 1.0)


def parse_loss(text: str, kinds: Mapping[str, Loss] = REGISTRY) -> WeightedLoss:
    """Parse ``NAME[:key=value,…]``, as ``"kd:weight=0.9,temperature=4"`` or ``"dkd:beta=8,warmup=20,standardize"``.

    Args:
        text: What was given to ``--loss``; ``NAME`` may be ``package.module:name``, a user's own function.
        kinds: The losses that are accepted.

    Raises:
        UsageError: The name or a key is not known, or a value is not a number.
    """
    name, rest = split_loss(text, kinds)
    custom = _custom_kind(name) if is_custom(name) else None
    if custom is not None and kinds is not REGISTRY:
        raise UsageError(f"--loss {text}: your own loss is for classifiers; accepted here: {', '.join(kinds)}")
    if custom is None and name not in kinds:
        more = ", or your own function as package.module:name" if kinds is REGISTRY else ""
        raise UsageError(
            f"--loss {text}: unknown loss {name!r}{suggest(name, kinds)}; accepted: {', '.join(kinds)}{more}"
        )
    kind = custom or kinds[name]
    options = kind.options()
    values: dict[str, float] = {}
    for item in filter(None, rest.split(",")):
        key, equals, value = item.partition("=")
        if key not in options and key not in LOSS_OPTIONS:
            accepted = ", ".join((*LOSS_OPTIONS, *options))
            raise UsageError(f"--loss {text}: {name} has no {key!r}{suggest(key, options)}; accepted: {accepted}")
        try:
            values[key] = float(value) if equals else 1.0
        except ValueError:
            raise UsageError(f"--loss {text}: {key} is {value!r}; accepted: a number") from None
    standardize = bool(values.pop("standardize", 0))
    if standardize and kind.sees not in ("logits", "logits+labels"):
        raise UsageError(f"--loss {text}: {name} does not compare logits, so there is nothing to standardize")
    adaptive = bool(values.pop("adaptive", 0))
    if adaptive and (kind.sees == "labels" or kinds is not REGISTRY):
        raise UsageError(f"--loss {text}: adaptive is for the losses of a classifier that see the teacher")
    weight, warmup = values.pop("weight", kind.weight), int(values.pop("warmup", 0))
    whole = {key: int(value) if isinstance(options[key], int) else value for key, value in values.items()}
    return WeightedLoss(name, weight, warmup, standardize, adaptive, whole, custom)


def check_labels(terms: Sequence[WeightedLoss], *, several: bool) -> None:
    """Refuse losses that are not for the data.

    Args:
        terms: The losses.
        several: Whether an image can have several labels, or none.

    Raises:
        UsageError: One is for other data.
    """
    other: LabelsOfImage = "one" if several else "several"
    unfit = next((term for term in terms if term.kind.labels == other), None)
    if unfit is None:
        return
    accepted = ", ".join(name for name, kind in REGISTRY.items() if kind.labels != other)
    have = "an image can have several labels" if several else "each image has one class"
    raise UsageError(f"--loss {unfit.name} is for other data: here {have}; accepted: {accepted}, or your own function")


def _custom_kind(name: str) -> Loss:
    """Return a user's function as a loss; the whole batch is gathered for it, as its samples may be coupled."""
    function, takes_labels = custom_function(name)
    return Loss(function, "logits+labels" if takes_labels else "logits", couples=True, labels="any")


# The teacher counts in full while it makes at most half of the student's mistakes, and no more once the student makes
# fewer than it.
_FULL, _NONE = 0.5, 1.0


def teacher_weight(teacher: float, student: float, count: int) -> float:
    """Return the factor of ``adaptive`` terms: 1 for a teacher that is much better than the student, 0 for a worse one.

    It follows the ratio of the mistakes on held-out images: 1 up to 0.5, 0 from 1 on, linear between. So a good teacher
    teaches to the end, and a weak one helps at the start alone. Of several labels what is missing to an mAP of 1 stands
    for the mistakes.

    Args:
        teacher: Its top-1 (mAP of several labels), 0 to 1.
        student: Its top-1 (mAP) so far, 0 to 1.
        count: Number of held-out images; half a mistake is added to both, so that none is no certainty.

    Example:
        >>> [round(teacher_weight(0.9, top1, 1000), 1) for top1 in (0.1, 0.8, 0.85, 0.9, 0.95)]
        [1.0, 1.0, 0.7, 0.0, 0.0]
    """
    mistakes = [(1 - top1) * count + 0.5 for top1 in (teacher, student)]
    return min(1.0, max(0.0, (_NONE - mistakes[0] / mistakes[1]) / (_NONE - _FULL)))
