"""Distilling generators: ``krl-compress distill`` where the teacher is a generator: a run or a bundle."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from krl_compress.config import DistillConfig
from krl_compress.distillers import parse_loss
from krl_compress.distillers.generator import (
    COMPARED,
    GENERATION_LOSSES,
    AdversarialStudentTask,
    OnlineStudentTask,
    StudentObjective,
    StudentTask,
    compare_with_teacher,
)
from krl_compress.teachers.generators import LoadedGenerator, load_generator
from krl_runtime.errors import UsageError
from krl_train.conditioning.conditions import Conditions
from krl_train.conditioning.generator_data import GeneratorData, read_data
from krl_train.config import GenerationConfig, PlannedLoop, plan_loop, to_plain
from krl_train.data import Augmentation
from krl_train.loop import BatchStream, resolve_device
from krl_train.metrics.energy import energy_images
from krl_train.metrics.generation import FeatureNet
from krl_train.metrics.scoring import GeneratorScore, image_set, score_against
from krl_train.models import load_weights
from krl_train.models.discriminators import Discriminator, build_discriminator
from krl_train.models.generators import GeneratorNetwork, build_generator
from krl_train.models.sampling import ImageGenerator, generate_pixels, sample_latents
from krl_train.models.widths import THINNED
from krl_train.processes import refuse_several
from krl_train.run import ModelSpec, Run, RunRecord, hashes_of_runs
from krl_train.tasks import Batch, Task, TrainingStream
from krl_train.tasks.gan import GanTask
from krl_train.training.gan import generator_size
from krl_train.training.start import start_arguments
from krl_train.training.train import train_task
from krl_train.worker import Worker

from .job import COMMAND, Job, parents, starting_point

__all__ = ["LatentStream", "prepare"]

_SEED = 4  # of the latents of the teacher's images; the student is measured on others


@dataclass(frozen=True)
class LatentStream:
    """Batches without images, for a student that needs latents alone; the task draws these.

    Attributes:
        batch_size: Latents in one step.
        steps: Number of steps in one epoch.
    """

    batch_size: int
    steps: int

    @property
    def count(self) -> int:
        """Number of latents in one epoch."""
        return self.batch_size * self.steps

    def epoch(self, epoch: int, first_step: int, worker: Worker) -> Iterator[Batch]:
        """Yield batches of which only the length says something."""
        pixels = torch.zeros(self.batch_size, 0, device=worker.device)
        nothing = torch.zeros(self.batch_size, dtype=torch.int64)
        for _ in range(first_step, self.steps):
            yield Batch(pixels, nothing, nothing, view=0, epoch=epoch)


@dataclass
class _GeneratorJob(Job):
    """A generator's distillation.

    Attributes:
        there: The teacher.
        weights: Of each term.
        data: Real images and conditions, where they are needed.
        classifier: Whose features the student is compared in.
        score: Measures generators.
        loop: How long the student is trained, and in which batches.
        stream: What a step takes.
        student: The student, made here.
        task: Its training; made here, which refuses what does not go together before anything is written.
    """

    there: LoadedGenerator
    weights: dict[str, float]
    data: GeneratorData | None
    classifier: FeatureNet | None
    score: GeneratorScore
    loop: PlannedLoop
    stream: TrainingStream[Batch]
    student: GeneratorNetwork = field(init=False)
    task: Task[Batch] = field(init=False)

    def __post_init__(self) -> None:
        self.student = self._new_student(self.record)
        self.task = self._new_task()

    def measure_teachers(self) -> list[dict[str, Any]]:
        """Return the size of the teacher and how good its images are."""
        device = resolve_device(self.config.loop.device)
        return [{**self.there.size(), **self.score(self.there.network.to(device), Worker(device))}]

    def measure(self, network: nn.Module) -> dict[str, Any]:
        """Return how like the teacher's the images are (of ``"count"`` latents), and how good."""
        assert isinstance(network, GeneratorNetwork)  # noqa: S101  for the type checker
        device = resolve_device(self.config.loop.device)
        teacher = self.there.network.to(device).eval()
        alike = compare_with_teacher(network.to(device).eval(), teacher, self._conditions)
        found = {"count": COMPARED, **alike, **self.score(network, Worker(device))}
        network.cpu()
        return found

    def metric(self) -> tuple[str, str]:
        """Return PSNR to the teacher's images."""
        return "psnr", "dB"

    def training_losses(self, network: nn.Module) -> Iterator[Tensor]:
        """Refuse: the teacher itself has no loss to its own images, and a discriminator's says little of channels.

        Raises:
            UsageError: Always.
        """
        raise UsageError(
            "the gradient of a loss (--criterion taylor) is not to be had for generators: what is compared with itself "
            "has a loss of 0; accepted: l2, l1, group, or bn"
        )

    def after_pruning(self, start: Run, out: Path, *, resume: bool) -> _GeneratorJob:
        """Return the same distillation of a student that begins with another run, with that student made."""
        job = super().after_pruning(start, out, resume=resume)
        job.student = job._new_student(job.record)
        job.task = job._new_task()
        return job

    def train_alone(self, record: RunRecord, out: Path) -> Run:
        """Train the student against a discriminator alone."""
        student = self._new_student(record)
        return self._train(self._versus_data(student, record.model.name), student, record, out)

    def train(self, record: RunRecord) -> Run:
        """Train the student with the teacher; one that learns at the same time is written as well."""
        run = self._train(self.task, self.student, record, self.config.out)
        if isinstance(self.task, OnlineStudentTask):
            device = resolve_device(self.config.loop.device)
            measured = self.score(self.task.teaching.final().eval(), Worker(device))
            metrics = {**self.there.size(), **measured}
            taught = replace(self.there.record, metrics=metrics, command=record.command, history=())
            teaching = self.task.teaching
            Run.write(self.config.out / "teacher", taught, teaching.state(), teaching.discriminator_state())
        return run

    def _train(self, task: Task[Batch], student: GeneratorNetwork, record: RunRecord, out: Path) -> Run:
        size, resume = generator_size(student), self.config.resume
        return train_task(task, self.stream, record, size, self.loop, out, resume=resume)

    @property
    def _steps(self) -> int:
        return self.loop.epochs * self.stream.steps

    @property
    def _conditions(self) -> Conditions | None:
        return None if self.data is None else self.data.conditions

    def _new_student(self, record: RunRecord) -> GeneratorNetwork:
        """Return the student, freshly initialized or from the run that it starts from."""
        torch.manual_seed(self.config.loop.seed)
        student = build_generator(record.model, record.preprocessing)
        if self.start is not None:
            load_weights(student.backbone, self.start.state())
        return student

    def _discriminator(self, generator: GeneratorNetwork, name: str) -> Discriminator:
        width = self.config.generation.discriminator_width
        return build_discriminator(name, generator.preprocessing, generator.condition, width)

    def _versus_data(self, generator: GeneratorNetwork, name: str) -> GanTask:
        """Return the training of a generator without a teacher."""
        return GanTask(
            generator,
            self._discriminator(generator, name),
            self.config.generation,
            self.config.optim,
            steps=self._steps,
            conditions=self._conditions,
            score=self.score,
        )

    def _new_task(self) -> Task[Batch]:
        """Return the training of the student with the teacher."""
        config = self.config
        conditions, score, steps = self._conditions, self.score, self._steps
        if config.generator_student.online:
            torch.manual_seed(config.loop.seed + 1)
            model = self.there.record.model
            teaching = self._versus_data(build_generator(model, self.there.network.preprocessing), model.name)
            objective = StudentObjective(self.student, teaching.final(), self.weights, self.classifier)
            return OnlineStudentTask(objective, teaching, config.optim, steps=steps, score=score)
        objective = StudentObjective(self.student, self.there.network, self.weights, self.classifier)
        if "adversarial" not in self.weights:
            return StudentTask(objective, config.optim, steps=steps, conditions=conditions, score=score)
        discriminator = self._discriminator(self.student, self.record.model.name)
        return AdversarialStudentTask(
            objective,
            discriminator,
            config.generation,
            config.optim,
            steps=steps,
            conditions=conditions,
            score=score,
        )


