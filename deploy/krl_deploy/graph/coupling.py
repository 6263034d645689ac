"""Matrix products that share one precision: TensorRT's rules couple them, or it computes them as one.

The rules judge by it, the emitter of TensorRT's graph writes by it, and the planner keeps such products together.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from onnx import NodeProto

from .edit import GraphEditor
from .operators import MOVES_OR_CASTS, QDQ
from .placement import Weighted

__all__ = ["coupled", "products_behind_gelu"]

_PRODUCTS = frozenset({"Gemm", "MatMul"})
_GELU = frozenset({"Add", "Cast", "Div", "Erf", "Gelu", "Mul", "Pow", "Sqrt", "Tanh"})
_LARGEST_GELU = 64  # nodes of a search; a GELU of single operators has about ten


def products_behind_gelu(consumers: Mapping[str, Sequence[NodeProto]], node: NodeProto) -> list[NodeProto]:
    """Return the matrix products that read a product's GELU, also through a Q/DQ pair."""
    pending, seen, found, gelu = [node.output[0]], set(), [], False
    while pending:
        for reader in consumers.get(pending.pop(), ()):
            if id(reader) in seen:
                continue
            seen.add(id(reader))
            gelu = gelu or reader.op_type in ("Erf", "Gelu")
            if reader.op_type in _PRODUCTS:
                found.append(reader)
            elif reader.op_type in _GELU | MOVES_OR_CASTS | QDQ and len(seen) < _LARGEST_GELU:
                pending += reader.output
    return found if gelu else []


def coupled(graph: GraphEditor, weighted: Sequence[Weighted]) -> list[tuple[str, ...]]:
    """Return the names of weighted operators in groups, each of one precision; most groups have one operator.

    Two products around a GELU are coupled: INT8 before it and FP16 behind it gave NaN (rule ``qdq/mlp``). Products
    that read the same tensor, as the projections of an attention, are coupled too: TensorRT computes them as one.

    Args:
        graph: The float graph.
        weighted: Its weighted operators.
    """
    group = {item.node.name: item.node.name for item in weighted}
    producers, consumers = graph.producers(), graph.consumers()

    def join(one: str, other: str) -> None:
        old, new = group[other], group[one]
        group.update({name: new for name, root in group.items() if root == old})

    readers: dict[str, str] = {}
    for item in weighted:
        node = item.node
        if node.op_type not in _PRODUCTS:
            continue
        for reader in products_behind_gelu(consumers, node):
            if reader.name in group:
                join(node.name, reader.name)
        join(readers.setdefault(_source(producers, node.input[0]), node.name), node.name)
    members: dict[str, list[str]] = {}
    for name, root in group.items():
        members.setdefault(root, []).append(name)
    return [tuple(names) for names in members.values()]


def _source(producers: Mapping[str, NodeProto], tensor: str) -> str:
    """Return the tensor before nodes that only move or cast values."""
    node = producers.get(tensor)
    while node is not None and node.op_type in MOVES_OR_CASTS:
        tensor = node.input[0]
        node = producers.get(tensor)
    return tensor
