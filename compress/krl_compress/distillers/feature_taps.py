"""Where features are taken in two networks: found by resolution, or named by the user; read by hooks."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from krl_runtime.errors import UsageError
from krl_train.models import Network

__all__ = ["Features", "Place", "Taps", "list_places", "match_places"]


@dataclass(frozen=True)
class Place:
    """An output inside a network: the module's name in the backbone, and the shape ``(C, H, W)`` of one sample."""

    name: str
    shape: tuple[int, int, int]


@dataclass
class Features:
    """What one forward pass left: maps ``[N, C, H, W]`` at the places asked for, the classifier's input ``[N, D]``."""

    maps: list[Tensor] = field(default_factory=list)
    embedding: Tensor | None = None


@torch.no_grad()
def list_places(network: Network) -> list[Place]:
    """Return all feature maps of a network in the order in which they are computed, found by one forward pass."""
    places: dict[str, Place] = {}

    def hook(name: str) -> Any:
        def record(_: nn.Module, __: Any, output: Any) -> None:
            if isinstance(output, Tensor) and output.ndim == 4 and output.shape[2] * output.shape[3] > 1:
                places.pop(name, None)  # a module that is used twice counts where it is used last
                places[name] = Place(name, (output.shape[1], output.shape[2], output.shape[3]))

        return record

    handles = [module.register_forward_hook(hook(name)) for name, module in network.backbone.named_modules() if name]
    _try(network, handles)
    return list(places.values())


def match_places(student: Network, teacher: Network, at: Sequence[str]) -> list[tuple[Place, Place]]:
    """Pair places of two networks, from shallow to deep.

    Without ``at``: for each resolution, as a share of the input's, that both networks have, the last map of it.

    Args:
        student: The student.
        teacher: The teacher.
        at: Pairs of module names, ``"layer3=stages.2"``; one name stands for both.

    Raises:
        UsageError: A name is not a place, or no resolution is shared; the message lists the candidates.
    """
    mine, theirs = list_places(student), list_places(teacher)
    if at:
        return [_named(pair, mine, theirs) for pair in at]
    last = [_last_of_each_resolution(network, places) for network, places in ((student, mine), (teacher, theirs))]
    shared = [(place, last[1][resolution]) for resolution, place in last[0].items() if resolution in last[1]]
    if not shared:
        raise UsageError(
            "student and teacher share no resolution; name places with --at STUDENT=TEACHER. Student: "
            f"{_show(last[0].values())}. Teacher: {_show(last[1].values())}"
        )
    return shared


def _last_of_each_resolution(network: Network, places: Sequence[Place]) -> dict[float, Place]:
    height = network.preprocessing.height
    found = {round(place.shape[1] / height, 3): place for place in places}
    return dict(sorted(found.items(), reverse=True))


def _named(pair: str, mine: Sequence[Place], theirs: Sequence[Place]) -> tuple[Place, Place]:
    names = pair.partition("=")
    result = []
    for role, name, places in (("student", names[0], mine), ("teacher", names[2] or names[0], theirs)):
        place = next((place for place in places if place.name == name), None)
        if place is None:
            raise UsageError(f"--at {pair}: the {role} has no feature map {name!r}; it has: {_show(places)}")
        result.append(place)
    return result[0], result[1]


def _show(places: Any) -> str:
    return ", ".join(f"{place.name} {'×'.join(map(str, place.shape))}" for place in places)


class Taps:
    """Reads features of a network while it runs.

    Args:
        network: The network.
        places: Names of the modules whose outputs are wanted, in the order wanted.
        embedding: Whether the classifier's input is wanted: the input of the last linear layer (or, where there is
            none, of the last convolution), flattened.

    Raises:
        UsageError: The network has neither a linear layer nor a convolution.
    """

    def __init__(self, network: Network, places: Sequence[str], *, embedding: bool) -> None:
        self.network = network
        self.places = list(places)
        self.embedding = embedding
        self._classifier = _classifier(network.backbone) if embedding else None

    @contextmanager
    def reading(self) -> Iterator[Features]:
        """Yield what is filled by the forward passes inside the block."""
        features, found = Features(), {}  # type: tuple[Features, dict[str, Tensor]]
        modules = dict(self.network.backbone.named_modules())

        def keep(name: str) -> Any:
            def record(_: nn.Module, __: Any, output: Tensor) -> None:
                found[name] = output
                if len(found) == len(set(self.places)):
                    features.maps = [found[place] for place in self.places]

            return record

        def keep_input(_: nn.Module, inputs: tuple[Tensor, ...]) -> None:
            features.embedding = inputs[0].flatten(1)

        handles: list[RemovableHandle] = [modules[name].register_forward_hook(keep(name)) for name in set(self.places)]
        if self._classifier is not None:
            handles.append(self._classifier.register_forward_pre_hook(keep_input))
        try:
            yield features
        finally:
            for handle in handles:
                handle.remove()

    def shapes(self) -> Mapping[str, tuple[int, ...]]:
        """Return the length of the embedding, found by one forward pass, as ``{"embedding": (D,)}``."""
        with self.reading() as features:
            _try(self.network, [])
        return {} if features.embedding is None else {"embedding": tuple(features.embedding.shape[1:])}


def _classifier(backbone: nn.Module) -> nn.Module:
    for kind in (nn.Linear, nn.Conv2d):
        layers = [module for module in backbone.modules() if isinstance(module, kind)]
        if layers:
            return layers[-1]
    raise UsageError("the network has neither a linear layer nor a convolution to take an embedding before")


@torch.no_grad()
def _try(network: Network, handles: Sequence[RemovableHandle]) -> None:
    """Run a network once on black pixels, leaving its mode and statistics as they were."""
    was_training = network.training
    device = next(network.parameters()).device
    network.eval()
    try:
        network(torch.zeros(1, *network.preprocessing.shape, dtype=torch.uint8, device=device))
    finally:
        network.train(was_training)
        for handle in handles:
            handle.remove()
