"""An ONNX graph opened for rewriting: look-ups, small edits, and closing it again, sorted and checked."""

from __future__ import annotations

import heapq
import re
from collections import defaultdict
from collections.abc import Callable, Collection, Iterable, Iterator, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx
from onnx import NodeProto, TensorProto, helper, numpy_helper

from krl_runtime.errors import ModelError

__all__ = ["GraphEditor", "attribute", "in_order", "infer"]

_SMALL = 4096
"""Bytes of an initializer that shapes may depend on; weights are larger."""

_FAULT = re.compile(r"\(op_type:(\w+), node name: (.*?)\): \[\w+\] (.*?)\.?$", re.MULTILINE)
"""A fault in the messages of ONNX's shape inference."""


def attribute(node: NodeProto, name: str, default: Any) -> Any:
    """Return the value of a node's attribute, or ``default`` if it is not given.

    Example:
        >>> from onnx import helper
        >>> node = helper.make_node("Softmax", ["x"], ["y"], axis=1)
        >>> attribute(node, "axis", -1)
        1
        >>> attribute(node, "group", 1)
        1
    """
    for item in node.attribute:
        if item.name == name:
            return helper.get_attribute_value(item)
    return default


class GraphEditor:
    """A model under edit; the model that it was opened on is not changed.

    Args:
        model: Its tensor types and shapes are inferred anew.

    Attributes:
        nodes: The nodes, each with a name of its own; new ones may stand anywhere, ``close`` sorts them.
        constants: The initializers by name.

    Raises:
        ModelError: The graph has control flow (``If``, ``Loop``, ``Scan``) or functions, which no pass follows.
    """

    def __init__(self, model: onnx.ModelProto) -> None:
        nested = sorted({node.op_type for node in model.graph.node if any(a.HasField("g") for a in node.attribute)})
        if nested or model.functions:
            raise ModelError(
                f"the graph has {', '.join(nested) or 'local functions'}, which cannot be rewritten; export the model "
                "again without control flow (for torch: torch.onnx.export on traced code)"
            )
        self._model = infer(model)
        graph = self._model.graph
        self.nodes: list[NodeProto] = list(graph.node)
        self._node_names = _name(self.nodes)
        self.constants: dict[str, TensorProto] = {tensor.name: tensor for tensor in graph.initializer}
        self._inputs, self._outputs = list(graph.input), list(graph.output)
        self._values = {value.name: value for value in [*graph.value_info, *graph.input, *graph.output]}
        self._names = {*self._values, *self.constants, *(out for node in self.nodes for out in node.output)}
        self._arrays: dict[str, npt.NDArray[Any]] = {}

    @property
    def inputs(self) -> list[str]:
        """Names of the graph's inputs."""
        return [value.name for value in self._inputs]

    @property
    def outputs(self) -> list[str]:
        """Names of the graph's outputs."""
        return [value.name for value in self._outputs]

    @property
    def opset_imports(self) -> list[onnx.OperatorSetIdProto]:
        """The operator sets of the model."""
        return list(self._model.opset_import)

    @property
    def ir_version(self) -> int:
        """Version of the model's format."""
        return int(self._model.ir_version)

    def producers(self) -> dict[str, NodeProto]:
        """Return the nodes by their outputs."""
        return {output: node for node in self.nodes for output in node.output if output}

    def consumers(self) -> dict[str, list[NodeProto]]:
        """Return by tensor the nodes that read it; a node that reads it twice is listed twice."""
        readers: dict[str, list[NodeProto]] = defaultdict(list)
        for node in self.nodes:
            for name in node.input:
                if name:
                    readers[name].append(node)
        return readers

    def constant(self, name: str) -> npt.NDArray[Any] | None:
        """Return the value of an initializer, or ``None`` for any other tensor."""
        if name not in self.constants:
            return None
        if name not in self._arrays:
            self._arrays[name] = numpy_helper.to_array(self.constants[name])
        return self._arrays[name]

    def dtype(self, name: str) -> int:
        """Return the element type of a tensor as in ``TensorProto``; 0 if it is not known."""
        if name in self.constants:
            return int(self.constants[name].data_type)
        value = self._values.get(name)
        return int(value.type.tensor_type.elem_type) if value is not None else 0

    def shape(self, name: str) -> tuple[int | str, ...] | None:
        """Return the shape of a tensor, with names or ``"?"`` for open dimensions; ``None`` if it is not known."""
        if name in self.constants:
            return tuple(self.constants[name].dims)
        value = self._values.get(name)
        if value is None or not value.type.tensor_type.HasField("shape"):
            return None
        dims = value.type.tensor_type.shape.dim
        return tuple(dim.dim_value if dim.HasField("dim_value") else dim.dim_param or "?" for dim in dims)

    def contradictions(self) -> list[tuple[str, str, str]]:
        """Return name, operator and fault of each node whose shapes ONNX's inference finds impossible."""
        shell = onnx.ModelProto(ir_version=self._model.ir_version, opset_import=self._model.opset_import)
        shell.graph.name = self._model.graph.name or "graph"
        shell.graph.node.extend(self.nodes)
        shell.graph.input.extend(self._inputs)
        shell.graph.output.extend(onnx.ValueInfoProto(name=name) for name in self.outputs)  # not as declared
        shell.graph.initializer.extend(self.constants.values())
        try:
            onnx.shape_inference.infer_shapes(_without_weights(shell), strict_mode=True, data_prop=True)
        except onnx.shape_inference.InferenceError as error:
            faults = [(match[2], match[1], match[3]) for match in _FAULT.finditer(str(error))]
            # Operators that ONNX defines by a function are inferred from its body, which has faults of its own in 1.23.
            return [fault for fault in faults if not fault[2].startswith("Inference error(s)")]
        return []

    def fresh(self, base: str) -> str:
        """Return a name that no tensor has yet, ``base`` itself if it is free."""
        return _unlike(base, self._names)

    def add_constant(self, base: str, value: npt.NDArray[Any]) -> str:
        """Add an initializer and return its name, which begins with ``base``."""
        name = self.fresh(base)
        self.constants[name] = numpy_helper.from_array(np.asarray(value), name)
        return name

    def add(self, op: str, inputs: Sequence[str], output: str, **attributes: Any) -> str:
        """Append a node with one output, and return that output's name, which begins with ``output``."""
        name = self.fresh(output)
        self.add_for(op, inputs, name, **attributes)
        return name

    def add_for(self, op: str, inputs: Sequence[str], output: str, **attributes: Any) -> None:
        """Append a node that makes the tensor ``output``, which no other node makes."""
        name = _unlike(f"{op}_{output}", self._node_names)
        self.nodes.append(helper.make_node(op, list(inputs), [output], name=name, **attributes))

    def reroute(self, old: str, new: str, *, only: Callable[[NodeProto], bool] = lambda _: True) -> None:
        """Let the nodes that read ``old`` (those that ``only`` accepts) read ``new``."""
        for node in self.nodes:
            if old in node.input and only(node):
                node.input[:] = [new if name == old else name for name in node.input]

    def declare_input(self, name: str, dtype: int, shape: Sequence[int | str]) -> None:
        """Let ``name`` be the graph's only input."""
        self._inputs = [helper.make_tensor_value_info(name, dtype, list(shape))]
        self._names.add(name)

    def declare_output(self, name: str, dtype: int, shape: Sequence[int | str] | None) -> None:
        """Let ``name`` be the graph's only output."""
        self._outputs = [helper.make_tensor_value_info(name, dtype, None if shape is None else list(shape))]
        self._names.add(name)

    def rename(self, old: str, new: str) -> None:
        """Give a tensor another name, which nothing has yet."""
        if old in self.constants:
            self.constants[new] = numpy_helper.from_array(numpy_helper.to_array(self.constants.pop(old)), new)
        for node in self.nodes:
            node.input[:] = [new if name == old else name for name in node.input]
            node.output[:] = [new if name == old else name for name in node.output]
        self._names.add(new)

    def remove(self, nodes: Iterable[NodeProto]) -> None:
        """Take nodes out."""
        gone = {id(node) for node in nodes}
        self.nodes = [node for node in self.nodes if id(node) not in gone]

    def close(self) -> onnx.ModelProto:
        """Return the edited model: dead nodes and unused initializers dropped, sorted, types inferred, checked.

        Raises:
            ModelError: The edited graph is not valid ONNX: a failure of the pass, with the checker's words.
        """
        nodes = in_order(_alive(self.nodes, self.outputs), {*self.inputs, *self.constants})
        used = {name for node in nodes for name in node.input} | set(self.outputs)
        shell = onnx.GraphProto(name=self._model.graph.name or "graph", input=self._inputs, output=self._outputs)
        shell.node.extend(nodes)
        shell.initializer.extend(tensor for name, tensor in self.constants.items() if name in used)
        result = helper.make_model(shell, opset_imports=self._model.opset_import, ir_version=self._model.ir_version)
        result.producer_name, result.producer_version = self._model.producer_name, self._model.producer_version
        result = infer(result)
        for value in result.graph.output:  # operators of other domains say nothing of their shapes
            if not value.type.tensor_type.HasField("shape") and value.name in self._values:
                value.CopyFrom(self._values[value.name])
        try:
            onnx.checker.check_model(result)
        except onnx.checker.ValidationError as error:
            raise ModelError(f"the rewritten graph is not valid ONNX: {error}") from error
        return result


