"""Parts of a graph as models of their own, to see what they compute."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from typing import Any

import numpy.typing as npt
import onnx
from onnx import NodeProto, helper

from krl_runtime.errors import BackendError

from .edit import GraphEditor
from .files import to_bytes
from .session import open_cpu

__all__ = ["end_of", "part_of", "run_part"]

_LONGEST = 40  # operators in a graph's end: a softmax by hand has 5, with reshapes and casts around it


def part_of(
    graph: GraphEditor, nodes: Sequence[NodeProto], inputs: Sequence[str], outputs: Sequence[str]
) -> onnx.ModelProto:
    """Return a part of a graph as a model of its own.

    Args:
        graph: The graph.
        nodes: Its nodes, in an order of execution.
        inputs: Tensors that are given to it.
        outputs: Tensors that it makes; those that are given to it are left out.
    """
    used = {name for node in nodes for name in node.input}
    made = helper.make_graph(
        nodes,
        "part",
        [helper.make_tensor_value_info(name, graph.dtype(name), None) for name in inputs],
        [helper.make_tensor_value_info(name, graph.dtype(name), None) for name in outputs if name not in inputs],
        [tensor for name, tensor in graph.constants.items() if name in used],
    )
    return helper.make_model(made, opset_imports=graph.opset_imports, ir_version=graph.ir_version)


def run_part(part: onnx.ModelProto, feed: Mapping[str, npt.NDArray[Any]]) -> dict[str, npt.NDArray[Any]]:
    """Run a part of a graph, and return its inputs and outputs by name.

    Raises:
        BackendError: ONNX Runtime cannot run it.
    """
    try:
        names = [value.name for value in part.graph.output]
        outputs = open_cpu(to_bytes(part)).run(names, dict(feed)) if names else []
    except Exception as error:  # ONNX Runtime's own types share no base class but this one
        raise BackendError(f"ONNX Runtime failed: {' '.join(str(error).split())}") from error
    return {**feed, **dict(zip(names, outputs, strict=True))}


def end_of(
    graph: GraphEditor, output: str, operators: Collection[str], *, stop: str = ""
) -> tuple[list[NodeProto], list[str]]:
    """Return the nodes of the graph's end, in their order, and the tensors that it starts from.

    Args:
        graph: The graph.
        output: Its output.
        operators: Operators that the end may have; it begins after the last other one.
        stop: A tensor that it starts from in any case.
    """
    producers, pending = graph.producers(), [output]
    chosen: dict[int, NodeProto] = {}
    leaves: dict[str, None] = {}
    while pending:
        name = pending.pop()
        if not name or name in graph.constants:
            continue
        node = producers.get(name)
        if node is None or name == stop or node.op_type not in operators:
            leaves[name] = None
        elif id(node) not in chosen and len(chosen) < _LONGEST:
            chosen[id(node)] = node
            pending += node.input
        elif id(node) not in chosen:
            leaves[name] = None
    return [node for node in graph.nodes if id(node) in chosen], list(leaves)
