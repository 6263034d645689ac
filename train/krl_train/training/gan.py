"""``krl-train fit --task gan``: a generator against a discriminator."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import torch

from krl_runtime.images.preprocessing import Preprocessing
from krl_train.conditioning import Conditions, read_conditions
from krl_train.config import ConditioningConfig, FitConfig, InputConfig, plan_loop, to_plain
from krl_train.custom import sources_of
from krl_train.data import Source, open_source, preprocessing_for
from krl_train.data.splits import Training, read_training
from krl_train.loop import BatchStream, resolve_device
from krl_train.metrics.guide import Guide
from krl_train.metrics.scoring import score_against
from krl_train.models import count_parameters
from krl_train.models.conditioners import Conditioner
from krl_train.models.generators import GeneratorNetwork, build_generator, count_generator_macs
from krl_train.processes import refuse_several
from krl_train.run import ModelSpec, Run, RunRecord, hashes_of_runs
from krl_train.tasks.gan import GanTask, Score

from .folder import prepare_out
from .generator_start import check_start, make_discriminator, start_generator, start_of_generator
from .start import start_arguments
from .train import train_task

__all__ = ["GeneratorTraining", "fit", "generator_preprocessing", "generator_size", "prepare", "scoring"]

_DEFAULT_SIDE = 64  # pixels, where neither data nor options say: DCGAN's


@dataclass(frozen=True)
class GeneratorTraining:
    """Everything that the training of a generator starts from.

    Attributes:
        training: The images.
        record: What ``run.json`` will say, but for the results.
        generator: Freshly initialized, or with the weights of the run that it starts from.
        conditions: Of the training images; ``None`` where none are asked for.
    """

    training: Training
    record: RunRecord
    generator: GeneratorNetwork
    conditions: Conditions | None


def generator_preprocessing(
    config: InputConfig, source: Source, model: str, trained: Preprocessing | None = None
) -> Preprocessing:
    """Return size and channels of the images; mean and standard deviation are 0.5, so that tanh spans them.

    Args:
        config: What the user asked for.
        source: The data; its size and channels count where neither the user nor ``trained`` say any.
        model: Name of the generator.
        trained: Of the run that the generator starts from.
    """
    if trained is not None:
        return preprocessing_for(config, source, model, trained=trained)
    channels = config.channels or source.channels
    size = config.size or source.size or (_DEFAULT_SIDE,)
    half = (0.5,) * channels
    filled = replace(
        config,
        size=size,
        channels=channels,
        crop_fraction=config.crop_fraction or 1.0,
        mean=config.mean or half,
        std=config.std or half,
    )
    return preprocessing_for(filled, source, model)


def prepare(config: FitConfig) -> GeneratorTraining:
    """Read the data and make the generator.

    Raises:
        KrlError: The data, the generator or the configuration cannot be used.
    """
    refuse_several(f"--task {config.task} trains")
    source = open_source(config.data, classes=config.conditioning.condition == "labels")
    run = start_of_generator(config)
    preprocessing = generator_preprocessing(
        config.input, source, config.model, None if run is None else run.record.preprocessing
    )
    # A generator would learn to make what augmentation makes: mirrored images alone are taken for real ones.
    augment = replace(config.augment, crop_padding=config.augment.crop_padding or 0)
    training = read_training(source, preprocessing, augment, config.loop.seed)
    latent = config.generation.latent if run is None else run.record.model.arguments["latent"]
    arguments: dict[str, Any] = {"latent": latent, **start_arguments(run, config.model)}
    conditions = read_conditions(config.conditioning, source, training.train, seed=config.loop.seed)
    if conditions is not None:
        arguments["condition"] = dict(conditions.settings)
    if run is not None:
        check_start(run, preprocessing, arguments.get("condition"))
    spec = ModelSpec(config.model, 0, preprocessing.channels, arguments)
    used = hashes_of_runs({"features": config.generation.features, "guide": config.conditioning.guide})
    record = RunRecord(
        task="generation",
        model=spec,
        preprocessing=preprocessing,
        labels=source.labels if config.conditioning.condition == "labels" else (),
        command="krl-train fit",
        configuration=to_plain(config),
        seed=config.loop.seed,
        data={**training.describe(), **_describe(config.conditioning, conditions), **used},
        parent=None if run is None else run.identity,
        sources=sources_of([("data", config.data.data)]),
    )
    torch.manual_seed(config.loop.seed)
    generator = build_generator(spec, preprocessing)
    if conditions is not None and run is None:
        conditioner = generator.backbone.conditioner
        assert isinstance(conditioner, Conditioner)  # noqa: S101  for the type checker
        conditions.initialize(conditioner)
    if run is not None:
        start_generator(generator, run)
    return GeneratorTraining(training, record, generator, conditions)


def _describe(config: ConditioningConfig, conditions: Conditions | None) -> dict[str, Any]:
    """Return the conditions as ``run.json`` records them, so that they can be read again."""
    if conditions is None:
        return {}
    file = None if config.condition_file is None else str(config.condition_file.resolve())
    kept = {name: getattr(config, name) for name in ("condition", "condition_dim", "condition_dropout")}
    return {"conditions": {**kept, "condition_file": file, "sha256": conditions.identity}}


def fit(config: FitConfig) -> Run:
    """Train a generator and a discriminator.

    Raises:
        KrlError: The data, the generator or the configuration cannot be used, or training failed.
    """
    start = prepare(config)
    condition = start.generator.condition
    discriminator = make_discriminator(config, start.record.model, start.record.preprocessing, condition)
    finished = prepare_out(config.out, start.record, resume=config.resume, overwrite=config.overwrite)
    if finished is not None:
        return finished
    training, options, knowledge = start.training, config.generation, config.conditioning
    guide = None
    if knowledge.guide is not None and condition is not None:
        guide = Guide.of_run(Run.open(knowledge.guide), condition)
    loop = plan_loop(config.loop, len(training.train), config.generation.score_samples)
    stream = BatchStream(training.train, training.augmentation, loop.batch_size, loop.seed)
    task = GanTask(
        start.generator,
        discriminator,
        options,
        config.optim,
        steps=loop.epochs * stream.steps,
        conditions=start.conditions,
        guide=guide,
        guide_weight=knowledge.guide_weight,
        score=scoring(config, start),
    )
    size = generator_size(start.generator)
    return train_task(task, stream, start.record, size, loop, config.out, resume=config.resume)


def generator_size(generator: GeneratorNetwork) -> dict[str, int]:
    """Return a generator's ``"parameters"`` and ``"macs"`` of one image."""
    return {"parameters": count_parameters(generator), "macs": count_generator_macs(generator)}


def scoring(config: FitConfig, start: GeneratorTraining) -> Score:
    """Return the metrics of the generator at evaluations; those of a classifier's features where one is named."""
    options = config.generation
    tokens = None if start.conditions is None else start.conditions.tokens
    device = resolve_device(config.loop.device)
    val, train = start.training.val, start.training.train
    return score_against(options.features, val, train, options.score_samples, device, start.generator.condition, tokens)
