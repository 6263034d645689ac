"""Training a generator against a discriminator."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any, TypeAlias

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn

from krl_train.conditioning import Conditions
from krl_train.config import GenerationConfig, OptimConfig, plan_optim
from krl_train.data.diffaugment import diffaugment
from krl_train.metrics.guide import Guide
from krl_train.models.discriminators import Discriminator
from krl_train.models.generators import GeneratorNetwork
from krl_train.models.sampling import sample_grid
from krl_train.worker import Worker

from .adversarial import discriminator_loss, generator_loss, r1_penalty
from .base import Batch, Learner, Task, Update
from .collapse import CollapseAlarm, CollapseWatch
from .learners import gan_adam, growing_average, make_learner

__all__ = ["GanTask", "Score", "averaged_generator", "generator_learner"]

_EMA = 0.999  # decay of a generator's average: over the last thousand steps, some epochs of a small set
_R1_EVERY = 16  # steps, lazily regularized as in StyleGAN2 (Karras et al. 2020)

Score: TypeAlias = Callable[[GeneratorNetwork, Worker], dict[str, Any]]
"""Measures a generator in eval mode."""


def generator_learner(
    module: nn.Module, generator: GeneratorNetwork, optim: OptimConfig, steps: int, *, lr: float | None
) -> Learner:
    """Return a learner whose average is that of a generator.

    Args:
        module: What is trained: the generator, or what holds it.
        generator: The part of it that the run keeps.
        optim: Schedule, largest gradient and decay of the average.
        steps: Number of optimization steps in the whole training.
        lr: Peak learning rate; DCGAN's where there is none.
    """
    planned = replace(plan_optim(optim, steps), ema=optim.ema or _EMA)
    average = growing_average(generator, planned.ema)
    return make_learner(module, planned, gan_adam(module, lr), steps, average=average, average_of=generator)


def averaged_generator(learner: Learner) -> GeneratorNetwork:
    """Return the moving average of a learner's generator, which the run keeps."""
    assert learner.average is not None  # noqa: S101  for the type checker
    assert isinstance(learner.average.module, GeneratorNetwork)  # noqa: S101  for the type checker
    return learner.average.module


