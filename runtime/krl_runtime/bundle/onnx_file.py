"""A strict reader of ONNX files, which the device has no library for: what a file names and makes, before it is loaded.

It reads protobuf as its decoders do, however a message is encoded, and skips weights by their length. Weights in other
files are found wherever a tensor can stand, since no hash covers them.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Final

from krl_runtime.errors import BackendError

__all__ = ["Attribute", "Graph", "Node", "OnnxFileError", "Tensor", "read_graphs"]

_MOST_FIELDS: Final = 2_000_000  # a few seconds; a network of a thousand layers has some 30,000
_DEEPEST: Final = 64  # graphs in graphs; protobuf itself refuses messages more than 100 deep
_VARINT, _EIGHT, _BYTES, _FOUR = 0, 1, 2, 5  # how a field is encoded
_MOST_TAG: Final = 2**32  # of a field's number and encoding, in which protobuf has 32 bits
_LONGEST: Final = 10  # bytes of a number of 64 bits


class OnnxFileError(BackendError):
    """An ONNX file is damaged, keeps weights in other files, or makes larger tensors than it may."""


@dataclass
class Tensor:
    """A tensor of the file.

    Attributes:
        dims: Its shape.
        kind: Its type, as ONNX numbers them.
        data: Parts of the file with its values: the field that they stand in, begin and end.
        numbers: Values that are written one by one.
        name: Its name.
    """

    dims: list[int] = field(default_factory=list)
    kind: int = 0
    data: list[tuple[int, int, int]] = field(default_factory=list)
    numbers: list[int] = field(default_factory=list)
    name: bytes = b""


@dataclass
class Attribute:
    """An attribute of a node: its name, whole numbers, tensors, and graphs."""

    name: bytes = b""
    ints: list[int] = field(default_factory=list)
    tensors: list[Tensor] = field(default_factory=list)
    graphs: list[Graph] = field(default_factory=list)


@dataclass
class Node:
    """A node of a graph."""

    operator: bytes = b""
    inputs: list[bytes] = field(default_factory=list)
    outputs: list[bytes] = field(default_factory=list)
    attributes: dict[bytes, Attribute] = field(default_factory=dict)


@dataclass
class Graph:
    """A graph, or the body of a function."""

    nodes: list[Node] = field(default_factory=list)
    initializers: list[Tensor] = field(default_factory=list)


def read_graphs(data: bytes) -> list[Graph]:
    """Return the graphs of an ONNX file: the network, those for training, and the bodies of functions.

    Raises:
        OnnxFileError: A tensor keeps its values in another file, or it is not an ONNX file.
    """
    reader = _Reader(data)
    main, others = Graph(), []
    for number, kind, begin, end in reader.fields(0, len(data)):
        if kind != _BYTES:
            continue
        if number == 7:  # the graph; protobuf merges several into one
            reader.graph(main, begin, end, 0)
        elif number == 20:  # training
            for part, coded, first, last in reader.fields(begin, end):
                if part in (1, 2) and coded == _BYTES:
                    others.append(reader.graph(Graph(), first, last, 0))
        elif number == 25:  # a function
            others.append(reader.function(begin, end))
    return [main, *others]


class _Reader:
    """Reads messages of one file. Field numbers are those of ``onnx.proto``."""

    def __init__(self, data: bytes) -> None:
        self.data = data
        self.left = _MOST_FIELDS

    def fields(self, position: int, end: int) -> Iterator[tuple[int, int, int, int]]:
        """Yield number and encoding of each field, and begin and end of its bytes, or its value twice.

        Raises:
            OnnxFileError: It is not protobuf, or has too many fields.
        """
        while position < end:
            self.left -= 1
            if self.left < 0:
                raise OnnxFileError(f"the ONNX file has more than {_MOST_FIELDS} parts; export the model again")
            tag, position = self.varint(position, end)
            number, kind = tag >> 3, tag & 7
            if not number or tag >= _MOST_TAG:
                raise _damaged(f"no field at byte {position}")
            if kind == _BYTES:
                size, begin = self.varint(position, end)
                position = begin + size
            elif kind == _VARINT:
                value, position = self.varint(position, end)
                yield number, kind, value, value
                continue
            elif kind in (_EIGHT, _FOUR):
                begin = position
                position += 8 if kind == _EIGHT else 4
            else:
                raise OnnxFileError(
                    f"cannot open the model: Protobuf parsing failed: encoding {kind} at byte {position}"
                )
            if position > end:
                raise OnnxFileError(
                    f"cannot open the model: Protobuf parsing failed: field {number} ends behind its message"
                )
            yield number, kind, begin, position

    def varint(self, position: int, end: int) -> tuple[int, int]:
        """Return a whole number from 0, and the position behind it."""
        value = 0
        for index in range(_LONGEST):
            if position >= end:
                break
            byte = self.data[position]
            position += 1
            value |= (byte & 127) << 7 * index
            if byte < 128:
                return value & 0xFFFF_FFFF_FFFF_FFFF, position
        raise _damaged(f"no number at byte {position}")

    def numbers(self, kind: int, begin: int, end: int) -> list[int]:
        """Return the whole numbers of a repeated field, packed or not."""
        if kind != _BYTES:
            return [_signed(begin)] if kind == _VARINT else []
        found = []
        while begin < end:
            value, begin = self.varint(begin, end)
            found.append(_signed(value))
            self.left -= 1
            if self.left < 0:
                raise OnnxFileError(f"the ONNX file has more than {_MOST_FIELDS} parts; export the model again")
        return found

    def text(self, begin: int, end: int) -> bytes:
        return self.data[begin:end]

    def graph(self, graph: Graph, begin: int, end: int, depth: int) -> Graph:
        """Add what a ``GraphProto`` has to a graph."""
        if depth > _DEEPEST:
            raise OnnxFileError(f"the ONNX file has graphs more than {_DEEPEST} deep")
        for number, kind, first, last in self.fields(begin, end):
            if kind != _BYTES:
                continue
            if number == 1:
                graph.nodes.append(self.node(first, last, depth))
            elif number == 5:
                graph.initializers.append(self.tensor(Tensor(), first, last))
            elif number == 15:
                self.sparse(first, last)
        return graph

    def function(self, begin: int, end: int) -> Graph:
        """Return the body of a ``FunctionProto``."""
        graph = Graph()
        for number, kind, first, last in self.fields(begin, end):
            if kind == _BYTES and number == 7:
                graph.nodes.append(self.node(first, last, 0))
            elif kind == _BYTES and number == 11:
                self.attribute(Attribute(), first, last, 0)
        return graph

    def node(self, begin: int, end: int, depth: int) -> Node:
        """Return a ``NodeProto``."""
        node = Node()
        for number, kind, first, last in self.fields(begin, end):
            if kind != _BYTES:
                continue
            if number == 1:
                node.inputs.append(self.text(first, last))
            elif number == 2:
                node.outputs.append(self.text(first, last))
            elif number == 4:
                node.operator = self.text(first, last)
            elif number == 5:
                attribute = self.attribute(Attribute(), first, last, depth)
                node.attributes[attribute.name] = attribute
        return node

    def attribute(self, attribute: Attribute, begin: int, end: int, depth: int) -> Attribute:
        """Return an ``AttributeProto``."""
        for number, kind, first, last in self.fields(begin, end):
            if number in (3, 8):
                attribute.ints += self.numbers(kind, first, last)
            elif kind != _BYTES:
                continue
            elif number == 1:
                attribute.name = self.text(first, last)
            elif number == 5:  # one tensor; protobuf merges several
                attribute.tensors = attribute.tensors or [Tensor()]
                self.tensor(attribute.tensors[0], first, last)
            elif number == 10:
                attribute.tensors.append(self.tensor(Tensor(), first, last))
            elif number in (6, 11):
                attribute.graphs.append(self.graph(Graph(), first, last, depth + 1))
            elif number in (22, 23):
                self.sparse(first, last)
        return attribute

    def sparse(self, begin: int, end: int) -> None:
        """Check the tensors of a ``SparseTensorProto``."""
        for number, kind, first, last in self.fields(begin, end):
            if number in (1, 2) and kind == _BYTES:
                self.tensor(Tensor(), first, last)

    def tensor(self, tensor: Tensor, begin: int, end: int) -> Tensor:
        """Add what a ``TensorProto`` has to a tensor.

        Raises:
            OnnxFileError: Its values are in another file, or may be: it names one, or a place that is not this file.
        """
        for number, kind, first, last in self.fields(begin, end):
            if (number == 13 and kind == _BYTES) or (number == 14 and kind == _VARINT and first):
                raise OnnxFileError("the ONNX file keeps weights in other files; save it with its weights inside")
            if number == 1:
                tensor.dims += self.numbers(kind, first, last)
            elif number == 2 and kind == _VARINT:
                tensor.kind = first
            elif number == 8 and kind == _BYTES:
                tensor.name = self.text(first, last)
            elif number in (5, 7) and kind == _VARINT:
                tensor.numbers.append(_signed(first))
            elif number in (4, 5, 7, 9, 10, 11) and kind == _BYTES:
                tensor.data.append((number, first, last))
        return tensor


def _damaged(cause: str) -> OnnxFileError:
    return OnnxFileError(f"cannot open the model: Protobuf parsing failed: {cause}; export the model again")


def _signed(value: int) -> int:
    return value - 2**64 if value >= 2**63 else value
