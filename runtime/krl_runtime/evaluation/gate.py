"""The gate of accuracy: whether a variant may be kept, from what was measured of it beside FP32.

Missing data never opens it. Without labels predictions are compared with those of FP32, and with few images only the
user can say that it is enough.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Final

from .limits import LEAST_AGREEMENT, LEAST_IMAGES, LEAST_PSNR, MAX_DROP_DB, MAX_DROP_POINTS

__all__ = ["Verdict", "judge_images", "judge_predictions", "resolution"]

_EXACT: Final = 1e-9  # 1 of 100 images is 1 point, and not 1.00…09


@dataclass(frozen=True)
class Verdict:
    """Whether a variant passes the gate.

    Attributes:
        faults: Reasons why it does not pass, each a sentence without its end; empty if it passes.
        limits: The limits that it was held to, by name.
        judged: Whether enough was measured; ``False`` if the user accepted a variant all the same.
    """

    faults: tuple[str, ...]
    limits: Mapping[str, float] = field(default_factory=dict)
    judged: bool = True

    @property
    def passes(self) -> bool:
        """Return whether there is no fault."""
        return not self.faults

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
    max_drop: float | None = None,
    accept_unmeasured: bool = False,
) -> Verdict:
    """Judge a classifier's variant.

    Args:
        precision: ``"fp16"`` or ``"int8"``.
        count: Number of images that were judged.
        agreement: Share of them, 0 to 1, with FP32's prediction; the smallest of all its files.
        drop: Largest drop of top-1 in percentage points; ``None`` without labels.
        max_drop: Largest drop that the user accepts; ``None`` for the default.
        accept_unmeasured: Whether the user accepts a variant that was judged on too few images.

    Example:
        >>> judge_predictions("int8", count=2000, agreement=0.98, drop=0.4).passes
        True
        >>> judge_predictions("int8", count=2000, agreement=0.25, drop=None).reason
        'without labels 25.0% of the predictions agree with FP32, required: 95.0%'
        >>> judge_predictions("fp16", count=16, agreement=1.0, drop=None).reason
        '16 images are too few to judge by, required: 100'
    """
    faults = []
    limits: dict[str, float] = {"least_images": LEAST_IMAGES}
    if drop is not None:
        limits["max_drop_points"] = MAX_DROP_POINTS if max_drop is None else max_drop
        if not drop <= limits["max_drop_points"] + _EXACT:
            faults.append(f"the accuracy drop is {drop:.2f} points of top-1, accepted: {limits['max_drop_points']:g}")
    else:
        limits["least_agreement"] = LEAST_AGREEMENT[precision]
        if max_drop is not None:
            faults.append("the images have no labels of the model, so that --max-drop cannot be checked")
        if not agreement >= limits["least_agreement"] - _EXACT:
            faults.append(
                f"without labels {agreement:.1%} of the predictions agree with FP32, required: "
                f"{limits['least_agreement']:.1%}"
            )
    # A limit that the user gave, on labels that the user gave, is a statement on this data, however little it is.
    few = count < LEAST_IMAGES and (drop is None or max_drop is None)
    if few and not accept_unmeasured:
        faults.append(f"{count} images are too few to judge by, required: {LEAST_IMAGES}")
    return Verdict(tuple(faults), limits, judged=not few)


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


def judge_images(
    precision: str, *, psnr: float, drop: float | None, max_drop: float | None = None, min_psnr: float | None = None
) -> Verdict:
    """Judge a variant that makes images. One image has thousands of pixels, so that a few are enough.

    Args:
        precision: ``"fp16"`` or ``"int8"``.
        psnr: PSNR in dB to the images of FP32, the mean over images; the smallest of all its files.
        drop: Largest drop of the PSNR to the true images in dB; ``None`` if they are not known.
        max_drop: Largest drop that the user accepts; ``None`` for the default.
        min_psnr: Smallest PSNR to FP32's images that the user accepts; ``None`` for the default.

    Example:
        >>> judge_images("fp16", psnr=61.0, drop=0.02).passes
        True
        >>> judge_images("int8", psnr=22.5, drop=None).reason
        'the PSNR to the images of FP32 is 22.5 dB, required: 30'
    """
    if drop is not None:
        accepted = MAX_DROP_DB if max_drop is None else max_drop
        faults = [f"the accuracy drop is {drop:.2f} dB of PSNR, accepted: {accepted:g}"]
        return Verdict(tuple(faults if not drop <= accepted + _EXACT else ()), {"max_drop_db": accepted})
    least = LEAST_PSNR[precision] if min_psnr is None else min_psnr
    faults = [f"the PSNR to the images of FP32 is {psnr:.1f} dB, required: {least:g}"]
    return Verdict(tuple(faults if not psnr >= least - _EXACT else ()), {"least_psnr_db": least})
