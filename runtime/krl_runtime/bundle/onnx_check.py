"""The check of an ONNX file before it is loaded: weights in other files, and the sizes of constants that it makes."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from math import prod
from typing import TYPE_CHECKING, Any, Final

import numpy as np

from .onnx_file import Attribute, Graph, Node, OnnxFileError, Tensor, read_graphs

if TYPE_CHECKING:
    import numpy.typing as npt

__all__ = ["MAX_MADE", "check_onnx", "has_float16"]

MAX_MADE: Final = 2**26
"""Bytes that a file may make of constants, besides a multiple of those that it has: a mask of 4096 x 4096 floats. A
runtime computes and keeps them when it loads the file."""
_PER_BYTE: Final = 16  # INT8 weights that become float, are moved, reshaped and cast: 4 bytes each time

_SMALL: Final = 4096  # values of a tensor that are followed, such as shapes
_INT64, _INT32, _FLOAT16 = 7, 6, 10  # ONNX's numbers of these types
# Bytes of a value by ONNX's number of its type; types of half a byte count as one, text as eight.
_WIDTHS: Final = {
    1: 4,
    2: 1,
    3: 1,
    4: 2,
    5: 2,
    6: 4,
    7: 8,
    8: 8,
    9: 1,
    10: 2,
    11: 8,
    12: 4,
    13: 8,
    14: 8,
    15: 16,
    16: 2,
}


@dataclass(frozen=True)
class _Known:
    """A constant: its shape, the bytes of a value, and its values where they are whole numbers and few."""

    shape: tuple[int, ...]
    width: int = 4
    values: npt.NDArray[np.int64] | None = None


def check_onnx(data: bytes) -> list[Graph]:
    """Refuse an ONNX file with weights in other files, or with constants that are far larger than the file.

    Sizes are derived from the constants of the file as far as the operators here go. Others are not bounded.

    Returns:
        The graphs of the file.

    Raises:
        OnnxFileError: It is such a file, or it is not an ONNX file.
    """
    walk, graphs = _Walk(data), read_graphs(data)
    for graph in graphs:
        walk.graph(graph, {})
    return graphs


def has_float16(graphs: Sequence[Graph]) -> bool:
    """Return whether graphs have weights in FP16, or casts to it, also in their inner graphs."""
    for graph in graphs:
        tensors = [*graph.initializers]
        for node in graph.nodes:
            cast = node.attributes.get(b"to")
            if cast is not None and _FLOAT16 in cast.ints:
                return True
            for attribute in node.attributes.values():
                tensors += attribute.tensors
                if has_float16(attribute.graphs):
                    return True
        if any(tensor.kind == _FLOAT16 for tensor in tensors):
            return True
    return False


class _Walk:
    def __init__(self, data: bytes) -> None:
        self.data = data
        self.left = MAX_MADE + _PER_BYTE * len(data)

    def graph(self, graph: Graph, around: Mapping[bytes, _Known]) -> None:
        """Count what a graph makes, with the constants of the one around it."""
        known = dict(around)
        for tensor in graph.initializers:
            known[tensor.name] = self.constant(tensor)
        for node in graph.nodes:
            for attribute in node.attributes.values():
                for inner in attribute.graphs:
                    self.graph(inner, known)
            made = self.made(node, known)
            if made is not None and node.outputs and min(made.shape, default=0) >= 0:
                known[node.outputs[0]] = made
                self.count(node, made)

    def count(self, node: Node, made: _Known) -> None:
        self.left -= 0 if node.operator in (b"Identity", b"Constant") else made.width * prod(made.shape)
        if self.left < 0:
            raise OnnxFileError(
                f"the ONNX file's {node.operator.decode(errors='replace')} makes a constant of {list(made.shape)}; "
                f"accepted: constants of {MAX_MADE} bytes, and {_PER_BYTE} times those of the file, in all; export "
                "the model with smaller constants"
            )

    def constant(self, tensor: Tensor) -> _Known:
        """Return the shape of a tensor in the file, and its values if they are few."""
        shape, width = tuple(tensor.dims), _WIDTHS.get(tensor.kind, 8)
        values = list(tensor.numbers)
        if tensor.kind in (_INT64, _INT32) and 0 <= prod(shape) <= _SMALL:
            for number, begin, end in tensor.data:
                if number == 9 and (end - begin) % width == 0:
                    values += np.frombuffer(self.data[begin:end], f"<i{width}").tolist()
                elif number in (5, 7):
                    values += _varints(self.data[begin:end])
            if len(values) == prod(shape):
                return _Known(shape, width, np.asarray(values, np.int64).reshape(shape))
        return _Known(shape, width)

    def made(self, node: Node, known: Mapping[bytes, _Known]) -> _Known | None:
        """Return the shape of a node's first output, as far as it is known."""
        rule = _RULES.get(node.operator)
        given = [known.get(name) for name in node.inputs]
        if node.operator == b"Constant":
            return self.attribute(node)
        if rule is None:
            return None
        if node.operator == b"ConstantOfShape" and b"value" in node.attributes:
            given.append(self.constant(node.attributes[b"value"].tensors[0]))
        try:
            with np.errstate(all="ignore"):  # whole numbers wrap around as those of the runtime do
                return rule(given, node.attributes)
        except (ValueError, IndexError, OverflowError, KeyError, TypeError, ZeroDivisionError):
            return None  # a node that is wrong: the runtime says how

    def attribute(self, node: Node) -> _Known | None:
        """Return the shape and values of a ``Constant``."""
        for attribute in node.attributes.values():
            if attribute.tensors:
                return self.constant(attribute.tensors[0])
            if attribute.ints:
                values = np.asarray(attribute.ints[:_SMALL], np.int64)
                return _Known(values.shape, 8, values[0] if attribute.name == b"value_int" else values)
        return None


