"""The record of a network in a run, and how the network is made again from it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from torch import nn

from krl_runtime.bundle.further_inputs import INPUTS, FurtherInput, further_inputs
from krl_runtime.errors import ModelError
from krl_runtime.images.preprocessing import Preprocessing
from krl_train.custom import is_custom

from .build import build_model
from .custom import check_custom, check_probe
from .fusion import WIDTH, Fused, FusionNetwork
from .heads import TwoHeads
from .network import Network
from .quantized import FakeQuantized
from .widths import THINNED, cut_as_recorded

__all__ = ["FUSION", "SOURCE_CLASSES", "ModelSpec", "build_classifier", "carried_arguments"]

SOURCE_CLASSES = "source_classes"
"""Argument of a ``ModelSpec``: number of classes of a second head, on the same features."""

FUSION = "fusion"
"""Argument of a ``ModelSpec`` that has ``INPUTS`` as well, inputs beside the image: how they are fused."""


@dataclass(frozen=True)
class ModelSpec:
    """Name and arguments that make a network again.

    Attributes:
        name: Name of the architecture.
        num_classes: Number of logits; 0 where the task has no classes.
        in_channels: Channels of the images.
        arguments: What else the architecture takes, as plain JSON types; ``{"quantize": "int8"}`` makes a classifier
            that rounds as its INT8 graph does, ``"probe"`` tells a user's own network from others of its class,
            ``"source_classes"`` is the number of classes of a second head, ``"pruned"`` has the widths of the layers
            that were cut, as ``set_widths`` takes them; ``"inputs"`` and ``"fusion"`` are of a classifier with several
            inputs.
    """

    name: str
    num_classes: int
    in_channels: int
    arguments: Mapping[str, Any] = field(default_factory=dict)

    @property
    def rows(self) -> int:
        """Return the number of outputs of the last layer: one for each class of all heads."""
        return self.num_classes + self.source_classes

    @property
    def source_classes(self) -> int:
        """Return the number of classes of the second head; 0 where there is none."""
        return int(self.arguments.get(SOURCE_CLASSES, 0))

    def build(
        self, preprocessing: Preprocessing, *, pretrained: bool = False, module: nn.Module | None = None
    ) -> Network:
        """Return a classifier with its normalization, freshly initialized or with the published weights.

        Args:
            preprocessing: From an image to its input; its mean and std are applied in the network.
            pretrained: Whether to take the published weights.
            module: The backbone, for a network that its name does not make.

        Raises:
            ModelError: The name is not known, or the network cannot be had, cut to its widths or quantized.
        """
        further = self.further(preprocessing)
        backbone = module
        if further:
            image = build_model(self.name, WIDTH, self.in_channels, pretrained=pretrained)
            fused = Fused(image, further, self.num_classes, self.arguments[FUSION])
            return FusionNetwork(fused, preprocessing, further)
        if backbone is None:
            backbone = build_model(self.name, self.rows, self.in_channels, pretrained=pretrained)
        if is_custom(self.name):
            self._check_custom(backbone, preprocessing)
            if "probe" in self.arguments:
                check_probe(self.name, backbone, self.arguments["probe"], preprocessing.shape)
        cut_as_recorded(backbone, self.arguments)
        if self.arguments.get("quantize") == "int8":
            backbone = FakeQuantized(backbone, preprocessing.shape)
        if self.source_classes:
            return TwoHeads(backbone, preprocessing, self.num_classes, self.source_classes)
        return Network(backbone, preprocessing)

    def further(self, preprocessing: Preprocessing) -> tuple[FurtherInput, ...]:
        """Return the inputs beside the image; none for most networks.

        Args:
            preprocessing: From an image to its input.

        Raises:
            ModelError: The record of them is not whole.
        """
        try:
            return further_inputs(self.arguments.get(INPUTS, ()), preprocessing)
        except ValueError as error:
            raise ModelError(f"the inputs of {self.name} are not whole: {error}") from error

    def _check_custom(self, backbone: nn.Module, preprocessing: Preprocessing) -> None:
        try:
            check_custom(self.name, backbone, self.rows, preprocessing.shape)
        except ModelError as error:
            if not self.source_classes:
                raise
            raise ModelError(
                f"{error}; of two heads it has the {self.num_classes} outputs of the target's classes and then the "
                f"{self.source_classes} of the source's: give a class or function that takes num_classes"
            ) from error


def carried_arguments(spec: ModelSpec) -> dict[str, Any]:
    """Return the arguments of a network that another one needs to start from its weights."""
    return {key: spec.arguments[key] for key in ("probe", INPUTS, FUSION, *THINNED) if key in spec.arguments}


def build_classifier(spec: ModelSpec, preprocessing: Preprocessing, module: nn.Module | None = None) -> Network:
    """Return a classifier with its normalization, freshly initialized, or around the backbone that is given."""
    return spec.build(preprocessing, module=module)
