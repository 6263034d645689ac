"""The stages of a network, from its input to its last layer: which weights and which modules belong to each."""

from __future__ import annotations

from bisect import bisect_left
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from torch import nn

from krl_runtime.errors import ModelError

from .features import reading, run_once, stage_outputs
from .network import Network

__all__ = ["Stage", "split_stages"]


@dataclass(frozen=True)
class Stage:
    """A part of a network's backbone.

    Attributes:
        name: Of the module that it ends with, in the backbone.
        parameters: Names of its parameters in the backbone.
        modules: Names of the modules that are computed in it.
    """

    name: str
    parameters: tuple[str, ...]
    modules: tuple[str, ...]


def split_stages(network: Network) -> list[Stage]:
    """Split the backbone of a network; each parameter is in one stage.

    A stage ends where ``stage_outputs`` says, after the last block of a resolution. In networks of tokens each of the
    repeated blocks is one. What is computed after the last of them is a stage, too; the last layer is always the last
    one. A parameter belongs to the stage in which its module is computed, or begins to be.

    Args:
        network: A classifier; it is run once.

    Returns:
        The stages that have parameters, from the input to the last layer: two, the last layer and everything below it,
        where the network has no stages.

    Raises:
        ModelError: The network has no linear layer and no convolution that could be the last layer.
    """
    backbone = network.backbone
    modules = {name: module for name, module in backbone.named_modules() if name}
    with reading(modules) as found:
        run_once(network)
    order = {name: place for place, name in enumerate(name for name in found if name in modules)}
    layers = [name for name in order if isinstance(modules[name], nn.Linear | nn.Conv2d)]
    if not layers:
        raise ModelError(
            f"network {type(backbone).__name__} has no linear layer and no convolution, one of which is its last layer"
        )
    head = layers[-1]
    ends = _ends(network, order, order[head])
    places = [order[name] for name in ends]
    names = [*ends, f"after {ends[-1]}" if ends else f"below {head}", head]

    def stage_of(place: int) -> int:
        return bisect_left(places, place)

    parameters: list[list[str]] = [[] for _ in names]
    inside: list[list[str]] = [[] for _ in names]
    for name, _ in backbone.named_parameters():
        owner = name.rpartition(".")[0]
        parameters[-1 if owner == head else stage_of(_begin(owner, order))].append(name)
    for name in modules:
        inside[-1 if name == head else stage_of(order.get(name, _begin(name, order)))].append(name)
    return _with_parameters(names, parameters, inside)


def _with_parameters(
    names: Sequence[str], parameters: Sequence[Sequence[str]], modules: Sequence[Sequence[str]]
) -> list[Stage]:
    """Return the stages that have parameters; modules of the others go to the next one."""
    stages: list[Stage] = []
    waiting: list[str] = []
    for name, own, inside in zip(names, parameters, modules, strict=True):
        waiting += inside
        if own:
            stages.append(Stage(name, tuple(own), tuple(waiting)))
            waiting = []
    return stages


def _ends(network: Network, order: Mapping[str, int], last: int) -> list[str]:
    """Return the modules that end a stage below the last layer, in the order in which they are computed."""
    found = [tap.name for tap in stage_outputs(network)] or _repeated_blocks(network.backbone, order)
    return sorted((name for name in found if order[name] < last), key=order.__getitem__)


def _repeated_blocks(backbone: nn.Module, order: Mapping[str, int]) -> list[str]:
    """Return the largest number of modules side by side that are of one class and have modules of their own."""
    largest: list[str] = []
    for path, parent in backbone.named_modules():
        prefix = f"{path}." if path else ""
        children = {
            f"{prefix}{name}": type(child)
            for name, child in parent.named_children()
            if f"{prefix}{name}" in order and any(True for _ in child.children())
        }
        (kind, count), *_ = Counter(children.values()).most_common(1) or [(nn.Module, 0)]
        if count > max(1, len(largest)):
            largest = [name for name, child in children.items() if child is kind]
    return largest


def _begin(name: str, order: Mapping[str, int]) -> int:
    """Return the place of the first module that is computed inside of a module, or of the nearest one around it."""
    while True:
        inside = [place for other, place in order.items() if not name or other == name or other.startswith(f"{name}.")]
        if inside or not name:
            return min(inside, default=0)
        name = name.rpartition(".")[0]