_Given = Sequence["_Known | None"]
_Attributes = Mapping[bytes, Attribute]
_Rule = Callable[[_Given, _Attributes], "_Known | None"]


def _values(item: _Known | None) -> npt.NDArray[np.int64]:
    if item is None or item.values is None:
        raise ValueError("its values are not known")
    return item.values


def _shape(item: _Known | None) -> tuple[int, ...]:
    if item is None:
        raise ValueError("its shape is not known")
    return item.shape


def _of_shape(sizes: npt.NDArray[np.int64], width: int, fill: _Known | None = None) -> _Known:
    """Return a tensor of a shape; a small one of whole numbers with its values."""
    shape = tuple(int(size) for size in np.atleast_1d(sizes))
    if fill is not None and fill.values is not None and 0 <= prod(shape) <= _SMALL:
        return _Known(shape, width, np.broadcast_to(fill.values.ravel()[:1], shape))
    return _Known(shape, width)


def _constant_of_shape(given: _Given, _: _Attributes) -> _Known:
    fill = given[1] if len(given) > 1 else None
    return _of_shape(_values(given[0]), fill.width if fill else 4, fill)


def _expand(given: _Given, _: _Attributes) -> _Known:
    """At least the shape that is asked for, whatever is expanded."""
    whole, sizes = given[0], tuple(_values(given[1]).tolist())
    shape = np.broadcast_shapes(whole.shape, sizes) if whole else sizes
    return _result(whole, shape, lambda values: np.broadcast_to(values, shape))


def _tile(given: _Given, _: _Attributes) -> _Known:
    whole, repeats = given[0], _values(given[1]).tolist()
    sides = whole.shape if whole else (1,) * len(repeats)
    return _result(whole, tuple(a * b for a, b in zip(sides, repeats, strict=True)), lambda v: np.tile(v, repeats))


