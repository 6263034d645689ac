"""Values that FP16 would lose: too large, too small, or too close to each other.

A node in FP16 may compute its intermediate values in FP16 as well, so that these count too: the squares of a norm, the
exponentials of a ``Softplus``. A stored epsilon counts as a value that occurs, whether or not an image shows it.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping

import numpy as np
import numpy.typing as npt
from onnx import NodeProto, TensorProto

from krl_deploy.graph.edit import GraphEditor, attribute
from krl_deploy.graph.operators import MOVES_OR_CASTS, WEIGHTED
from krl_deploy.graph.placement import Ranges, channel_axis

from .insensitive_channels import InsensitiveChannels

__all__ = ["LARGEST", "Fp16Limits"]

LARGEST = 65504.0
"""The largest finite FP16 number."""

_LIMIT = LARGEST / 2
_SMALLEST = float(np.finfo(np.float16).tiny)  # of full precision: 6.1e-5
_STEP = float(np.finfo(np.float16).smallest_subnormal)  # between neighbors below that
_EPS = float(np.finfo(np.float16).eps)  # largest step between neighbors, as a share of them
_LEAST_STEPS = 16  # 4 bits: too few to distinguish values by; a choice, and the gate judges the rest
_FEW = _LEAST_STEPS * _STEP  # 9.5e-7: what is smaller has fewer than 4 bits, or is rounded to 0
_FAR = 8.0  # gates (sigmoids, softmax) are at most 1 and may hardly vary: as factors they lose nothing by rounding
_LARGEST_EXPONENT = math.log(LARGEST) / 2  # other images may have values twice as large, as for _LIMIT
_LEAST_WEIGHT = 2**8 * _STEP  # 8 bits, as INT8 has, for the largest weight of a channel

_ONE = 1.0  # a number from here on is no epsilon

_ABOVE_ZERO = {"Div": 1, "Reciprocal": 0, "Log": 0, "Sqrt": 0}  # index of the input that must not become 0
_MOVES = MOVES_OR_CASTS | {"Concat", "Expand", "Gather", "Slice", "Split", "Tile"}
_KEEPS_SMALL = _MOVES | {"Abs", "Add", "Clip", "Max", "ReduceMax", "ReduceMean", "ReduceMin", "ReduceSum"}
_HANDS_ON_LARGE = _MOVES | {"Add", "Mul", "Sub", "Where"}
_EXPONENTIALS = frozenset({"Cosh", "Exp", "ReduceLogSumExp", "Sinh", "Softplus"})
_SUMS_OF_SQUARES = frozenset({"ReduceL2", "ReduceSumSquare"})
_VARIANCES = frozenset({"GroupNormalization", "InstanceNormalization", "LayerNormalization", "RMSNormalization"})
_ALWAYS_FLOAT = {
    "LpNormalization": "its sums of squares may be too small or too large for FP16, and nobody sees them",
    "MeanVarianceNormalization": "its epsilon of 1e-9 would become 0 in FP16",
}


class Fp16Limits:
    """The values of a graph beside the limits of FP16.

    Args:
        graph: A clean float32 graph.
        ranges: Smallest and largest values of its tensors on real inputs, infinities aside.
    """

    def __init__(self, graph: GraphEditor, ranges: Ranges) -> None:
        self._graph = graph
        self._ranges = _possible(graph, ranges)
        self._producers, self._consumers = graph.producers(), graph.consumers()
        self._above_zero = self._must_stay_above_zero()
        self._channels = InsensitiveChannels(graph, ranges)
        self._squares = dict(self._small_squares())

    def why_float(self, node: NodeProto) -> str | None:
        """Return why a node would lose values in FP16, or ``None``."""
        names = [name for name in [*node.input, *node.output] if self._graph.dtype(name) == TensorProto.FLOAT]
        for name in names:
            why = self._why_lost(node, name)
            if why is not None:
                return why
        return self._squares.get(node.name) or self._why_inside(node) or self._why_weak(node)

    def _why_lost(self, node: NodeProto, name: str) -> str | None:
        low, high = self._ranges.get(name, (0.0, 0.0))
        largest = max(abs(low), abs(high))
        if largest > _LIMIT:
            return f"{name} reaches {largest:.4g}; FP16 ends at {LARGEST:.0f}"
        if name in self._above_zero:
            return f"{name} goes down to {low:.4g} and must not become 0; FP16 has its first numbers at {_STEP:.1e}"
        if low != high:  # one value alone is a constant
            if largest < _SMALLEST:
                return f"{name} is at most {largest:.4g}; FP16 has its full precision from {_SMALLEST:.1e} on"
            if largest > _FAR and high - low < _LEAST_STEPS * _EPS * largest:
                steps = f"where the steps of FP16 are {_EPS * largest:.2g}"
                return f"{name} has values from {low:.6g} to {high:.6g}, {steps}"
        value = self._graph.constant(name)
        return None if value is None else self._why_constant_lost(node, name, value[np.isfinite(value)])

    def _why_constant_lost(self, node: NodeProto, name: str, value: npt.NDArray[np.float32]) -> str | None:
        if not value.size:
            return None
        largest = np.abs(value).max()
        if largest > LARGEST:
            return f"constant {name} has {largest:.4g}; FP16 ends at {LARGEST:.0f}"
        if node.op_type in ("Conv", "ConvTranspose", "Gemm") and name in node.input[2:]:
            return None  # a bias that small may vanish; a divisor may not
        if np.any(value) and not np.any(value.astype(np.float16)):
            return f"constant {name}, at most {largest:.4g}, would become 0 in FP16"
        if name in _read_above_zero(self._graph, node) and np.any((value != 0) & (np.abs(value) < _FEW)):
            return f"divisor {name} has a value that would become 0 in FP16, or nearly so"
        return None

    def _must_stay_above_zero(self) -> set[str]:
        """Return tensors with values of one sign that FP16 would round to 0 or nearly so, and that must not be 0."""
        pending = [name for node in self._graph.nodes for name in _read_above_zero(self._graph, node)]
        found: set[str] = set()
        while pending:
            name = pending.pop()
            low, high = self._ranges.get(name, (0.0, 0.0))
            if name in found or not (0 < low < _FEW or -_FEW < high < 0):
                continue
            found.add(name)
            producer = self._producers.get(name)
            if producer is not None and producer.op_type in _KEEPS_SMALL:
                pending += producer.input
        return found

    def _small_squares(self) -> Iterator[tuple[str, str]]:
        """Yield the nodes that square values and add them up where the squares vanish, each with the reason."""
        for node in self._graph.nodes:
            source = self._producers.get(node.input[0]) if node.input else None
            if node.op_type not in ("ReduceMean", "ReduceSum") or source is None or not _squares(self._graph, source):
                continue
            low, high = self._ranges.get(node.output[0], (0.0, 0.0))
            count = _reduced(self._graph, node) if node.op_type == "ReduceSum" else 1
            least = (low or high) / count
            if 0 < least < _FEW:
                why = f"the mean of the squares {node.input[0]} goes down to {least:.4g}, which FP16 does not hold"
                yield node.name, why
                yield source.name, why

    def _why_inside(self, node: NodeProto) -> str | None:
        """Return why values that a node computes inside would be lost, or ``None``."""
        kind = node.op_type
        if kind in _ALWAYS_FLOAT:
            return _ALWAYS_FLOAT[kind]
        epsilon = attribute(node, "epsilon", 1.0)
        if 0 < epsilon < _FEW:
            return f"its epsilon of {epsilon:.4g} would become 0 in FP16, or nearly so"
        low, high = self._ranges.get(node.input[0], (0.0, 0.0)) if node.input else (0.0, 0.0)
        if kind in _EXPONENTIALS and max(high, -low if kind in ("Cosh", "Sinh") else high) > _LARGEST_EXPONENT:
            return f"exponentials of {node.input[0]}, up to {high:.4g}, come near the end of FP16 at {LARGEST:.0f}"
        if kind == "BatchNormalization":
            variance = self._graph.constant(node.input[4])
            if variance is not None and np.any((variance > 0) & (variance + attribute(node, "epsilon", 1e-5) < _FEW)):
                return f"a variance in {node.input[4]} would become 0 in FP16, or nearly so"
        if kind in ("ReduceLogSum", "ReduceLogSumExp"):
            least = self._ranges.get(node.output[0], (0.0, 0.0))[0]
            return f"it sums up less than {_FEW:.2g}" if least < math.log(_FEW) else None
        return self._why_squares(node, max(abs(low), abs(high)))

    def _why_squares(self, node: NodeProto, largest: float) -> str | None:
        """Return why the squares inside a norm or variance do not fit, or ``None``."""
        squares = (largest**2, largest**2)
        if node.op_type in _SUMS_OF_SQUARES:
            power = 2 if node.op_type == "ReduceL2" else 1
            low, high = (value**power for value in self._ranges.get(node.output[0], (0.0, 0.0)))
            squares = ((low or high) / _reduced(self._graph, node), high)
        elif node.op_type not in _VARIANCES:
            return None
        if squares[1] > _LIMIT:
            return f"its squares of {node.input[0]} reach {squares[1]:.4g}; FP16 ends at {LARGEST:.0f}"
        if 0 < squares[0] < _FEW:
            return f"its squares of {node.input[0]} go down to {squares[0]:.4g}, which FP16 does not hold"
        return None

    def _why_weak(self, node: NodeProto) -> str | None:
        """Return why the weights of an output channel are too small for FP16, or ``None``."""
        weight = self._graph.constant(node.input[1]) if node.op_type in WEIGHTED else None
        axis = None if weight is None or weight.ndim < 2 else channel_axis(node, weight.ndim)
        if weight is None or axis is None:
            return None
        rows = np.abs(np.moveaxis(weight, axis, 0).reshape(weight.shape[axis], -1))
        weak = (rows.max(axis=1) > 0) & (rows.max(axis=1) < _LEAST_WEIGHT)
        weak = weak & ~self._channels.of(node, axis, _STEP) if weak.any() else weak
        if not weak.any():
            return None
        channel = int(np.flatnonzero(weak)[0])
        return f"weights of output {channel} are at most {rows[channel].max():.4g}, which FP16 holds with few digits"


def _read_above_zero(graph: GraphEditor, node: NodeProto) -> list[str]:
    """Return the inputs of a node that must not become 0: a divisor, and what a root or logarithm is taken of."""
    if node.op_type == "Pow":
        exponent = graph.constant(node.input[1])
        return [node.input[0]] if exponent is not None and (exponent < 1).any() else []
    index = _ABOVE_ZERO.get(node.op_type)
    return [] if index is None else [node.input[index]]


def _squares(graph: GraphEditor, node: NodeProto) -> bool:
    if node.op_type == "Pow":
        exponent = graph.constant(node.input[1])
        return exponent is not None and bool((exponent == 2).all())
    return node.op_type == "Mul" and node.input[0] == node.input[1]


def _reduced(graph: GraphEditor, node: NodeProto) -> int:
    """Return how many values a reduction makes one of; open axes count as one."""
    before, after = graph.shape(node.input[0]) or (), graph.shape(node.output[0]) or ()
    sizes = [math.prod(size for size in shape if isinstance(size, int)) for shape in (before, after)]
    return max(1, sizes[0] // max(1, sizes[1]))


def _possible(graph: GraphEditor, ranges: Ranges) -> dict[str, tuple[float, float]]:
    """Return the ranges, widened by the values that stored epsilons and masks allow.

    ``x + 1e-8`` is 1e-8 on an image whose ``x`` is 0, and its reciprocal 1e8. A mask of -1e9 reaches that on an image
    that something is hidden of.
    """
    found = dict(ranges)
    for node in graph.nodes:
        ends = _large(graph, node, found, ranges) or _ends(graph, node, found, ranges)
        if ends is not None:
            low, high = found.get(node.output[0], ends)
            found[node.output[0]] = min(low, *ends), max(high, *ends)
    return found


def _large(
    graph: GraphEditor, node: NodeProto, found: Mapping[str, tuple[float, float]], ranges: Ranges
) -> tuple[float, float] | None:
    """Return ends of the stored values beyond FP16 that a node may choose, add or move, or ``None``."""
    if node.op_type not in _HANDS_ON_LARGE:
        return None
    values: list[float] = []
    for name in node.input:
        constant = graph.constant(name)
        if constant is None:
            is_mask = node.op_type != "Mul" and found.get(name) != ranges.get(name)  # else measurements say it all
            values += found[name] if is_mask else ()
        elif constant.dtype.kind == "f" and constant.size:
            finite = constant[np.isfinite(constant)]
            values += (float(finite.min()), float(finite.max())) if finite.size else ()
    large = [value for value in values if abs(value) > LARGEST]
    large += [-value for value in large] if node.op_type == "Sub" else []
    return (min(large), max(large)) if large else None


def _ends(
    graph: GraphEditor, node: NodeProto, found: Mapping[str, tuple[float, float]], ranges: Ranges
) -> tuple[float, float] | None:
    """Return ends of the values that an epsilon allows behind a node, or ``None``."""
    kind = node.op_type
    least = _epsilon(graph, node, ranges)
    if least is not None:
        return least, least
    given = next((name for name in node.input if found.get(name) != ranges.get(name)), "")
    if found.get(given, (0.0, 0.0))[0] <= 0 or (kind == "Div" and given != node.input[1]):
        return None  # not behind an epsilon
    low, high = found[given]
    constant = next((graph.constant(name) for name in node.input if name in graph.constants), None)
    factor = float(np.abs(constant).max()) if constant is not None and constant.size else None
    if kind in _MOVES:
        return low, high
    if kind == "Sqrt":
        return low**0.5, high**0.5
    if kind == "Reciprocal":
        return 1 / high, 1 / low
    if factor is None or constant is None:
        return None
    if kind == "Pow":
        exponent = float(constant.reshape(-1)[0])
        return low**exponent, high**exponent
    return {"Div": (factor / high, factor / low), "Mul": (low * factor, high * factor)}.get(kind)


def _epsilon(graph: GraphEditor, node: NodeProto, ranges: Ranges) -> float | None:
    """Return the positive number that a node keeps values above, if it does."""
    if node.op_type == "Clip":
        limit = graph.constant(node.input[1]) if len(node.input) > 1 else None
        return float(limit) if limit is not None and 0 < limit < _ONE else None
    if node.op_type == "Where":
        chosen = [value for value in map(graph.constant, node.input[1:]) if value is not None and value.size == 1]
        return next((float(value.max()) for value in chosen if 0 < value.max() < _FEW), None)
    if node.op_type not in ("Add", "Max", "Sub", "Sum") or len(node.input) != 2:
        return None
    for name, other in (tuple(node.input), tuple(node.input)[::-1]):
        value = graph.constant(name)
        if value is not None and node.op_type == "Sub":
            value = -value if name == node.input[1] else None  # a negative number taken away
        above = node.op_type == "Max" or ranges.get(other, (0.0, 0.0))[0] >= 0  # else it keeps nothing above 0
        if above and value is not None and value.dtype.kind == "f" and value.size and 0 < value.min() < _ONE:
            return float(value.min())
    return None
