"""Where the features of a network come from: a teacher or a student shows its maps, and lets them be read."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass, field
from typing import Any, Protocol

from torch import Tensor, nn

from krl_runtime.errors import UsageError
from krl_train.models import Network
from krl_train.models.features import (
    FeatureMap,
    channels_first,
    has_negative_values,
    list_feature_maps,
    reading,
    run_once,
    stage_outputs,
)

__all__ = ["EMBEDDING", "FeatureSource", "Features", "ModuleFeatures"]

EMBEDDING = "(input of the classifier)"
"""Key of the classifier's input among what was read; neither a module nor a tensor is called so."""


@dataclass(frozen=True)
class Features:
    """Features that the last forward pass left.

    Attributes:
        taps: The maps that are wanted, in the order wanted.
        found: The tensors by the tap's name, and the classifier's input under ``EMBEDDING``; filled by the pass.
    """

    taps: Sequence[FeatureMap] = ()
    found: Mapping[str, Any] = field(default_factory=dict)

    @property
    def maps(self) -> list[Tensor]:
        """Return the maps ``[N, C, H, W]`` at the taps asked for; none before the first pass."""
        return [channels_first(self.found[tap.name], tap) for tap in self.taps] if self.found else []

    @property
    def embedding(self) -> Tensor | None:
        """Return the classifier's input ``[N, D]``, if it was asked for."""
        given = self.found.get(EMBEDDING)
        return None if given is None else given.flatten(1)


class FeatureSource(Protocol):
    """A network whose maps can be listed, and read while it runs."""

    @property
    def height(self) -> int:
        """Height of its input in pixels."""
        ...

    def list_maps(self) -> list[FeatureMap]:
        """Return all of its maps, in the order in which they are computed."""
        ...

    def stages(self) -> list[FeatureMap]:
        """Return the map that ends each resolution, from fine to coarse."""
        ...

    def reading(self, taps: Sequence[FeatureMap], *, embedding: bool) -> AbstractContextManager[Features]:
        """Yield features that are filled by the forward passes inside the block.

        Args:
            taps: The maps that are wanted.
            embedding: Whether the classifier's input is wanted.

        Raises:
            UsageError: The network has no layer whose input that would be.
        """
        ...

    def run_once(self) -> None:
        """Run it on one black image."""
        ...

    def has_negative_values(self, tap: FeatureMap) -> bool:
        """Whether a map has negative values, found by one forward pass of images of noise."""
        ...


class ModuleFeatures:
    """Features of a torch network: its maps are the outputs of its modules, read by hooks.

    The classifier's input is that of the last linear layer or, where there is none, of the last convolution.

    Args:
        network: The network.
    """

    def __init__(self, network: Network) -> None:
        self.network = network

    @property
    def height(self) -> int:
        """See ``FeatureSource.height``."""
        return self.network.preprocessing.height

    def list_maps(self) -> list[FeatureMap]:
        """See ``FeatureSource.list_maps``."""
        return list_feature_maps(self.network)

    def stages(self) -> list[FeatureMap]:
        """See ``FeatureSource.stages``."""
        return stage_outputs(self.network)

    @contextmanager
    def reading(self, taps: Sequence[FeatureMap], *, embedding: bool) -> Iterator[Features]:
        """See ``FeatureSource.reading``."""
        modules = dict(self.network.backbone.named_modules())
        outputs = {tap.name: modules[tap.name] for tap in taps}
        inputs = {EMBEDDING: _classifier(self.network.backbone)} if embedding else {}
        with reading(outputs, inputs) as found:
            yield Features(taps, found)

    def run_once(self) -> None:
        """See ``FeatureSource.run_once``."""
        run_once(self.network)

    def has_negative_values(self, tap: FeatureMap) -> bool:
        """See ``FeatureSource.has_negative_values``."""
        return has_negative_values(self.network, tap.name)


def _classifier(backbone: nn.Module) -> nn.Module:
    for kind in (nn.Linear, nn.Conv2d):
        layers = [module for module in backbone.modules() if isinstance(module, kind)]
        if layers:
            return layers[-1]
    raise UsageError("the network has neither a linear layer nor a convolution to take an embedding before")
