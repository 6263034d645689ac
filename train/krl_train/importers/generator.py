"""Foreign generators: ``krl-train import`` where ``--model`` names a generator."""

from __future__ import annotations

from typing import Any

from krl_runtime.errors import UsageError
from krl_runtime.images.preprocessing import Preprocessing
from krl_train.config import ImportConfig
from krl_train.data import open_source
from krl_train.models.generators import build_generator
from krl_train.run import ModelSpec, Run
from krl_train.training.gan import generator_size

from .weights import match_weights, read_weights, write_import

__all__ = ["import_generator"]


def import_generator(config: ImportConfig) -> Run:
    """Turn a foreign generator's weights into a run.

    Nothing is measured: ``krl-train evaluate`` does that, with a classifier. Data is not needed; where it is named,
    the run remembers it.

    Raises:
        KrlError: The weights do not fit the generator, or its size is not given.
    """
    size, channels = config.input.size, config.input.channels
    if size is None or channels is None or config.latent is None:
        raise UsageError(
            f"--model {config.model}: weights do not say what pictures a generator makes; give --size, --channels and "
            "--latent"
        )
    half = (0.5,) * channels
    preprocessing = Preprocessing(
        size[0], size[-1], channels=channels, mean=config.input.mean or half, std=config.input.std or half
    )
    spec = ModelSpec(config.model, 0, channels, {"latent": config.latent})
    generator = build_generator(spec, preprocessing)
    match_weights(read_weights(config.weights), generator.backbone, f"weights {config.weights}")
    data: dict[str, Any] = {}
    if config.data.data is not None:
        source = open_source(config.data, classes=False)
        data = source.describe({"train": source.read("train", preprocessing), "val": source.read("val", preprocessing)})
    return write_import(config, "generation", spec, generator, generator_size(generator), data=data)
