"""The task-specific part of importing third-party weights: the network with its weights, and how it is measured."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from krl_runtime.bundle.output_kind import OutputKind
from krl_train.models import Network
from krl_train.models.generators import GeneratorNetwork
from krl_train.models.restorers import RestorerNetwork
from krl_train.run import ModelSpec

__all__ = ["Measured", "Target"]


@dataclass(frozen=True)
class Measured:
    """The record and network that third-party weights are for.

    Attributes:
        metrics: What was measured.
        data: Identity of the data that it was measured on; empty without.
    """

    metrics: Mapping[str, Any]
    data: Mapping[str, Any]


@dataclass(frozen=True)
class Target:
    """The network that third-party weights are for.

    Attributes:
        task: What the network does.
        spec: What makes it again.
        network: With the weights.
        entry: The entry of the file that has them.
        measure: Measures the network.
        labels: Class names, where it has any.
        output_kind: Meaning of a classifier's outputs.
    """

    task: str
    spec: ModelSpec
    network: Network | GeneratorNetwork | RestorerNetwork
    entry: str
    measure: Callable[[], Measured]
    labels: tuple[str, ...] = ()
    output_kind: OutputKind = "logits"
