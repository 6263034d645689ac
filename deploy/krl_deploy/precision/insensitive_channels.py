"""Output channels whose weights may be rounded coarsely, since nothing notices: dead ones above all.

Training with weight decay leaves channels with weights of 1e-6 and less in most networks.
"""

from __future__ import annotations

from typing import Final

import numpy as np
import numpy.typing as npt
from onnx import NodeProto

from krl_deploy.graph.edit import GraphEditor, attribute
from krl_deploy.graph.placement import Ranges, channel_axis

__all__ = ["InsensitiveChannels"]

_Numbers = npt.NDArray[np.float64]
_Flags = npt.NDArray[np.bool_]

_HALF = np.finfo(np.float16)
_NO_FP16 = float(_HALF.smallest_subnormal) / 2  # FP16 rounds what is smaller to 0
_BESIDE: Final = float(_HALF.eps) / 4  # FP16 rounds a sum to its larger part where the smaller one has this share

# Factors by which an operator may enlarge a difference of its input, at most.
_LIPSCHITZ = {
    **dict.fromkeys(("Add", "AveragePool", "Clip", "Flatten", "GlobalAveragePool", "HardSigmoid", "Identity"), 1.0),
    **dict.fromkeys(("LeakyRelu", "MaxPool", "ReduceMean", "Relu", "Reshape", "Sigmoid", "Slice", "Squeeze"), 1.0),
    **dict.fromkeys(("Sub", "Tanh"), 1.0),
    **dict.fromkeys(("Gelu", "HardSwish"), 1.5),
}


class InsensitiveChannels:
    """The insensitive channels of a graph.

    Args:
        graph: A clean float32 graph.
        ranges: Smallest and largest values of its tensors on real inputs. A missing one makes every difference count.
    """

    def __init__(self, graph: GraphEditor, ranges: Ranges) -> None:
        self._graph, self._ranges = graph, ranges
        self._consumers = graph.consumers()

    def of(self, node: NodeProto, axis: int, step: float) -> _Flags:
        """Return for which output channels of a convolution or matrix product rounding the weights changes nothing.

        That is so if the error of such weights is nothing beside the bias in FP16, or beside the largest value of each
        tensor in which the channel meets others.

        Args:
            node: The operator, with a constant weight.
            axis: Axis of the weight that counts the output channels.
            step: Weights would be rounded to multiples of it.
        """
        weight = self._graph.constant(node.input[1])
        assert weight is not None  # noqa: S101  a promise of the caller
        rows = np.abs(np.moveaxis(weight, axis, 0).reshape(weight.shape[axis], -1))
        # Errors of rounding are independent: their squares add up. Nor is an error larger than all that is rounded.
        error = np.minimum(rows.sum(axis=1, dtype=np.float64), step * np.sqrt(rows.shape[1] / 12))
        most = np.where(error > 0, error, 0) * np.where(error > 0, self._reach(node.input[0]), 0)
        bias = self._graph.constant(node.input[2]) if len(node.input) > 2 else None
        known = bias is not None and bias.size in (1, len(most))
        beside = np.abs(np.broadcast_to(bias.reshape(-1), most.shape)) if known and bias is not None else 0.0
        hidden = most <= np.maximum(_BESIDE * beside, _NO_FP16)
        rank = len(self._graph.shape(node.output[0]) or ())
        return np.asarray(hidden | self._unheard(node.output[0], most, 1 if node.op_type == "Conv" else rank - 1))

    def _reach(self, tensor: str) -> float:
        return max(map(abs, self._ranges.get(tensor, (np.inf, np.inf))))

    def _unheard(self, tensor: str, difference: _Numbers, axis: int) -> _Flags:
        """Return for which channels nothing that reads a tensor notices such a difference."""
        shape = self._graph.shape(tensor) or ()
        if tensor in self._graph.outputs or len(shape) <= axis or shape[axis] != len(difference):
            return np.zeros(len(difference), bool)
        found = np.ones(len(difference), bool)
        for reader in self._consumers[tensor]:
            found &= self._unnoticed(reader, tensor, difference, axis)
            if not found.any():
                break
        return found

    def _unnoticed(self, reader: NodeProto, tensor: str, difference: _Numbers, axis: int) -> _Flags:
        kind, output = reader.op_type, reader.output[0]
        if kind == "Mul":
            others = [name for name in reader.input if name != tensor]
            constants = [self._graph.constant(name) for name in others]
            factors = [
                self._reach(name) if value is None else float(np.abs(value).max())
                for name, value in zip(others, constants, strict=True)
            ]
            return self._unheard(output, difference * max(factors, default=np.inf), axis)
        if kind in _LIPSCHITZ:
            return self._unheard(output, difference * _LIPSCHITZ[kind], axis)
        if kind in ("Concat", "Pad"):
            start, total = self._position(reader, tensor, axis)
            wide = np.zeros(max(total, start + len(difference)))
            wide[start : start + len(difference)] = difference
            return self._unheard(output, wide, axis)[start : start + len(difference)]
        return self._multiplied(reader, tensor, difference, axis)

    def _position(self, node: NodeProto, tensor: str, axis: int) -> tuple[int, int]:
        """Return where the channels of a tensor begin in the output of a ``Concat`` or ``Pad``, and how many it has."""
        shape = self._graph.shape(node.output[0]) or ()
        total = shape[axis] if axis < len(shape) else 0
        if node.op_type == "Pad":
            pads = self._graph.constant(node.input[1])
            start = int(pads[axis]) if pads is not None and len(pads) == 2 * len(shape) else 0
        else:
            before = list(node.input)[: list(node.input).index(tensor)]
            sizes = [(self._graph.shape(name) or ())[axis : axis + 1] for name in before]
            along = attribute(node, "axis", 0) % max(1, len(shape)) == axis
            start = sum(size[0] for size in sizes if size and isinstance(size[0], int)) if along else 0
        return max(0, start), total if isinstance(total, int) else 0

    def _multiplied(self, reader: NodeProto, tensor: str, difference: _Numbers, axis: int) -> _Flags:
        """Return for which channels a convolution or matrix product does not notice a difference of its input."""
        kind, output = reader.op_type, reader.output[0]
        weight = self._graph.constant(reader.input[1]) if len(reader.input) > 1 else None
        inputs = None if weight is None or reader.input[0] != tensor else channel_axis(reader, weight.ndim)
        if weight is None or inputs is None or kind == "ConvTranspose":
            return np.zeros(len(difference), bool)
        reading = np.abs(np.moveaxis(weight, 1 - inputs, 0).reshape(weight.shape[1 - inputs], -1))
        if kind == "Conv" and attribute(reader, "group", 1) == len(difference) == weight.shape[0]:
            return self._unheard(output, difference * np.abs(weight).reshape(len(weight), -1).sum(axis=1), axis)
        last = len(self._graph.shape(tensor) or ()) - 1
        if len(reading) != len(difference) or axis != (1 if kind == "Conv" else last):
            return np.zeros(len(difference), bool)
        largest = reading.max(axis=1).astype(np.float64)
        with np.errstate(invalid="ignore"):  # infinite differences times 0
            beside = _BESIDE * self._largest(tensor) * np.median(largest)
            return np.asarray(difference * largest <= beside)

    def _largest(self, tensor: str) -> float:
        """Return the largest magnitude of a tensor, 0 if it is not known."""
        return max(map(abs, self._ranges.get(tensor, (0.0, 0.0))))
