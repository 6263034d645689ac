"""Third-party generators: ``krl-train import`` where ``--model`` names a generator."""

from __future__ import annotations

from typing import Any

from krl_runtime.errors import UsageError
from krl_runtime.images.preprocessing import Preprocessing
from krl_train.config import ImportConfig
from krl_train.data import open_source
from krl_train.models.generators import build_generator
from krl_train.run import ModelSpec
from krl_train.training.gan import generator_size

from .matching import match_weights
from .target import Measured, Target
from .weights import read_weights

__all__ = ["generator_target"]


def generator_target(config: ImportConfig) -> Target:
    """Return the generator that the weights are for.

    Nothing is measured: ``krl-train evaluate`` does that, with a classifier. Data is not needed; where it is named,
    the run remembers it.

    Raises:
        UsageError: The size of its images or of its latents is not given.
        KrlError: The generator or the data cannot be used.
    """
    size, channels = config.input.size, config.input.channels
    if size is None or channels is None or config.latent is None:
        raise UsageError(
            f"--model {config.model}: weights do not say what images a generator makes; give --size, --channels and "
            "--latent"
        )
    half = (0.5,) * channels
    preprocessing = Preprocessing(
        size[0], size[-1], channels=channels, mean=config.input.mean or half, std=config.input.std or half
    )
    spec = ModelSpec(config.model, 0, channels, {"latent": config.latent})
    generator = build_generator(spec, preprocessing)
    where = f"weights {config.weights}"
    entry = match_weights(read_weights(config.weights), generator.backbone, where, key=config.weights_key)

    def measure() -> Measured:
        data: dict[str, Any] = {}
        if config.data.data is not None:
            source = open_source(config.data, classes=False)
            sets = {split: source.read(split, preprocessing) for split in ("train", "val")}
            data = source.describe(sets)
        return Measured(generator_size(generator), data)

    return Target("generation", spec, generator, entry, measure)
