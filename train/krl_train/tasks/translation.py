"""Training a network that turns images of one kind into another, from pairs (Isola et al. 2017).

The network is a restorer of scale 1: paper https://arxiv.org/abs/1611.07004.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import Tensor

from krl_train.config import OptimConfig, plan_optim
from krl_train.data import PatchBatch, Truths
from krl_train.models.image_to_image import PatchDiscriminator
from krl_train.models.restorers import RestorerNetwork

from .adversarial import discriminator_loss, generator_loss
from .base import Update
from .learners import make_learner
from .optim import build_optimizer
from .restoration import RestorationObjective, RestorationTask, pixel_loss

__all__ = ["TranslationObjective", "TranslationTask"]

_ADVERSARIAL = "non-saturating"


class TranslationObjective(RestorationObjective):
    """A network with the weights of what its training minimizes.

    Args:
        network: Turns an image into another one.
        pixel_weight: Of the mean absolute difference from the wanted image, in units of 0 to 1.
        adversarial_weight: Of what the discriminator says.
    """

    def __init__(self, network: RestorerNetwork, pixel_weight: float, adversarial_weight: float) -> None:
        super().__init__()
        self.network = network
        self.pixel_weight, self.adversarial_weight = pixel_weight, adversarial_weight

    def forward(self, batch: PatchBatch) -> dict[str, Tensor]:
        """Return ``"loss"`` without the discriminator's part, ``"pixels"`` before weighting, and ``"image"``."""
        image = self.network(batch.pixels)
        pixels = pixel_loss(image, batch.truth)
        return {"loss": self.pixel_weight * pixels, "pixels": pixels, "image": image}


class TranslationTask(RestorationTask):
    """Trains a network and a discriminator of pairs in turn.

    Args:
        objective: The network and its weights.
        optim: How both are trained.
        steps: Number of steps in the whole training.
        batch_size: Pairs in one step over all processes.
        val: Validation pairs.
        degradation: None: the pairs are what they are.
    """

    def __init__(
        self,
        objective: RestorationObjective,
        optim: OptimConfig,
        *,
        steps: int,
        batch_size: int,
        val: Truths,
        degradation: Mapping[str, Any],
    ) -> None:
        super().__init__(objective, optim, steps=steps, batch_size=batch_size, val=val, degradation=degradation)
        assert isinstance(objective, TranslationObjective)  # noqa: S101  for the type checker
        self.weight = objective.adversarial_weight
        if self.weight:
            discriminator = PatchDiscriminator(2 * objective.network.preprocessing.channels)
            optimizer = build_optimizer(optim, discriminator, batch_size)
            opponent = make_learner(discriminator, plan_optim(optim, steps), optimizer, steps)
            self.learners = {**self.learners, "discriminator": opponent}

    def step(self, batch: PatchBatch, update: Update) -> Mapping[str, Tensor]:
        """Move the discriminator, then the network, on one batch."""
        parts: dict[str, Tensor] = self.learners["model"].module(batch)
        image, loss = parts.pop("image"), parts["loss"]
        if self.weight:
            discriminator = self.learners["discriminator"].module
            real, fake = (discriminator(batch.pixels, item) for item in (batch.truth, image.detach()))
            judged = discriminator_loss(_ADVERSARIAL, real.float(), fake.float())
            update("discriminator", judged)
            fooled = generator_loss(_ADVERSARIAL, discriminator(batch.pixels, image).float())
            loss = loss + self.weight * fooled
            parts |= {"discriminator": judged, "adversarial": fooled}
        update("model", loss)
        return {name: value.detach() for name, value in {**parts, "loss": loss}.items()}

    def quality(self, metrics: Mapping[str, Any]) -> tuple[float, ...] | None:
        """Return the PSNR, unless a discriminator is trained as well: it asks for more than the mean of the images."""
        return super().quality(metrics) if "discriminator" not in self.learners else None
