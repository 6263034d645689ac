"""The shared part of restorers and generators: PSNR compares images."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
import numpy.typing as npt

from krl_runtime.errors import UsageError
from krl_runtime.evaluation.gate import Verdict, judge_images
from krl_runtime.evaluation.limits import LEAST_PSNR, MAX_DROP_DB, SAME_IMAGE_DB
from krl_runtime.images.luma import mean_psnr

from .paired import EXACT, Paired, Pairs
from .task import AccuracyDrop, EvaluationOptions, Task, worst

__all__ = ["ImageScore", "ImageTally", "ImageTask"]

_SLACK = 6.0  # dB: twice the error, as for logits


@dataclass(frozen=True)
class ImageScore:
    """Images that one variant of a model makes.

    Attributes:
        psnr: In dB to the true images, the mean over images; ``None`` if they are not known.
        psnr_to_fp32: In dB to those of the reference, the mean over images; 200 if they are equal.
        max_error: Largest absolute difference of a value from the reference's, in levels of 255.
    """

    psnr: float | None
    psnr_to_fp32: float
    max_error: float

    HEADER: ClassVar[tuple[str, ...]] = ("PSNR in dB", "drop in dB", "dB to fp32", "largest error")

    def cells(self, reference: ImageScore) -> tuple[str | None, ...]:
        """Return the score for people, beside that of the reference."""
        known = self.psnr is not None and reference.psnr is not None
        return (
            None if self.psnr is None else f"{self.psnr:.3f}",
            f"{reference.psnr - self.psnr:.3f}" if known else None,  # type: ignore[operator]
            f"{self.psnr_to_fp32:.2f}",
            f"{self.max_error:.4g}",
        )


class ImageTally:
    """Sums PSNR.

    Args:
        quality: PSNR in dB of one output ``[C, H, W]`` and its truth.
    """

    def __init__(self, quality: Callable[[npt.NDArray[np.float32], npt.NDArray[Any]], float]) -> None:
        self.quality = quality
        self.truths: list[float] = []
        self.references: list[float] = []
        self.error = 0.0

    def add(
        self, outputs: npt.NDArray[np.float32], reference: npt.NDArray[np.float32], truth: npt.NDArray[Any] | None
    ) -> None:
        """Count one batch ``[N, C, H, W]``. A truth is that of the batch's only image."""
        pairs = zip(outputs, reference, strict=True)
        self.references += [mean_psnr(one[None], other[None]) for one, other in pairs]
        self.error = max(self.error, float(np.abs(outputs - reference).max()))
        if truth is not None:
            self.truths.append(self.quality(outputs[0], truth))

    def score(self) -> ImageScore:
        """Return the score of all batches."""
        known = len(self.truths) == len(self.references)
        return ImageScore(float(np.mean(self.truths)) if known else None, float(np.mean(self.references)), self.error)


class ImageTask(Task):
    """A task whose outputs are images.

    Args:
        options: The options. Options for other tasks are refused.
        true: Whether there are true images to measure against.
    """

    def __init__(self, options: EvaluationOptions, *, true: bool) -> None:
        self.true = true
        if options.from_generator is not None:
            raise UsageError("--from-generator makes images for classifiers to be calibrated on; leave it out")
        if true and options.min_psnr is not None:
            raise UsageError("--min-psnr is for models whose true images are not known; give --max-drop, in dB")
        if not true and options.max_drop is not None:
            raise UsageError(
                "--max-drop needs true images to measure against, and this model has none; give --min-psnr, in dB to "
                "the images of fp32"
            )
        self.options = options
        self.accepted = MAX_DROP_DB if options.max_drop is None else options.max_drop
        self.least = SAME_IMAGE_DB if options.min_psnr is None else options.min_psnr

    def tally(self) -> ImageTally:
        """Return an empty tally."""
        return ImageTally(self.quality)

    def quality(self, output: npt.NDArray[np.float32], truth: npt.NDArray[Any]) -> float:
        """Return the PSNR in dB of one output ``[C, H, W]`` to its truth."""
        raise NotImplementedError

    def pairs(
        self, outputs: npt.NDArray[np.float32], reference: npt.NDArray[np.float32], truth: npt.NDArray[Any] | None
    ) -> Pairs:
        """Return the PSNR in dB of each image to FP32's, and what it lost of its PSNR to the true image."""
        alike = np.array([mean_psnr(one[None], other[None]) for one, other in zip(outputs, reference, strict=True)])
        if truth is None or not self.true:
            return alike, None
        return alike, np.array([self.quality(reference[0], truth) - self.quality(outputs[0], truth)])

    def why_refused(self, precision: str, paired: Paired) -> str | None:
        """Return a drop that is too large, also by its standard error, or the PSNR that is missing."""
        if paired.drop is not None:
            within = paired.drop + paired.error <= self.accepted + EXACT
            shown = f"a drop of {paired.drop:.3f} ± {paired.error:.3f} dB of PSNR, accepted: {self.accepted:g}"
            return None if within else shown
        least = LEAST_PSNR[precision] if self.options.min_psnr is None else self.options.min_psnr
        within = paired.alike >= least - EXACT
        return None if within else f"{paired.alike:.1f} dB of PSNR to the images of fp32, required: {least:g}"

    def alike(self, outputs: npt.NDArray[np.float32], expected: npt.NDArray[np.float32]) -> float:
        """Return the PSNR in dB, the mean over images."""
        return mean_psnr(outputs, expected)

    def floor(self, alike: float, count: int, slack: int) -> dict[str, float]:
        """Return the PSNR that the self-test requires."""
        return {"psnr": alike - _SLACK}

    def accuracy_drop(self, scores: Mapping[str, ImageScore]) -> AccuracyDrop:
        """Return dB of PSNR to the true images. Without them return the dB below ``--min-psnr`` to fp32's images."""
        _, *variants = scores.values()
        drop = self._drop(scores)
        if drop is not None:
            return AccuracyDrop(drop, "dB of PSNR", self.accepted)
        missing = worst([self.least - score.psnr_to_fp32 for score in variants])
        return AccuracyDrop(max(0.0, missing), f"dB of the {self.least:g} of PSNR that it should have to fp32", 0.0)

    def verdict(self, precision: str, count: int, scores: Mapping[str, ImageScore]) -> Verdict:
        """Return whether variants pass the gate; see ``Task.verdict``."""
        _, *variants = scores.values()
        return judge_images(
            precision,
            psnr=min(score.psnr_to_fp32 for score in variants),
            drop=self._drop(scores),
            max_drop=self.options.max_drop,
            min_psnr=self.options.min_psnr,
        )

    def evidence(self, scores: Mapping[str, ImageScore], verdict: Verdict) -> dict[str, Any]:
        """Return the drop or the least PSNR, and the limits."""
        own = {"drop_db": self._drop(scores)} if self.true else {"min_psnr": self.least}
        return {**own, "limits": dict(verdict.limits), "judged": verdict.judged}

    def _drop(self, scores: Mapping[str, ImageScore]) -> float | None:
        """Return the largest drop of PSNR to the true images in dB; ``None`` if they are not known."""
        reference, *variants = scores.values()
        if not self.true or reference.psnr is None:
            return None
        return worst([reference.psnr - (score.psnr or 0.0) for score in variants])
