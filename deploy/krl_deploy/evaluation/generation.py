"""Generators: latents from a seed, as in real use, and PSNR in dB to FP32's images."""

from __future__ import annotations

from collections.abc import Iterator
from functools import cached_property
from pathlib import Path

import numpy as np
import numpy.typing as npt

from krl_deploy.data.arrays import identity_of
from krl_runtime.bundle import Bundle
from krl_runtime.errors import UsageError
from krl_runtime.images.preprocessing import Preprocessing
from krl_runtime.pipelines import Generator, load
from krl_runtime.pipelines.generator import LATENT
from krl_runtime.pipelines.random_inputs import random_conditions, random_inputs

from .images import ImageTask
from .task import Batch, CalibrationData, EvaluationOptions

__all__ = ["GOLDEN_SEED", "MOST_GENERATED", "Generation", "images_of"]

_BATCH = 64  # latents in a batch of the evaluation
MOST_GENERATED = 512  # generated images that are compared: a judgment between time and the scatter of their mean
_CALIBRATION_SEED, _EVALUATION_SEED, _PLANNING_SEED = 0, 1, 2  # no two of these have the same latents
GOLDEN_SEED = 2  # that of the golden inputs: neither to calibrate nor to measure on


class Generation(ImageTask):
    """Latents of seed 0 to calibrate on, and of seed 1 to measure on. In real use a generator takes such latents."""

    def __init__(self, bundle: Bundle, options: EvaluationOptions) -> None:
        if options.data is not None:
            raise UsageError("--data: a generator is calibrated and measured on latents; leave the option out")
        super().__init__(options, true=False)
        self.bundle = bundle
        self.name = f"latents of seed {_EVALUATION_SEED}"

    @cached_property
    def calibration_data(self) -> CalibrationData:
        """Latents, and conditions if the model takes them; see ``Task.calibration_data``."""
        inputs = random_inputs(self.bundle.manifest.settings, self.options.limit, _CALIBRATION_SEED)
        return CalibrationData(inputs, identity_of(inputs), f"latents of seed {_CALIBRATION_SEED}")

    def batches(self) -> Iterator[Batch]:
        """Yield latents; see ``Task.batches``."""
        yield from self._latents(self.options.val_limit, _EVALUATION_SEED)

    def planning_batches(self) -> Iterator[Batch]:
        """Yield other latents; see ``Task.planning_batches``."""
        yield from self._latents(self.options.planning, _PLANNING_SEED)

    def _latents(self, limit: int, seed: int) -> Iterator[Batch]:
        inputs = random_inputs(self.bundle.manifest.settings, min(limit, MOST_GENERATED), seed)
        for start in range(0, len(inputs[LATENT]), _BATCH):
            yield {name: array[start : start + _BATCH] for name, array in inputs.items()}, None


def images_of(path: Path, count: int, seed: int, preprocessing: Preprocessing) -> tuple[npt.NDArray[np.uint8], str]:
    """Return images of a generator's bundle, preprocessed for another model.

    Args:
        path: The generator's bundle.
        count: How many.
        seed: Of the latents and the conditions.
        preprocessing: Of the model that takes them.

    Returns:
        uint8 ``[count, C, H, W]``, and their origin with the hash of the generator.

    Raises:
        UsageError: The bundle is not a generator's.
        BundleError: There is no bundle, or it is damaged.
    """
    with load(path, Generator, variant="fp32") as model:
        condition = model.condition and random_conditions(model.condition, count, seed)
        made = model.generate(count, seed=seed, condition=condition or None)
        pixels = np.stack([preprocessing(image.image) for image in made])
        origin = f"{count} images of seed {seed} by the generator {model.bundle.manifest.digest}"
    return pixels, origin
