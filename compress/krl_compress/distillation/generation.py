"""Distilling generators: ``krl-compress distill`` where the teacher is a run of a GAN, a VAE or an imported one."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch

from krl_compress.config import CacheConfig, DistillConfig, QuantisationConfig
from krl_compress.distillers import parse_term
from krl_compress.distillers.generator import (
    GENERATION_KINDS,
    AdversarialStudentTask,
    OnlineStudentTask,
    StudentObjective,
    StudentTask,
)
from krl_runtime.errors import UsageError
from krl_train.conditioning.generator_data import GeneratorData, open_generator, read_data
from krl_train.config import GenerationConfig, to_plain
from krl_train.data import Augmentation
from krl_train.loop import BatchStream, resolve_device
from krl_train.metrics.generation import FeatureNet
from krl_train.metrics.scoring import GeneratorScore, score_against
from krl_train.models.discriminators import build_discriminator
from krl_train.models.generators import Generator, build_generator
from krl_train.placement import Placement
from krl_train.run import Run, RunRecord
from krl_train.tasks import Batch, Stream, Task
from krl_train.tasks.gan import GanTask
from krl_train.training.fit import prepare_out, train_task
from krl_train.training.gan import generator_size

from .student import starting_point, train_baseline

__all__ = ["LatentStream", "distill_generator"]

_log = logging.getLogger("krl")


@dataclass(frozen=True)
class LatentStream:
    """Batches without pictures, for a student that needs latents alone; the task draws these.

    Attributes:
        batch_size: Latents in one step.
        steps: Number of steps in one epoch.
    """

    batch_size: int
    steps: int

    def epoch(self, epoch: int, first_step: int, placement: Placement) -> Iterator[Batch]:
        """Yield batches of which only the length says something."""
        pixels = torch.zeros(self.batch_size, 0, device=placement.device)
        nothing = torch.zeros(self.batch_size, dtype=torch.int64)
        for _ in range(first_step, self.steps):
            yield Batch(pixels, nothing, nothing, view=0, epoch=epoch)


@dataclass(frozen=True)
class _Job:
    """What a student's training is made of."""

    config: DistillConfig
    weights: dict[str, float]
    teacher: Generator
    data: GeneratorData | None
    classifier: FeatureNet | None
    score: GeneratorScore | None
    stream: Stream[Batch]
    start: Run | None

    @property
    def steps(self) -> int:
        return self.config.loop.epochs * self.stream.steps

    def student(self, record: RunRecord) -> Generator:
        """Return the student, freshly initialised or from the run that it starts from."""
        torch.manual_seed(self.config.loop.seed)
        student = build_generator(record.model, record.preprocessing)
        if self.start is not None:
            student.backbone.load_state_dict(self.start.state())
        return student

    def versus_data(self, generator: Generator, name: str) -> GanTask:
        """Return the training of a generator without a teacher."""
        options = self.config.generation
        conditions = None if self.data is None else self.data.conditions
        discriminator = build_discriminator(
            name, generator.preprocessing, generator.condition, options.discriminator_width
        )
        return GanTask(
            generator,
            discriminator,
            options,
            self.config.optim,
            steps=self.steps,
            conditions=conditions,
            score=self.score,
        )

    def train_alone(self, record: RunRecord, out: Path) -> Run:
        """Train the student against a discriminator alone."""
        student, config = self.student(record), self.config
        task = self.versus_data(student, record.model.name)
        return train_task(task, self.stream, record, generator_size(student), config.loop, out, resume=config.resume)


def distill_generator(config: DistillConfig) -> Run:
    """Train a small generator that makes what a large one makes of the same latents and conditions.

    Returns:
        The student's run; its metrics have the teacher's and the baseline's beside its own.

    Raises:
        KrlError: The teacher, the student, the pictures or the configuration cannot be used, or training failed.
    """
    _refuse_unused(config)
    there, teacher = open_generator(Path(config.teacher[0]))
    start, name = starting_point(config.student)
    job = _prepare(config, there, teacher, start)
    record = RunRecord(
        task="generation",
        model=replace(there.record.model, name=name),
        preprocessing=teacher.preprocessing,
        labels=there.record.labels,
        command="krl-compress distill",
        configuration=to_plain(config),
        seed=config.loop.seed,
        data=_describe(job, there),
        parent={"teachers": [there.identity]},
    )
    student = job.student(record)
    task = _task(job, student, name, there)  # refuses before anything is written
    finished = prepare_out(config.out, record, resume=config.resume, overwrite=config.overwrite)
    if finished is not None:
        return finished
    measured: dict[str, Any] = generator_size(teacher)
    if job.score is not None:
        device = resolve_device(config.loop.device)
        measured |= job.score(teacher.to(device), Placement(device))
    metrics: dict[str, Any] = {"teacher": measured, "teachers": [measured]}
    if config.baseline:
        metrics["baseline"] = train_baseline(config, record, job.train_alone)
    record = replace(record, metrics=metrics)
    run = train_task(task, job.stream, record, generator_size(student), config.loop, config.out, resume=config.resume)
    if isinstance(task, OnlineStudentTask):
        taught = replace(there.record, metrics=generator_size(teacher), command=record.command, history=())
        Run.write(config.out / "teacher", taught, task.teaching.state())
    return run


