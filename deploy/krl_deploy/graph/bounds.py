"""Bounds of what a file makes of few bytes: the size of every tensor is derived before one is computed."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from math import prod, sqrt
from typing import Any, Final

import numpy as np
import numpy.typing as npt
import onnx
from onnx import GraphProto, NodeProto, TensorProto, TypeProto, helper, numpy_helper

from krl_runtime.backends.onnxruntime import open_session
from krl_runtime.errors import ModelError

from .edit import attribute
from .external import size_of

__all__ = ["check_bounds", "compute_constant", "output_types"]

MAX_CONSTANTS: Final = 2**30
"""Bytes that a file may make of constants alone; a large file may make several times its own bytes."""
MAX_TENSOR: Final = 2**32
"""Bytes of one tensor for one input; twice what a network of 64 channels makes of an image of 4K."""

_PER_BYTE: Final = 16  # INT8 weights that become float, are moved, reshaped and cast: 4 bytes each time
_SMALL: Final = 4096  # bytes of a value that sizes may depend on, as in shape inference
_MAX_PRODUCTS: Final = 2**34  # multiplications of one constant: some seconds on one core

_RANDOM: Final = frozenset({"Bernoulli", "Dropout", "Multinomial"})
_CHOOSES: Final = frozenset({"Compress", "NonZero", "Unique"})
"""Operators whose output is at most as large as their inputs' shapes, though its size depends on the values."""
_MULTIPLIES: Final = frozenset({"Conv", "ConvTranspose", "DeformConv", "Einsum", "Gemm", "MatMul"})
_NOT_SAID: Final = (
    *(KeyError, RuntimeError, ValueError),
    *(onnx.checker.ValidationError, onnx.defs.SchemaError, onnx.shape_inference.InferenceError),
)
"""Errors of onnx where it cannot infer: the operator or a type is not known, or the node is wrong."""


def check_bounds(model: onnx.ModelProto, inputs: Mapping[str, Sequence[int]] | None = None) -> None:
    """Refuse a model with tensors that are larger than any network needs.

    Args:
        model: A model that ONNX's checker took; its local functions are not looked into.
        inputs: Shapes of its inputs; without them open sizes count as 1.

    Raises:
        ModelError: A tensor, or what is computed from constants alone, would be too large.
    """
    _Walk(model, inputs or {}).check(model.graph)


def output_types(
    node: NodeProto,
    types: Mapping[str, TypeProto],
    values: Mapping[str, TensorProto],
    opsets: Sequence[onnx.OperatorSetIdProto],
) -> dict[str, TypeProto]:
    """Return types and shapes of a node's outputs; empty where ONNX cannot say.

    Args:
        node: The node.
        types: Those of its inputs by name.
        values: Constant inputs that sizes may depend on.
        opsets: Operator sets of the model.
    """
    version = next((item.version for item in opsets if item.domain == node.domain), 1)
    try:
        schema = onnx.defs.get_schema(node.op_type, version, "" if node.domain == "ai.onnx" else node.domain)
        given = {name: types[name] for name in node.input if name}
        return onnx.shape_inference.infer_node_outputs(schema, node, given, dict(values), opset_imports=list(opsets))
    except _NOT_SAID:
        return {}


def compute_constant(
    node: NodeProto, values: Mapping[str, TensorProto], opsets: Sequence[onnx.OperatorSetIdProto], limit: int
) -> list[npt.NDArray[Any]] | None:
    """Return the result of a node on constants; ``None`` if that is random, large, slow or not possible.

    Args:
        node: The node.
        values: Its inputs by name.
        opsets: Operator sets of the model.
        limit: Bytes that its outputs may have.
    """
    inputs = {name: values[name] for name in node.input if name}
    if node.domain not in ("", "ai.onnx") or node.op_type in _RANDOM or node.op_type.startswith("Random"):
        return None
    types = {name: _type_of(item) for name, item in inputs.items()}
    small = {name: item for name, item in inputs.items() if item.ByteSize() <= _SMALL}
    made = output_types(node, types, small, opsets)
    names = [name for name in node.output if name]
    shapes = [_sizes(made.get(name)) for name in names]
    if node.op_type not in _CHOOSES and any(shape is None or None in shape for shape in shapes):
        return None
    size = sum(_bytes(made.get(name)) for name in names)
    if size > limit or _products(node, inputs, size) > _MAX_PRODUCTS:
        return None
    given = [helper.make_tensor_value_info(name, item.data_type, item.dims) for name, item in inputs.items()]
    graph = helper.make_graph([node], "constant", given, [onnx.ValueInfoProto(name=name) for name in names])
    single = helper.make_model(graph, opset_imports=opsets)
    single.ir_version = max(4, helper.find_min_ir_version_for(list(opsets), ignore_unknown=True))
    arrays = {name: numpy_helper.to_array(item) for name, item in inputs.items()}
    try:
        return [
            np.asarray(value)
            for value in open_session(single.SerializeToString(), cuda=False, threads=1).run(None, arrays)
        ]
    except Exception:  # ONNX Runtime's types share no other base; the node stays, and fails where it runs
        return None


