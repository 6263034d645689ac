"""The record of a network in a run, and how the network is made again from it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from krl_runtime.images.preprocessing import Preprocessing

from .build import build_model
from .network import Network
from .quantized import FakeQuantized

__all__ = ["ModelSpec", "build_classifier"]


@dataclass(frozen=True)
class ModelSpec:
    """Name and arguments that make a network again.

    Attributes:
        name: Name of the architecture.
        num_classes: Number of logits; 0 where the task has no classes.
        in_channels: Channels of the images.
        arguments: What else the architecture takes, as plain JSON types; ``{"quantize": "int8"}`` makes a classifier
            that rounds as its INT8 graph does.
    """

    name: str
    num_classes: int
    in_channels: int
    arguments: Mapping[str, Any] = field(default_factory=dict)

    def build(self, preprocessing: Preprocessing, *, pretrained: bool = False) -> Network:
        """Return a classifier with its normalization, freshly initialized or with the published weights.

        Raises:
            ModelError: The name is not known, or the network cannot be had or quantized.
        """
        backbone = build_model(self.name, self.num_classes, self.in_channels, pretrained=pretrained)
        if self.arguments.get("quantize") == "int8":
            backbone = FakeQuantized(backbone, preprocessing.shape)
        return Network(backbone, preprocessing)


def build_classifier(spec: ModelSpec, preprocessing: Preprocessing) -> Network:
    """Return a classifier with its normalization, freshly initialized."""
    return spec.build(preprocessing)
