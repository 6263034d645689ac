"""``krl-train evaluate`` on a generator's run or bundle."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import torch

from krl_runtime.errors import UsageError
from krl_train.conditioning.generator_data import GeneratorData, _generator_of, open_generator, read_data
from krl_train.config import AugmentConfig, EvaluateConfig, GeneratorScoreConfig, LoopConfig, OptimConfig, plan_loop
from krl_train.data import Augmentation, PixelSet
from krl_train.loop import BatchStream, Trainer, resolve_device
from krl_train.metrics.generation import frechet_distance, same_latent
from krl_train.metrics.scoring import real_pixels, score_against
from krl_train.models.generators import GeneratorNetwork
from krl_train.models.sampling import ImageGenerator, generate_pixels, sample_latents
from krl_train.run import ModelSpec, Run, RunRecord
from krl_train.tasks import ClassificationTask, Supervised
from krl_train.worker import Worker

from .training_data import trained_on

if TYPE_CHECKING:
    pass

__all__ = ["evaluate_generator"]

_SEED = 1  # of the latents that are measured; training draws from the run's seed


def evaluate_generator(run: Run | None, config: EvaluateConfig) -> dict[str, Any]:
    """Measure a generator: a run's, or a bundle's as a device runs it.

    Args:
        run: The run; ``None`` where ``config.run`` is a bundle.
        config: What is measured.

    Returns:
        ``run``, ``samples``, ``trained_on``, ``parameters`` (of a run), ``variant`` and ``backend`` (of a bundle), and
        what ``GeneratorScore`` returns (not with ``against`` alone, where no images are needed). As asked for: with
        ``features`` ``fid_floor`` (the Fréchet distance between real training and real validation images) and
        ``features`` (which classifier); with ``against`` what ``same_latent`` returns; with ``train_on_synthetic``
        ``synthetic_top1``.

    Raises:
        KrlError: A run, the bundle or the data cannot be used.
    """
    options = config.generator
    device = resolve_device(config.device)
    against = None if options.against is None else open_generator(options.against)
    if run is None:
        generator, record, described = _deployed(config, None if against is None else against[0].record)
    else:
        made = _generator_of(run).to(device)
        generator, record = made, run.record
        described = {"parameters": sum(parameter.numel() for parameter in made.parameters())}
    # Two generators are compared without images; whatever else is measured needs some.
    needs_data = bool(options.features or options.train_on_synthetic or generator.condition or against is None)
    data = read_data(record, config.data) if needs_data else None
    result: dict[str, Any] = {"run": str(config.run), "samples": options.score_samples, **described}
    result["trained_on"] = trained_on(record)
    if data is not None:
        result["data"] = data.source.name
    if data is not None:
        result |= _score(generator, data, options, device)
    if against is not None:
        result |= {"against": str(options.against), **_compare(generator, against[1].to(device), data, options)}
    if options.train_on_synthetic is not None and data is not None:
        result["synthetic_top1"] = _train_on_synthetic(generator, data, options, config.device)
    return result


def _deployed(config: EvaluateConfig, trained: RunRecord | None) -> tuple[ImageGenerator, RunRecord, Mapping[str, Any]]:
    """Return a bundle's generator, the record of its training or what stands for it, and what the report says of it.

    Args:
        config: Names the bundle.
        trained: The record of the run that it is measured against, if any: that knows data and conditions.
    """
    from .deployed import DeployedGenerator

    options = config.generator
    deployed = DeployedGenerator(config.run, options.variant, options.backend)
    backend = deployed.pipeline.backend
    described = {"variant": backend.variant, "backend": backend.reason}
    if trained is not None:
        known = trained.model.arguments.get("condition") or {}
        if list(known.get("vocabulary", ())) != list((deployed.condition or {}).get("vocabulary", ())):
            raise UsageError(f"{config.run} and {options.against} have not the same conditions")
        return deployed, trained, described
    if deployed.condition is not None:
        raise UsageError(f"{config.run} names no data for its conditions; give --against, the run it was exported from")
    return deployed, deployed.record(), described


def _score(
    generator: ImageGenerator, data: GeneratorData, options: GeneratorScoreConfig, device: torch.device
) -> dict[str, Any]:
    tokens = None if data.conditions is None else data.conditions.tokens
    score = score_against(
        options.features, data.val, data.train, options.score_samples, device, generator.condition, tokens
    )
    found = score(generator, Worker(device))
    if score.features is None:
        return found
    classifier, real = score.features.classifier, score.features.real.features
    training = classifier.statistics(real_pixels(data.train, len(real))[0])
    return {
        **found,
        "fid_floor": round(frechet_distance(real, training.features), 6),
        "real": len(real),
        "features": classifier.describe(),
    }


def _compare(
    generator: ImageGenerator, teacher: GeneratorNetwork, data: GeneratorData | None, options: GeneratorScoreConfig
) -> Mapping[str, Any]:
    latents = sample_latents(options.score_samples, generator.latent_size, _SEED)
    tokens = None
    if data is not None and data.conditions is not None:
        there = data.conditions.tokens
        tokens = there[torch.arange(len(latents)) * len(there) // len(latents)]
    return same_latent(generator, teacher, latents, tokens)


def _train_on_synthetic(
    generator: ImageGenerator, data: GeneratorData, options: GeneratorScoreConfig, device: str
) -> float:
    """Train a classifier on generated images, as many of each class, and return its top-1 on the real ones."""
    condition = generator.condition
    if condition is None or condition["kind"] != "labels":
        raise UsageError("--train-on-synthetic needs a generator that was trained with --condition labels")
    labels, count = data.source.labels, options.score_samples
    classes = torch.arange(count) % len(labels)
    latents = sample_latents(count, generator.latent_size, _SEED)
    pixels = generate_pixels(generator, latents, classes[:, None])
    train = PixelSet(pixels.numpy(), classes.tolist())
    preprocessing = generator.preprocessing
    assert options.train_on_synthetic is not None  # noqa: S101  for the type checker
    torch.manual_seed(_SEED)
    network = ModelSpec(options.train_on_synthetic, len(labels), preprocessing.channels).build(preprocessing)
    asked = LoopConfig(epochs=options.synthetic_epochs, evaluate_every=options.synthetic_epochs, device=device)  # type: ignore[arg-type]
    loop = plan_loop(asked, len(train))
    augmentation = Augmentation.resolve(AugmentConfig(), preprocessing, flip=data.source.flip, seed=_SEED)
    stream = BatchStream(train, augmentation, loop.batch_size, _SEED)
    steps = loop.epochs * stream.steps
    task = ClassificationTask(
        Supervised(network), OptimConfig(), steps=steps, batch_size=loop.batch_size, val=data.val, labels=labels
    )
    return float(Trainer(loop, task, stream, None).fit()["top1"])
