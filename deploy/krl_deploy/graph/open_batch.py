"""Opening a graph's batch: the shapes in it that hold for one image alone, or for a fixed number of them."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import onnx
from onnx import NodeProto

from .edit import GraphEditor, infer

__all__ = ["open_batch"]


def open_batch(model: onnx.ModelProto) -> onnx.ModelProto:
    """Return the model with a batch of any size; only a run shows whether it then computes the same for each image.

    The targets of ``Reshape`` follow the input's batch, ``Squeeze`` without axes keeps it, constants that are joined to
    a batch of 1 are repeated, and the input's first dimension is open.

    Args:
        model: A clean model with one input ``[N, ...]``.
    """
    graph = GraphEditor(model)
    source = graph.inputs[0]
    shape = graph.shape(source) or ()
    fixed = shape[0] if shape and isinstance(shape[0], int) else 1
    still = GraphEditor(_with_batch(model, fixed))
    for node in graph.nodes:
        given, made = still.shape(node.input[0]) if node.input else None, still.shape(node.output[0])
        if not given or made is None or (given[0] != fixed and node.op_type == "Squeeze"):
            continue
        if node.op_type == "Squeeze" and (len(node.input) < 2 or not node.input[1]):
            _keep_batch(graph, node, given)
        elif node.op_type == "Reshape" and node.input[0] not in graph.constants:
            _follow_batch(graph, node, made, fixed)
    graph.declare_input(source, graph.dtype(source), ("batch", *shape[1:]))
    return graph.close()


def _with_batch(model: onnx.ModelProto, batch: int) -> onnx.ModelProto:
    """Return the model with a fixed batch at its input, and shapes that follow from it alone."""
    fixed = onnx.ModelProto()
    fixed.CopyFrom(model)
    fixed.graph.input[0].type.tensor_type.shape.dim[0].dim_value = batch
    del fixed.graph.value_info[:]
    for value in fixed.graph.output:
        value.type.tensor_type.ClearField("shape")
    return infer(fixed)


def _keep_batch(graph: GraphEditor, node: NodeProto, given: Sequence[int | str]) -> None:
    """Name the axes that a ``Squeeze`` takes out: all of size 1 but the batch."""
    axes = [axis for axis, size in enumerate(given) if axis and size == 1]
    if not all(isinstance(size, int) for size in given):
        return
    if axes:
        node.input[:] = [node.input[0], graph.add_constant(f"{node.output[0]}_axes", np.array(axes, np.int64))]
    else:
        node.op_type = "Identity"
        del node.input[1:]


def _follow_batch(graph: GraphEditor, node: NodeProto, made: Sequence[int | str], fixed: int) -> None:
    """Let the target of a ``Reshape`` follow the batch, which is its first dimension, or is left out if it is 1."""
    target = graph.constant(node.input[1])
    sizes = [size for size in made if isinstance(size, int)]
    if target is None or len(sizes) != len(made) or not sizes:
        return
    if len(sizes) == 1 and fixed == 1:
        opened = [-1, *sizes]
    elif len(sizes) > 1 and target[0] > 0:
        opened = [-1, *sizes[1:]]
    else:
        return
    node.input[1] = graph.add_constant(f"{node.input[1]}_open", np.array(opened, np.int64))