def _products(node: NodeProto, inputs: Mapping[str, TensorProto], output: int) -> float:
    """Return an upper bound of a node's multiplications, from the values of its inputs and of its output."""
    if node.op_type not in _MULTIPLIES:
        return 0.0
    sizes = [float(max(1, prod(item.dims))) for item in inputs.values()][:2]
    if node.op_type in ("Gemm", "MatMul"):
        return sqrt(prod(sizes) * output)  # of M x K, K x N and M x N values
    return prod(sizes) if node.op_type == "Einsum" else sizes[-1] * output


def _type_of(tensor: TensorProto) -> TypeProto:
    return helper.make_tensor_type_proto(tensor.data_type, tensor.dims)


def _sizes(kind: TypeProto | None) -> list[int | None] | None:
    """Return a tensor's shape with ``None`` for open sizes; ``None`` if it is not known."""
    if kind is None or not kind.HasField("tensor_type") or not kind.tensor_type.HasField("shape"):
        return None
    return [dim.dim_value if dim.HasField("dim_value") else None for dim in kind.tensor_type.shape.dim]


def _bytes(kind: TypeProto | None) -> int:
    """Return the bytes of a tensor, open sizes counted as 1; 0 if its shape or type is not known."""
    sizes = _sizes(kind)
    if kind is None or sizes is None:
        return 0
    single = TensorProto(data_type=kind.tensor_type.elem_type, dims=[1 if size is None else size for size in sizes])
    return size_of(single) or 0


class _Walk:
    """Sizes of the tensors of a graph, in the order of execution."""

    def __init__(self, model: onnx.ModelProto, inputs: Mapping[str, Sequence[int]]) -> None:
        self._opsets = list(model.opset_import)
        self._inputs = inputs
        self._made = 0
        self._limit = max(MAX_CONSTANTS, _PER_BYTE * model.ByteSize())

    def check(
        self,
        graph: GraphProto,
        types: Mapping[str, TypeProto] | None = None,
        values: Mapping[str, TensorProto] | None = None,
    ) -> None:
        """Check a graph, with the tensors of the one around it."""
        known, small = dict(types or {}), dict(values or {})
        constants = {item.name for item in graph.initializer}
        for value in graph.input:
            known[value.name] = self._input(value)
        for item in graph.initializer:
            known[item.name] = _type_of(item)
            if item.ByteSize() <= _SMALL:
                small[item.name] = item
        for node in graph.node:
            for item in node.attribute:
                for inner in (*item.graphs, *([item.g] if item.HasField("g") else [])):
                    self.check(inner, known, small)
            from_constants = all(name in constants for name in node.input if name)
            known |= self._node(node, known, small, from_constants=from_constants)
            if from_constants:
                constants.update(node.output)

    def _input(self, value: onnx.ValueInfoProto) -> TypeProto:
        if value.name not in self._inputs:
            return value.type
        return helper.make_tensor_type_proto(value.type.tensor_type.elem_type, self._inputs[value.name])

    def _node(
        self, node: NodeProto, known: Mapping[str, TypeProto], small: dict[str, TensorProto], *, from_constants: bool
    ) -> Mapping[str, TypeProto]:
        """Return the types of a node's outputs; note their values if they are small and known."""
        made = output_types(node, known, small, self._opsets)
        for name in node.output:
            size = _bytes(made.get(name))
            self._made += size if from_constants else 0
            if size > MAX_TENSOR or self._made > self._limit:
                limit = f"{MAX_TENSOR} for one input" if size > MAX_TENSOR else f"{self._limit} of constants"
                raise ModelError(
                    f"the model's {node.op_type} {node.name} makes the tensor {name} of {size} bytes "
                    f"{_sizes(made.get(name))}; accepted: {limit} in all; export the model with smaller sizes"
                )
        inputs = [name for name in node.input if name]
        if node.op_type in ("Shape", "Size") and inputs and None not in (_sizes(known.get(inputs[0])) or [None]):
            small[node.output[0]] = self._shape(node, _sizes(known[inputs[0]]) or [])
        elif inputs and all(name in small for name in inputs):
            found = compute_constant(node, small, self._opsets, _SMALL)
            for name, value in zip([name for name in node.output if name], found or [], strict=False):
                small[name] = numpy_helper.from_array(value, name)
                made[name] = _type_of(small[name])
        elif node.op_type == "Constant" and node.attribute[0].HasField("t"):
            small[node.output[0]] = node.attribute[0].t
        return made

    @staticmethod
    def _shape(node: NodeProto, sizes: list[int | None]) -> TensorProto:
        """Return the value of a ``Shape`` or ``Size``."""
        whole = [size or 0 for size in sizes]
        part: list[int] = whole[attribute(node, "start", 0) : attribute(node, "end", len(whole))]
        value = prod(whole) if node.op_type == "Size" else part
        return numpy_helper.from_array(np.asarray(value, np.int64), node.output[0])