def _refuse_unused(config: DistillConfig) -> None:
    if len(config.teacher) != 1:
        raise UsageError(f"{len(config.teacher)} teachers are given; a generator has one")
    if config.cache != CacheConfig() or config.losses.at or config.map_labels:
        raise UsageError("--cache-teacher, --at and --map-labels are for classifiers; leave them out")
    if config.pretrained or config.augment.mixup:
        raise UsageError("--pretrained and --mixup are for classifiers; leave them out")
    if config.quantisation != QuantisationConfig():
        raise UsageError("--quantize is for classifiers; leave it out")
    if config.baseline and config.generation.features is None:
        _log.warning("nothing will tell how good the baseline is; --features CLASSIFIER measures both")


def _weights(config: DistillConfig, data: bool) -> dict[str, float]:
    """Return the weight of each term that is asked for."""
    terms = [parse_term(text, GENERATION_KINDS) for text in config.losses.loss]
    if not terms:
        online = config.generator_student.online
        names = ["pixels", "adversarial"] if data and not online else ["pixels"]
        return {name: GENERATION_KINDS[name].weight for name in names}
    names = [term.name for term in terms]
    if len(set(names)) < len(names) or any(term.warmup for term in terms):
        raise UsageError(f"--loss {' '.join(config.losses.loss)}: accepted are different terms, without a warm-up")
    return {term.name: term.weight for term in terms}


def _prepare(config: DistillConfig, there: Run, teacher: Generator, start: Run | None) -> _Job:
    options, how = config.generation, config.generator_student
    if options.latent not in (GenerationConfig().latent, teacher.latent_size):
        raise UsageError(f"--latent is {options.latent}; a student has its teacher's, {teacher.latent_size}")
    has_data = config.data.data is not None or "source" in there.record.data
    weights = _weights(config, has_data)
    if how.online and "adversarial" in weights:
        raise UsageError("--online: the student has no discriminator of its own; leave out --loss adversarial")
    if set(weights) == {"adversarial"}:
        raise UsageError("--loss adversarial alone has nothing of the teacher; add --loss pixels")
    if options.features is not None and how.perceptual is not None:
        hashes = {Run.open(path).record.weights_sha256 for path in (options.features, how.perceptual)}
        if len(hashes) == 1:
            raise UsageError("--features and --perceptual are the same classifier; what is trained on cannot measure")
    needs = "adversarial" in weights or how.online or config.baseline or options.features or teacher.condition
    data = read_data(there.record, config.data) if needs else None
    device = resolve_device(config.loop.device)
    score = None
    if options.features is not None and data is not None:
        tokens = None if data.conditions is None else data.conditions.tokens
        score = score_against(options.features, data.val, options.score_samples, device, teacher.condition, tokens)
    classifier = None if how.perceptual is None else FeatureNet(how.perceptual, device)
    pictures = data is not None and bool("adversarial" in weights or how.online or config.baseline or teacher.condition)
    stream = _pictures(config, data) if pictures and data is not None else _latents(config)
    return _Job(config, weights, teacher, data, classifier, score, stream, start)


def _pictures(config: DistillConfig, data: GeneratorData) -> BatchStream:
    source, loop = data.source, config.loop
    augment = replace(config.augment, crop_padding=config.augment.crop_padding or 0)
    preprocessing = data.preprocessing
    augmentation = Augmentation.resolve(augment, preprocessing, flip=source.flip, seed=loop.seed)
    return BatchStream(data.train, replace(augmentation, margin=0), loop.batch_size, loop.seed)


def _latents(config: DistillConfig) -> LatentStream:
    size = config.loop.batch_size
    return LatentStream(size, max(1, config.generator_student.latents // size))


def _describe(job: _Job, there: Run) -> dict[str, Any]:
    """Return what ``run.json`` says of the data: what was read, else what the teacher was trained on."""
    if job.data is None:
        return dict(there.record.data)
    data = job.data
    described = data.source.describe({"train": data.train, "val": data.val})
    kept = {"conditions": there.record.data["conditions"]} if data.conditions is not None else {}
    return {**described, **kept}


def _task(job: _Job, student: Generator, name: str, there: Run) -> Task[Batch]:
    config, teacher = job.config, job.teacher
    conditions = None if job.data is None else job.data.conditions
    if config.generator_student.online:
        torch.manual_seed(config.loop.seed + 1)
        fresh = build_generator(there.record.model, teacher.preprocessing)
        teaching = job.versus_data(fresh, there.record.model.name)
        objective = StudentObjective(student, teaching.final(), job.weights, job.classifier)
        return OnlineStudentTask(objective, teaching, config.optim, steps=job.steps, score=job.score)
    objective = StudentObjective(student, teacher, job.weights, job.classifier)
    if "adversarial" not in job.weights:
        return StudentTask(objective, config.optim, steps=job.steps, conditions=conditions, score=job.score)
    options = config.generation
    discriminator = build_discriminator(name, teacher.preprocessing, teacher.condition, options.discriminator_width)
    return AdversarialStudentTask(
        objective, discriminator, options, config.optim, steps=job.steps, conditions=conditions, score=job.score
    )