def prepare(config: DistillConfig) -> Job:
    """Read the teacher of a generator's distillation, and the images where they are needed; make the student.

    Raises:
        KrlError: The teacher, the student, the images or the configuration cannot be used.
    """
    refuse_several("a generator's student trains")
    _refuse_unused(config)
    there = load_generator(config.teacher[0])
    teacher = there.network
    start, name = starting_point(config.student)
    weights = _weights(config, there)
    options, perceptual = config.generation, config.generator_student.perceptual
    versus_data = "adversarial" in weights or config.generator_student.online or config.baseline
    images = versus_data or bool(teacher.condition)
    data = read_data(there.record, config.data) if images or options.features else None
    device = resolve_device(config.loop.device)
    record = RunRecord(
        task="generation",
        model=_student_spec(name, there, start),
        preprocessing=teacher.preprocessing,
        labels=there.record.labels,
        command=COMMAND,
        configuration=to_plain(config),
        seed=config.loop.seed,
        data={**_describe(data, there), **hashes_of_runs({"features": options.features, "perceptual": perceptual})},
        parent=parents([there.identity], start),
    )
    needed = data if images else None
    count = config.generator_student.latents if needed is None else len(needed.train)
    loop = plan_loop(config.loop, count, options.score_samples)
    return _GeneratorJob(
        config=config,
        record=record,
        there=there,
        start=start,
        weights=weights,
        data=data,
        classifier=None if perceptual is None else FeatureNet(perceptual, device),
        score=_scoring(config, teacher, data, device),
        loop=loop,
        stream=_latents(config, loop.batch_size) if needed is None else _images(config, needed, loop),
    )


