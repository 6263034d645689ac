"""Sizes and ranks that do not fit: ONNX's shape inference does not look for them, NVIDIA's parser or builder does."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from math import prod
from typing import Final

import numpy as np
import numpy.typing as npt
from onnx import NodeProto

from krl_deploy.graph.edit import attribute

from .view import View

__all__ = ["contradicting_sizes", "known_shape"]

_MOST_AXES: Final = 8  # TensorRT's Dims::MAX_DIMS
_BROADCASTS: Final = 7  # the opset from which the slope of PRelu is broadcast by its last axes
_SCALES_OF_CHANNELS: Final = 21  # the opset from which GroupNormalization has a scale for each channel
_OF_ONE_INPUT: Final = frozenset(
    (*("AveragePool", "DepthToSpace", "LpNormalization", "LpPool", "MaxPool", "SpaceToDepth", "Squeeze", "Unsqueeze"),)
)
_GATES: Final = {"LSTM": 4, "GRU": 3, "RNN": 1}  # ONNX: rows of W and R for each unit


def contradicting_sizes(view: View, node: NodeProto) -> Iterator[str]:
    """Yield what is wrong with the sizes of a node."""
    rule = _RULES.get(node.op_type)
    if rule is not None and len(node.input) >= (1 if node.op_type in _OF_ONE_INPUT else 2):
        yield from rule(view, node)
    for name in node.output:
        shape = view.graph.shape(name) if name else None
        if shape is not None and len(shape) > _MOST_AXES:
            yield f"its output has {len(shape)} axes; TensorRT has {_MOST_AXES} at most"
        elif shape is not None and any(isinstance(size, int) and size < 0 for size in shape):
            yield f"its output would have the shape {list(shape)}"


def known_shape(view: View, tensor: str) -> tuple[int | None, ...] | None:
    """Return a shape with ``None`` for open sizes; ``None`` if even the rank is not known."""
    shape = view.graph.shape(tensor)
    return None if shape is None else tuple(size if isinstance(size, int) else None for size in shape)


def _convolution(view: View, node: NodeProto) -> Iterator[str]:
    shape, weight = known_shape(view, node.input[0]), known_shape(view, node.input[1])
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
    bias = known_shape(view, node.input[2]) if len(node.input) > 2 and node.input[2] else None
    if bias is not None and out is not None and bias not in ((out,), (None,)):
        yield f"its bias has shape {_shown(bias)}, it has {out} output channels"
    kernel = attribute(node, "kernel_shape", None)
    if kernel is not None and None not in weight[2:] and tuple(kernel) != weight[2:]:
        yield f"its kernel_shape is {list(kernel)}, its weight has {_shown(weight[2:])}"
    elif not transposed:
        yield from _kernel(node, shape[2:], weight[2:])


def _pool(view: View, node: NodeProto) -> Iterator[str]:
    shape = known_shape(view, node.input[0])
    kernel = tuple(attribute(node, "kernel_shape", ()))
    steps = attribute(node, "strides", [1] * len(kernel))
    if shape is not None and len(shape) == len(kernel) + 2 and len(steps) == len(kernel) and min(steps) > 0:
        # A pool may give nothing: one step less is refused.
        smaller = [taps - step for taps, step in zip(kernel, steps, strict=True)]
        yield from _kernel(node, shape[2:], tuple(smaller))


def _kernel(node: NodeProto, sides: tuple[int | None, ...], kernel: tuple[int | None, ...]) -> Iterator[str]:
    rank = len(sides)
    pads, dilations = attribute(node, "pads", [0] * 2 * rank), attribute(node, "dilations", [1] * rank)
    if attribute(node, "auto_pad", b"NOTSET") != b"NOTSET":
        return
    if len(pads) != 2 * rank or len(dilations) != rank:  # ONNX's shape inference reports it
        return
    for axis, (size, taps) in enumerate(zip(sides, kernel, strict=True)):
        if size is not None and taps is not None:
            padded, reach = size + pads[axis] + pads[axis + rank], dilations[axis] * (taps - 1) + 1
            if reach > padded:
                yield f"its kernel spans {reach} values along axis {axis + 2}, its padded input has {padded}"


def _blocks(view: View, node: NodeProto) -> Iterator[str]:
    shape, size = known_shape(view, node.input[0]), attribute(node, "blocksize", 1)
    if size < 1:
        yield f"its blocksize is {size}; accepted: 1 or more"
    elif shape is not None and len(shape) == 4:
        axes = ((1, size * size),) if node.op_type == "DepthToSpace" else ((2, size), (3, size))
        for axis, factor in axes:
            length = shape[axis]
            if length is not None and length % factor:
                yield f"its axis {axis} has {length} values, not a multiple of {factor}"


def _slope(view: View, node: NodeProto) -> Iterator[str]:
    shape, slope = known_shape(view, node.input[0]), known_shape(view, node.input[1])
    if view.opset >= _BROADCASTS and shape is not None and slope is not None and not _broadcasts(slope, shape):
        yield f"its slope of shape {_shown(slope)} does not fit its input of shape {_shown(shape)}"


def _reshape(view: View, node: NodeProto) -> Iterator[str]:
    shape, wanted = known_shape(view, node.input[0]), view.numbers(node.input[1])
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
        shape = known_shape(view, tensor) if tensor else None
        expected = None if rows is None else rows * (2 if index == 2 else 1)
        if shape is not None and len(shape) > 1 and expected is not None and shape[1] not in (expected, None):
            yield f"its {name} has {shape[1]} rows, a hidden size of {hidden} needs {expected}"


def _channel_scales(view: View, node: NodeProto) -> Iterator[str]:
    """Check a normalization that has a scale and a shift for each channel."""
    shape = known_shape(view, node.input[0])
    channels = shape[1] if shape is not None and len(shape) > 1 else None
    for name, tensor in zip(("scale", "shift", "mean", "variance"), node.input[1:5], strict=False):
        sizes = known_shape(view, tensor) if tensor else None
        if sizes is not None and channels is not None and sizes not in ((channels,), (None,)):
            yield f"its {name} has shape {_shown(sizes)}, its input has {channels} channels"


def _last_axes_scales(view: View, node: NodeProto) -> Iterator[str]:
    """Check a normalization over the last axes, whose scale is broadcast to them."""
    shape = known_shape(view, node.input[0])
    if shape is None:
        return
    axis = int(attribute(node, "axis", -1))
    if not -len(shape) <= axis < len(shape):
        yield f"its axis is {axis}, its input has {len(shape)} axes"
        return
    for name, tensor in zip(("scale", "shift"), node.input[1:3], strict=False):
        sizes = known_shape(view, tensor) if tensor else None
        if sizes is not None and not _broadcasts(sizes, shape):
            yield f"its {name} of shape {_shown(sizes)} does not fit its input of shape {_shown(shape)}"


def _elements(view: View, node: NodeProto) -> Iterator[str]:
    data, indices = known_shape(view, node.input[0]), known_shape(view, node.input[1])
    updates = known_shape(view, node.input[2]) if len(node.input) > 2 else None
    if data is None or indices is None:
        return
    if len(data) != len(indices):
        yield f"its indices have {len(indices)} axes, its data {len(data)}"
        return
    chosen = int(attribute(node, "axis", 0)) % max(len(data), 1)
    for axis, (size, count) in enumerate(zip(data, indices, strict=True)):
        if axis != chosen and size is not None and count is not None and count > size:
            yield f"its indices have {count} values along axis {axis}, its data {size}"
    if updates is not None and not _alike(updates, indices):
        yield f"its updates have shape {_shown(updates)}, its indices {_shown(indices)}"


def _scattered(view: View, node: NodeProto) -> Iterator[str]:
    data, indices = known_shape(view, node.input[0]), known_shape(view, node.input[1])
    updates = known_shape(view, node.input[2]) if len(node.input) > 2 else None
    depth = indices[-1] if indices else None
    if data is None or indices is None or updates is None or depth is None or depth > len(data):
        return
    expected = (*indices[:-1], *data[depth:])
    if not _alike(updates, expected):
        yield f"its updates have shape {_shown(updates)}, expected is {_shown(expected)}"


def _grouped_scales(view: View, node: NodeProto) -> Iterator[str]:
    """Check a normalization of groups; its scale is for each group before opset 21."""
    shape, groups = known_shape(view, node.input[0]), int(attribute(node, "num_groups", 1))
    channels = shape[1] if shape is not None and len(shape) > 1 else None
    if channels is not None and groups and channels % groups:
        yield f"its {channels} channels are not a multiple of its {groups} groups"
    expected = groups if view.opset < _SCALES_OF_CHANNELS else channels
    for name, tensor in zip(("scale", "shift"), node.input[1:3], strict=False):
        sizes = known_shape(view, tensor)
        if sizes is not None and expected is not None and sizes not in ((expected,), (None,)):
            yield f"its {name} has shape {_shown(sizes)}, expected is [{expected}]"


def _axis(view: View, node: NodeProto) -> Iterator[str]:
    """Check the one axis of a node, which ``OneHot`` counts in its output."""
    given = _values(view, node, 1) if node.op_type == "CumSum" else np.asarray(attribute(node, "axis", -1))
    rank = len(known_shape(view, node.input[0]) or ()) + (node.op_type == "OneHot")
    if rank and given is not None and given.size == 1 and not -rank <= given.item() < rank:
        yield f"its axis is {int(given.item())}; accepted: {-rank} to {rank - 1}"


def _axes(view: View, node: NodeProto) -> Iterator[str]:
    """Check the axes of a node, which ``Unsqueeze`` counts in its output."""
    given = _values(view, node, 3 if node.op_type == "Slice" else 1)
    if given is not None and given.ndim != 1:
        yield f"its axes are a tensor of {given.ndim} axes; accepted: 1"
        return
    axes = attribute(node, "axes", []) if given is None else [int(axis) for axis in given.ravel()]
    rank = len(known_shape(view, node.input[0]) or ())
    rank += len(axes) if node.op_type == "Unsqueeze" and rank else 0
    outside = [axis for axis in axes if not -rank <= axis < rank]
    if rank and outside:
        yield f"its axis is {outside[0]}; accepted: {-rank} to {rank - 1}"
    elif rank and len({axis % rank for axis in axes}) < len(axes):
        yield f"its axes {axes} name one twice"


def _slice(view: View, node: NodeProto) -> Iterator[str]:
    shapes = [known_shape(view, name) for name in node.input[1:] if name]
    counts = {shape[0] for shape in shapes if shape is not None and len(shape) == 1 and shape[0] is not None}
    if len(counts) > 1:
        yield f"its starts, ends, axes and steps have {' and '.join(map(str, sorted(counts)))} values"
    else:
        yield from _axes(view, node)


def _counts(view: View, node: NodeProto) -> Iterator[str]:
    """Check sizes or numbers of repeats."""
    given = _values(view, node, 1)
    if given is not None and (given < 0).any():
        yield f"it asks for {[int(size) for size in given.ravel()]}; accepted: none below 0"


def _top(view: View, node: NodeProto) -> Iterator[str]:
    shape, axis, count = known_shape(view, node.input[0]), int(attribute(node, "axis", -1)), _values(view, node, 1)
    if shape and count is not None and count.size == 1 and -len(shape) <= axis < len(shape):
        size = shape[axis]
        if size is not None and count.item() > size:
            yield f"its K is {int(count.item())}, axis {axis} has {size} values"


def _scalars(view: View, node: NodeProto) -> Iterator[str]:
    for name in node.input:
        shape = known_shape(view, name)
        if shape is not None and shape not in ((), (1,), (None,)):
            yield f"its input {name} has shape {_shown(shape)}; accepted: single values"


def _attention(view: View, node: NodeProto) -> Iterator[str]:
    keys, values = (known_shape(view, name) if name else None for name in (*node.input[1:3], "", "")[:2])
    if keys is not None and values is not None and not _alike(keys, values):
        yield f"its K has shape {_shown(keys)}, its V {_shown(values)}; TensorRT takes the same for both"


def _resize(view: View, node: NodeProto) -> Iterator[str]:
    scales = _values(view, node, 1 if node.op_type == "Upsample" or len(node.input) == 2 else 2)
    if scales is not None and scales.ndim != 1:
        yield f"its scales have {scales.ndim} axes; they have to have 1"
    elif scales is not None and (scales < 0).any():
        yield f"its scales are {scales.tolist()}; accepted: none below 0"


def _pad(view: View, node: NodeProto) -> Iterator[str]:
    shape, pads = known_shape(view, node.input[0]), view.numbers(node.input[1])
    axes = view.numbers(node.input[3]) if len(node.input) > 3 and node.input[3] else None
    if shape is None or pads is None:
        return
    chosen = list(range(len(shape))) if axes is None else [int(axis) % len(shape) for axis in axes.ravel()]
    sizes = pads.ravel()
    if len(sizes) != 2 * len(chosen):
        return  # ONNX's shape inference reports it
    for index, axis in enumerate(chosen):
        length = shape[axis]
        if length is not None and length + sizes[index] + sizes[index + len(chosen)] < 0:
            yield f"it takes more than the {length} values of axis {axis} away"


def _einsum(view: View, node: NodeProto) -> Iterator[str]:
    equation = attribute(node, "equation", b"").decode(errors="replace").replace(" ", "")
    terms = equation.split("->")[0].split(",")
    if "." in equation or len(terms) != len(node.input):
        return
    sizes: dict[str, int] = {}
    for term, name in zip(terms, node.input, strict=True):
        shape = known_shape(view, name)
        if shape is None:
            continue
        if len(shape) != len(term):
            yield f"its term {term!r} is for {len(term)} axes, {name} has {len(shape)}"
            continue
        for letter, size in zip(term, shape, strict=True):
            if size is not None and sizes.setdefault(letter, size) != size:
                yield f"its subscript {letter} stands for {sizes[letter]} and {size} values"


def _product(view: View, node: NodeProto) -> Iterator[str]:
    one, two = (known_shape(view, name) for name in node.input[:2])
    if not one or not two or len(one) < 2 or len(two) < 2:
        return
    inner = one[-2] if attribute(node, "transA", 0) else one[-1], two[-1] if attribute(node, "transB", 0) else two[-2]
    if None not in inner and inner[0] != inner[1]:
        yield f"its factors of the shapes {_shown(one)} and {_shown(two)} have {inner[0]} and {inner[1]} values to sum"


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


def _alike(one: tuple[int | None, ...], other: tuple[int | None, ...]) -> bool:
    """Return whether two shapes can be the same."""
    return len(one) == len(other) and all(
        first is None or second is None or first == second for first, second in zip(one, other, strict=True)
    )


def _values(view: View, node: NodeProto, index: int) -> npt.NDArray[np.float64] | None:
    """Return the constant value of an input that a node need not have."""
    return view.numbers(node.input[index]) if len(node.input) > index and node.input[index] else None


_RULES: Final[dict[str, Callable[[View, NodeProto], Iterator[str]]]] = {
    "Attention": _attention,
    "AveragePool": _pool,
    "BatchNormalization": _channel_scales,
    "Conv": _convolution,
    "ConvTranspose": _convolution,
    "CumSum": _axis,
    "DepthToSpace": _blocks,
    "Einsum": _einsum,
    "Expand": _counts,
    "GRU": _recurrent,
    "GatherElements": _elements,
    "Gemm": _product,
    "GroupNormalization": _grouped_scales,
    "InstanceNormalization": _channel_scales,
    "LSTM": _recurrent,
    "LayerNormalization": _last_axes_scales,
    "LpNormalization": _axis,
    "LpPool": _pool,
    "MatMul": _product,
    "MaxPool": _pool,
    "OneHot": _axis,
    "PRelu": _slope,
    "Pad": _pad,
    "RMSNormalization": _last_axes_scales,
    "RNN": _recurrent,
    "Range": _scalars,
    "Reshape": _reshape,
    "Resize": _resize,
    "ScatterElements": _elements,
    "ScatterND": _scattered,
    "Slice": _slice,
    "SpaceToDepth": _blocks,
    "Squeeze": _axes,
    "Tile": _counts,
    "TopK": _top,
    "Unsqueeze": _axes,
    "Upsample": _resize,
}
