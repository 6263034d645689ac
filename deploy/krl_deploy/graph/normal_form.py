"""The form in which third-party files are read: nodes in order, dense weights, open sizes, outputs with a type."""

from __future__ import annotations

from collections.abc import Iterator, MutableSequence
from math import prod

import numpy as np
import onnx
from onnx import AttributeProto, GraphProto, NodeProto, SparseTensorProto, TensorProto, helper, numpy_helper

from krl_runtime.errors import ModelError

from .bounds import MAX_CONSTANTS
from .edit import in_order, infer
from .external import size_of
from .operators import PLUGIN_DOMAIN, PLUGINS

__all__ = ["make_dense", "name_plugins", "open_sizes", "sort_nodes", "type_outputs"]


def make_dense(model: onnx.ModelProto) -> None:
    """Write sparse initializers and constants of a model with all of their zeros.

    Raises:
        ModelError: One is damaged, or they are too large together.
    """
    graphs = list(_graphs(model.graph))
    constants = [
        item
        for nodes in (*(graph.node for graph in graphs), *(function.node for function in model.functions))
        for node in nodes
        for item in node.attribute
        if node.op_type == "Constant" and item.HasField("sparse_tensor")
    ]
    sparse = [*(item for graph in graphs for item in graph.sparse_initializer), *(c.sparse_tensor for c in constants)]
    total = sum(size_of(TensorProto(data_type=item.values.data_type, dims=item.dims)) or 0 for item in sparse)
    if total > MAX_CONSTANTS:
        raise ModelError(
            f"the model's {len(sparse)} sparse weights ({sparse[0].values.name} …) have {total} bytes with their "
            f"zeros; accepted: {MAX_CONSTANTS}"
        )
    for graph in graphs:
        graph.initializer.extend(_dense(item) for item in graph.sparse_initializer)
        del graph.sparse_initializer[:]
    for item in constants:
        value = _dense(item.sparse_tensor)
        item.Clear()
        item.name, item.type = "value", AttributeProto.TENSOR
        item.t.CopyFrom(value)


def _graphs(graph: GraphProto) -> Iterator[GraphProto]:
    """Yield a graph and those inside its control flow."""
    yield graph
    for node in graph.node:
        for item in node.attribute:
            for inner in (*item.graphs, *([item.g] if item.HasField("g") else [])):
                yield from _graphs(inner)


def _dense(sparse: SparseTensorProto) -> TensorProto:
    name, shape = sparse.values.name, tuple(sparse.dims)
    try:
        values, indices = numpy_helper.to_array(sparse.values), numpy_helper.to_array(sparse.indices)
        flat = np.ravel_multi_index(tuple(indices.T), shape) if indices.ndim == 2 else indices
        if flat.size and not 0 <= flat.min() <= flat.max() < prod(shape):
            raise ValueError("an index is outside its shape")
        dense = np.zeros(prod(shape), values.dtype)
        dense[flat] = values
    except (IndexError, ValueError) as error:
        raise ModelError(f"the model's sparse weight {name} of shape {list(shape)} is damaged: {error}") from error
    return numpy_helper.from_array(dense.reshape(shape), name)


def name_plugins(model: onnx.ModelProto) -> None:
    """Give TensorRT's plugins a domain that the model imports; exporters leave it out, which ONNX does not allow."""
    for graph in _graphs(model.graph):
        for node in graph.node:
            if node.op_type in PLUGINS:
                node.domain = node.domain if node.domain not in ("", "ai.onnx") else PLUGIN_DOMAIN
                if node.domain not in {item.domain for item in model.opset_import}:
                    model.opset_import.append(helper.make_opsetid(node.domain, 1))


def sort_nodes(model: onnx.ModelProto) -> None:
    """Bring nodes to an order of execution, which ONNX wants, and ONNX Runtime's own FP16 converter does not keep.

    Raises:
        ModelError: They have a cycle.
    """
    for graph in _graphs(model.graph):
        _sort(graph.node, {value.name for value in (*graph.input, *graph.initializer)})
    for function in model.functions:
        _sort(function.node, set(function.input))


def _sort(nodes: MutableSequence[NodeProto], known: set[str]) -> None:
    made = [name for node in nodes for name in node.output if name]
    if len(set(made)) < len(made):
        return  # the checker says which tensor is made twice
    ordered = in_order(nodes, known)
    if any(before is not after for before, after in zip(nodes, ordered, strict=True)):
        copies = [NodeProto.FromString(node.SerializeToString()) for node in ordered]
        del nodes[:]
        nodes.extend(copies)


def open_sizes(model: onnx.ModelProto) -> None:
    """Leave sizes of inputs and outputs open that are written as 0 or less, as some exporters do."""
    for value in [*model.graph.input, *model.graph.output]:
        for axis, dim in enumerate(value.type.tensor_type.shape.dim):
            if dim.HasField("dim_value") and dim.dim_value <= 0:
                dim.dim_param = "batch" if axis == 0 else f"{value.name}_{axis}"


def type_outputs(model: onnx.ModelProto) -> None:
    """Give outputs that have no type or no shape those that follow from the graph."""
    if all(_is_typed(value) for value in model.graph.output):
        return
    try:
        found = {value.name: value for value in infer(model).graph.output}
    except (onnx.shape_inference.InferenceError, RuntimeError):
        return  # the checker says what is wrong
    for value in model.graph.output:
        if not _is_typed(value) and _is_typed(found[value.name]):
            value.CopyFrom(found[value.name])


def _is_typed(value: onnx.ValueInfoProto) -> bool:
    kind = value.type.WhichOneof("value")
    return kind is not None and (kind != "tensor_type" or value.type.tensor_type.HasField("shape"))
