"""Where features are taken in two networks: found by resolution, or named by the user; read by hooks."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

from torch import Tensor, nn

from krl_runtime.errors import UsageError
from krl_train.models import Network
from krl_train.models.features import (
    FeatureMap,
    channels_first,
    list_feature_maps,
    reading,
    run_once,
    stage_outputs,
)

__all__ = ["Features", "Taps", "match_taps"]

_EMBEDDING = "(input of the classifier)"  # no module can be called so


@dataclass(frozen=True)
class Features:
    """Features that the last forward pass left.

    Attributes:
        taps: The maps that are wanted, in the order wanted.
        found: What ``reading`` yields.
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
        given = self.found.get(_EMBEDDING)
        return None if given is None else given.flatten(1)


def match_taps(student: Network, teacher: Network, at: Sequence[str]) -> list[tuple[FeatureMap, FeatureMap]]:
    """Pair taps of two networks, from shallow to deep.

    Without ``at``: the outputs of the stages of each resolution, as a share of the input's, that both networks have.

    Args:
        student: The student.
        teacher: The teacher.
        at: Pairs of module names, ``"layer3=stages.2"``; one name stands for both.

    Raises:
        UsageError: A name is not a tap, or no resolution is shared; the message lists the candidates.
    """
    if at:
        mine, theirs = list_feature_maps(student), list_feature_maps(teacher)
        return [_named(pair, mine, theirs) for pair in at]
    last = [_by_share(network) for network in (student, teacher)]
    shared = [(tap, last[1][resolution]) for resolution, tap in last[0].items() if resolution in last[1]]
    if not shared:
        raise UsageError(
            "student and teacher share no resolution; name taps with --feature-taps STUDENT=TEACHER. Student: "
            f"{_show(last[0].values())}. Teacher: {_show(last[1].values())}"
        )
    return shared


def _by_share(network: Network) -> dict[float, FeatureMap]:
    """Return the output of each stage, by its resolution's share of the input's."""
    height = network.preprocessing.height
    return {round(tap.shape[1] / height, 3): tap for tap in stage_outputs(network)}


def _named(pair: str, mine: Sequence[FeatureMap], theirs: Sequence[FeatureMap]) -> tuple[FeatureMap, FeatureMap]:
    names = pair.partition("=")
    result = []
    for role, name, taps in (("student", names[0], mine), ("teacher", names[2] or names[0], theirs)):
        tap = next((tap for tap in taps if tap.name == name), None)
        if tap is None:
            raise UsageError(f"--feature-taps {pair}: the {role} has no feature map {name!r}; it has: {_show(taps)}")
        result.append(tap)
    return result[0], result[1]


def _show(taps: Any) -> str:
    return ", ".join(f"{tap.name} {'×'.join(map(str, tap.shape))}" for tap in taps) or "no feature maps"


class Taps:
    """Reads features of a network while it runs.

    Args:
        network: The network.
        taps: The maps that are wanted, in the order wanted.
        embedding: Whether the classifier's input is wanted: the input of the last linear layer (or, where there is
            none, of the last convolution), flattened.

    Raises:
        UsageError: The network has neither a linear layer nor a convolution.
    """

    def __init__(self, network: Network, taps: Sequence[FeatureMap], *, embedding: bool) -> None:
        self.network = network
        self.taps = list(taps)
        self.embedding = embedding
        self._classifier = _classifier(network.backbone) if embedding else None

    @contextmanager
    def reading(self) -> Iterator[Features]:
        """Yield what is filled by the forward passes inside the block."""
        modules = dict(self.network.backbone.named_modules())
        outputs = {tap.name: modules[tap.name] for tap in self.taps}
        inputs = {} if self._classifier is None else {_EMBEDDING: self._classifier}
        with reading(outputs, inputs) as found:
            yield Features(self.taps, found)

    def shapes(self) -> Mapping[str, tuple[int, ...]]:
        """Return the length of the embedding, found by one forward pass, as ``{"embedding": (D,)}``."""
        with self.reading() as features:
            run_once(self.network)
        return {} if features.embedding is None else {"embedding": tuple(features.embedding.shape[1:])}


def _classifier(backbone: nn.Module) -> nn.Module:
    for kind in (nn.Linear, nn.Conv2d):
        layers = [module for module in backbone.modules() if isinstance(module, kind)]
        if layers:
            return layers[-1]
    raise UsageError("the network has neither a linear layer nor a convolution to take an embedding before")
