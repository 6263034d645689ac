"""A graph opened to be looked into: its layers, what a layer hands on, and parts of it that run by themselves."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from math import prod
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx
from onnx import NodeProto, TensorProto, helper

from krl_deploy.graph.edit import GraphEditor
from krl_deploy.graph.files import to_bytes
from krl_deploy.graph.operators import MOVES_STORED_INTEGERS, QDQ
from krl_deploy.graph.precisions import precision_of

__all__ = ["OpenGraph", "Tap", "sizes"]

_FLOATS: dict[int, Any] = {
    TensorProto.FLOAT: np.float32,
    TensorProto.FLOAT16: np.float16,
    TensorProto.DOUBLE: np.float64,
}
_NO_LAYERS = QDQ | MOVES_STORED_INTEGERS | {"Cast"}
"""Operators without arithmetic of their own: they belong to the layer that reads them."""


@dataclass(frozen=True)
class Tap:
    """The tensor that is read to see the output of a layer.

    Attributes:
        tensor: Its name. Where a layer's output is quantized at once, this is the quantized tensor: read before the
            ``QuantizeLinear``, the layer would not run as one operator in INT8.
        scale: Scale of the quantized tensor; ``None`` for one in floating point.
        zero: Its zero point.
    """

    tensor: str
    scale: float | None = None
    zero: int = 0

    def real(self, values: npt.NDArray[Any]) -> npt.NDArray[np.float32]:
        """Return the real numbers that the values of the tensor stand for, float32 of the same shape."""
        if self.scale is None:
            return values.astype(np.float32, copy=False)
        real: npt.NDArray[np.float32] = (values.astype(np.float32) - self.zero) * np.float32(self.scale)
        return real


class OpenGraph:
    """A file of a bundle.

    Args:
        data: The ONNX file.

    Attributes:
        layers: Operators with one output in floating point that they compute, by name, in the order of execution.

    Raises:
        ModelError: The graph has control flow.
    """

    def __init__(self, data: bytes) -> None:
        self._graph = GraphEditor(onnx.load_model_from_string(data))
        self._producers, self._consumers = self._graph.producers(), self._graph.consumers()
        self.nodes = {node.name: node for node in self._graph.nodes}
        self.layers = {name: node for name, node in self.nodes.items() if self._is_layer(node)}

    @property
    def outputs(self) -> list[str]:
        """Names of the graph's outputs."""
        return self._graph.outputs

    def _is_layer(self, node: NodeProto) -> bool:
        outputs = [name for name in node.output if name]
        return node.op_type not in _NO_LAYERS and len(outputs) == 1 and self._graph.dtype(outputs[0]) in _FLOATS

    def dtype(self, tensor: str) -> npt.DTypeLike:
        """Return NumPy's type of a tensor in floating point."""
        found: npt.DTypeLike = _FLOATS[self._graph.dtype(tensor)]
        return found

    def precision(self, layer: str) -> str | None:
        """Return the type that a layer computes in, as ``"int8"``; ``None`` if it is not known."""
        return precision_of(self._graph, self.nodes[layer], self._producers, self._consumers)

    def end(self, layer: str, other: OpenGraph) -> str:
        """Return the tensor that a layer ends with: its output, or that of activations which ``other`` has folded.

        Args:
            layer: Name of a layer of both graphs.
            other: The graph that this one is compared with.
        """
        end: str = self.nodes[layer].output[0]
        if other._quantizer(other.nodes[layer].output[0]) is None:
            return end
        while True:
            reader = self._only_reader(end)
            while reader is not None and reader.op_type == "Cast" and reader.name not in other.nodes:
                reader = self._only_reader(reader.output[0])
            if reader is None or reader.name in other.nodes or reader.op_type in _NO_LAYERS:
                return end
            end = reader.output[0]

    def tap(self, end: str) -> Tap:
        """Return where to read a layer that ends with a tensor."""
        quantizer = self._quantizer(end)
        if quantizer is None:
            return Tap(end)
        scale, zero = (self._graph.constant(name) for name in (*quantizer.input[1:], "")[:2])
        assert scale is not None  # noqa: S101  see _quantizer
        return Tap(quantizer.output[0], float(scale.reshape(())), 0 if zero is None else int(zero.reshape(())))

    def _only_reader(self, tensor: str) -> NodeProto | None:
        readers = self._consumers.get(tensor, [])
        return readers[0] if len(readers) == 1 and tensor not in self.outputs else None

    def _quantizer(self, tensor: str) -> NodeProto | None:
        """Return the ``QuantizeLinear`` of one scale that alone reads a tensor."""
        reader = self._only_reader(tensor)
        if reader is None or reader.op_type != "QuantizeLinear":
            return None
        scale = self._graph.constant(reader.input[1])
        return reader if scale is not None and scale.size == 1 else None

    def sources(self, tensors: Iterable[str], ends: Collection[str]) -> list[str]:
        """Return the first tensors on the ways back from ``tensors`` that are among ``ends``, or the graph's inputs."""
        found, _ = self._walk(tensors, ends)
        return found

    def _walk(self, tensors: Iterable[str], ends: Collection[str]) -> tuple[list[str], list[NodeProto]]:
        """Return the sources of ``tensors`` and the nodes between, in the order of execution."""
        sources: dict[str, None] = {}
        names: set[str] = set()
        waiting, inputs = list(tensors), set(self._graph.inputs)
        while waiting:
            tensor = waiting.pop()
            node = self._producers.get(tensor)
            if tensor in ends or tensor in inputs:
                sources[tensor] = None
            elif node is not None and node.name not in names:
                names.add(node.name)
                waiting += [name for name in node.input if name]
        return list(sources), [node for node in self._graph.nodes if node.name in names]

    def part(self, tensors: Sequence[str], ends: Collection[str] = ()) -> bytes:
        """Return the part of the graph that makes ``tensors``, as an ONNX file; its inputs are the sources."""
        sources, nodes = self._walk(tensors, ends)
        graph = self._graph
        read = {name for node in nodes for name in node.input}
        shell = onnx.GraphProto(name="part", node=nodes)
        shell.initializer.extend(value for name, value in graph.constants.items() if name in read)
        shell.input.extend(self._described(name) for name in sources)
        shell.output.extend(self._described(name) for name in tensors)
        model = helper.make_model(shell, opset_imports=graph.opset_imports, ir_version=graph.ir_version)
        return to_bytes(model)

    def _described(self, tensor: str) -> onnx.ValueInfoProto:
        # "?" stands for every open dimension, and two of them need not be equal.
        shape = self._graph.shape(tensor)
        open_shape = None if shape is None else [None if size == "?" else size for size in shape]
        return helper.make_tensor_value_info(tensor, self._graph.dtype(tensor), open_shape)


def sizes(data: bytes, inputs: Mapping[str, npt.NDArray[Any]]) -> dict[str, int]:
    """Return the number of values of each tensor that a graph computes for these inputs, where it can be inferred.

    Args:
        data: The ONNX file.
        inputs: Its inputs by name; their shapes alone count.
    """
    model = onnx.load_model_from_string(data)
    for value in model.graph.input:
        value.CopyFrom(
            helper.make_tensor_value_info(value.name, value.type.tensor_type.elem_type, inputs[value.name].shape)
        )
    graph = GraphEditor(model)
    shapes = {name: graph.shape(name) for node in graph.nodes for name in node.output if name}
    known = {name: [size for size in shape or () if isinstance(size, int)] for name, shape in shapes.items()}
    return {name: prod(each) for name, each in known.items() if len(each) == len(shapes[name] or ())}
