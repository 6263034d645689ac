"""The type that each operator of a graph computes in."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping

import onnx
from onnx import NodeProto, TensorProto

from .edit import GraphEditor
from .operators import INTEGER, MOVES_OR_CASTS, QDQ, WEIGHTED

__all__ = ["count_precisions", "precision_of"]

_NAMES: dict[int, str] = {TensorProto.FLOAT: "fp32", TensorProto.FLOAT16: "fp16", TensorProto.BFLOAT16: "bf16"}


def count_precisions(model: onnx.ModelProto) -> dict[str, int]:
    """Count the operators of a graph that compute, by type: ``"int8"``, which may be 0, ``"fp16"``, ``"fp32"``.

    Quantizers, casts, and operators that only move values are not counted; see ``precision_of``.
    """
    graph = GraphEditor(model)
    producers, consumers = graph.producers(), graph.consumers()
    counts = Counter(
        precision_of(graph, node, producers, consumers)
        for node in graph.nodes
        if node.op_type not in QDQ | MOVES_OR_CASTS
    )
    counts.pop(None, None)
    return {"int8": 0, **{str(name): number for name, number in sorted(counts.items(), key=str)}}


def precision_of(
    graph: GraphEditor, node: NodeProto, producers: Mapping[str, NodeProto], consumers: Mapping[str, list[NodeProto]]
) -> str | None:
    """Return the type that an operator computes in; ``None`` for one without floating point or quantized values.

    A product is INT8 if both factors come from a ``DequantizeLinear``. Any other operator is INT8 if all values that it
    reads do and a ``QuantizeLinear`` reads what it makes, or if it works on stored integers.
    """
    if node.op_type in INTEGER:
        return "int8"
    made = graph.dtype(node.output[0])
    if made in (TensorProto.INT8, TensorProto.UINT8):
        return "int8"
    read = [name for name in node.input if name and graph.constant(name) is None]
    dequantized = [_comes_from_pair(producers, name) for name in (node.input[:2] if node.op_type in WEIGHTED else read)]
    readers = consumers.get(node.output[0], [])
    if dequantized and all(dequantized):
        quantized = bool(readers) and all(reader.op_type == "QuantizeLinear" for reader in readers)
        if node.op_type in WEIGHTED or quantized:
            return "int8"
    return _NAMES.get(made)


def _comes_from_pair(producers: Mapping[str, NodeProto], name: str) -> bool:
    source = producers.get(name)
    return source is not None and source.op_type == "DequantizeLinear"
