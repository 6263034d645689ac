"""The tidy graph that every other pass builds on.

In it,

* constants are initializers, and each weighted node has its own,
* batch normalization and constant factors are folded into the convolution before them,
* no node only passes a tensor on,
* padding names the amounts of all axes.

Weights shared through ``Identity`` kept ONNX Runtime from quantizing 16 of the 20 convolutions of a resnet18.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt
import onnx
from onnx import NodeProto, helper, numpy_helper

from .bounds import compute_constant
from .edit import GraphEditor, attribute
from .operators import CONVOLUTIONS, QDQ, WEIGHTED

__all__ = ["clean", "constants_to_initializers", "shape_behind_cast", "split_without_sequences"]

_MAX_FOLDED_BYTES = 64 * 1024 * 1024  # a larger constant stays computed, so that folding cannot fill memory or the file


def clean(model: onnx.ModelProto) -> onnx.ModelProto:
    """Return an equivalent tidy model, without the metadata of exporters.

    Raises:
        ModelError: The graph cannot be rewritten, or the result would not be valid.
    """
    graph = GraphEditor(model)
    constants_to_initializers(graph)
    _drop_pass_through(graph)
    _cast_to_known_types(graph)
    _fold_constants(graph)
    split_without_sequences(graph)
    _open_clips(graph)
    _fold_affine(graph)
    _matmul_bias(graph)
    _pads_of_all_axes(graph)
    shape_behind_cast(graph)
    _unshare(graph)
    result = graph.close()
    _forget_origin(result)
    return result


def _pads_of_all_axes(graph: GraphEditor) -> None:
    """Write the amounts of all axes into each ``Pad`` that names some of them.

    ONNX Runtime's optimizer reads the amounts of such a node as those of all axes where values are quantized.
    """
    for node in graph.nodes:
        if node.op_type != "Pad" or len(node.input) < 4 or not node.input[3]:
            continue
        pads, axes, shape = graph.constant(node.input[1]), graph.constant(node.input[3]), graph.shape(node.input[0])
        if pads is None or axes is None or shape is None:
            continue
        rank = len(shape)
        amounts: npt.NDArray[np.int64] = np.zeros((2, rank), np.int64)
        amounts[:, axes.astype(np.int64) % rank] = pads.reshape(2, -1)
        full = graph.add_constant(f"{node.output[0]}_pads", amounts.reshape(-1))
        node.input[:] = [node.input[0], full, *(name for name in node.input[2:3] if name)]


def _open_clips(graph: GraphEditor) -> None:
    """Leave out the ends of each ``Clip`` that limit no float32 number; FP16 could not hold most of them."""
    ends = np.finfo(np.float32)
    for node in graph.nodes:
        if node.op_type != "Clip" or graph.dtype(node.input[0]) != onnx.TensorProto.FLOAT:
            continue
        for index in range(1, len(node.input)):
            value = graph.constant(node.input[index])
            if value is not None and (value >= ends.max if index == 2 else value <= ends.min).all():
                node.input[index] = ""
        while not node.input[-1]:
            node.input.pop()


_CONSTANT_TYPES = {"value_float": np.float32, "value_floats": np.float32, "value_int": np.int64, "value_ints": np.int64}


def constants_to_initializers(graph: GraphEditor) -> None:
    """Turn ``Constant`` nodes that hold numbers into initializers."""
    moved = []
    for node in graph.nodes:
        if node.op_type != "Constant":
            continue
        name, item = node.output[0], node.attribute[0]
        if item.name == "value":
            tensor = item.t
        elif item.name in _CONSTANT_TYPES:
            tensor = numpy_helper.from_array(np.asarray(helper.get_attribute_value(item), _CONSTANT_TYPES[item.name]))
        else:
            continue
        tensor.name = name
        graph.constants[name] = tensor
        moved.append(node)
    graph.remove(moved)


def _drop_pass_through(graph: GraphEditor) -> None:
    """Take out ``Identity`` and ``Dropout``; one that makes a graph's output hands its name to what feeds it."""
    for node in [node for node in graph.nodes if node.op_type in ("Identity", "Dropout")]:
        source, output = node.input[0], node.output[0]
        if len(node.output) > 1 and any(node.output[1] in other.input for other in graph.nodes):
            continue  # another node reads the mask
        if output not in graph.outputs:
            graph.remove([node])
            graph.reroute(output, source)
            continue
        producer = graph.producers().get(source)
        if producer is None or source in graph.outputs:
            continue
        graph.remove([node])
        producer.output[:] = [output if name == source else name for name in producer.output]
        graph.reroute(source, output)


