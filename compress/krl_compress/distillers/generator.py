"""A student generator that makes what its teacher makes of the same latents and conditions."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from krl_compress.losses.alignment import kernel_alignment
from krl_runtime.errors import UsageError
from krl_train.conditioning import Conditions
from krl_train.config import GenerationConfig, OptimConfig
from krl_train.evaluation.deployed import DeployedGenerator
from krl_train.metrics.generation import FeatureNet, same_latent
from krl_train.models.discriminators import Discriminator
from krl_train.models.generator_backbones import MapGenerator
from krl_train.models.generators import GeneratorNetwork
from krl_train.models.network import fit_images
from krl_train.models.sampling import sample_grid, sample_latents
from krl_train.tasks import Batch, Learner, Task, Update
from krl_train.tasks.adversarial import generator_loss
from krl_train.tasks.collapse import CollapseAlarm
from krl_train.tasks.gan import GanTask, Score, averaged_generator, generator_learner
from krl_train.worker import Worker

from .weighted_losses import Loss

__all__ = [
    "COMPARED",
    "GENERATION_LOSSES",
    "AdversarialStudentTask",
    "OnlineStudentTask",
    "StudentObjective",
    "StudentTask",
    "compare_with_teacher",
]

COMPARED = 1000
"""Number of latents on which student and teacher are compared at an evaluation: dB that change by hundredths."""
_ADVICE = "Look at the samples of the teacher; lower --lr, give a larger student, or train longer"
_SEED = 1  # of those latents; training draws from the run's seed


def compare_with_teacher(
    student: GeneratorNetwork, teacher: GeneratorNetwork | DeployedGenerator, conditions: Conditions | None
) -> dict[str, float | None]:
    """Return the figures of ``same_latent`` on 1000 latents and conditions, the same each time.

    Args:
        student: In eval mode.
        teacher: In eval mode.
        conditions: Of the training images; ``None`` for generators without.
    """
    latents, tokens = sample_latents(COMPARED, student.latent_size, _SEED), None
    if conditions is not None:
        tokens = conditions.tokens[torch.arange(COMPARED) * len(conditions.tokens) // COMPARED]
    return same_latent(student, teacher, latents, tokens)


def _difference(student: Tensor, teacher: Tensor) -> Tensor:
    return (student - teacher).abs().mean()


def _relative(student: Tensor, teacher: Tensor) -> Tensor:
    """Return the mean squared difference as a share of the teacher's mean square."""
    return F.mse_loss(student, teacher) / teacher.square().mean().clamp(min=1e-8)


GENERATION_LOSSES: Mapping[str, Loss] = {
    "pixels": Loss(_difference, "restored", weight=10.0),
    "squares": Loss(F.mse_loss, "restored", weight=10.0),
    "features": Loss(_relative, "maps", adapter="projection"),
    "kernel": Loss(kernel_alignment, "maps", couples=True),
    "perceptual": Loss(_relative, "embedding"),
    "adversarial": Loss(generator_loss, "restored"),
}
"""The losses by the name that ``--loss`` takes; ``StudentObjective`` says what each is."""


