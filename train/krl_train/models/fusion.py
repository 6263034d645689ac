"""Classifiers with several inputs: an image with its attributes or descriptors, and further images."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal, TypeAlias

import torch
from torch import Tensor, nn

from krl_runtime.bundle.further_inputs import FurtherInput, ImageInput
from krl_runtime.images.preprocessing import Preprocessing

from .network import Network

__all__ = ["WIDTH", "Fused", "Fusion", "FusionNetwork"]

Fusion: TypeAlias = Literal["late", "gated"]
"""How the vectors of the inputs become one: side by side, or summed with learned weights."""

WIDTH = 128
"""Numbers that each input becomes: as many as penultimate layers of small classifiers have."""


class Fused(nn.Module):
    """A classifier of a vector for each input: that of an image, from a backbone, or of numbers, from two layers.

    All images go through the same backbone. ``gated`` is the Gated Multimodal Unit
    (https://arxiv.org/abs/1702.01992): each input's vector is weighted by a sigmoid of all of them.

    Args:
        image: From normalized images ``[N, C, H, W]`` to ``[N, WIDTH]``.
        further: The inputs beside the first image.
        classes: Number of classes.
        fusion: How the vectors become one.
    """

    def __init__(self, image: nn.Module, further: Sequence[FurtherInput], classes: int, fusion: Fusion) -> None:
        super().__init__()
        self.image = image
        self.encoders = nn.ModuleList(
            nn.Identity() if isinstance(item, ImageInput) else _encoder(item.width) for item in further
        )
        self._images = tuple(isinstance(item, ImageInput) for item in further)
        count = 1 + len(further)
        self.gates = nn.Linear(count * WIDTH, count * WIDTH) if fusion == "gated" else None
        self.classify = nn.Linear(WIDTH if fusion == "gated" else count * WIDTH, classes)

    def forward(self, image: Tensor, *further: Tensor) -> Tensor:
        """Return logits ``[N, classes]``.

        Args:
            image: Normalized ``[N, C, H, W]``.
            further: Each normalized ``[N, C, H, W]``, or numbers ``[N, width]``.
        """
        vectors = [self.image(image)]
        for encoder, is_image, value in zip(self.encoders, self._images, further, strict=True):
            vectors.append(self.image(value) if is_image else encoder(value))
        if self.gates is None:
            logits: Tensor = self.classify(torch.cat(vectors, dim=1).relu())
            return logits
        stacked = torch.stack(vectors, dim=1)
        weights = self.gates(stacked.flatten(1)).sigmoid().unflatten(1, stacked.shape[1:])
        gated: Tensor = self.classify((weights * stacked.tanh()).sum(dim=1))
        return gated


def _encoder(width: int) -> nn.Module:
    """Return two layers from numbers ``[N, width]`` to ``[N, WIDTH]``."""
    return nn.Sequential(nn.Linear(width, WIDTH), nn.ReLU(), nn.Linear(WIDTH, WIDTH))


class FusionNetwork(Network):
    """A classifier that takes further inputs beside its first image.

    Args:
        backbone: See ``Fused``.
        preprocessing: Its ``mean`` and ``std`` are applied to all images.
        further: The inputs beside the first image, in the order of the arguments.
        classes: Which of the classes are answered, in this order; all of them by default.
    """

    def __init__(
        self,
        backbone: nn.Module,
        preprocessing: Preprocessing,
        further: Sequence[FurtherInput],
        *,
        classes: Sequence[int] | None = None,
    ) -> None:
        super().__init__(backbone, preprocessing, classes=classes)
        self.further = tuple(further)

    def forward(self, pixels: Tensor, *further: Tensor) -> Tensor:
        """Map an image and what is beside it to logits ``[N, classes]``.

        Args:
            pixels: ``[N, C, H, W]``, uint8 or floating point, in the range 0 to 255.
            further: In the order of ``further``: images as ``pixels``, or numbers ``[N, width]`` of float32.
        """
        given = [
            self.normalized(value) if isinstance(item, ImageInput) else value.to(self.scale.dtype)
            for item, value in zip(self.further, further, strict=True)
        ]
        logits: Tensor = self.backbone(self.normalized(pixels), *given)
        return logits if self.classes is None else logits[:, self.classes]

    def answer(self, pixels: Tensor, further: Sequence[Tensor] = ()) -> Tensor:
        """Return the outputs for images and what is beside them; see ``forward``."""
        logits: Tensor = self(pixels, *further)
        return logits

    def example(self, count: int = 1) -> tuple[Tensor, ...]:
        """Return black images and zeros; see ``Network.example``."""
        black = super().example(count)[0]
        numbers = [
            black if isinstance(item, ImageInput) else torch.zeros(count, item.width, device=self.device)
            for item in self.further
        ]
        return black, *numbers

    def answering(self, classes: Sequence[int]) -> Network:
        """Return the same network, sharing its weights, that answers these of its classes in this order."""
        return FusionNetwork(self.backbone, self.preprocessing, self.further, classes=classes)