def _cast_to_known_types(graph: GraphEditor) -> None:
    """Write the type into each ``CastLike``, so that constants behind it are constants.

    torch.onnx.export(dynamo=True, optimize=False) writes one for each bias, limit of a clip, and factor.
    """
    for node in graph.nodes:
        kind = graph.dtype(node.input[1]) if node.op_type == "CastLike" else 0
        if kind:
            node.op_type = "Cast"
            node.input.pop()
            node.attribute.append(helper.make_attribute("to", kind))


def split_without_sequences(graph: GraphEditor) -> None:
    """Write ``SplitToSequence`` whose parts are each taken by a known number as ``Split``, which TensorRT has."""
    consumers = graph.consumers()
    for node in [node for node in graph.nodes if node.op_type == "SplitToSequence" and len(node.input) > 1]:
        axis = attribute(node, "axis", 0)
        takers, sizes = consumers[node.output[0]], _sizes_of_parts(graph, node, axis)
        found = [graph.constant(taker.input[1]) for taker in takers if taker.op_type == "SequenceAt"]
        places = [int(place) for place in found if place is not None]
        if not sizes or len(places) < len(takers) or node.output[0] in graph.outputs:
            continue
        parts = [graph.fresh(f"{node.output[0]}_{index}") for index in range(len(sizes))]
        graph.remove(takers)
        for taker, place in zip(takers, places, strict=True):
            part, output = parts[place], taker.output[0]
            if output in graph.outputs:
                graph.add_for("Identity", [part], output)
            else:
                graph.reroute(output, part)
        graph.remove([node])
        given = [node.input[0], graph.add_constant(f"{node.output[0]}_sizes", np.array(sizes, np.int64))]
        graph.nodes.append(helper.make_node("Split", given, parts, name=f"{node.name}_parts", axis=axis))


def _sizes_of_parts(graph: GraphEditor, node: NodeProto, axis: int) -> list[int]:
    """Return the sizes of a sequence's parts, of which all but the last are equal if one number is given."""
    split, shape = graph.constant(node.input[1]), graph.shape(node.input[0])
    if split is None or split.ndim == 1:
        return [] if split is None else [int(size) for size in split]
    side = shape[axis] if shape else "?"
    return [min(int(split), side - at) for at in range(0, side, int(split))] if isinstance(side, int) else []


def _fold_constants(graph: GraphEditor) -> None:
    """Compute the nodes whose every input is an initializer."""
    folded = []
    for node in graph.nodes:
        if not any(node.input) or not all(name in graph.constants for name in node.input if name):
            continue
        if node.op_type in QDQ or any(out in graph.outputs for out in node.output):
            continue  # a quantized weight stays quantized
        values = compute_constant(node, graph.constants, graph.opset_imports, _MAX_FOLDED_BYTES)
        if values is None:
            continue
        for name, value in zip([name for name in node.output if name], values, strict=True):
            graph.constants[name] = numpy_helper.from_array(value, name)
        folded.append(node)
    graph.remove(folded)


def _fold_affine(graph: GraphEditor) -> None:
    """Move batch normalization and constant ``Mul`` and ``Add`` for each channel into the convolution before them."""
    changed = True
    while changed:
        changed = False
        producers, consumers = graph.producers(), graph.consumers()
        for node in graph.nodes:
            found = _affine(graph, node)
            if found is None:
                continue
            source, factor, offset = found
            conv = producers.get(source)
            if conv is None or conv.op_type not in CONVOLUTIONS or source in graph.outputs:
                continue
            if len(consumers[source]) != 1 or not _scale_convolution(graph, conv, factor, offset):
                continue
            graph.remove([node])
            conv.output[0] = node.output[0]
            changed = True
            break


_Array = npt.NDArray[Any]


def _affine(graph: GraphEditor, node: NodeProto) -> tuple[str, _Array, _Array] | None:
    """Return (input, factor, offset), one number or one for each channel, if that is all that a node computes."""
    if node.op_type == "BatchNormalization" and len(node.output) == 1:
        parts = [graph.constant(name) for name in node.input[1:5]]
        if any(part is None for part in parts):
            return None
        gamma, beta, mean, variance = (np.asarray(part, np.float64) for part in parts)
        factor = gamma / np.sqrt(variance + attribute(node, "epsilon", 1e-5))
        return node.input[0], factor, beta - mean * factor
    if node.op_type not in ("Add", "Mul"):
        return None
    for source, name in (tuple(node.input), tuple(node.input)[::-1]):
        value = graph.constant(name)
        rank = len(graph.shape(source) or ())
        if value is None or graph.constant(source) is not None or rank < 3 or value.ndim > rank:
            continue
        if not np.isfinite(value).all():
            continue  # a mask, which must not become a weight
        channels = (1,) * (rank - value.ndim) + value.shape
        if any(size != 1 for axis, size in enumerate(channels) if axis != 1):
            continue
        flat = value.astype(np.float64).reshape(-1)
        return (source, np.ones(1), flat) if node.op_type == "Add" else (source, flat, np.zeros(1))
    return None


