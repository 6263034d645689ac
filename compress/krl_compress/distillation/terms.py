"""Terms of a classifier's distillation: what was asked for, or the default for the data."""

from __future__ import annotations

from dataclasses import replace

from krl_compress.config import LossConfig
from krl_compress.distillers import WeightedLoss, check_labels, parse_loss
from krl_runtime.errors import UsageError

__all__ = ["resolve_losses", "resolve_names"]

_ALPHA, _TEMPERATURE = 0.1, 4.0  # https://arxiv.org/abs/1910.10699
# Chosen by benchmarks/compress/suite.py; docs/results.md has the table. The paper's weight of dkd, 1, is for hundreds
# of epochs with a warm-up: its gradient is ten times that of the labels.
_DEFAULT = ("ce", "dkd:weight=0.3,alpha=1,beta=2,temperature=4,adaptive")
_DEFAULT_OF_MIXED = ("ce", "kd:weight=0.9,temperature=4,adaptive")  # dkd needs one label for each image
# Of images with several labels: the binary divergence from the teacher's sigmoids, the mean over the labels as that of
# bce is, with the same weight. Not tuned: the weights 1 and 3 differ by less than seeds do (docs/results.md).
_WEIGHT_OF_SEVERAL, _TEMPERATURE_OF_SEVERAL = 1.0, 1.0


def resolve_losses(
    config: LossConfig, label_smoothing: float, *, mixup: bool = False, several: int | None = None
) -> list[WeightedLoss]:
    """Return the terms that a configuration asks for: those of ``--loss``, Hinton's two, or the default ones.

    Args:
        config: What the user asked for.
        label_smoothing: Of the cross-entropy, unless ``--loss ce:label_smoothing=…`` says otherwise.
        mixup: Whether images are mixed, which then have two labels.
        several: Of multi-label data the number of labels; ``None`` where each image has one class.

    Raises:
        UsageError: A term is not known, is for other data, or nothing would be left to minimize without the teacher.
    """
    if config.loss:
        terms = [parse_loss(text) for text in config.loss]
    elif several is not None:
        terms = _of_several(config, several)
    elif config.alpha is None and config.temperature is None:
        terms = [parse_loss(text) for text in (_DEFAULT_OF_MIXED if mixup else _DEFAULT)]
    else:
        alpha = _ALPHA if config.alpha is None else config.alpha
        temperature = _TEMPERATURE if config.temperature is None else config.temperature
        kd = WeightedLoss("kd", 1 - alpha, options={"temperature": temperature})
        terms = [WeightedLoss("ce", alpha), kd]
    check_labels(terms, several=several is not None)
    if all(term.adaptive for term in terms):
        raise UsageError(
            f"--loss {config.loss[0]}: every loss is adaptive, and nothing would be left to learn by once the student "
            f"is as good as the teacher; add --loss {'ce' if several is None else 'bce'}, or leave adaptive out of one"
        )
    smooth = {"label_smoothing": label_smoothing}
    return [replace(term, options={**smooth, **term.options}) if term.name == "ce" else term for term in terms]


def resolve_names(config: LossConfig) -> None:
    """Check that the losses that are asked for are known.

    Raises:
        UsageError: One is not.
    """
    for text in config.loss:
        parse_loss(text)


def _of_several(config: LossConfig, labels: int) -> list[WeightedLoss]:
    """Return the terms for images with several labels, for as many labels as there are."""
    options = {"temperature": _TEMPERATURE_OF_SEVERAL if config.temperature is None else config.temperature}
    if config.alpha is None:
        return [WeightedLoss("bce", 1.0), WeightedLoss("logistic", _WEIGHT_OF_SEVERAL / labels, options=options)]
    # "logistic" is a sum over the labels, "bce" a mean.
    return [WeightedLoss("bce", config.alpha), WeightedLoss("logistic", (1 - config.alpha) / labels, options=options)]
