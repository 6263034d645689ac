"""Pruning's view of a network, whatever its task: a backbone with inputs and a size, and something around it."""

from __future__ import annotations

import copy
from typing import TypeAlias, TypeVar

import torch
from torch import Tensor, nn

from krl_train.models import Network
from krl_train.models.generators import GeneratorNetwork
from krl_train.models.restorers import RestorerNetwork
from krl_train.run import Run, RunRecord, fresh_network
from krl_train.training.gan import generator_size
from krl_train.training.train import network_size

__all__ = ["PrunableNetwork", "example_inputs", "fresh_network_of", "network_of", "size_of", "with_backbone"]

PrunableNetwork: TypeAlias = Network | RestorerNetwork | GeneratorNetwork
"""Networks that ``Run.module`` returns for the tasks whose networks can be pruned."""

_Network = TypeVar("_Network", bound=nn.Module)


def network_of(run: Run) -> PrunableNetwork:
    """Return a run's network in eval mode, on the CPU.

    Raises:
        RunError: See ``Run.module``.
    """
    return _known(run.module())


def fresh_network_of(record: RunRecord) -> PrunableNetwork:
    """Return the network of a record, freshly initialized, in eval mode.

    Raises:
        KrlError: It cannot be made.
    """
    return _known(fresh_network(record))


def _known(network: nn.Module) -> PrunableNetwork:
    assert isinstance(network, Network | RestorerNetwork | GeneratorNetwork)  # noqa: S101  for the type checker
    return network


def example_inputs(network: PrunableNetwork) -> tuple[Tensor, ...]:
    """Return an example of each input of a network's backbone.

    A normalized image ``[1, C, H, W]``; or a latent ``[1, Z]`` and, where there is a condition, tokens ``[1, L]`` of
    int64. All are random, and the same each time.
    """
    generator = torch.Generator().manual_seed(0)
    if not isinstance(network, GeneratorNetwork):
        return (torch.randn(1, *network.preprocessing.shape, generator=generator),)
    latent = torch.randn(1, network.latent_size, generator=generator)
    if network.condition is None:
        return (latent,)
    count, length = len(network.condition["vocabulary"]), int(network.condition["length"])
    return latent, torch.randint(count, (1, length), generator=generator)


def with_backbone(network: _Network, backbone: nn.Module) -> _Network:
    """Return a copy of a network around another backbone, which is not copied."""
    return copy.deepcopy(network, {id(network.get_submodule("backbone")): backbone})


def size_of(network: PrunableNetwork) -> dict[str, int]:
    """Return ``"parameters"``, and ``"macs"``, the multiply-accumulate operations of one input."""
    return generator_size(network) if isinstance(network, GeneratorNetwork) else network_size(network)