class StudentObjective(nn.Module):
    """The losses of a student beside an adversarial one.

    - ``pixels``: mean absolute difference, in the units that images are normalized to (-1 to 1);
    - ``squares``: mean squared difference, in the same units (https://arxiv.org/abs/1902.00159);
    - ``features``: mean squared difference of the maps at each resolution that both have, the student's through a 1×1
      convolution (https://arxiv.org/abs/2003.08936), as a share of the teacher's mean square;
    - ``kernel``: kernel alignment of these maps (https://arxiv.org/abs/2103.03467);
    - ``perceptual``: mean squared difference of a classifier's features, as a share of the teacher's mean square.

    Args:
        student: What is trained.
        teacher: Not trained here; it stays in eval mode.
        weights: Of the terms, by name.
        classifier: For ``perceptual``.

    Raises:
        UsageError: The two take other latents or make other images, or a term needs what they have not.
    """

    def __init__(
        self,
        student: GeneratorNetwork,
        teacher: GeneratorNetwork | DeployedGenerator,
        weights: Mapping[str, float],
        classifier: FeatureNet | None = None,
    ) -> None:
        super().__init__()
        if student.latent_size != teacher.latent_size or student.preprocessing.shape != teacher.preprocessing.shape:
            raise UsageError("a student takes the latents of its teacher and makes images of the same size")
        if "perceptual" in weights and classifier is None:
            raise UsageError("--loss perceptual needs a classifier; give --perceptual RUN")
        self.student, self.classifier = student, classifier
        self.weights = dict(weights)
        # Not a submodule: neither the optimizer, nor train(), nor a checkpoint has anything to do with it.
        self._teacher = (teacher.eval(),)
        self.taps = self._match() if {"features", "kernel"} & set(weights) else []
        self.adapters = nn.ModuleList(
            nn.Conv2d(mine, theirs, 1) for mine, theirs in self._channels() if "features" in weights
        )

    @property
    def teacher(self) -> GeneratorNetwork | DeployedGenerator:
        """The teacher."""
        return self._teacher[0]

    def _match(self) -> list[tuple[int, int]]:
        """Pair the maps of the same resolution, by their indices."""
        nets = [getattr(net, "backbone", None) for net in (self.student, self.teacher)]
        sizes = [net.levels for net in nets if isinstance(net, MapGenerator)]
        if len(sizes) < 2:
            raise UsageError(
                "--loss features and kernel compare convolutional maps; an mlp-… generator has none, and "
                "a bundle shows none"
            )
        taps = [(sizes[0].index(size), index) for index, size in enumerate(sizes[1]) if size in sizes[0]]
        if not taps:
            raise UsageError(
                f"--loss features and kernel: the student has maps of {sizes[0]}, the teacher of {sizes[1]}, none alike"
            )
        return taps

    @torch.no_grad()
    def _channels(self) -> list[tuple[int, int]]:
        if not self.taps:
            return []
        example = _example(self.student)
        maps = [_run(net.eval(), *example)[1] for net in (self.student, self.teacher)]
        self.student.train()
        return [(maps[0][mine].shape[1], maps[1][theirs].shape[1]) for mine, theirs in self.taps]

    def forward(self, latent: Tensor, condition: Tensor | None = None) -> tuple[Tensor, dict[str, Tensor]]:
        """Return the student's images ``[N, C, H, W]`` in 0 to 255, and the weighted terms by name."""
        images, mine = _run(self.student, latent, condition)
        with torch.no_grad():
            target, theirs = _run(self.teacher.to(latent.device), latent, condition)
        terms: dict[str, Tensor] = {}
        for name, function in (("pixels", _difference), ("squares", F.mse_loss)):
            if name in self.weights:
                terms[name] = function(images / self.student.scale, target / self.student.scale)
        pairs = [(mine[first].float(), theirs[second].float()) for first, second in self.taps]
        if "features" in self.weights:
            adapted = zip(self.adapters, pairs, strict=True)
            terms["features"] = _mean([_relative(adapter(first), second) for adapter, (first, second) in adapted])
        if "kernel" in self.weights:
            terms["kernel"] = _mean([kernel_alignment(first, second) for first, second in pairs])
        if self.classifier is not None and "perceptual" in self.weights:
            network = self.classifier.network.to(latent.device)
            seen = [self.classifier.features(fit_images(each, network.preprocessing)) for each in (images, target)]
            terms["perceptual"] = _relative(seen[0], seen[1])
        return images, {name: self.weights[name] * value for name, value in terms.items()}


def _run(
    generator: GeneratorNetwork | DeployedGenerator, latent: Tensor, condition: Tensor | None
) -> tuple[Tensor, list[Tensor]]:
    """Return a generator's images in 0 to 255, and its maps."""
    if isinstance(generator, DeployedGenerator):
        return generator(latent, condition), []
    backbone = generator.backbone
    if not isinstance(backbone, MapGenerator):
        return generator(latent, condition), []
    maps, normalized = backbone.features(latent, condition)
    return generator.images(normalized), maps


def _example(generator: GeneratorNetwork) -> tuple[Tensor, Tensor | None]:
    device = next(generator.parameters()).device
    length = None if generator.condition is None else int(generator.condition["length"])
    condition = None if length is None else torch.zeros(1, length, dtype=torch.int64, device=device)
    return torch.zeros(1, generator.latent_size, device=device), condition


def _mean(values: list[Tensor]) -> Tensor:
    return torch.stack(values).mean()


class _Follower(Task[Batch]):
    """How a student is measured and shown, whatever it is trained against."""

    objective: StudentObjective
    student: Learner
    conditions: Conditions | None
    score: Score | None
    alarm: CollapseAlarm

    def final(self) -> GeneratorNetwork:
        """Return the moving average of the student, which the run keeps."""
        return averaged_generator(self.student)

    def evaluate(self, worker: Worker) -> dict[str, Any]:
        """Compare the student with its teacher on the same latents, and score it."""
        student, teacher = self.final().eval(), self.objective.teacher.to(worker.device)
        close = compare_with_teacher(student, teacher, self.conditions)
        return self.alarm({**close, **({} if self.score is None else self.score(student, worker))}, self.student)

    def samples(self) -> Mapping[str, npt.NDArray[np.uint8]]:
        """Return the teacher's images (left) and the student's (right) of the same latents."""
        tokens = None if self.conditions is None else self.conditions.tokens
        grids = [sample_grid(net, tokens) for net in (self.objective.teacher, self.final().eval())]
        gap = np.full((grids[0].shape[0], 4, grids[0].shape[2]), 128, np.uint8)
        return {"samples": np.concatenate([grids[0], gap, grids[1]], 1)}

    def state(self) -> dict[str, Tensor]:
        """Return the weights of the student's moving average."""
        return self.final().backbone.state_dict()


