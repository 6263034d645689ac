"""Making a third-party restorer take pixels of any size: uint8 at its input, 0 to 255 at its output."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final

import numpy as np
import onnx
from onnx import NodeProto, TensorProto

from krl_deploy.config import OutputRange
from krl_runtime.images.preprocessing import Preprocessing

from . import PIXELS, RESTORED
from .edit import GraphEditor, attribute
from .image_input import TO_NCHW, TO_NHWC, Layout, Signature, feed_pixels
from .image_output import in_levels
from .operators import CONVOLUTIONS, POINTWISE

__all__ = ["local_radius", "open_sides", "to_restorer"]

_SIDES: Final[Mapping[Layout, tuple[int, int]]] = {"NCHW": (2, 3), "NHWC": (1, 2), "NHW": (1, 2)}
"""Axes of height and width by layout."""

_RESIZES: Final = {"nearest": 1.0, "linear": 1.0, "cubic": 2.0}
"""Pixels to each side that an enlargement looks at, by mode."""

_LOCAL_COORDINATES: Final = ("half_pixel", "pytorch_half_pixel", "asymmetric")
"""Coordinates that do not depend on the size of the image, as those between aligned corners do."""

_SHUFFLES = {(0, 1, 4, 2, 5, 3): ("CRD", 1), (0, 3, 4, 1, 5, 2): ("DCR", 3)}


def open_sides(model: onnx.ModelProto, layout: Layout = "NCHW") -> tuple[onnx.ModelProto, list[str]]:
    """Return a model with ``DepthToSpace`` for pixel shuffles of fixed size, and a list of the changes.

    Args:
        model: A clean one.
        layout: Layout of its input, whose height and width become open.
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
    source, output = graph.inputs[0], graph.outputs[0]
    sizes = list(graph.shape(source) or ())
    for axis, side in zip(_SIDES[layout], ("height", "width"), strict=True):
        sizes[axis] = side
    graph.declare_input(source, graph.dtype(source), sizes)
    graph.declare_output(output, graph.dtype(output), None)
    return graph.close(), changes


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
    if node.op_type in ("Concat", "Split"):
        inside = {last for other in graph.nodes if other.op_type == "Transpose" for last in (3, -1)}  # NHWC
        return (0.0, 1) if attribute(node, "axis", 0) in {1, -3} | inside else None
    if node.op_type in POINTWISE:
        return 0.0, 1
    if node.op_type == "Resize":
        return _resized(graph, node)
    if node.op_type == "Transpose" and attribute(node, "perm", None) in (TO_NCHW, TO_NHWC):
        return 0.0, 1
    if node.op_type in ("Squeeze", "Unsqueeze"):
        return 0.0, 1  # of one channel: a side that has one pixel would not stay open
    if node.op_type == "Gather" and attribute(node, "axis", 0) == 1:
        return (0.0, 1) if graph.constant(node.input[1]) is not None else None  # an order of channels
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


def _resized(graph: GraphEditor, node: NodeProto) -> tuple[float, int] | None:
    """Return the same of an enlargement by a whole number, which treats all parts of an image alike."""
    scales = graph.constant(node.input[2]) if len(node.input) > 2 and node.input[2] else None
    reach = _RESIZES.get(str(attribute(node, "mode", b"nearest").decode()))
    aligned = attribute(node, "coordinate_transformation_mode", b"half_pixel").decode() not in _LOCAL_COORDINATES
    if scales is None or reach is None or aligned or len(scales) != 4 or attribute(node, "antialias", 0):
        return None
    factor = int(scales[2])
    return (reach, factor) if factor >= 1 and list(scales) == [1, 1, factor, factor] else None


def to_restorer(
    model: onnx.ModelProto,
    preprocessing: Preprocessing,
    *,
    taken: Signature,
    layout: Layout,
    unit: OutputRange,
    sides: Mapping[str, Any],
) -> tuple[onnx.ModelProto, list[str]]:
    """Return the model with input ``pixels``, uint8, and output ``restored``, 0 to 255, and a list of the changes.

    Args:
        model: A clean float32 one, from a batch of images to a batch of images.
        preprocessing: Channels, mean and std of its input.
        taken: Its input; its output's channels have the same order.
        layout: Layout of its output.
        unit: Range of its output.
        sides: Shapes ``[batch, channels, height, width]`` of ``"input"`` and ``"output"`` to declare.

    Raises:
        ModelError: The rewritten graph is not valid.
    """
    graph = GraphEditor(model)
    source, output = graph.inputs[0], graph.outputs[0]
    changes = feed_pixels(graph, source, preprocessing, taken)
    if layout == "NHW":
        output = graph.add("Unsqueeze", [output, graph.add_constant("channel", np.array([1], np.int64))], "restored_1")
        changes.append("the output, which was NHW, is NCHW")
    output, further = in_levels(graph, output, layout, taken.order, unit)
    for old, new in ((source, PIXELS), (output, RESTORED)):
        if old != new:
            graph.rename(new, graph.fresh(f"{new}_inner"))  # whatever had that name
            graph.rename(old, new)
    graph.declare_input(PIXELS, TensorProto.UINT8, sides["input"])
    graph.declare_output(RESTORED, TensorProto.FLOAT, sides["output"])
    return graph.close(), [*changes, *further]