def infer(model: onnx.ModelProto) -> onnx.ModelProto:
    """Return the model with the types and shapes of its tensors inferred anew, none of them stale."""
    light = _without_weights(model)
    inferred = onnx.shape_inference.infer_shapes(light, data_prop=True).graph
    fresh = onnx.ModelProto()
    fresh.CopyFrom(model)
    for values, found in ((fresh.graph.value_info, inferred.value_info), (fresh.graph.output, inferred.output)):
        del values[:]
        values.extend(found)
    return fresh


def _without_weights(model: onnx.ModelProto) -> onnx.ModelProto:
    """Return the model with its large initializers as inputs, since shape inference copies a model several times."""
    light = onnx.ModelProto(ir_version=model.ir_version, opset_import=model.opset_import, functions=model.functions)
    for item in ("node", "input", "output", "sparse_initializer"):
        getattr(light.graph, item).extend(getattr(model.graph, item))
    light.graph.name = model.graph.name or "graph"
    named = {value.name for value in model.graph.input}
    for tensor in model.graph.initializer:
        if tensor.ByteSize() <= _SMALL:
            light.graph.initializer.append(tensor)
        elif tensor.name not in named:
            light.graph.input.append(helper.make_tensor_value_info(tensor.name, tensor.data_type, tensor.dims))
    return light


