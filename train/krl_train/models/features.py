"""Reading what modules inside a network compute: feature maps, and the input of the last linear layer."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from .network import Network

__all__ = ["FeatureMap", "last_linear", "last_of_each_resolution", "list_feature_maps", "reading", "run_once"]


@dataclass(frozen=True)
class FeatureMap:
    """An output inside a network: the module's name in the backbone, and the shape ``(C, H, W)`` of one sample."""

    name: str
    shape: tuple[int, int, int]


@contextmanager
def reading(
    outputs: Mapping[str, nn.Module], inputs: Mapping[str, nn.Module] | None = None
) -> Iterator[dict[str, Any]]:
    """Yield what modules computed in the last forward pass inside the block, by the names given here.

    Args:
        outputs: Modules whose output is wanted.
        inputs: Modules whose first input is wanted.
    """
    found: dict[str, Any] = {}

    def keep_output(name: str, _: nn.Module, __: Any, output: Any) -> None:
        found.pop(name, None)  # a module that is used twice counts, and stands, where it is used last
        found[name] = output

    def keep_input(name: str, _: nn.Module, given: tuple[Any, ...]) -> None:
        found[name] = given[0]

    handles = [module.register_forward_hook(partial(keep_output, name)) for name, module in outputs.items()]
    handles += [module.register_forward_pre_hook(partial(keep_input, name)) for name, module in (inputs or {}).items()]
    try:
        yield found
    finally:
        for handle in handles:
            handle.remove()


@torch.no_grad()
def run_once(network: Network) -> None:
    """Run a network once on black pixels, leaving its mode and statistics as they were."""
    was_training, device = network.training, next(network.parameters()).device
    network.eval()
    try:
        network(torch.zeros(1, *network.preprocessing.shape, dtype=torch.uint8, device=device))
    finally:
        network.train(was_training)


def list_feature_maps(network: Network) -> list[FeatureMap]:
    """Return all feature maps of a network in the order in which they are computed, found by one forward pass."""
    with reading({name: module for name, module in network.backbone.named_modules() if name}) as found:
        run_once(network)
    return [
        FeatureMap(name, (output.shape[1], output.shape[2], output.shape[3]))
        for name, output in found.items()
        if isinstance(output, Tensor) and output.ndim == 4 and output.shape[2] * output.shape[3] > 1
    ]


def last_of_each_resolution(maps: Sequence[FeatureMap]) -> dict[int, FeatureMap]:
    """Return for each height, from fine to coarse, the map of it that is computed last."""
    found = {item.shape[1]: item for item in maps}
    return dict(sorted(found.items(), reverse=True))


def last_linear(module: nn.Module) -> nn.Linear | None:
    """Return the last linear layer, whose input is what a classifier knows of an image; ``None`` if there is none."""
    return next((each for each in reversed(list(module.modules())) if isinstance(each, nn.Linear)), None)
