"""Rules of graphs that contradict themselves: types that one operator mixes, and sizes that do not fit each other."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator, Sequence
from math import prod
from typing import Final

import onnx
from onnx import NodeProto, TensorProto

from krl_deploy.graph.edit import attribute
from krl_deploy.graph.operators import QDQ

from .findings import Finding, Rule
from .view import View, type_name

__all__ = ["check_consistency"]

_PARSER = "NVIDIA's parser, TensorRT-RTX 1.7.1"

_MIXED = Rule(
    "error",
    "types/mixed",
    "cast its inputs to one type; krl-deploy fp16 and quantize write the casts, biases and scales that belong together",
    f"ONNX: the operator's type constraints; {_PARSER}",
)
_UNDEFINED = Rule(
    "error",
    "types/undefined",
    "cast its input to a type that ONNX defines the operator for",
    f"ONNX: the operator's type constraints; {_PARSER}",
)
_INFERRED = Rule(
    "error", "shapes/consistent", "export the model again: its sizes contradict each other", "ONNX's shape inference"
)
_SIZES = Rule("error", "shapes/sizes", "export the model again: its sizes contradict each other", f"ONNX; {_PARSER}")

_ALIKE: Final[dict[int, int]] = {TensorProto.DOUBLE: TensorProto.FLOAT}  # the parser turns every FP64 into FP32
_FIRST_ALONE: Final = frozenset({"Clip", "Pad"})  # the parser casts the limits of Clip and the value of Pad
_BROADCASTS: Final = 7  # the opset from which the slope of PRelu is broadcast by its last axes
_GATES: Final = {"LSTM": 4, "GRU": 3, "RNN": 1}  # ONNX: rows of W and R for each unit


def check_consistency(view: View) -> Iterator[Finding]:
    """Yield the findings of nodes whose inputs contradict each other."""
    for node in view.nodes:
        if node.domain in ("", "ai.onnx"):
            yield from _types(view, node)
            for why in _sizes(view, node):
                yield _SIZES.at(node.name, node.op_type, why)
    for name, op, why in view.graph.contradictions():
        yield _INFERRED.at(name, op, why)


def _types(view: View, node: NodeProto) -> Iterator[Finding]:
    """Yield a finding if inputs that must have one type have several, or one that the operator is not defined for.

    Quantizers have rules of their own: the parser takes some that ONNX does not allow.
    """
    if node.op_type in QDQ:
        return
    groups: dict[str, list[tuple[str, int]]] = defaultdict(list)
    try:
        schema = onnx.defs.get_schema(node.op_type, view.opset, "")
    except onnx.defs.SchemaError:  # an operator of a later opset; another rule reports it
        return
    allowed = {item.type_param_str: item.allowed_type_strs for item in schema.type_constraints}
    for index, name in enumerate(node.input[:1] if node.op_type in _FIRST_ALONE else node.input):
        formal = schema.inputs[min(index, len(schema.inputs) - 1)] if schema.inputs else None
        dtype = view.dtype(name) if name else 0
        if formal is not None and dtype and formal.type_str in allowed and formal.is_homogeneous:
            groups[formal.type_str].append((name, _ALIKE.get(dtype, dtype)))
    for variable, members in groups.items():
        kinds = {dtype for _, dtype in members}
        if len(kinds) > 1:
            shown = ", ".join(f"{name} {type_name(dtype)}" for name, dtype in members)
            yield _MIXED.at(node.name, node.op_type, f"its inputs have to have one type: {shown}")
        elif _undefined(kinds.pop(), allowed[variable]):
            shown = type_name(members[0][1])
            yield _UNDEFINED.at(node.name, node.op_type, f"ONNX does not define it for {shown}")


def _undefined(dtype: int, allowed: Sequence[str]) -> bool:
    """Return whether a type is not allowed. BF16 counts as FP16, which older opsets have without it."""
    if dtype == TensorProto.BFLOAT16:
        dtype = TensorProto.FLOAT16
    return dtype in TensorProto.DataType.values() and f"tensor({type_name(dtype).lower()})" not in allowed


def _sizes(view: View, node: NodeProto) -> Iterator[str]:
    """Yield contradictions of sizes that ONNX's shape inference does not look for."""
    if node.op_type in ("Conv", "ConvTranspose") and len(node.input) > 1:
        yield from _convolution(view, node)
    elif node.op_type in ("DepthToSpace", "SpaceToDepth"):
        yield from _blocks(view, node)
    elif node.op_type == "PRelu" and len(node.input) > 1 and view.opset >= _BROADCASTS:
        shape, slope = _known(view, node.input[0]), _known(view, node.input[1])
        if shape is not None and slope is not None and not _broadcasts(slope, shape):
            yield f"its slope of shape {_shown(slope)} does not fit its input of shape {_shown(shape)}"
    elif node.op_type == "Reshape" and len(node.input) > 1:
        yield from _reshape(view, node)
    elif node.op_type in _GATES and len(node.input) > 2:
        yield from _recurrent(view, node)


