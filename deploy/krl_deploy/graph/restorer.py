"""Making a third-party restorer take pixels of any size: uint8 at its input, 0 to 255 at its output."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import onnx
from onnx import NodeProto, TensorProto

from krl_runtime.errors import ModelError
from krl_runtime.images.preprocessing import Preprocessing

from . import PIXELS, RESTORED
from .edit import GraphEditor, attribute
from .image_input import feed_pixels
from .operators import CONVOLUTIONS, POINTWISE

__all__ = ["local_radius", "open_sides", "scale_of", "to_restorer"]

_SHUFFLES = {(0, 1, 4, 2, 5, 3): ("CRD", 1), (0, 3, 4, 1, 5, 2): ("DCR", 3)}


def scale_of(model: onnx.ModelProto) -> int | None:
    """Return the factor from a graph's input size to its output size; ``None`` if its shapes leave that open."""
    graph = GraphEditor(model)
    given, made = graph.shape(graph.inputs[0]), graph.shape(graph.outputs[0])
    if given is None or made is None or len(given) != 4 or len(made) != 4:
        return None
    sides = [(a, b) for a, b in zip(given[2:], made[2:], strict=True) if isinstance(a, int) and isinstance(b, int)]
    factors = {b // a for a, b in sides if b % a == 0}
    return factors.pop() if len(sides) == 2 and len(factors) == 1 else None


def open_sides(model: onnx.ModelProto) -> tuple[onnx.ModelProto, list[str]]:
    """Return a model with ``DepthToSpace`` for pixel shuffles of fixed size, and a list of the changes.

    Args:
        model: A clean one.
    """
    graph = GraphEditor(model)
    producers, consumers = graph.producers(), graph.consumers()
    changes = []
    for last in [node for node in graph.nodes if node.op_type == "Reshape"]:
        middle = producers.get(last.input[0])
        first = producers.get(middle.input[0]) if middle is not None and middle.op_type == "Transpose" else None
        if middle is None or first is None or first.op_type != "Reshape":
            continue
        found = _SHUFFLES.get(tuple(attribute(middle, "perm", ())))
        shape = graph.constant(first.input[1])
        alone = all(len(consumers[node.output[0]]) == 1 for node in (first, middle))
        if found is None or shape is None or len(shape) != 6 or not alone:
            continue
        mode, channel = found
        block = [int(shape[axis]) for axis in range(1, 4) if axis != channel]
        target = graph.constant(last.input[1])
        if block[0] != block[1] or target is None or len(target) != 4 or target[1] != shape[channel]:
            continue
        source, output = first.input[0], last.output[0]
        node = onnx.helper.make_node(
            "DepthToSpace", [source], [output], name=f"DepthToSpace_{output}", blocksize=block[0], mode=mode
        )
        graph.nodes[graph.nodes.index(last)] = node
        graph.remove([first, middle])
        changes.append(f"a pixel shuffle by {block[0]}, written as reshapes to a fixed size, became DepthToSpace")
    for name in (*graph.inputs, *graph.outputs):
        _forget_sides(graph, name)
    return graph.close(), changes


def _forget_sides(graph: GraphEditor, name: str) -> None:
    """Declare an image's height and width open."""
    shape = graph.shape(name)
    if shape is None or len(shape) != 4:
        return
    sides = ("height", "width") if name in graph.inputs else ("scaled_height", "scaled_width")
    declare = graph.declare_input if name in graph.inputs else graph.declare_output
    declare(name, graph.dtype(name), (*shape[:2], *sides))


def local_radius(model: onnx.ModelProto, scale: int) -> int | None:
    """Return the radius of an output pixel's receptive field in input pixels; ``None`` if it is unbounded or unknown.

    Args:
        model: A clean one, from pixels to ``scale`` times as many a side.
        scale: By how much the output is larger.
    """
    graph = GraphEditor(model)
    reach: dict[str, tuple[float, int]] = {graph.inputs[0]: (0.0, 1)}  # radius in input pixels, resolution
    for node in graph.nodes:
        inputs = [reach[name] for name in node.input if name in reach]
        if not inputs:
            continue
        radius, resolution = max(item[0] for item in inputs), inputs[0][1]
        if any(item[1] != resolution for item in inputs):
            return None
        step = _step(graph, node)
        if step is None:
            return None
        grown = (radius + step[0] / resolution, resolution * step[1])
        reach.update(dict.fromkeys(node.output, grown))
    end = reach.get(graph.outputs[0])
    return None if end is None or end[1] != scale else int(np.ceil(end[0]))


def _step(graph: GraphEditor, node: NodeProto) -> tuple[float, int] | None:
    """Return by how much a node widens the view, in its input's pixels, and by how much it enlarges."""
    if node.op_type in POINTWISE:
        return 0.0, 1
    if node.op_type == "DepthToSpace":
        return 0.0, int(attribute(node, "blocksize", 1))
    if node.op_type == "Pad":
        return 0.0, 1  # the convolution behind it counts its kernel
    weight = graph.constant(node.input[1]) if node.op_type in CONVOLUTIONS else None
    if weight is None:
        return None
    dilations = attribute(node, "dilations", [1, 1])
    reach = max((side - 1) * dilation for side, dilation in zip(weight.shape[2:], dilations, strict=True))
    strides = set(attribute(node, "strides", [1, 1]))
    if node.op_type == "Conv":
        return (float(reach), 1) if strides == {1} else None  # all of it to one side, where the padding is uneven
    return (float(reach), int(strides.pop())) if len(strides) == 1 else None


def to_restorer(
    model: onnx.ModelProto, preprocessing: Preprocessing, *, peak: float, sides: Mapping[str, Any]
) -> tuple[onnx.ModelProto, list[str]]:
    """Return the model with input ``pixels``, uint8, and output ``restored``, 0 to 255, and a list of the changes.

    Args:
        model: A clean one, from a batch of images to a batch of images.
        preprocessing: Channels, mean and std of its input.
        peak: Value of white in its output: 1 or 255.
        sides: Shapes ``[batch, channels, height, width]`` of ``"input"`` and ``"output"`` to declare.

    Raises:
        ModelError: The output is no image.
    """
    graph = GraphEditor(model)
    source, output = graph.inputs[0], graph.outputs[0]
    if graph.dtype(output) != TensorProto.FLOAT or len(graph.shape(output) or ()) != 4:
        raise ModelError(f"the model's output {output} is not float32 [batch, channels, height, width]")
    changes = feed_pixels(graph, source, preprocessing)
    if peak != 255:
        factor = graph.add_constant("restored_scale", np.asarray(255 / peak, np.float32))
        output = graph.add("Mul", [output, factor], "restored_scaled")
        changes.append("the output is brought to 0 to 255")
    for old, new in ((source, PIXELS), (output, RESTORED)):
        if old != new:
            graph.rename(new, graph.fresh(f"{new}_inner"))  # whatever had that name
            graph.rename(old, new)
    graph.declare_input(PIXELS, TensorProto.UINT8, sides["input"])
    graph.declare_output(RESTORED, TensorProto.FLOAT, sides["output"])
    return graph.close(), changes
