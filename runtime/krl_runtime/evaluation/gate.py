"""The gate of accuracy: whether a variant may be kept, from what was measured of it beside FP32.

Missing data never opens it. Without labels predictions are compared with those of FP32. Where the images are few, or
doubtful, only the user can say that they are enough.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from types import MappingProxyType

from .limits import (
    DISAGREEMENT_PER_POINT,
    ENOUGH_SNR_DB,
    EXACT,
    LEAST_AGREEMENT,
    LEAST_IMAGES,
    LEAST_PSNR,
    MAX_DROP_DB,
    MAX_DROP_POINTS,
    MAX_RECALL_DROP_POINTS,
)
from .predictions import ClassCounts

__all__ = ["Verdict", "judge_embeddings", "judge_images", "judge_predictions", "least_agreement", "sign_test"]

_RECALL_PER_POINT = 3.0  # points of recall of one class for each point of top-1: a drop is not spread evenly


@dataclass(frozen=True)
class Verdict:
    """Whether a variant passes the gate.

    Attributes:
        faults: Reasons why it does not pass, each a sentence without its end; empty if it passes.
        limits: The limits that it was held to, by name.
        doubts: Reasons why the measurement says little; faults as well, unless the user accepted them.
    """

    faults: tuple[str, ...]
    limits: Mapping[str, float] = field(default_factory=dict)
    doubts: tuple[str, ...] = ()

    @property
    def passes(self) -> bool:
        """Return whether there is no fault."""
        return not self.faults

    @property
    def judged(self) -> bool:
        """Return whether the measurement is enough to judge by."""
        return not self.doubts

    @property
    def reason(self) -> str:
        """Return the faults as one text."""
        return "; ".join(self.faults)


def judge_predictions(
    precision: str,
    *,
    count: int,
    agreement: float,
    drop: float | None,
    snr_db: float = 0.0,
    classes: Sequence[ClassCounts] = (),
    known: bool = True,
    labels: Sequence[str] = (),
    metric: str = "top-1",
    max_drop: float | None = None,
    max_recall_drop: float | None = None,
    doubts: Sequence[str] = (),
    accept_unmeasured: bool = False,
    further: Mapping[str, float] = MappingProxyType({}),
) -> Verdict:
    """Judge a classifier's variant.

    Args:
        precision: ``"fp16"`` or ``"int8"``.
        count: Number of images that were judged.
        agreement: Share of them, 0 to 1, with FP32's prediction; the smallest of all its files.
        drop: Largest drop of the metric in percentage points; ``None`` without labels.
        snr_db: Signal-to-noise ratio of its logits; the smallest of all its files.
        classes: Counts of each class, of every file of the variant; empty without labels.
        known: Whether FP32 is better than chance on the labels. Where it is not, the drop says nothing, and agreement
            counts.
        labels: Names of the classes.
        metric: Name of the metric: top-1, or mAP of a multi-label model, whose ``classes`` are its labels.
        max_drop: Largest drop that the user accepts; ``None`` for the default.
        max_recall_drop: Largest drop of the recall of one class, in percentage points, that the user accepts; ``None``
            for the default, which forgives a class what chance explains.
        doubts: Reasons why the images say nothing of the variant, each a sentence without its end.
        accept_unmeasured: Whether the user accepts a variant that was judged on too few or on doubtful images.
        further: For each further head the share of images, 0 to 1, with FP32's prediction: their labels are not known.

    Example:
        >>> judge_predictions("int8", count=2000, agreement=0.98, drop=0.4).passes
        True
        >>> judge_predictions("int8", count=2000, agreement=0.25, drop=None).reason
        'without labels 25.0% of the predictions agree with FP32, required: 95.0%'
        >>> judge_predictions("fp16", count=16, agreement=1.0, drop=None).reason
        '16 images are too few to judge by, required: 100, or logits with an SNR of 40 dB (here 0.0)'
        >>> judge_predictions("fp16", count=16, agreement=1.0, drop=None, snr_db=61.5).passes
        True
    """
    faults = []
    limits: dict[str, float] = {}
    if drop is not None:
        faults += _drop_faults(limits, drop, max_drop, metric)
        usual = max(MAX_RECALL_DROP_POINTS, _RECALL_PER_POINT * limits["max_drop_points"])
        limits["max_recall_drop_points"] = usual if max_recall_drop is None else max_recall_drop
        worst = _worst_class(classes, limits["max_recall_drop_points"], forgiving=max_recall_drop is None)
        if worst is not None:
            name = labels[worst.index] if worst.index < len(labels) else str(worst.index)
            kind = "class" if metric == "top-1" else "label"
            faults.append(
                f"the recall of {kind} {name} drops by {worst.drop:.1f} points to {worst.recall:.1%} of {worst.count} "
                f"images, accepted: {limits['max_recall_drop_points']:g} points"
            )
    else:
        faults += _unchecked({"--max-drop": max_drop, "--max-recall-drop": max_recall_drop}, "of the model")
    if drop is None or not known:
        faults += _agreement_faults(limits, precision, agreement, drop, max_drop, "of the predictions agree with FP32")
    for name, share in further.items():
        least = limits["least_further_agreement"] = least_agreement(precision, max_drop)
        if not share >= least - EXACT:
            faults.append(f"{share:.1%} of the predictions of the head {name} agree with FP32, required: {least:.1%}")
    open_doubts = [*_too_few(limits, count, drop, max_drop, snr_db, "logits"), *doubts]
    return Verdict((*faults, *(() if accept_unmeasured else open_doubts)), limits, tuple(open_doubts))


def judge_embeddings(
    precision: str,
    *,
    count: int,
    agreement: float,
    drop: float | None,
    snr_db: float = 0.0,
    known: bool = True,
    max_drop: float | None = None,
    doubts: Sequence[str] = (),
    accept_unmeasured: bool = False,
) -> Verdict:
    """Judge a variant of an embedding network.

    Args:
        precision: ``"fp16"`` or ``"int8"``.
        count: Number of images that were judged; with labels of those that recall counts.
        agreement: Share of images, 0 to 1, that are nearest to their own embedding of FP32; the smallest of all its
            files. See ``krl_runtime.evaluation.retrieval.agreement``.
        drop: Largest drop of recall@1 in percentage points; ``None`` without labels.
        snr_db: Signal-to-noise ratio of its embeddings; the smallest of all its files.
        known: Whether FP32 is better than chance on the labels. Where it is not, agreement counts.
        max_drop: Largest drop that the user accepts; ``None`` for the default.
        doubts: Reasons why the images say nothing of the variant, each a sentence without its end.
        accept_unmeasured: Whether the user accepts a variant that was judged on too few or on doubtful images.

    Example:
        >>> judge_embeddings("int8", count=2000, agreement=0.9, drop=0.4).passes
        True
        >>> judge_embeddings("int8", count=2000, agreement=0.9, drop=1.4).reason
        'the accuracy drop is 1.40 points of recall@1, accepted: 1'
        >>> judge_embeddings("int8", count=2000, agreement=0.9, drop=None).reason
        'without labels 90.0% of the images are nearest to their own embedding of FP32, required: 95.0%'
    """
    faults = []
    limits: dict[str, float] = {}
    if drop is not None:
        faults += _drop_faults(limits, drop, max_drop, "recall@1")
    else:
        faults += _unchecked({"--max-drop": max_drop}, "that two of them share")
    if drop is None or not known:
        agree = "of the images are nearest to their own embedding of FP32"
        faults += _agreement_faults(limits, precision, agreement, drop, max_drop, agree)
    open_doubts = [*_too_few(limits, count, drop, max_drop, snr_db, "embeddings"), *doubts]
    return Verdict((*faults, *(() if accept_unmeasured else open_doubts)), limits, tuple(open_doubts))


def _drop_faults(limits: dict[str, float], drop: float, max_drop: float | None, metric: str) -> list[str]:
    """Return why a drop is too large; ``limits`` gets what it was held to."""
    accepted = limits["max_drop_points"] = MAX_DROP_POINTS if max_drop is None else max_drop
    if drop <= accepted + EXACT:
        return []
    return [f"the accuracy drop is {drop:.2f} points of {metric}, accepted: {accepted:g}"]


def _unchecked(given: Mapping[str, float | None], of_what: str) -> list[str]:
    """Return a fault for each limit that the user gave and that images without labels cannot be held to."""
    return [
        f"the images have no labels {of_what}, so that {option} cannot be checked"
        for option, value in given.items()
        if value is not None
    ]


def _agreement_faults(
    limits: dict[str, float],
    precision: str,
    agreement: float,
    drop: float | None,
    max_drop: float | None,
    agree: str,
) -> list[str]:
    """Return why the agreement is too small; ``limits`` gets what it was held to, and ``agree`` says what agrees."""
    least = limits["least_agreement"] = least_agreement(precision, max_drop if drop is not None else None)
    why = "without labels" if drop is None else "where FP32 is not better than chance,"
    return [] if agreement >= least - EXACT else [f"{why} {agreement:.1%} {agree}, required: {least:.1%}"]


def _too_few(
    limits: dict[str, float], count: int, drop: float | None, max_drop: float | None, snr_db: float, outputs: str
) -> list[str]:
    """Return why the images are too few; ``limits`` gets what they were held to."""
    limits |= {"least_images": LEAST_IMAGES, "enough_snr_db": ENOUGH_SNR_DB}
    # A limit that the user gave, on labels that the user gave, is a statement on this data, if the data resolves it.
    stated = drop is not None and max_drop is not None and max_drop * count >= 100
    if count >= LEAST_IMAGES or stated or snr_db >= ENOUGH_SNR_DB:
        return []
    return [
        f"{count} images are too few to judge by, required: {LEAST_IMAGES}, or {outputs} with an SNR of "
        f"{ENOUGH_SNR_DB:g} dB (here {snr_db:.1f})"
    ]


def least_agreement(precision: str, max_drop: float | None) -> float:
    """Return the least share of predictions, 0 to 1, that have to be those of FP32 where labels do not judge them.

    Args:
        precision: ``"fp16"`` or ``"int8"``.
        max_drop: Largest drop in percentage points that the user accepts; ``None`` for the default.

    Example:
        >>> least_agreement("int8", None), round(least_agreement("int8", 5.0), 2)
        (0.95, 0.85)
    """
    least = LEAST_AGREEMENT[precision]
    return least if max_drop is None else max(0.0, min(least, 1 - DISAGREEMENT_PER_POINT * max_drop / 100))


def _worst_class(classes: Sequence[ClassCounts], accepted: float, *, forgiving: bool) -> ClassCounts | None:
    """Return the class whose recall drops most of those that drop too far; ``None`` if there is none.

    Args:
        classes: The classes, of one or several files.
        accepted: Largest drop in percentage points.
        forgiving: Whether a drop counts only if chance does not explain it. Then the sign test of the predictions that
            differ must refuse, at 5 % for all classes together (Bonferroni).
    """
    level = 0.05 / max(1, len({item.index for item in classes}))
    found = [
        item
        for item in classes
        if item.drop > accepted + EXACT and (not forgiving or sign_test(item.lost, item.gained) <= level)
    ]
    return max(found, key=lambda item: item.drop, default=None)


def sign_test(lost: int, gained: int) -> float:
    """Return the chance that at least this many of the predictions that differ are lost, if both are as likely.

    Example:
        >>> round(sign_test(4, 0), 6), round(sign_test(3, 1), 6), sign_test(0, 0)
        (0.0625, 0.3125, 1.0)
    """
    count = lost + gained
    if not lost:
        return 1.0
    whole = math.lgamma(count + 1) - count * math.log(2)  # logarithms: the numbers themselves overflow beyond 1000
    terms = (whole - math.lgamma(number + 1) - math.lgamma(count - number + 1) for number in range(lost, count + 1))
    return min(1.0, math.fsum(map(math.exp, terms)))


def judge_images(
    precision: str,
    *,
    psnr: float,
    drop: float | None,
    max_drop: float | None = None,
    min_psnr: float | None = None,
    doubts: Sequence[str] = (),
    accept_unmeasured: bool = False,
) -> Verdict:
    """Judge a variant that makes images. One image has thousands of pixels, so that a few are enough.

    Args:
        precision: ``"fp16"`` or ``"int8"``.
        psnr: PSNR in dB to the images of FP32, the mean over images; the smallest of all its files.
        drop: Largest drop of the PSNR to the true images in dB; ``None`` if they are not known.
        max_drop: Largest drop that the user accepts; ``None`` for the default.
        min_psnr: Smallest PSNR to FP32's images that the user accepts; ``None`` for the default.
        doubts: As of ``judge_predictions``.
        accept_unmeasured: Whether the user accepts a variant that was judged on doubtful images.

    Example:
        >>> judge_images("fp16", psnr=61.0, drop=0.02).passes
        True
        >>> judge_images("int8", psnr=22.5, drop=None).reason
        'the PSNR to the images of FP32 is 22.5 dB, required: 30'
    """
    limits: dict[str, float]
    if drop is not None:
        accepted = MAX_DROP_DB if max_drop is None else max_drop
        limits, passes = {"max_drop_db": accepted}, drop <= accepted + EXACT
        fault = f"the accuracy drop is {drop:.2f} dB of PSNR, accepted: {accepted:g}"
    else:
        least = LEAST_PSNR[precision] if min_psnr is None else min_psnr
        limits, passes = {"least_psnr_db": least}, psnr >= least - EXACT
        fault = f"the PSNR to the images of FP32 is {psnr:.1f} dB, required: {least:g}"
    faults = [] if passes else [fault]
    return Verdict((*faults, *(() if accept_unmeasured else doubts)), limits, tuple(doubts))