class GanTask(Task[Batch]):
    """Trains a generator and a discriminator in turn.

    Args:
        generator: What the run keeps, as its moving average.
        discriminator: Its opponent.
        options: The adversarial loss and what stabilizes it.
        optim: Learning rate, schedule, largest gradient and moving average; the optimizer is Adam.
        steps: Number of steps in the whole training.
        conditions: Of the training images; ``None`` for a generator without.
        guide: What else the generator minimizes, a function of its images ``[N, C, H, W]`` and their tokens.
        guide_weight: Factor of that.
        score: Measures the generator at evaluations; ``None`` measures nothing.
    """

    def __init__(
        self,
        generator: GeneratorNetwork,
        discriminator: Discriminator,
        options: GenerationConfig,
        optim: OptimConfig,
        *,
        steps: int,
        conditions: Conditions | None = None,
        guide: Guide | None = None,
        guide_weight: float = 1.0,
        score: Score | None = None,
    ) -> None:
        self.generator, self.discriminator, self.options = generator, discriminator, options
        self.conditions, self.guide, self.guide_weight, self.score = conditions, guide, guide_weight, score
        self.adversarial_weight = 1.0
        self.watch = CollapseWatch(options.patience)
        self.alarm = CollapseAlarm(steps, self.watch)
        lr = options.discriminator_lr or optim.lr
        self._judging = [parameter for parameter in discriminator.parameters() if parameter.requires_grad]
        self.learners = {
            "generator": generator_learner(generator, generator, optim, steps, lr=optim.lr),
            "discriminator": make_learner(discriminator, plan_optim(optim, steps), gan_adam(discriminator, lr), steps),
        }

    def step(self, batch: Batch, update: Update) -> Mapping[str, Tensor]:
        """Move the discriminator, then the generator, on one batch."""
        device = batch.pixels.device
        condition = None if self.conditions is None else self.conditions.draw(batch.indices).to(device)
        latent = torch.randn(len(batch.pixels), self.generator.latent_size, device=device)
        images, others = self.generate(latent, condition)
        parts = self._step_discriminator(batch, images.detach(), condition, update)
        parts |= self._step_generator(images, others, condition, update)
        parts["loss"] = parts["generator"] + parts["discriminator"]
        return parts

    def generate(self, latent: Tensor, condition: Tensor | None) -> tuple[Tensor, dict[str, Tensor]]:
        """Return images ``[N, C, H, W]``, and what else the generator minimizes: scalars by name, weighted."""
        images = self.learners["generator"].module(latent, condition)
        if self.guide is None or condition is None:
            return images, {}
        return images, {"guide": self.guide_weight * self.guide.to(images.device)(images, condition)}

    def _judge(self, images: Tensor, condition: Tensor | None) -> Tensor:
        module = self.learners["discriminator"].module
        logits: Tensor = module(diffaugment(images.float(), self.options.diffaugment), condition)
        return logits.float()

    def _step_discriminator(
        self, batch: Batch, images: Tensor, condition: Tensor | None, update: Update
    ) -> dict[str, Tensor]:
        real, fake = self._judge(batch.pixels, condition), self._judge(images, condition)
        self.watch(real.detach(), fake.detach(), batch.pixels, images)
        loss = discriminator_loss(self.options.adversarial, real, fake)
        parts = {"discriminator": loss.detach()}
        if self.options.r1 and int(torch.randint(_R1_EVERY, (1,))) == 0:
            # Lazily: one step in sixteen, and sixteen times as much (https://arxiv.org/abs/1912.04958). Drawn, not
            # counted: the loop seeds each step, so that a resumed run takes the same ones.
            unit = 1 / self.discriminator.scale
            penalty = r1_penalty(lambda pixels: self._judge(pixels, condition), batch.pixels, unit)
            loss = loss + 0.5 * self.options.r1 * _R1_EVERY * penalty
        update("discriminator", loss)
        return parts

    def _step_generator(
        self, images: Tensor, others: Mapping[str, Tensor], condition: Tensor | None, update: Update
    ) -> dict[str, Tensor]:
        self._need_gradients(False)  # they would be thrown away
        loss = generator_loss(self.options.adversarial, self._judge(images, condition))
        loss = self.adversarial_weight * loss
        parts = {"generator": loss.detach(), **{name: value.detach() for name, value in others.items()}}
        for value in others.values():
            loss = loss + value
        update("generator", loss)
        self._need_gradients(True)
        return parts

    def _need_gradients(self, wanted: bool) -> None:
        """Say whether the discriminator's own parameters need gradients, but for frozen ones."""
        for parameter in self._judging:
            parameter.requires_grad_(wanted)

    def final(self) -> GeneratorNetwork:
        """Return the moving average of the generator, which the run keeps."""
        return averaged_generator(self.learners["generator"])

    def evaluate(self, worker: Worker) -> dict[str, Any]:
        """Score the moving average of the generator, and say whether it has collapsed."""
        found = {} if self.score is None else self.score(self.final().eval(), worker)
        return self.alarm(found, self.learners["generator"])

    def samples(self) -> Mapping[str, npt.NDArray[np.uint8]]:
        """Return a grid of 64 images of the same latents each time; with conditions each row has another one."""
        tokens = None if self.conditions is None else self.conditions.tokens
        return {"samples": sample_grid(self.final().eval(), tokens)}

    def state(self) -> dict[str, Tensor]:
        """Return the weights of the moving average's backbone."""
        return self.final().backbone.state_dict()

    def discriminator_state(self) -> dict[str, Tensor]:
        """Return the weights of the discriminator, with which another training may start."""
        return self.discriminator.state_dict()
