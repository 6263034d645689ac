"""The task-specific part of importing third-party weights: the network, how weights are read, how it is measured."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import Tensor

from krl_train.models import Network
from krl_train.models.generators import GeneratorNetwork
from krl_train.models.restorers import RestorerNetwork
from krl_train.run import ModelSpec

from .weights import read_weights

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
        network: As it was made; its ``backbone`` gets the weights.
        measure: Measures the network once it has them.
        labels: Class names, where it has any.
        read: Reads the file, and gives its tensors krl's names and layouts.
    """

    task: str
    spec: ModelSpec
    network: Network | GeneratorNetwork | RestorerNetwork
    measure: Callable[[], Measured]
    labels: tuple[str, ...] = ()
    read: Callable[[Path], Mapping[str, Tensor]] = read_weights
