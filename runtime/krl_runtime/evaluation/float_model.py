"""The gate of a quantized file's float model: whether it computes what the file does, as far as images can tell.

The float model is read from a Q/DQ file by removing its Q/DQ pairs. A file that is worse than its own float model has
poor ranges, which is no fault of the model. So only a model that is clearly worse than the file is refused. Without
labels or true images nothing tells which of two different ones is right.
"""

from __future__ import annotations

from typing import Final

from .gate import Verdict, sign_test
from .images import ImageScore
from .labels import LabelScore
from .limits import AGREEMENT_FLOOR, LEAST_IMAGES, MAX_DROP_DB, MAX_DROP_POINTS, PSNR_FLOOR
from .predictions import PredictionScore

__all__ = ["judge_float_images", "judge_float_predictions"]

_LEVEL: Final = 0.05
"""Chance at which a sign test counts as evidence, as for the recall of classes. It asks for at least five predictions
that only the file has right, so that the float model of another network is seen on eight images; one in twenty of those
that are as good as the file could be refused, if they differ from it often and the drop is too large as well."""

_CLEAR_ERRORS: Final = 3
"""Standard errors beyond which a mean difference of few images is no chance: 99.9 % of a normal distribution."""

_ENOUGH_PAIRS: Final = 2  # images that a standard error can be taken from


def judge_float_predictions(
    score: PredictionScore,
    reference: PredictionScore,
    count: int,
    *,
    max_drop: float | None = None,
    accept_unmeasured: bool = False,
) -> Verdict:
    """Judge the float model of a classifier's quantized file.

    Args:
        score: Of the file, with its float model as the reference.
        reference: Of the float model. Where neither is better than chance on the labels, agreement counts.
        count: Number of images.
        max_drop: Largest drop of top-1 from the file to the float model, in percentage points, that the user accepts;
            ``None`` for the default.
        accept_unmeasured: Whether the user accepts a model that only agreement speaks against.

    Example:
        >>> file, reference = (PredictionScore(None, None, None, share, 12.0, 3.0) for share in (0.3, 1.0))
        >>> judge_float_predictions(file, reference, 16).passes, judge_float_predictions(file, reference, 200).passes
        (True, False)
    """
    few = f"{count} images are too few to judge by, required: {LEAST_IMAGES}; one is worth {100 / count:.2g} points"
    doubts = [few] * (count < LEAST_IMAGES)
    known = score.better_than_chance or reference.better_than_chance
    if score.drop is not None and known:
        accepted = MAX_DROP_POINTS if max_drop is None else max_drop
        lost, gained = (sum(getattr(item, name) for item in score.classes) for name in ("gained", "lost"))
        clear = sign_test(lost, gained) <= _LEVEL
        if isinstance(score, LabelScore):  # predictions of a label at a threshold do not make its mAP
            clear = -score.drop - _CLEAR_ERRORS * (score.drop_error or 0.0) > accepted
        worse = -score.drop > accepted and clear
        fault = (
            f"the float model of the quantized file is worse than the file: {score.METRIC_NAME} drops by "
            f"{-score.drop:.2f} ± {score.drop_error or 0.0:.2f} points on {count} images, accepted: {accepted:g}"
        )
        return Verdict((fault,) * worse, {"max_drop_points": accepted, "level": _LEVEL}, tuple(doubts))
    agreeing = round(score.agreement * count)
    limits = {"least_agreement": AGREEMENT_FLOOR, "least_images": float(LEAST_IMAGES), "level": _LEVEL}
    if sign_test(count - agreeing, agreeing) > _LEVEL:
        return Verdict((), limits, tuple(doubts))
    why = "without labels" if score.drop is None else "where neither is better than chance on the labels,"
    unlike = (
        f"{why} the float model of the quantized file agrees with it on {score.agreement:.1%} of {count} images, "
        f"required: {AGREEMENT_FLOOR:.0%}; nothing tells which of them is right"
    )
    refused = count >= LEAST_IMAGES and not accept_unmeasured
    return Verdict((unlike,) * refused, limits, (*doubts, unlike))


def judge_float_images(
    score: ImageScore, count: int, *, max_drop: float | None = None, accept_unmeasured: bool = False
) -> Verdict:
    """Judge the float model of a quantized file that makes images.

    Args:
        score: Of the file, with its float model as the reference.
        count: Number of images.
        max_drop: Largest drop of PSNR from the file to the float model, in dB, that the user accepts; ``None`` for the
            default.
        accept_unmeasured: Whether the user accepts a model that only the PSNR between both speaks against.

    Example:
        >>> judge_float_images(ImageScore(30.1, 0.5, 0.1, 38.0, 30.0, 9.0), 5).passes
        True
        >>> judge_float_images(ImageScore(None, None, None, 12.0, 3.0, 90.0), 5).passes
        False
    """
    if score.psnr is not None and score.drop is not None:
        accepted, error = MAX_DROP_DB if max_drop is None else max_drop, score.drop_error or 0.0
        few = f"{count} image is too few to judge by, required: {_ENOUGH_PAIRS}"
        doubts = (few,) * (count < _ENOUGH_PAIRS)
        worse = not doubts and -score.drop - _CLEAR_ERRORS * error > accepted
        fault = (
            f"the float model of the quantized file is worse than the file: PSNR drops by {-score.drop:.2f} ± "
            f"{error:.2f} dB on {count} images, accepted: {accepted:g}"
        )
        return Verdict((fault,) * worse, {"max_drop_db": accepted, "errors": float(_CLEAR_ERRORS)}, doubts)
    limits = {"least_psnr_db": PSNR_FLOOR}
    if score.psnr_to_fp32 >= PSNR_FLOOR:
        return Verdict((), limits)
    unlike = (
        f"without true images the float model of the quantized file has {score.psnr_to_fp32:.1f} dB of PSNR to the "
        f"file's images, required: {PSNR_FLOOR:g}; nothing tells which of them is right"
    )
    return Verdict((unlike,) * (not accept_unmeasured), limits, (unlike,))
