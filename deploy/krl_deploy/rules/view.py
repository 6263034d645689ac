"""A view of a graph: producers and readers of each tensor, constants, and Q/DQ pairs."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import onnx
from onnx import NodeProto, TensorProto

from krl_deploy.graph.cleanup import constants_to_initializers
from krl_deploy.graph.edit import GraphEditor, attribute
from krl_deploy.graph.files import opset_of
from krl_deploy.graph.operators import MOVES_ACROSS_QDQ, WEIGHTED
from krl_deploy.graph.placement import Weighted, channel_axis, weighted_depths

__all__ = ["Pair", "View", "type_name"]


def type_name(dtype: int) -> str:
    """Return an element type of ``TensorProto`` as ``"FLOAT16"``."""
    known = dtype in TensorProto.DataType.values()
    return TensorProto.DataType.Name(dtype) if known else f"type {dtype}"


@dataclass(frozen=True)
class Pair:
    """The quantizer of a tensor.

    Attributes:
        dequantize: The ``DequantizeLinear`` that makes it.
        quantize: The ``QuantizeLinear`` before that; ``None`` where the integers are constant.
        source: The float tensor behind, or the constant integers.
    """

    dequantize: NodeProto
    quantize: NodeProto | None
    source: str


class View:
    """A model that is looked at and not changed.

    Args:
        model: Without control flow and local functions.

    Attributes:
        graph: Its graph; ``Constant`` nodes are initializers.
        opset: Version of the standard operators.
        weighted: Convolutions and matrix products with constant weights, quantized or not; an axis that is not
            known is -1.
    """

    def __init__(self, model: onnx.ModelProto) -> None:
        self.graph = GraphEditor(model)
        constants_to_initializers(self.graph)
        self.opset = opset_of(model)
        self.producers = self.graph.producers()
        self.consumers = self.graph.consumers()
        self._rooted: dict[str, bool] = {}
        self.weighted = list(self._weighted())

    @property
    def nodes(self) -> list[NodeProto]:
        """The nodes, in the order of execution."""
        return self.graph.nodes

    def constant(self, tensor: str) -> npt.NDArray[np.generic] | None:
        """Return the value of a constant, also behind ``Identity``; ``None`` for any other tensor."""
        node = self.producers.get(tensor)
        while node is not None and node.op_type == "Identity":
            tensor, node = node.input[0], self.producers.get(node.input[0])
        return self.graph.constant(tensor)

    def numbers(self, tensor: str) -> npt.NDArray[np.float64] | None:
        """Return the value of a constant of real numbers; ``None`` for any other tensor."""
        value = self.constant(tensor)
        if value is None or value.dtype.kind in "OSUc":  # text and complex numbers; BF16 and FP8 are of kind V
            return None
        return value.astype(np.float64)

    def rooted(self, tensor: str) -> bool:
        """Return whether a tensor is computed from constants alone."""
        if tensor in self._rooted:
            return self._rooted[tensor]
        pending = [tensor]
        while pending:  # no recursion: a graph may be thousands of nodes deep
            name = pending[-1]
            node = self.producers.get(name)
            inputs = [item for item in node.input if item] if node is not None else []
            unknown = [item for item in inputs if item not in self._rooted]
            if unknown:
                pending += unknown
                continue
            known = name in self.graph.constants
            self._rooted[name] = known or (bool(inputs) and all(self._rooted[item] for item in inputs))
            pending.pop()
        return self._rooted[tensor]

    def given(self, tensor: str) -> bool:
        """Return whether a tensor depends on the values of an input, and not on its sizes alone."""
        pending, seen = [tensor], {tensor}
        while pending:
            name = pending.pop()
            if name in self.graph.inputs:
                return True
            node = self.producers.get(name)
            if node is not None and node.op_type not in ("Shape", "Size"):
                pending += set(node.input) - seen
                seen.update(node.input)
        return False

    def pair(self, tensor: str, *, through: bool = True) -> Pair | None:
        """Return the quantizer of a tensor; ``None`` for one that has none.

        Args:
            tensor: The tensor.
            through: Whether it counts if operators that only move values stand in between.
        """
        node = self.producers.get(tensor)
        while through and node is not None and node.op_type in MOVES_ACROSS_QDQ:
            node = self.producers.get(node.input[0])
        if node is None or node.op_type != "DequantizeLinear":
            return None
        before = self.producers.get(node.input[0])
        while before is not None and before.op_type in MOVES_ACROSS_QDQ:
            before = self.producers.get(before.input[0])
        quantize = before if before is not None and before.op_type == "QuantizeLinear" else None
        return Pair(node, quantize, str(quantize.input[0] if quantize is not None else node.input[0]))

    def is_int8(self, node: NodeProto) -> bool:
        """Return whether a weighted operator has both factors quantized."""
        return all(self.pair(name) is not None for name in node.input[:2])

    def dtype(self, tensor: str) -> int:
        """Return a tensor's element type as in ``TensorProto``; 0 if it is not known."""
        return self.graph.dtype(tensor)

    def has_type(self, dtype: int) -> bool:
        """Return whether any node computes a tensor of this type."""
        return any(self.dtype(name) == dtype for node in self.nodes for name in node.output)

    def is_half(self, node: NodeProto) -> bool:
        """Return whether a node's first output is FP16 or BF16."""
        return self.dtype(node.output[0]) in (TensorProto.FLOAT16, TensorProto.BFLOAT16)

    def skip(self, tensor: str, kinds: frozenset[str]) -> str:
        """Return the tensor that ``tensor`` is made from, back through single-path nodes of these kinds."""
        node = self.producers.get(tensor)
        while node is not None and node.op_type in kinds:
            tensor = str(next((name for name in node.input if not self.rooted(name)), node.input[0]))
            node = self.producers.get(tensor)
        return tensor

    def _weighted(self) -> Iterator[Weighted]:
        depths = weighted_depths(self.graph)
        for node in self.nodes:
            if node.op_type in WEIGHTED and len(node.input) > 1 and self.rooted(node.input[1]):
                axis = channel_axis(node, len(self.graph.shape(node.input[1]) or ()))
                yield Weighted(node, -1 if axis is None else axis, depths[node.output[0]])


def weight_axis(view: View, node: NodeProto) -> int | None:
    """Return the axis along which a weighted operator's weight is dequantized, as the operator counts axes.

    ``None``: one scale for the whole weight, or the weight is reshaped on the way.
    """
    name, order = str(node.input[1]), None
    maker = view.producers.get(name)
    if maker is not None and maker.op_type == "Transpose":
        rank = len(view.graph.shape(maker.input[0]) or ())
        order = list(attribute(maker, "perm", list(range(rank))[::-1]))
        maker = view.producers.get(maker.input[0])
    if maker is None or maker.op_type != "DequantizeLinear":
        return None
    scale = view.numbers(maker.input[1])
    rank = len(view.graph.shape(maker.output[0]) or ())
    if scale is None or scale.size == 1 or scale.ndim != 1 or not rank:
        return None
    axis = int(attribute(maker, "axis", 1)) % rank
    return axis if order is None else order.index(axis)
