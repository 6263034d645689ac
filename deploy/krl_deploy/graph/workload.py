"""The multiply-accumulates of weighted operators."""

from __future__ import annotations

from math import prod

from .edit import GraphEditor
from .placement import Weighted

__all__ = ["multiply_accumulates"]


def multiply_accumulates(graph: GraphEditor, weighted: Weighted) -> int | None:
    """Return the multiply-accumulates of an operator for one input of the graph; ``None`` if a shape is not known."""
    node = weighted.node
    shape = graph.shape(node.input[0] if node.op_type == "ConvTranspose" else node.output[0])
    weight = prod(int(size) for size in graph.shape(node.input[1]) or ())
    positions = None if shape is None else shape[2:] if node.op_type.startswith("Conv") else shape[1:-1]
    if positions is None or not all(isinstance(size, int) for size in positions):
        return None
    return weight * prod(int(size) for size in positions)
