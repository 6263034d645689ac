"""Training a network that paints images in the manner of one (Johnson et al. 2016)."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from krl_train.config import StyleConfig
from krl_train.data import PatchBatch
from krl_train.models.perceptual import FeatureMaps, gram
from krl_train.models.restorers import RestorerNetwork
from krl_train.worker import Worker

from .restoration import SHOWN_SIDE, RestorationObjective, RestorationTask, framed

__all__ = ["StyleObjective", "StyleTask", "total_variation"]

_CONTENT = 1  # the second of the maps, as relu2_2 (Johnson et al. 2016)


def total_variation(images: Tensor) -> Tensor:
    """Return the mean absolute difference between neighboring pixels, down and across.

    Args:
        images: ``[N, C, H, W]``, at least 2 pixels a side, in units of 0 to 1.
    """
    return images.diff(dim=2).abs().mean() + images.diff(dim=3).abs().mean()


class StyleObjective(RestorationObjective):
    """Content of each image, style of one, as a frozen classifier sees them (https://arxiv.org/abs/1603.08155).

    Both are relative: content is the mean squared difference of the second map over the mean square of the content's;
    style the same of the Gram matrices, averaged over the maps. So the weights mean the same for every classifier.

    Args:
        network: What paints.
        features: The classifier.
        style: The image, uint8 ``[H, W, C]``.
        config: The weights.
    """

    def __init__(
        self, network: RestorerNetwork, features: FeatureMaps, style: npt.NDArray[np.uint8], config: StyleConfig
    ) -> None:
        super().__init__()
        self.network = network
        self.config = config
        self.style = style
        self._features = features
        with torch.no_grad():
            pixels = torch.from_numpy(style.transpose(2, 0, 1).copy())[None]
            self._grams = [gram(item) for item in features(pixels)]

    def forward(self, batch: PatchBatch) -> dict[str, Tensor]:
        """Return ``"loss"``, and before weighting ``"content"``, ``"style"`` and ``"variation"``."""
        return self.compare(batch.pixels, self.network(batch.pixels))

    def compare(self, pixels: Tensor, painted: Tensor) -> dict[str, Tensor]:
        """Return the output of ``forward`` for images that are painted already, both ``[N, C, H, W]`` of 0 to 255."""
        with torch.no_grad():
            wanted = self._features(pixels)
        seen = self._features(painted)
        place = min(_CONTENT, len(seen) - 1)
        content = _relative(seen[place], wanted[place])
        styles = [_relative(gram(item), target.to(item.device)) for item, target in zip(seen, self._grams, strict=True)]
        style, variation = torch.stack(styles).mean(), total_variation(painted / 255)
        config = self.config
        loss = config.content_weight * content + config.style_weight * style + config.variation_weight * variation
        return {"loss": loss, "content": content, "style": style, "variation": variation}


def _relative(seen: Tensor, wanted: Tensor) -> Tensor:
    """Return the mean squared difference over the mean square of what is wanted."""
    difference = (seen.float() - wanted.float()).square().mean()
    return difference / wanted.float().square().mean().clamp(min=1e-12)


class StyleTask(RestorationTask):
    """Trains the network of a ``StyleObjective``; what it measures are the parts of the loss on validation images."""

    @torch.no_grad()
    def evaluate(self, worker: Worker) -> dict[str, Any]:
        """Return ``count``, and means over the images of ``content`` and ``style``; every process computes all."""
        network, objective = self.final().eval(), self.objective
        assert isinstance(objective, StyleObjective)  # noqa: S101  for the type checker
        sums = {"content": 0.0, "style": 0.0}
        for image in self.val.images:
            pixels = torch.from_numpy(image.transpose(2, 0, 1).copy())[None].to(worker.device)
            parts = objective.compare(pixels, network(pixels))
            sums = {name: value + float(parts[name]) for name, value in sums.items()}
        return {"count": len(self.val), **{name: round(value / len(self.val), 6) for name, value in sums.items()}}

    def samples(self) -> Mapping[str, npt.NDArray[np.uint8]]:
        """Return rows of image and painted image, and the style image beside them."""
        rows = super().samples()["restored"]
        width = 2 * framed(self.val.images[0][:1, :1]).shape[1]  # the third column shows the image again
        objective = self.objective
        assert isinstance(objective, StyleObjective)  # noqa: S101  for the type checker
        style = np.full((rows.shape[0], SHOWN_SIDE, rows.shape[2]), 255, np.uint8)
        part = objective.style[: rows.shape[0], :SHOWN_SIDE]
        style[: part.shape[0], : part.shape[1]] = part
        return {"painted": np.concatenate([rows[:, :width], style], axis=1)}
