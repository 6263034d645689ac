"""Opening a graph's batch: the shapes in it that hold for one image alone, or for a fixed number of them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple, TypeAlias

import numpy as np
import numpy.typing as npt
import onnx
from onnx import NodeProto, TensorProto

from .edit import GraphEditor, attribute, infer
from .parts import part_of, run_part

__all__ = ["Attempt", "Shapes", "attempts", "measured_shapes", "open_batch"]

Shapes: TypeAlias = Mapping[str, Sequence[int | str]]
"""Shapes by tensor."""


class Attempt(NamedTuple):
    """A way to take a file's batch.

    Attributes:
        opened: The bundle's batch is open; else it is 1.
        inside: Shapes inside the graph are opened as well.
        measured: They are opened by the shapes of a run.
    """

    opened: bool
    inside: bool = True
    measured: bool = False


def attempts(batch: int | str) -> list[Attempt]:
    """Return the ways to take a file's batch, the best first.

    An open one is first taken as it is: torch writes graphs whose indices are computed from the batch, and which the
    shapes of one image would break.
    """
    ways = [Attempt(opened=True), Attempt(opened=True, measured=True)]
    if not isinstance(batch, int):
        ways.insert(0, Attempt(opened=True, inside=False))
    return ways if isinstance(batch, int) and batch != 1 else [*ways, Attempt(opened=False)]


def measured_shapes(model: onnx.ModelProto, feed: Mapping[str, npt.NDArray[Any]]) -> Shapes:
    """Return the shapes of the tensors around each ``Reshape`` and ``Squeeze`` in one run.

    Raises:
        BackendError: ONNX Runtime cannot run the model.
    """
    graph = GraphEditor(model)
    nodes = [node for node in graph.nodes if node.op_type in ("Reshape", "Squeeze")]
    names = dict.fromkeys(name for node in nodes for name in (node.input[0], node.output[0]))
    wanted = [name for name in names if name not in graph.constants]
    values = run_part(part_of(graph, graph.nodes, graph.inputs, wanted), feed)
    return {name: value.shape for name, value in values.items()}


def open_batch(model: onnx.ModelProto, shapes: Shapes | None = None) -> onnx.ModelProto:
    """Return the model with a batch of any size; only a run shows whether it then computes the same for each image.

    The targets of ``Reshape`` follow the input's batch, ``Squeeze`` without axes keeps it, constants that are joined to
    a batch of 1 are repeated, and the input's first dimension is open.

    Args:
        model: A clean model with one input ``[N, ...]``.
        shapes: Those of a run with the fixed batch, or with one image. Computed targets become constants by them; left
            out, only constant targets are changed.
    """
    graph = GraphEditor(model)
    source = graph.inputs[0]
    shape = graph.shape(source) or ()
    fixed = shape[0] if shape and isinstance(shape[0], int) else 1
    still, sizes = GraphEditor(_with_batch(model, fixed)), _sizes(graph)
    for node in [node for node in graph.nodes if not sizes.issuperset(node.output)]:
        if node.op_type == "Concat" and fixed == 1:
            _repeat_constants(graph, node)
        elif node.op_type == "Gather" and fixed == 1:
            _reshape_instead(graph, node)
        if node.op_type not in ("Reshape", "Squeeze") or node.input[0] in graph.constants:
            continue
        given, made = (
            still.shape(name) if shapes is None else shapes.get(name) for name in (node.input[0], node.output[0])
        )
        if given and node.op_type == "Squeeze" and given[0] == fixed:
            _keep_batch(graph, node, given)
        elif made and node.op_type == "Reshape":
            _follow_batch(graph, node, made, fixed, computed=shapes is not None)
    graph.declare_input(source, graph.dtype(source), ("batch", *shape[1:]))
    return graph.close()


def _sizes(graph: GraphEditor) -> set[str]:
    """Return the tensors that are computed from shapes alone: they hold sizes, and none of their own is a batch."""
    found: set[str] = set()
    for node in graph.nodes:
        given = [name for name in node.input if name and name not in graph.constants]
        whole = all(graph.dtype(name) == TensorProto.INT64 for name in node.output)
        if node.op_type in ("Shape", "Size") or (given and whole and found.issuperset(given)):
            found.update(node.output)
    return found


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
    """Let a ``Squeeze`` take out what it takes out of one image, but for the batch."""
    chosen = graph.constant(node.input[1]) if len(node.input) > 1 and node.input[1] else None
    if chosen is None and not all(isinstance(size, int) for size in given):
        return
    sizes = [axis for axis, size in enumerate(given) if size == 1] if chosen is None else chosen % len(given)
    axes = [int(axis) for axis in sizes if axis]
    if axes:
        node.input[:] = [node.input[0], graph.add_constant(f"{node.output[0]}_axes", np.array(axes, np.int64))]
    else:
        node.op_type = "Identity"
        del node.input[1:]


def _follow_batch(
    graph: GraphEditor, node: NodeProto, made: Sequence[int | str], fixed: int, *, computed: bool
) -> None:
    """Let the target of a ``Reshape`` follow the batch, which is its first dimension, or is left out if it is 1."""
    target = graph.constant(node.input[1])
    sizes = [size for size in made if isinstance(size, int)]
    if len(sizes) != len(made) or (target is None and not computed):
        return
    if len(sizes) == 1 and fixed == 1:
        opened = [-1, *sizes]
    elif len(sizes) > 1 and (target is None or target[0] > 0):
        opened = [-1, *sizes[1:]]
    else:
        return
    node.input[1] = graph.add_constant(f"{node.input[1]}_open", np.array(opened, np.int64))


def _repeat_constants(graph: GraphEditor, node: NodeProto) -> None:
    """Repeat the constants that a ``Concat`` joins to the parts of one image, such as the token of a class."""
    others = [name for name in node.input if name not in graph.constants]
    if not others or attribute(node, "axis", 0) == 0:
        return
    for position, name in enumerate(node.input):
        value = graph.constant(name)
        if value is None or value.ndim < 2 or value.shape[0] != 1 or value.dtype != np.float32:
            continue
        first, one = (graph.add_constant(f"{name}_{end}", np.array([end], np.int64)) for end in (0, 1))
        shape = graph.add("Shape", [others[0]], f"{others[0]}_shape")
        batch = graph.add("Slice", [shape, first, one], f"{others[0]}_batch")
        rest = graph.add_constant(f"{name}_rest", np.array(value.shape[1:], np.int64))
        repeated = graph.add("Concat", [batch, rest], f"{name}_shape", axis=0)
        node.input[position] = graph.add("Expand", [name, repeated], f"{name}_repeated")


def _reshape_instead(graph: GraphEditor, node: NodeProto) -> None:
    """Write a ``Gather`` that takes all values of one image in their order as a ``Reshape``: torch's ``as_strided``."""
    indices, data = graph.constant(node.input[1]), graph.shape(node.input[0])
    if indices is None or indices.ndim < 2 or data != (indices.size,):
        return
    if indices.shape[0] == 1 and (indices.reshape(-1) == np.arange(indices.size)).all():
        target = graph.add_constant(f"{node.output[0]}_shape", np.array([-1, *indices.shape[1:]], np.int64))
        node.op_type, node.input[1] = "Reshape", target
        del node.attribute[:]