class StudentTask(_Follower):
    """A student that follows its teacher, without a discriminator.

    Args:
        objective: What is minimized.
        optim: Learning rate, schedule, largest gradient and moving average; the optimizer is Adam.
        steps: Number of steps in the whole training.
        conditions: Of the training images; ``None`` for generators without.
        score: Measures the student at evaluations.
    """

    def __init__(
        self,
        objective: StudentObjective,
        optim: OptimConfig,
        *,
        steps: int,
        conditions: Conditions | None = None,
        score: Score | None = None,
    ) -> None:
        self.objective, self.conditions, self.score = objective, conditions, score
        self.student = generator_learner(objective, objective.student, optim, steps, lr=optim.lr)
        self.learners = {"student": self.student}
        self.alarm = CollapseAlarm(steps, advice=_ADVICE)

    def step(self, batch: Batch, update: Update) -> Mapping[str, Tensor]:
        """Follow the teacher on one batch of latents."""
        device = batch.pixels.device
        condition = None if self.conditions is None else self.conditions.draw(batch.indices).to(device)
        latent = torch.randn(len(batch.pixels), self.objective.student.latent_size, device=device)
        _, terms = self.student.module(latent, condition)
        loss = torch.stack(list(terms.values())).sum()
        update("student", loss)
        return {"loss": loss.detach(), **{name: value.detach() for name, value in terms.items()}}


class AdversarialStudentTask(_Follower, GanTask):
    """A student that follows its teacher and has a discriminator of its own, which sees real images.

    Args:
        objective: What is minimized beside the adversarial loss, whose weight is ``objective.weights["adversarial"]``.
        discriminator: The student's opponent.
        options: The adversarial loss and what stabilizes it.
        optim: As for ``GanTask``.
        steps: Number of steps in the whole training.
        conditions: Of the training images; ``None`` for generators without.
        score: Measures the student at evaluations.
    """

    def __init__(
        self,
        objective: StudentObjective,
        discriminator: Discriminator,
        options: GenerationConfig,
        optim: OptimConfig,
        *,
        steps: int,
        conditions: Conditions | None = None,
        score: Score | None = None,
    ) -> None:
        super().__init__(
            objective.student, discriminator, options, optim, steps=steps, conditions=conditions, score=score
        )
        self.objective = objective
        self.adversarial_weight = objective.weights["adversarial"]
        # In the generator's tap, as the adapters learn as well.
        self.student = generator_learner(objective, objective.student, optim, steps, lr=optim.lr)
        self.learners = {**self.learners, "generator": self.student}

    def generate(self, latent: Tensor, condition: Tensor | None) -> tuple[Tensor, dict[str, Tensor]]:
        """Return the student's images and the terms that compare them with the teacher's."""
        images, terms = self.student.module(latent, condition)
        return images, terms


class OnlineStudentTask(StudentTask):
    """A student that follows a teacher while that is trained; it has no discriminator of its own.

    https://arxiv.org/abs/2108.06908. The student follows the moving average of the teacher.

    Args:
        objective: Its teacher is ``teaching.final()``.
        teaching: The teacher's training.
        optim: For the student, as for ``StudentTask``.
        steps: Number of steps in the whole training.
        score: Measures the student at evaluations.
    """

    def __init__(
        self,
        objective: StudentObjective,
        teaching: GanTask,
        optim: OptimConfig,
        *,
        steps: int,
        score: Score | None = None,
    ) -> None:
        super().__init__(objective, optim, steps=steps, conditions=teaching.conditions, score=score)
        self.teaching = teaching
        self.alarm = CollapseAlarm(steps, teaching.watch, _ADVICE)
        self.learners = {"student": self.student, **teaching.learners}

    def step(self, batch: Batch, update: Update) -> Mapping[str, Tensor]:
        """Train the teacher on one batch, then let the student follow it."""
        taught = self.teaching.step(batch, update)
        self.objective.teacher.eval()
        mine = super().step(batch, update)
        parts = {f"teacher_{name}": value for name, value in taught.items() if name != "loss"}
        return {**parts, **mine, "loss": mine["loss"] + taught["loss"]}
