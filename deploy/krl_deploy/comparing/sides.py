"""The two networks of a comparison, and their layers matched by name."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any, Literal, TypeAlias

import numpy as np
import numpy.typing as npt

from krl_runtime.errors import ModelError

from .backends import Runner, open_part
from .config import ComparedBackend
from .graphs import OpenGraph, Tap

__all__ = ["Arrays", "Layer", "Pair", "Part", "Side"]

Arrays: TypeAlias = "Mapping[str, npt.NDArray[Any]]"
"""Arrays by name, ``[N, ...]`` each."""

Part: TypeAlias = "Callable[[Arrays, Arrays], dict[str, npt.NDArray[Any]]]"
"""A function from the inputs of the network by name, and the outputs of layers before a part by their names, to the
outputs of layers by their names."""


@dataclass(frozen=True)
class Side:
    """A network of a comparison.

    Attributes:
        name: Its file, as ``"int8.cpu"``.
        data: The ONNX file.
        backend: The backend that runs it.
        divisors: By layer, what equalization divided the channels ``[C]`` of its output by.
    """

    name: str
    data: bytes
    backend: ComparedBackend = "cpu"
    divisors: Mapping[str, npt.NDArray[np.float32]] = field(default_factory=dict)

    @cached_property
    def graph(self) -> OpenGraph:
        """The opened file."""
        return OpenGraph(self.data)

    def open(self) -> Runner:
        """Open the file on the side's backend."""
        return open_part(self.data, self.backend)

    def without_divisor(self, layer: str, values: npt.NDArray[Any]) -> npt.NDArray[Any]:
        """Return the output ``[N, C, ...]`` of a layer as it is without equalization."""
        return values * self._divisor(layer, values.ndim) if layer in self.divisors else values

    def with_divisor(self, layer: str, values: npt.NDArray[Any]) -> npt.NDArray[Any]:
        """Return the output ``[N, C, ...]`` of a layer as it is with equalization."""
        return values / self._divisor(layer, values.ndim) if layer in self.divisors else values

    def _divisor(self, layer: str, rank: int) -> npt.NDArray[np.float32]:
        return self.divisors[layer].reshape(1, -1, *[1] * (rank - 2))


@dataclass(frozen=True)
class Layer:
    """A layer that both networks have.

    Attributes:
        name: Name of the node.
        op: Its operator.
        ends: The tensors that it ends with, in a and in b.
        taps: Where its output is read, in a and in b.
    """

    name: str
    op: str
    ends: tuple[str, str]
    taps: tuple[Tap, Tap]


class Pair:
    """Two networks with the same layers, between which nodes are matched by name.

    What only one of them has belongs to the layer that reads it: Q/DQ pairs, casts, and operators that move values.
    An activation that the other network folds into a layer belongs to that layer.

    Args:
        a: The reference.
        b: The network that is compared with it.

    Attributes:
        layers: The layers of both, in the order of execution.

    Raises:
        ModelError: They have no layer in common.
    """

    def __init__(self, a: Side, b: Side) -> None:
        self.a, self.b = a, b
        names = [name for name in a.graph.layers if name in b.graph.layers]
        if not names:
            raise ModelError(
                f"{a.name} and {b.name} have no node with the same name, so their layers cannot be matched; compare "
                "files that were made by krl-deploy fp16 and quantize from the same fp32 file"
            )
        self.layers: list[Layer] = []
        for name in names:
            ends = a.graph.end(name, b.graph), b.graph.end(name, a.graph)
            taps = a.graph.tap(ends[0]), b.graph.tap(ends[1])
            self.layers.append(Layer(name, a.graph.nodes[name].op_type, ends, taps))
        self._by_end = {layer.ends[1]: layer for layer in self.layers}

    def sources(self, layers: Iterable[Layer], inside: Iterable[Layer]) -> list[Layer]:
        """Return the layers outside of ``inside`` whose outputs are needed to run ``layers`` in b."""
        found = self.b.graph.sources([layer.taps[1].tensor for layer in layers], self._outside(inside))
        return [self._by_end[end] for end in found if end in self._by_end]

    def run_a(self, layers: Sequence[Layer]) -> Part:
        """Return a function that gives the outputs of layers in a."""
        return self._tapped(0, layers, frozenset())

    def run_b(self, layers: Sequence[Layer]) -> Part:
        """Return a function that gives the outputs of layers in b."""
        return self._tapped(1, layers, frozenset())

    def run_b_on_a(self, layers: Sequence[Layer], inside: Iterable[Layer]) -> Part:
        """Return a function that runs a part of b on the outputs in a of the layers before it.

        Args:
            layers: The layers whose outputs are wanted.
            inside: The layers of the part, ``layers`` among them; those before are its ``sources``.
        """
        return self._tapped(1, layers, self._outside(inside))

    def _outside(self, inside: Iterable[Layer]) -> frozenset[str]:
        return frozenset(self._by_end).difference(layer.ends[1] for layer in inside)

    def _tapped(self, side: Literal[0, 1], layers: Sequence[Layer], ends: Collection[str]) -> Part:
        network = (self.a, self.b)[side]
        taps = {layer.name: layer.taps[side] for layer in layers}
        wanted = list(dict.fromkeys(tap.tensor for tap in taps.values()))
        needed = network.graph.sources(wanted, ends)
        run = open_part(network.graph.part(wanted, ends), network.backend, 1 if ends else None)

        def call(inputs: Arrays, values: Arrays) -> dict[str, npt.NDArray[Any]]:
            made = run({name: self._fed(name, values) if name in ends else inputs[name] for name in needed})
            return {name: network.without_divisor(name, tap.real(made[tap.tensor])) for name, tap in taps.items()}

        return call

    def _fed(self, end: str, values: Arrays) -> npt.NDArray[Any]:
        """Return a's output of a layer as b has it: in its type, and with its channels divided."""
        layer = self._by_end[end]
        with np.errstate(over="ignore"):  # beyond FP16 it is infinite, as in b
            return self.b.with_divisor(layer.name, values[layer.name]).astype(self.b.graph.dtype(end))