def _scale_convolution(graph: GraphEditor, conv: NodeProto, factor: _Array, offset: _Array) -> bool:
    """Multiply a convolution's output channels by ``factor`` and add ``offset``; return whether that was possible."""
    weight = graph.constant(conv.input[1])
    has_bias = len(conv.input) > 2 and conv.input[2] != ""
    bias = graph.constant(conv.input[2]) if has_bias else np.zeros(1)
    groups = attribute(conv, "group", 1)
    transposed = conv.op_type == "ConvTranspose"
    if weight is None or bias is None or weight.dtype != np.float32 or (transposed and groups != 1):
        return False
    channels = weight.shape[1 if transposed else 0]
    if {factor.size, offset.size} - {1, channels}:
        return False  # they widen one channel to several, which no weight of this convolution does
    factor, offset = np.broadcast_to(factor, channels), np.broadcast_to(offset, channels)
    shape = [1, -1] if transposed else [-1, 1]
    scaled = weight.astype(np.float64) * factor.reshape(shape + [1] * (weight.ndim - 2))
    moved = (bias.astype(np.float64) * factor + offset).astype(np.float32)
    conv.input[1] = graph.add_constant(conv.input[1], scaled.astype(np.float32))
    name = graph.add_constant(conv.input[2] if has_bias else f"{conv.input[1]}_bias", moved)
    conv.input[:] = [*conv.input[:2], name]
    return True


def _matmul_bias(graph: GraphEditor) -> None:
    """Write ``MatMul`` of a matrix and a constant matrix, and a constant ``Add`` after it, as one ``Gemm``."""
    consumers = graph.consumers()
    for node in [node for node in graph.nodes if node.op_type == "MatMul"]:
        weight, readers = graph.constant(node.input[1]), consumers[node.output[0]]
        if weight is None or weight.ndim != 2 or len(graph.shape(node.input[0]) or ()) != 2 or len(readers) != 1:
            continue
        add, product = readers[0], node.output[0]
        if add.op_type != "Add" or product in graph.outputs:
            continue
        other = add.input[1] if add.input[0] == product else add.input[0]
        bias = graph.constant(other)
        if bias is None or bias.ndim not in (1, 2) or bias.shape[-1] != weight.shape[1] or bias.size != bias.shape[-1]:
            continue  # a bias of higher rank gives the sum that rank
        if not np.isfinite(bias).all():
            continue
        flat = graph.add_constant(f"{node.input[1]}_bias", bias.reshape(-1))
        gemm = helper.make_node("Gemm", [*node.input, flat], [add.output[0]], name=node.name or f"Gemm_{product}")
        graph.nodes[graph.nodes.index(node)] = gemm
        graph.remove([add])


def shape_behind_cast(graph: GraphEditor) -> None:
    """Take the shape of pixels behind their ``Cast``: NVIDIA's documents disagree on ``Shape`` of uint8."""
    consumers = graph.consumers()
    for node in graph.nodes:
        if node.op_type in ("Shape", "Size") and graph.dtype(node.input[0]) == onnx.TensorProto.UINT8:
            casts = [reader for reader in consumers[node.input[0]] if reader.op_type == "Cast"]
            if casts:
                node.input[0] = casts[0].output[0]


def _unshare(graph: GraphEditor) -> None:
    """Give each weighted node weights and biases that no other node reads."""
    readers: dict[str, int] = {}
    for node in graph.nodes:
        if node.op_type not in WEIGHTED:
            continue
        for position, name in enumerate(node.input):
            value = graph.constant(name)
            if position == 0 or value is None:
                continue
            readers[name] = readers.get(name, 0) + 1
            if readers[name] > 1:
                node.input[position] = graph.add_constant(name, value)


def _forget_origin(model: onnx.ModelProto) -> None:
    """Drop stack traces, source paths and comments: they name the machine of whoever exported the model."""
    del model.metadata_props[:]
    model.doc_string = ""
    model.graph.doc_string = ""
    del model.graph.metadata_props[:]
    for item in [*model.graph.node, *model.graph.initializer, *model.graph.value_info]:
        item.doc_string = ""
        del item.metadata_props[:]
    for value in [*model.graph.input, *model.graph.output]:
        value.doc_string = ""
        del value.metadata_props[:]
