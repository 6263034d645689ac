"""Measuring each layer of one network against another: in its place, and alone on the other's values."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Literal

from krl_runtime.errors import ModelError
from krl_runtime.progress import progress_bar

from .backends import Runner
from .difference import Difference
from .graphs import sizes
from .sides import Arrays, Layer, Pair

__all__ = ["ADDED_DB", "Fault", "Measured", "compare_outputs", "find_first", "measure_layers"]

ADDED_DB = 5.0
"""A layer in its place may have this much less SNR than by itself, since the errors of the layers before it add up."""
_VALUES_IN_GROUP = 1 << 24  # of the layers that are read in one run, 64 MiB for each of the networks


@dataclass(frozen=True)
class Measured:
    """The difference of a layer.

    Attributes:
        layer: The layer.
        total: With everything before it in b.
        alone: With a's values for everything that it reads.
    """

    layer: Layer
    total: Difference = field(default_factory=Difference)
    alone: Difference = field(default_factory=Difference)

    def status(self, limit: float) -> Literal["", "wrong", "inherits"]:
        """Return whether the layer is below a limit by itself, or only in its place.

        Args:
            limit: Smallest SNR by itself, in dB; in its place the layer may have ``ADDED_DB`` less.
        """
        if self.alone.snr_db < limit:
            return "wrong"
        return "inherits" if self.total.snr_db < limit - ADDED_DB else ""


@dataclass(frozen=True)
class Fault:
    """The first layer below the limit.

    Attributes:
        layer: Its name.
        since: Name of the first layer of the shortest row of layers up to it that has less SNR than is accepted, on a's
            values for what stands before the row: the layer itself if it is wrong by itself.
        length: Number of layers of that row.
        snr_db: SNR of the layer at the end of that row.
    """

    layer: str
    since: str
    length: int
    snr_db: float


def compare_outputs(a: Runner, b: Runner, inputs: Sequence[Arrays], names: Sequence[str]) -> dict[str, Difference]:
    """Return the differences of the outputs of two networks, by name.

    Args:
        a: The reference, a function from inputs to outputs by name.
        b: The other network.
        inputs: Inputs by name, in batches that the networks take.
        names: Names of the outputs.
    """
    found = {name: Difference() for name in names}
    with progress_bar("comparing outputs", len(inputs)) as advance:
        for batch in inputs:
            values, others = a(batch), b(batch)
            for name in names:
                _add(found[name], name, values, others)
            advance()
    return found


def measure_layers(pair: Pair, inputs: Sequence[Arrays]) -> list[Measured]:
    """Measure every layer. Layers are read in groups, so that memory does not grow with the network.

    Args:
        pair: The networks.
        inputs: Inputs of the networks, in batches that they take.
    """
    found = [Measured(layer) for layer in pair.layers]
    groups = list(_groups(pair, found, inputs))
    with progress_bar("comparing layers", len(groups) * len(inputs)) as advance:
        for group in groups:
            layers = {item.layer.name: item.layer for item in group}
            before = {source.name: source for layer in layers.values() for source in pair.sources([layer], [layer])}
            run_a, run_b = pair.run_a(list((layers | before).values())), pair.run_b(list(layers.values()))
            alone = {name: pair.run_b_on_a([layer], [layer]) for name, layer in layers.items()}
            for batch in inputs:
                values, others = run_a(batch, {}), run_b(batch, {})
                for item in group:
                    name = item.layer.name
                    _add(item.total, name, values, others)
                    _add(item.alone, name, values, alone[name](batch, values))
                advance()
    return found


def _groups(pair: Pair, found: Sequence[Measured], inputs: Sequence[Arrays]) -> Iterator[list[Measured]]:
    """Yield the layers in groups whose outputs, with those that they read, are few enough to be held at once."""
    largest = max(inputs, key=lambda batch: sum(array.size for array in batch.values()))
    known = sizes(pair.a.data, largest)
    unknown = max(known.values(), default=_VALUES_IN_GROUP)  # a size that cannot be inferred counts as the largest
    group: list[Measured] = []
    held: dict[str, int] = {}
    for item in found:
        read = [item.layer, *pair.sources([item.layer], [item.layer])]
        added = {layer.name: known.get(layer.ends[0], unknown) for layer in read}
        if group and sum((held | added).values()) > _VALUES_IN_GROUP:
            yield group
            group, held = [], {}
        group.append(item)
        held |= added
    yield group


def find_first(pair: Pair, measured: Sequence[Measured], inputs: Sequence[Arrays], limit: float) -> Fault | None:
    """Return the first layer below a limit, and where its error comes from; ``None`` if no layer is below.

    If the layer is not wrong by itself, its error is the sum of those of several layers. Bisection finds the shortest
    row of layers up to it that is enough, on a's values for what stands before the row.

    Args:
        pair: The networks.
        measured: Of ``measure_layers``.
        inputs: The same as there.
        limit: See ``Measured.status``.
    """
    index = next((index for index, item in enumerate(measured) if item.status(limit)), None)
    if index is None:
        return None
    layer, in_place = measured[index].layer.name, limit - ADDED_DB
    if measured[index].status(limit) == "wrong":
        return Fault(layer, layer, 1, measured[index].alone.snr_db)
    # A row that begins at ``since`` is below the limit, one that begins at ``enough`` is not.
    since, enough, error = 0, index, measured[index].total.snr_db
    with progress_bar("bisecting", (enough - since).bit_length()) as advance:
        while enough - since > 1:
            middle = (since + enough) // 2
            found = _row(pair, pair.layers[middle : index + 1], inputs).snr_db
            if found < in_place:
                since, error = middle, found
            else:
                enough = middle
            advance()
    return Fault(layer, measured[since].layer.name, index - since + 1, error)


def _row(pair: Pair, row: Sequence[Layer], inputs: Sequence[Arrays]) -> Difference:
    """Return the difference of the last layer of a row, with a's values for everything before the row."""
    last = [row[-1]]
    run_a, run_b = pair.run_a([*last, *pair.sources(last, row)]), pair.run_b_on_a(last, row)
    found = Difference()
    for batch in inputs:
        values = run_a(batch, {})
        _add(found, row[-1].name, values, run_b(batch, values))
    return found


def _add(difference: Difference, name: str, values: Arrays, others: Arrays) -> None:
    try:
        difference.add(values[name], others[name])
    except ModelError as error:
        raise ModelError(f"layer {name}: {error}") from error