def _range(given: _Given, _: _Attributes) -> _Known:
    start, limit, step = (int(_values(item).item()) for item in given)
    count = max(0, -(-(limit - start) // step))
    width = given[0].width if given[0] else 8
    return _Known((count,), width, np.arange(start, limit, step) if count <= _SMALL else None)


def _random(_: _Given, attributes: _Attributes) -> _Known:
    return _Known(tuple(attributes[b"shape"].ints))


def _pad(given: _Given, attributes: _Attributes) -> _Known:
    whole = _shape(given[0])
    pads = attributes[b"pads"].ints if b"pads" in attributes else _values(given[1]).tolist()
    half = len(pads) // 2
    return _result(given[0], tuple(a + b + c for a, b, c in zip(whole, pads[:half], pads[half:], strict=True)))


def _one_hot(given: _Given, _: _Attributes) -> _Known:
    return _Known((*_shape(given[0]), int(_values(given[1]).item())), given[2].width if given[2] else 4)


def _resize(given: _Given, _: _Attributes) -> _Known:
    """Sizes alone: scales are floats, which are not followed."""
    return _result(given[0], tuple(_values(given[-1]).tolist()))


def _matmul(given: _Given, _: _Attributes) -> _Known:
    left, right = _shape(given[0]), _shape(given[1])
    return _result(given[0], (*np.broadcast_shapes(left[:-2], right[:-2]), left[-2], right[-1]))


def _concat(given: _Given, attributes: _Attributes) -> _Known:
    shapes = [_shape(item) for item in given]
    axis = attributes[b"axis"].ints[0]
    whole = list(shapes[0])
    whole[axis] = sum(shape[axis] for shape in shapes)
    small = all(item is not None and item.values is not None for item in given) and prod(whole) <= _SMALL
    values = np.concatenate([_values(item) for item in given], axis) if small else None
    return _result(given[0], tuple(whole), None if values is None else lambda _: values)


def _reshape(given: _Given, _: _Attributes) -> _Known:
    whole, sizes = _shape(given[0]), _values(given[1]).tolist()
    sizes = [whole[index] if size == 0 else size for index, size in enumerate(sizes)]
    if -1 in sizes:
        sizes[sizes.index(-1)] = prod(whole) // -prod(sizes)
    return _result(given[0], tuple(sizes), lambda values: values.reshape(sizes))


def _axes(given: _Given, attributes: _Attributes) -> list[int]:
    return attributes[b"axes"].ints if b"axes" in attributes else np.atleast_1d(_values(given[1])).tolist()


def _unsqueeze(given: _Given, attributes: _Attributes) -> _Known:
    shape, axes = list(_shape(given[0])), _axes(given, attributes)
    for axis in sorted(axis % (len(shape) + len(axes)) for axis in axes):
        shape.insert(axis, 1)
    return _result(given[0], tuple(shape), lambda values: values.reshape(shape))


def _squeeze(given: _Given, attributes: _Attributes) -> _Known:
    shape = _shape(given[0])
    chosen = _axes(given, attributes) if len(given) > 1 or attributes else [i for i, n in enumerate(shape) if n == 1]
    axes = {axis % len(shape) for axis in chosen}
    kept = tuple(size for index, size in enumerate(shape) if index not in axes)
    return _result(given[0], kept, lambda values: values.reshape(kept))


def _gather(given: _Given, attributes: _Attributes) -> _Known:
    axis = attributes[b"axis"].ints[0] if b"axis" in attributes else 0
    whole, chosen = _shape(given[0]), _shape(given[1])
    axis %= len(whole)
    known = given[1] is not None and given[1].values is not None
    pick = (lambda values: np.take(values, _values(given[1]), axis)) if known else None
    return _result(given[0], (*whole[:axis], *chosen, *whole[axis + 1 :]), pick)


def _transpose(given: _Given, attributes: _Attributes) -> _Known:
    shape = _shape(given[0])
    order = attributes[b"perm"].ints if b"perm" in attributes else range(len(shape))[::-1]
    return _result(given[0], tuple(shape[axis] for axis in order))


def _shape_of(given: _Given, attributes: _Attributes) -> _Known:
    shape = _shape(given[0])
    begin, end = (attributes[name].ints[0] if name in attributes else None for name in (b"start", b"end"))
    values = np.asarray(shape[begin:end], np.int64)
    return _Known(values.shape, 8, values)


def _size_of(given: _Given, _: _Attributes) -> _Known:
    return _Known((), 8, np.asarray(prod(_shape(given[0])), np.int64))


def _product(given: _Given, attributes: _Attributes) -> _Known:
    """A product of all values of a list, such as a shape."""
    keep = b"keepdims" not in attributes or attributes[b"keepdims"].ints != [0]
    value = np.asarray(_values(given[0]).prod(), np.int64).reshape((1,) if keep else ())
    return _Known(value.shape, 8, value)


def _cast(given: _Given, attributes: _Attributes) -> _Known:
    return _Known(_shape(given[0]), _WIDTHS.get(attributes[b"to"].ints[0], 8), given[0].values if given[0] else None)


def _alike(given: _Given, _: _Attributes) -> _Known:
    """As the first input, with values that are not followed."""
    return _result(given[0], _shape(given[0]))


def _same(given: _Given, _: _Attributes) -> _Known | None:
    return given[0]


def _elementwise(compute: Callable[..., Any] | None) -> _Rule:
    def rule(given: _Given, _: _Attributes) -> _Known:
        shape = np.broadcast_shapes(*(_shape(item) for item in given))
        known = all(item is not None and item.values is not None for item in given) and prod(shape) <= _SMALL
        values = compute(*(_values(item) for item in given)) if compute is not None and known else None
        return _result(given[-1], shape, None if values is None else lambda _: values)

    return rule


def _result(
    like: _Known | None, shape: tuple[int, ...], compute: Callable[[npt.NDArray[np.int64]], Any] | None = None
) -> _Known:
    """Return a tensor of the type of another, with values where they are known and few."""
    width = like.width if like else 1
    if compute is None or like is None or like.values is None or not 0 <= prod(shape) <= _SMALL:
        return _Known(shape, width)
    return _Known(shape, width, np.asarray(compute(like.values), np.int64))


def _varints(data: bytes) -> list[int]:
    """Return packed whole numbers."""
    found, value, shift = [], 0, 0
    for byte in data:
        value |= (byte & 127) << shift
        shift += 7
        if byte < 128:
            value &= 2**64 - 1
            found.append(value - 2**64 if value >= 2**63 else value)
            value = shift = 0
    return found


_RULES: Final[dict[bytes, _Rule]] = {
    b"ConstantOfShape": _constant_of_shape,
    b"Expand": _expand,
    b"Tile": _tile,
    b"Range": _range,
    b"RandomNormal": _random,
    b"RandomUniform": _random,
    b"Pad": _pad,
    b"OneHot": _one_hot,
    b"Resize": _resize,
    b"MatMul": _matmul,
    b"Concat": _concat,
    b"Reshape": _reshape,
    b"Unsqueeze": _unsqueeze,
    b"Squeeze": _squeeze,
    b"Gather": _gather,
    b"Transpose": _transpose,
    b"Shape": _shape_of,
    b"Size": _size_of,
    b"ReduceProd": _product,
    b"Cast": _cast,
    b"Identity": _same,
    **dict.fromkeys((b"EyeLike", b"RandomNormalLike", b"RandomUniformLike", b"CumSum", b"Softmax"), _alike),
    **dict.fromkeys((b"Sqrt", b"Exp", b"Log", b"Abs", b"Floor", b"Sigmoid", b"Relu", b"Tanh", b"Erf"), _alike),
    b"Add": _elementwise(np.add),
    b"Sub": _elementwise(np.subtract),
    b"Mul": _elementwise(np.multiply),
    b"Div": _elementwise(lambda a, b: np.trunc(a / b)),
    b"Neg": _elementwise(np.negative),
    b"Min": _elementwise(lambda *items: np.minimum.reduce(np.broadcast_arrays(*items))),
    b"Max": _elementwise(lambda *items: np.maximum.reduce(np.broadcast_arrays(*items))),
    **dict.fromkeys((b"Pow", b"Where", b"Equal", b"Less", b"Greater", b"And", b"Or"), _elementwise(None)),
}
"""From constant inputs to the shape of an operator's first output; those of other operators are not known."""
