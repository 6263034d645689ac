"""The record of a network in a run, and how the network is made again from it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from torch import nn

from krl_runtime.images.preprocessing import Preprocessing
from krl_train.custom import is_custom

from .build import build_model
from .custom import check_custom, check_probe
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
            that rounds as its INT8 graph does, ``"probe"`` tells a user's own network from others of its class.
    """

    name: str
    num_classes: int
    in_channels: int
    arguments: Mapping[str, Any] = field(default_factory=dict)

    def build(
        self, preprocessing: Preprocessing, *, pretrained: bool = False, module: nn.Module | None = None
    ) -> Network:
        """Return a classifier with its normalization, freshly initialized or with the published weights.

        Args:
            preprocessing: From an image to its input; its mean and std are applied in the network.
            pretrained: Whether to take the published weights.
            module: The backbone, for a network that its name does not make.

        Raises:
            ModelError: The name is not known, or the network cannot be had or quantized.
        """
        backbone = module
        if backbone is None:
            backbone = build_model(self.name, self.num_classes, self.in_channels, pretrained=pretrained)
        if is_custom(self.name):
            check_custom(self.name, backbone, self.num_classes, preprocessing.shape)
            if "probe" in self.arguments:
                check_probe(self.name, backbone, self.arguments["probe"], preprocessing.shape)
        if self.arguments.get("quantize") == "int8":
            backbone = FakeQuantized(backbone, preprocessing.shape)
        return Network(backbone, preprocessing)


def build_classifier(spec: ModelSpec, preprocessing: Preprocessing, module: nn.Module | None = None) -> Network:
    """Return a classifier with its normalization, freshly initialized, or around the backbone that is given."""
    return spec.build(preprocessing, module=module)