def _name(nodes: list[NodeProto]) -> set[str]:
    """Give each node a name of its own, as third-party files have empty and repeated ones; return the names."""
    seen: set[str] = set()
    repeated = []
    for node in nodes:
        if not node.name or node.name in seen:
            repeated.append(node)
        seen.add(node.name)
    for node in repeated:
        node.name = _unlike(f"{node.op_type}_{next(output for output in node.output if output)}", seen)
    return seen


def _unlike(base: str, names: set[str]) -> str:
    """Return a name that is not among ``names``, ``base`` itself if that can be, and add it to them."""
    name, number = base, 1
    while name in names:
        name, number = f"{base}_{number}", number + 1
    names.add(name)
    return name


def _alive(nodes: list[NodeProto], outputs: Iterable[str]) -> list[NodeProto]:
    producers = {output: node for node in nodes for output in node.output if output}
    pending, seen = list(outputs), set()
    while pending:
        node = producers.get(pending.pop())
        if node is not None and id(node) not in seen:
            seen.add(id(node))
            pending += node.input
    return [node for node in nodes if id(node) in seen]


def in_order(nodes: Sequence[NodeProto], known: Collection[str]) -> list[NodeProto]:
    """Return the nodes in an order of execution, as close to the given order as that allows.

    Args:
        nodes: All nodes of a graph.
        known: Names of its inputs and initializers.

    Raises:
        ModelError: They have a cycle.
    """
    producers = {output: index for index, node in enumerate(nodes) for output in node.output if output}
    sources = [{producers[name] for name in _read(node) if name in producers and name not in known} for node in nodes]
    waiting = [len(found) for found in sources]
    readers: dict[int, list[int]] = defaultdict(list)
    for index, found in enumerate(sources):
        for source in found:
            readers[source].append(index)
    ready = [index for index, count in enumerate(waiting) if count == 0]
    heapq.heapify(ready)
    order: list[NodeProto] = []
    while ready:
        index = heapq.heappop(ready)
        order.append(nodes[index])
        for reader in readers[index]:
            waiting[reader] -= 1
            if waiting[reader] == 0:
                heapq.heappush(ready, reader)
    if len(order) != len(nodes):
        raise ModelError("the graph has a cycle, so it is not an ONNX graph")
    return order


def _read(node: NodeProto) -> Iterator[str]:
    """Yield the tensors that a node reads, also in the graphs inside it."""
    yield from node.input
    for item in node.attribute:
        for graph in (*item.graphs, *([item.g] if item.HasField("g") else [])):
            for inner in graph.node:
                yield from _read(inner)