def _convolution(view: View, node: NodeProto) -> Iterator[str]:
    shape, weight = _known(view, node.input[0]), _known(view, node.input[1])
    group = attribute(node, "group", 1)
    if group < 1:
        yield f"its group is {group}; accepted: 1 or more"
        return
    if shape is None or weight is None or len(shape) < 3 or len(weight) != len(shape):
        return
    transposed = node.op_type == "ConvTranspose"
    channels, expected = shape[1], weight[0] if transposed else _times(weight[1], group)
    if channels is not None and expected is not None and channels != expected:
        yield f"its weight is for {expected} channels in {group} groups, its input has {channels}"
    out = _times(weight[1], group) if transposed else weight[0]
    if out is not None and out % group:
        yield f"its {out} output channels are not a multiple of its {group} groups"
    bias = _known(view, node.input[2]) if len(node.input) > 2 and node.input[2] else None
    if bias is not None and out is not None and bias not in ((out,), (None,)):
        yield f"its bias has shape {_shown(bias)}, it has {out} output channels"
    if not transposed and attribute(node, "auto_pad", b"NOTSET") == b"NOTSET":
        yield from _kernel(node, shape[2:], weight[2:])


def _kernel(node: NodeProto, sides: tuple[int | None, ...], kernel: tuple[int | None, ...]) -> Iterator[str]:
    rank = len(sides)
    pads, dilations = attribute(node, "pads", [0] * 2 * rank), attribute(node, "dilations", [1] * rank)
    if len(pads) != 2 * rank or len(dilations) != rank:  # ONNX's shape inference reports it
        return
    for axis, (size, taps) in enumerate(zip(sides, kernel, strict=True)):
        if size is not None and taps is not None:
            padded, reach = size + pads[axis] + pads[axis + rank], dilations[axis] * (taps - 1) + 1
            if reach > padded:
                yield f"its kernel spans {reach} values along axis {axis + 2}, its padded input has {padded}"


def _blocks(view: View, node: NodeProto) -> Iterator[str]:
    shape, size = _known(view, node.input[0]), attribute(node, "blocksize", 1)
    if size < 1:
        yield f"its blocksize is {size}; accepted: 1 or more"
    elif shape is not None and len(shape) == 4:
        axes = ((1, size * size),) if node.op_type == "DepthToSpace" else ((2, size), (3, size))
        for axis, factor in axes:
            if shape[axis] is not None and shape[axis] % factor:
                yield f"its axis {axis} has {shape[axis]} values, not a multiple of {factor}"


def _reshape(view: View, node: NodeProto) -> Iterator[str]:
    shape, wanted = _known(view, node.input[0]), view.numbers(node.input[1])
    if shape is None or wanted is None or None in shape or wanted.ndim != 1:
        return
    volume = prod(size or 0 for size in shape)
    keeps = not attribute(node, "allowzero", 0)
    sizes = [int(size) for size in wanted]
    if any(size == 0 and keeps and axis >= len(shape) for axis, size in enumerate(sizes)) or sizes.count(-1) > 1:
        yield f"it asks for the shape {sizes} from {_shown(shape)}"
        return
    sizes = [shape[axis] or 0 if size == 0 and keeps else size for axis, size in enumerate(sizes)]
    known = prod(size for size in sizes if size != -1)
    if (known != volume) if -1 not in sizes else (not known or volume % known):
        yield f"it changes the number of values: from {_shown(shape)} to {sizes}"


def _recurrent(view: View, node: NodeProto) -> Iterator[str]:
    hidden = attribute(node, "hidden_size", None)
    rows = None if hidden is None else hidden * _GATES[node.op_type]
    names = ("weight W", "weight R", "bias")
    for index, (name, tensor) in enumerate(zip(names, node.input[1:4], strict=False)):
        shape = _known(view, tensor) if tensor else None
        expected = None if rows is None else rows * (2 if index == 2 else 1)
        if shape is not None and len(shape) > 1 and expected is not None and shape[1] not in (expected, None):
            yield f"its {name} has {shape[1]} rows, a hidden size of {hidden} needs {expected}"


def _known(view: View, tensor: str) -> tuple[int | None, ...] | None:
    """Return a shape with ``None`` for open sizes; ``None`` if even the rank is not known."""
    shape = view.graph.shape(tensor)
    return None if shape is None else tuple(size if isinstance(size, int) else None for size in shape)


def _times(size: int | None, factor: int) -> int | None:
    return None if size is None else size * factor


def _broadcasts(one: tuple[int | None, ...], to: tuple[int | None, ...]) -> bool:
    """Return whether a shape can be broadcast to another, which stays as it is."""
    if len(one) > len(to):
        return False
    pairs = zip(one[::-1], to[::-1], strict=False)
    return all(size in (1, None) or other is None or size == other for size, other in pairs)


def _shown(shape: tuple[int | None, ...]) -> str:
    return f"[{', '.join('?' if size is None else str(size) for size in shape)}]"
