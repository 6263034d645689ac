"""Noticing that a generator's training has failed, though all numbers are finite."""

from __future__ import annotations

import logging
from collections import deque
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from krl_runtime.errors import TrainingError

from .base import Learner

__all__ = ["CollapseAlarm", "CollapseWatch"]

_log = logging.getLogger("krl")

_MARGIN = 1.0  # of the logits: from there on the hinge loss has no gradient, and softplus a quarter of its own
_SAME = 0.02  # share of the real pixels' standard deviation within a batch: less than one gray level in fifty
_RECENT = 100  # steps that are looked back on
_ENOUGH = 50  # steps before anything is said: the first images of a generator are all gray
_SHARE = (
    0.9  # of these steps: a step between that looks well does not help. Of healthy trainings of the digits: below 0.1
)

_WON = "Lower --discriminator-lr or --discriminator-width, raise --r1, or give --diffaugment color translation cutout"
_LOWER = (
    "Lower --lr, raise --r1, give --diffaugment color translation cutout, or use another --seed or a larger "
    "--batch-size"
)


class CollapseWatch:
    """Notices that a GAN has failed, though all numbers are finite.

    Two things are watched: the discriminator makes no error any more, so that the generator learns nothing; and the
    generated images of a batch are all the same.

    Args:
        patience: Consecutive steps that either may last.
    """

    def __init__(self, patience: int) -> None:
        self.patience = patience
        self._won = self._same = 0
        self._recent: deque[tuple[bool, bool]] = deque(maxlen=_RECENT)

    def __call__(self, real: Tensor, fake: Tensor, real_pixels: Tensor, fake_pixels: Tensor) -> None:
        """Look at one step.

        Args:
            real: Logits of real images, ``[N]``.
            fake: Logits of generated images, ``[N]``.
            real_pixels: ``[N, C, H, W]``.
            fake_pixels: ``[N, C, H, W]``.

        Raises:
            TrainingError: Either has lasted too long.
        """
        won = float(torch.minimum(real.min(), -fake.max())) > _MARGIN
        spread = [float(pixels.float().std(0, unbiased=False).mean()) for pixels in (fake_pixels, real_pixels)]
        same = len(fake_pixels) > 1 and spread[0] < _SAME * spread[1]
        self._recent.append((won, same))
        self._won, self._same = self._won + 1 if won else 0, self._same + 1 if same else 0
        kept = "The last good checkpoint stays."
        if self._won > self.patience:
            raise TrainingError(
                f"the discriminator classified every image of {self._won} steps correctly with a margin; the generator "
                f"learns nothing from it. {kept} {_WON}"
            )
        if self._same > self.patience:
            raise TrainingError(
                f"the generated images of {self._same} steps are all the same (they differ by less than 2 % of what "
                f"real ones do): the generator has collapsed. {kept} {_LOWER}"
            )

    def faults(self) -> list[str]:
        """Return the faults of the last 100 steps, with advice; nothing after fewer than 50 steps."""
        steps = len(self._recent)
        if steps < _ENOUGH:
            return []
        won, same = (sum(each) for each in zip(*self._recent, strict=True))
        found = []
        if won >= _SHARE * steps:
            found.append(
                f"the discriminator classified every image correctly with a margin in {won} of the last {steps} steps; "
                f"the generator learns nothing from it. {_WON}"
            )
        if same >= _SHARE * steps:
            found.append(f"the generated images were all the same in {same} of the last {steps} steps. {_LOWER}")
        return found


class CollapseAlarm:
    """Warns of a generator that has collapsed, at evaluations, and records it.

    Args:
        steps: Number of steps in the whole training.
        watch: Of the single steps of a GAN; ``None`` for a training without a discriminator.
        advice: What to do about images that are alike, a sentence.
    """

    def __init__(self, steps: int, watch: CollapseWatch | None = None, advice: str = _LOWER) -> None:
        self.steps, self.watch, self.advice = steps, watch, advice
        self._known = False

    def __call__(self, metrics: Mapping[str, Any], learner: Learner) -> dict[str, Any]:
        """Return the metrics with ``collapsed``, true if images are alike or single steps went wrong.

        A warning is logged when it is new, and at the end; not before step 100, as young generators make gray images.

        Args:
            metrics: From ``GeneratorScore``, or none.
            learner: The generator's, whose schedule counts the steps.
        """
        faults = [] if self.watch is None else self.watch.faults()
        if metrics.get("collapsed"):
            faults.append(
                f"generated images of different latents differ by {metrics['diversity']:.1%} of what real images do. "
                f"{self.advice}"
            )
        step = learner.schedule.last_epoch
        if faults and step >= min(_RECENT, self.steps) and (not self._known or step >= self.steps):
            self._known = True
            for fault in faults:
                _log.warning("the training of the generator fails, at step %d of %d: %s", step, self.steps, fault)
        return {**metrics, "collapsed": bool(faults)}
