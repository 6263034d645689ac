"""Scoring a generator: its images against real ones, its classes against a classifier, its use for training."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from krl_runtime.errors import UsageError
from krl_train.data import PixelSet
from krl_train.models.sampling import ImageGenerator, generate_pixels, sample_latents
from krl_train.worker import Worker

from .energy import ImageSet, diversity, energy_images
from .generation import FeatureNet, FeatureStatistics, score_features
from .guide import Guide

__all__ = ["FeatureScore", "GeneratorScore", "image_set", "real_pixels", "reference_images", "score_against"]

_log = logging.getLogger("krl")

_LEAST = 64  # images on a side: below it the covariance of features says nothing
_SEED = 1  # of the latents that are measured; training draws from the run's seed
_OTHER_SEED = 3  # of the second image of each pair whose distance is the diversity
_PAIRS = 256  # of them: the mean distance then has an error of a few percent
# Share of the distance of real images. A few modes still have most of it, and a blurred half; a tenth is left to one
# image with noise. Generators of the digits that were trained for 100 steps or more have 0.3 and above.
_COLLAPSED = 0.1


def real_pixels(data: PixelSet, count: int) -> tuple[Tensor, Tensor]:
    """Return up to ``count`` images, evenly spaced: ``[N, C, H, W]`` of uint8 without margin, and their labels."""
    indices = np.unique(np.linspace(0, len(data) - 1, min(count, len(data))).round().astype(np.int64))
    pixels, margin = data.pixels(indices), data.margin
    pixels = pixels[:, :, margin:-margin, margin:-margin] if margin else pixels
    return pixels, data.labels[torch.from_numpy(indices)]


def reference_images(val: PixelSet, train: PixelSet, count: int) -> tuple[Tensor, str]:
    """Return the real images to compare with, and which they are: training images where there are few for validation.

    Args:
        val: Validation images.
        train: Training images.
        count: Largest number; large images are fewer.

    Returns:
        ``[N, C, H, W]`` of uint8, and ``"validation images"`` or ``"training images"``.
    """
    few = len(val) < min(_LEAST, len(train))
    chosen, name = (train, "training images") if few else (val, "validation images")
    shape = tuple(real_pixels(chosen, 1)[0].shape[1:])
    return real_pixels(chosen, energy_images(count, shape))[0], name


@dataclass
class FeatureScore:
    """Measures generated images by a classifier.

    Attributes:
        classifier: Whose features are compared.
        real: The real images' features.
        expected: For each condition to choose from the classifier's label that its images should get, ``[M]`` of
            int64, below 0 where it names none; ``None`` where that is not known.
    """

    classifier: FeatureNet
    real: FeatureStatistics
    expected: Tensor | None = None

    def __call__(self, pixels: Tensor, chosen: Tensor | None) -> dict[str, Any]:
        """Return ``fid``, ``kid``, ``precision``, ``recall``, ``density``, ``coverage``, ``agreement`` with classes.

        Args:
            pixels: Generated images, ``[N, C, H, W]`` of uint8.
            chosen: The index of the condition of each, ``[N]``.
        """
        fake = self.classifier.statistics(pixels)
        result: dict[str, Any] = dict(score_features(self.real.features, fake.features))
        if self.expected is not None and chosen is not None:
            asked = self.expected[chosen]
            hits = (fake.predictions == asked)[asked >= 0]
            result["agreement"] = round(float(hits.double().mean()), 6) if len(hits) else None
        return result


@dataclass
class GeneratorScore:
    """Measures generators against real images.

    Attributes:
        real: The real images; ``None`` where there are too few for a figure.
        compared: Which they are: validation images, say.
        count: Number of generated images.
        tokens: Conditions to choose from, ``[M, L]``; ``None`` for generators without one.
        features: Measures by a classifier, where one is named.
    """

    real: ImageSet | None
    compared: str
    count: int
    tokens: Tensor | None = None
    features: FeatureScore | None = None

    def __call__(self, generator: ImageGenerator, worker: Worker) -> dict[str, Any]:
        """Return the figures of a generator; the latents are the same each time.

        ``energy`` (the energy coefficient, ``ImageSet.energy``), ``energy_reference`` (``"images"``: with which it
        compares; ``"real"`` and ``"generated"``: their numbers; ``"floor"``: the energy of two halves of the real
        ones), ``diversity`` (``None`` where all real images are the same) and ``collapsed``, whether that is below a
        tenth. With a classifier also what ``FeatureScore`` returns; ``agreement`` is the share of images that the
        classifier takes for what the condition asked for, and ``None`` without such conditions.
        """
        del worker
        latents = sample_latents(self.count, generator.latent_size, _SEED)
        chosen = None
        if self.tokens is not None:
            chosen = torch.from_numpy(np.random.default_rng(_SEED).integers(len(self.tokens), size=self.count))
        tokens = None if self.tokens is None or chosen is None else self.tokens[chosen]
        pixels = generate_pixels(generator, latents, tokens)
        result = {} if self.real is None else self._compare(generator, self.real, pixels, tokens)
        return result if self.features is None else {**result, **self.features(pixels, chosen)}

    def _compare(
        self, generator: ImageGenerator, real: ImageSet, pixels: Tensor, tokens: Tensor | None
    ) -> dict[str, Any]:
        pairs = min(_PAIRS, len(pixels))
        latents = sample_latents(pairs, generator.latent_size, _OTHER_SEED)
        others = generate_pixels(generator, latents, None if tokens is None else tokens[:pairs])
        variety = diversity(pixels[:pairs], others, real.pixels)
        compared = pixels[: energy_images(len(pixels), tuple(pixels.shape[1:]))]
        return {
            "energy": round(real.energy(compared), 6),
            "energy_reference": {
                "images": self.compared,
                "real": len(real.pixels),
                "generated": len(compared),
                "floor": round(real.floor, 6),
            },
            "diversity": None if variety is None else round(variety, 4),
            "collapsed": variety is not None and variety < _COLLAPSED,
        }


def score_against(
    features: Path | None,
    val: PixelSet,
    train: PixelSet,
    count: int,
    device: torch.device,
    condition: Mapping[str, Any] | None = None,
    tokens: Tensor | None = None,
) -> GeneratorScore:
    """Return a scorer that compares generated with real images.

    Args:
        features: Run of a classifier, on whose features they are compared as well; ``None`` for none.
        val: The real images; as many of them are taken as are generated, at most.
        train: Training images, for the figure without a classifier where there are fewer than 64 of ``val``.
        count: Number of generated images.
        device: Where to compute.
        condition: Settings of the generators' condition, or ``None``.
        tokens: Conditions to choose from, ``[M, L]``.

    Raises:
        RunError: The classifier cannot be used.
        UsageError: A classifier is named and there are fewer than 64 generated or real images.
    """
    by_features = None if features is None else _feature_score(features, val, count, device, condition, tokens)
    pixels, compared = reference_images(val, train, count)
    return GeneratorScore(image_set(pixels, device), compared, count, tokens, by_features)


def image_set(pixels: Tensor, device: torch.device) -> ImageSet | None:
    """Return the images to compare generated ones with; ``None``, with a warning, where there are too few."""
    try:
        return ImageSet(pixels, device)
    except UsageError as error:
        _log.warning("generated images are not measured: %s", error)
        return None


def _feature_score(
    features: Path,
    data: PixelSet,
    count: int,
    device: torch.device,
    condition: Mapping[str, Any] | None,
    tokens: Tensor | None,
) -> FeatureScore:
    classifier = FeatureNet(features, device)
    pixels, _ = real_pixels(data, count)
    if min(count, len(pixels)) < _LEAST:
        raise UsageError(
            f"{count} generated and {len(pixels)} real images are too few to be measured; give {_LEAST} of both"
        )
    statistics = classifier.statistics(pixels)
    if condition is None or tokens is None:
        return FeatureScore(classifier, statistics)
    return FeatureScore(classifier, statistics, _expected(classifier, condition, tokens))


def _expected(classifier: FeatureNet, condition: Mapping[str, Any], tokens: Tensor) -> Tensor | None:
    try:
        guide = Guide(classifier.network, classifier.record.labels, condition)
    except UsageError:  # the classifier knows nothing of what the conditions name
        return None
    return guide.targets(tokens)
