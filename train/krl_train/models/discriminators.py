"""Discriminators that go with the generators: spectral norm throughout, projection for conditions."""

from __future__ import annotations

from collections.abc import Mapping
from itertools import pairwise
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.utils.parametrizations import spectral_norm

from krl_runtime.errors import UsageError
from krl_runtime.images.preprocessing import Preprocessing

from .conditioners import build_conditioner
from .generator_backbones import image_sizes
from .generators import generator_width

__all__ = ["Discriminator", "build_discriminator", "discriminator_width"]


class Discriminator(nn.Module):
    """Tells real images from generated ones.

    Spectral norm (https://arxiv.org/abs/1802.05957) on every layer. A condition enters by projection
    (https://arxiv.org/abs/1802.05637): the inner product of its vector with the features is added to the logit.

    Args:
        stages: Map normalized images to features ``[N, C, h, w]``.
        features: Length of the features' vector.
        preprocessing: Its ``mean`` and ``std`` are applied here.
        pool: Sum the features over the map; otherwise all of them count.
        conditioner: Maps tokens to vectors of length ``dim``; ``None`` without a condition.
    """

    scale: Tensor
    offset: Tensor

    def __init__(
        self,
        stages: nn.Module,
        features: int,
        preprocessing: Preprocessing,
        *,
        pool: bool,
        conditioner: nn.Module | None,
    ) -> None:
        super().__init__()
        self.stages = stages
        self.frozen: list[nn.Module] = []
        self.pool = pool
        self.conditioner = conditioner
        self.head = spectral_norm(nn.Linear(features, 1))
        self.projection = None
        if conditioner is not None:
            self.projection = spectral_norm(nn.Linear(int(conditioner.dim), features, bias=False))  # type: ignore[arg-type]
        std, mean = torch.tensor(preprocessing.std), torch.tensor(preprocessing.mean)
        self.register_buffer("scale", (1 / (255 * std)).reshape(1, -1, 1, 1), persistent=False)
        self.register_buffer("offset", (-mean / std).reshape(1, -1, 1, 1), persistent=False)

    def freeze(self, count: int) -> None:
        """Keep the lowest layers, those next to the image, as they are (FreezeD, https://arxiv.org/abs/2002.10964).

        Args:
            count: Number of them; a residual block counts as one.

        Raises:
            UsageError: There are not that many.
        """
        layers = [stage for stage in self.stages.children() if next(stage.parameters(), None) is not None]
        if count > len(layers):
            raise UsageError(
                f"--freeze-discriminator is {count}; the discriminator has as many layers before the last one as it "
                f"halves the images; accepted: 0 to {len(layers)}"
            )
        self.frozen = layers[:count]
        for layer in self.frozen:
            layer.requires_grad_(False)
        self.train(self.training)

    def train(self, mode: bool = True) -> Discriminator:
        """Set the mode; frozen layers stay in eval mode, in which spectral norm estimates nothing anew."""
        super().train(mode)
        for layer in self.frozen:
            layer.eval()
        return self

    def forward(self, pixels: Tensor, condition: Tensor | None = None) -> Tensor:
        """Map images ``[N, C, H, W]`` in 0 to 255 and tokens ``[N, L]`` to logits ``[N]``, high for real ones."""
        x = F.leaky_relu(self.stages(pixels.to(self.scale.dtype) * self.scale + self.offset), 0.2)
        x = x.sum((2, 3)) if self.pool else x.flatten(1)
        logits: Tensor = self.head(x).squeeze(1)
        if self.projection is not None and self.conditioner is not None:
            logits = logits + (self.projection(self.conditioner(condition)) * x).sum(1)
        return logits


class _Down(nn.Module):
    """A residual block that halves the size (rounded up)."""

    def __init__(self, channels: int, out_channels: int, *, first: bool) -> None:
        super().__init__()
        self.first = first
        self.conv1 = spectral_norm(nn.Conv2d(channels, out_channels, 3, 1, 1))
        self.conv2 = spectral_norm(nn.Conv2d(out_channels, out_channels, 3, 1, 1))
        self.shortcut = spectral_norm(nn.Conv2d(channels, out_channels, 1))

    def forward(self, x: Tensor) -> Tensor:
        y = self.conv1(x if self.first else F.leaky_relu(x, 0.2))
        y = F.avg_pool2d(self.conv2(F.leaky_relu(y, 0.2)), 2, ceil_mode=True)
        return torch.add(y, self.shortcut(F.avg_pool2d(x, 2, ceil_mode=True)))


def _stages(residual: bool, channels: list[int]) -> nn.Sequential:
    layers: list[nn.Module] = []
    for index, (inputs, outputs) in enumerate(pairwise(channels)):
        if residual:
            layers.append(_Down(inputs, outputs, first=index == 0))
            continue
        if index:
            layers.append(nn.LeakyReLU(0.2))
        layers.append(spectral_norm(nn.Conv2d(inputs, outputs, 4, 2, 1)))
    return nn.Sequential(*layers)


def build_discriminator(
    generator: str, preprocessing: Preprocessing, condition: Mapping[str, Any] | None = None, width: int | None = None
) -> Discriminator:
    """Return the discriminator that goes with a generator.

    Args:
        generator: The generator's name; ``resgan-W`` gets a residual one, all others get strided 4×4 convolutions.
        preprocessing: Of the images.
        condition: Settings of the condition, or ``None``.
        width: Channels at full resolution; the generator's own W by default (32 for ``mlp-…``).
    """
    width = width or generator_width(generator) or 32
    sizes = image_sizes(preprocessing.height, preprocessing.width)
    ups = len(sizes) - 1
    channels = [preprocessing.channels, *(width * min(8, 2**level) for level in range(1, ups + 1))]
    residual = generator.startswith("resgan")
    stages = _stages(residual, channels)
    with torch.no_grad():
        shape = stages(torch.zeros(1, *preprocessing.shape)).shape
    conditioner = None
    if condition is not None:
        conditioner = build_conditioner(condition)
    features = shape[1] if residual else shape[1] * shape[2] * shape[3]
    return Discriminator(stages, int(features), preprocessing, pool=residual, conditioner=conditioner)


def discriminator_width(state: Mapping[str, Tensor]) -> int:
    """Return the channels at full resolution of a discriminator of this module, from its weights."""
    weight = "parametrizations.weight.original"
    first = next(state[name] for name in (f"stages.0.{weight}", f"stages.0.conv1.{weight}") if name in state)
    return len(first) // 2  # the first layer halves the resolution and has twice as many
