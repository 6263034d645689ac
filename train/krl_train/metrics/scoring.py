"""Scoring a generator: its images against real ones, its classes against a classifier, its use for training."""

from __future__ import annotations

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

from .generation import FeatureNet, FeatureStatistics, score_features
from .guide import Guide

__all__ = ["GeneratorScore", "real_pixels", "score_against"]

_LEAST = 64  # images on a side: below it the covariance of features says nothing
_SEED = 1  # of the latents that are measured; training draws from the run's seed


def real_pixels(data: PixelSet, count: int) -> tuple[Tensor, Tensor]:
    """Return up to ``count`` images, evenly spaced: ``[N, C, H, W]`` of uint8 without margin, and their labels."""
    indices = np.unique(np.linspace(0, len(data) - 1, min(count, len(data))).round().astype(np.int64))
    pixels, margin = data.pixels(indices), data.margin
    pixels = pixels[:, :, margin:-margin, margin:-margin] if margin else pixels
    return pixels, data.labels[torch.from_numpy(indices)]


@dataclass
class GeneratorScore:
    """Measures generators against real images.

    Attributes:
        classifier: Whose features are compared.
        real: The real images' features.
        count: Number of generated images.
        tokens: Conditions to choose from, ``[M, L]``; ``None`` for generators without one.
        expected: For each of ``tokens`` the classifier's label that its images should get, ``[M]`` of int64, below 0
            where it names none; ``None`` where that is not known.
    """

    classifier: FeatureNet
    real: FeatureStatistics
    count: int
    tokens: Tensor | None = None
    expected: Tensor | None = None

    def __call__(self, generator: ImageGenerator, worker: Worker) -> dict[str, Any]:
        """Return ``fid``, ``kid``, ``precision``, ``recall``, ``density``, ``coverage``, ``agreement`` with classes.

        ``agreement`` is the share of images that the classifier takes for what the condition asked for; ``None``
        without such conditions. The latents are the same each time.
        """
        del worker
        latents = sample_latents(self.count, generator.latent_size, _SEED)
        chosen = None
        if self.tokens is not None:
            chosen = torch.from_numpy(np.random.default_rng(_SEED).integers(len(self.tokens), size=self.count))
        tokens = None if self.tokens is None or chosen is None else self.tokens[chosen]
        fake = self.classifier.statistics(generate_pixels(generator, latents, tokens))
        result: dict[str, Any] = dict(score_features(self.real.features, fake.features))
        if self.expected is not None and chosen is not None:
            asked = self.expected[chosen]
            hits = (fake.predictions == asked)[asked >= 0]
            result["agreement"] = round(float(hits.double().mean()), 6) if len(hits) else None
        return result


def score_against(
    features: Path,
    data: PixelSet,
    count: int,
    device: torch.device,
    condition: Mapping[str, Any] | None = None,
    tokens: Tensor | None = None,
) -> GeneratorScore:
    """Return a scorer that compares generated with real images.

    Args:
        features: Run of the classifier.
        data: The real images; as many of them are taken as are generated, at most.
        count: Number of generated images.
        device: Where to compute.
        condition: Settings of the generators' condition, or ``None``.
        tokens: Conditions to choose from, ``[M, L]``.

    Raises:
        RunError: The classifier cannot be used.
        UsageError: There are fewer than 64 generated or real images.
    """
    classifier = FeatureNet(features, device)
    pixels, _ = real_pixels(data, count)
    if min(count, len(pixels)) < _LEAST:
        raise UsageError(
            f"{count} generated and {len(pixels)} real images are too few to be measured; give {_LEAST} of both"
        )
    statistics = classifier.statistics(pixels)
    if condition is None or tokens is None:
        return GeneratorScore(classifier, statistics, count)
    return GeneratorScore(classifier, statistics, count, tokens, _expected(classifier, condition, tokens))


def _expected(classifier: FeatureNet, condition: Mapping[str, Any], tokens: Tensor) -> Tensor | None:
    try:
        guide = Guide(classifier.network, classifier.record.labels, condition)
    except UsageError:  # the classifier knows nothing of what the conditions name
        return None
    return guide.targets(tokens)
