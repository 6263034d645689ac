"""The shared part of restorers and generators: PSNR compares images."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import numpy.typing as npt

from krl_runtime.errors import UsageError
from krl_runtime.evaluation.gate import Verdict, judge_images
from krl_runtime.evaluation.images import ImageScore, ImageTally
from krl_runtime.evaluation.limits import EXACT, LEAST_PSNR, MAX_DROP_DB

from .task import EvaluationOptions, Task, judged, largest_drop

__all__ = ["ImageTask"]


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
        if options.max_recall_drop is not None:
            raise UsageError("--max-recall-drop is for classifiers; leave it out")
        if true and options.min_psnr is not None:
            raise UsageError("--min-psnr is for models whose true images are not known; give --max-drop, in dB")
        if not true and options.max_drop is not None:
            raise UsageError(
                "--max-drop needs true images to measure against, and this model has none; give --min-psnr, in dB to "
                "the images of fp32"
            )
        self.options = options
        self.accepted = MAX_DROP_DB if options.max_drop is None else options.max_drop

    def tally(self) -> ImageTally:
        """Return an empty tally."""
        return ImageTally(self.quality)

    def quality(self, output: npt.NDArray[np.float32], truth: npt.NDArray[Any]) -> float:
        """Return the PSNR in dB of one output ``[C, H, W]`` to its truth."""
        raise NotImplementedError

    def why_refused(self, precision: str, score: ImageScore) -> str | None:
        """Return a drop that is too large, also by its standard error, or the PSNR that is missing."""
        if self.true and score.drop is not None:
            within = score.drop + (score.drop_error or 0.0) <= self.accepted + EXACT
            shown = f"a drop of {score.drop:.3f} ± {score.drop_error:.3f} dB of PSNR, accepted: {self.accepted:g}"
            return None if within else shown
        least = LEAST_PSNR[precision] if self.options.min_psnr is None else self.options.min_psnr
        within = score.psnr_to_fp32 >= least - EXACT
        return None if within else f"{score.psnr_to_fp32:.1f} dB of PSNR to the images of fp32, required: {least:g}"

    def verdict(self, precision: str, count: int, scores: Mapping[str, ImageScore]) -> Verdict:
        """Return whether variants pass the gate; see ``Task.verdict``."""
        _, *variants = scores.values()
        return judge_images(
            precision,
            psnr=min(score.psnr_to_fp32 for score in variants),
            drop=largest_drop(scores) if self.true else None,
            max_drop=self.options.max_drop,
            min_psnr=self.options.min_psnr,
            doubts=self.doubts,
            accept_unmeasured=self.options.accept_unmeasured,
        )

    def evidence(self, scores: Mapping[str, ImageScore], verdict: Verdict) -> dict[str, Any]:
        """Return the drop or the least PSNR, and the limits."""
        own = {"drop_db": largest_drop(scores)} if self.true else {"min_psnr": verdict.limits["least_psnr_db"]}
        return {**own, **judged(verdict)}