def _student_spec(name: str, there: LoadedGenerator, start: Run | None) -> ModelSpec:
    """Return the student, which takes what the teacher takes, and is as thin as the run that it starts from."""
    arguments = {key: value for key, value in there.record.model.arguments.items() if key not in THINNED}
    return replace(there.record.model, name=name, arguments={**arguments, **start_arguments(start, name)})


def _scoring(
    config: DistillConfig, teacher: ImageGenerator, data: GeneratorData | None, device: torch.device
) -> GeneratorScore:
    """Return the metrics of generators: against real images or, where none are read, against the teacher's own."""
    options = config.generation
    if data is not None:
        tokens = None if data.conditions is None else data.conditions.tokens
        return score_against(
            options.features, data.val, data.train, options.score_samples, device, teacher.condition, tokens
        )
    count = energy_images(options.score_samples, teacher.preprocessing.shape)
    made = generate_pixels(teacher, sample_latents(count, teacher.latent_size, _SEED))
    return GeneratorScore(image_set(made, device), "images of the teacher", options.score_samples)


def _refuse_unused(config: DistillConfig) -> None:
    if len(config.teacher) != 1:
        raise UsageError(f"{len(config.teacher)} teachers are given; a generator has one")


def _asked_weights(config: DistillConfig, data: bool) -> dict[str, float]:
    """Return the weight of each term that is asked for."""
    terms = [parse_loss(text, GENERATION_LOSSES) for text in config.losses.loss]
    if not terms:
        online = config.generator_student.online
        names = ["pixels", "adversarial"] if data and not online else ["pixels"]
        return {name: GENERATION_LOSSES[name].weight for name in names}
    names = [term.name for term in terms]
    if len(set(names)) < len(names) or any(term.warmup for term in terms):
        raise UsageError(f"--loss {' '.join(config.losses.loss)}: accepted are different terms, without a warm-up")
    return {term.name: term.weight for term in terms}


def _weights(config: DistillConfig, there: LoadedGenerator) -> dict[str, float]:
    """Return the weight of each term, once it is clear that the terms and options go together."""
    options, how = config.generation, config.generator_student
    latent = there.network.latent_size
    if options.latent not in (GenerationConfig().latent, latent):
        raise UsageError(f"--latent is {options.latent}; a student has its teacher's, {latent}")
    if how.online and not there.trainable:
        raise UsageError("--online trains the teacher again, and a bundle cannot be trained; give its run")
    weights = _asked_weights(config, config.data.data is not None or "source" in there.record.data)
    if how.online and "adversarial" in weights:
        raise UsageError("--online: the student has no discriminator of its own; leave out --loss adversarial")
    if set(weights) == {"adversarial"}:
        raise UsageError("--loss adversarial alone has nothing of the teacher; add --loss pixels")
    if options.features is not None and how.perceptual is not None:
        hashes = {Run.open(path).record.weights_sha256 for path in (options.features, how.perceptual)}
        if len(hashes) == 1:
            raise UsageError("--features and --perceptual are the same classifier; what is trained on cannot measure")
    return weights


def _images(config: DistillConfig, data: GeneratorData, loop: PlannedLoop) -> BatchStream:
    source = data.source
    augment = replace(config.augment, crop_padding=config.augment.crop_padding or 0)
    preprocessing = data.preprocessing
    augmentation = Augmentation.resolve(augment, preprocessing, flip=source.flip, seed=loop.seed)
    return BatchStream(data.train, replace(augmentation, margin=0), loop.batch_size, loop.seed)


def _latents(config: DistillConfig, size: int) -> LatentStream:
    return LatentStream(size, max(1, config.generator_student.latents // size))


def _describe(data: GeneratorData | None, there: LoadedGenerator) -> dict[str, Any]:
    """Return the record of the data: the data that was read, else the teacher's training data."""
    if data is None:
        return dict(there.record.data)
    described = data.source.describe({"train": data.train, "val": data.val})
    kept = {"conditions": there.record.data["conditions"]} if data.conditions is not None else {}
    return {**described, **kept}
