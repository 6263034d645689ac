"""The image output of a third-party generator: how it is laid out, and the range of its values."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

import numpy as np
import numpy.typing as npt
import onnx
from onnx import TensorProto, helper

from krl_deploy.config import OutputRange
from krl_runtime.errors import BackendError, ModelError, UsageError
from krl_runtime.images.modes import ChannelOrder

from .class_output import ENDS
from .edit import GraphEditor, attribute
from .image_input import TO_NCHW, TO_NHWC, Layout, layout_of, unflattened
from .number_types import FLOATS, widened
from .parts import end_of, part_of, run_part

__all__ = [
    "RANGES",
    "TRUNCATION",
    "ImageOutput",
    "image_output",
    "in_levels",
    "is_range",
    "limits_of",
    "to_levels",
    "without_truncation",
]

RANGES: Final[Mapping[OutputRange, tuple[float, float]]] = {
    "symmetric": (-1.0, 1.0),
    "0-1": (0.0, 1.0),
    "0-255": (0.0, 255.0),
}
"""Values of black and white by range."""

_ENDS: Final = ENDS | {
    *("AveragePool", "Ceil", "DepthToSpace", "Erf", "Floor", "GlobalAveragePool", "HardSwish", "LeakyRelu", "MaxPool"),
    *("Pad", "Relu", "Resize", "Sign", "Sin", "Cos", "Atan", "Softsign", "SpaceToDepth", "Upsample"),
}
"""Operators that the end of a generator may have after its last weights."""

_WIDE: Final = (30.0, 3000.0)
"""Deviations of the random numbers that show the limits of a graph's end: a tanh is -1 or 1 there, by FP32 to 1e-3."""

_NEAR: Final = 0.01  # of the width of a range: a clip at 0.999 and a softsign at 3000 are near
_TRUNCATED: Final = 0.499
"""By how much a number is larger on average than its whole part, less 0.001: 255 stays 255 where it is rounded."""

_WHOLE: Final = frozenset({TensorProto.UINT8, TensorProto.INT32, TensorProto.INT64})
"""Types of whole numbers that levels are cast to, one after another in some files."""

TRUNCATION: Final = 0.5 + 1e-3
"""Largest difference of a file's whole numbers from what ``without_truncation`` leaves of them."""


@dataclass(frozen=True)
class ImageOutput:
    """The one output of a generator.

    Attributes:
        shape: Shape that it has for one image.
        layout: Order of its dimensions.
        channels: 1 or 3.
        height: Height of an image.
        width: Width of an image.
        order: Order of the channels.
    """

    shape: tuple[int, ...]
    layout: Layout
    channels: int
    height: int
    width: int
    order: ChannelOrder = "rgb"

    @property
    def planes(self) -> tuple[int, int, int]:
        """Return channels, height and width."""
        return self.channels, self.height, self.width

    def images(self, values: npt.NDArray[np.float32]) -> npt.NDArray[np.float32]:
        """Return outputs ``[N, …]`` as images ``[N, C, H, W]`` in RGB, in the file's own range."""
        made = values
        if self.layout == "NHWC":
            made = made.reshape(len(made), self.height, self.width, self.channels).transpose(TO_NCHW)
        made = made.reshape(len(made), *self.planes)
        return made[:, ::-1] if self.order == "bgr" else made


def image_output(
    name: str,
    shape: Sequence[int],
    *,
    height: int | None = None,
    width: int | None = None,
    order: ChannelOrder = "rgb",
) -> ImageOutput:
    """Return how an output is laid out.

    Args:
        name: Its name.
        shape: The shape that it was seen to have for one image, without the batch.
        height: Height of the images, if the user gave it: a flat output does not say it.
        width: The same for the width.
        order: Order in which it has the channels.

    Raises:
        ModelError: It is no image.
        UsageError: A flat output needs height and width, or these or the order do not fit it.
    """
    sizes = tuple(shape)
    flat = sum(size != 1 for size in sizes) <= 1
    layout: Layout | None = "flat" if flat else layout_of((1, *sizes))
    if layout is None or not sizes:
        raise ModelError(
            f"the model's output {name} has shape {['batch', *sizes]}; accepted: images [batch, channels, height, "
            "width], [batch, height, width, channels], [batch, height, width] or [batch, values], with 1 or 3 channels"
        )
    if layout == "flat":
        planes = unflattened(f"output {name}", math.prod(sizes), height, width)
    else:
        whole = {"NCHW": sizes, "NHWC": (*sizes[2:], *sizes[:2]), "NHW": (1, *sizes)}[layout]
        planes = (whole[0], whole[1], whole[2])
    for option, given, made in (("height", height, planes[1]), ("width", width, planes[2])):
        if given is not None and given != made:
            raise UsageError(f"--{option} is {given}, but the model's images are {planes[1]}x{planes[2]}; leave it out")
    if order == "bgr" and planes[0] != len("bgr"):
        raise UsageError(f"--channel-order is bgr, but the model's output {name} has {planes[0]} channel; leave it out")
    return ImageOutput(sizes, layout, *planes, order)


def without_truncation(model: onnx.ModelProto) -> tuple[onnx.ModelProto, bool]:
    """Return a model that makes floats where it made whole numbers of uint8, and whether it did.

    Devices differ by a rounding error, which would move some whole numbers by 1. The runtime rounds the floats.

    Args:
        model: A clean float32 model with one output.

    Raises:
        ModelError: The output is neither float nor uint8, or its uint8 is not made by a ``Cast``.
    """
    graph = GraphEditor(model)
    output = graph.outputs[0]
    casts = [
        node
        for node in end_of(graph, output, _ENDS)[0]
        if node.op_type == "Cast" and attribute(node, "to", 0) in _WHOLE
    ]
    if graph.dtype(output) not in FLOATS and (graph.dtype(output) != TensorProto.UINT8 or not casts):
        kind = helper.tensor_dtype_to_string(graph.dtype(output)).removeprefix("TensorProto.")
        raise ModelError(
            f"the model's output {output} is {kind}; accepted: float32, float16, float64, or uint8 that a Cast makes"
        )
    if not any(attribute(cast, "to", 0) == TensorProto.UINT8 for cast in casts):
        return model, False
    for cast in casts:
        if graph.dtype(cast.input[0]) in FLOATS and not _was_rounded(graph, cast.input[0]):
            half = graph.add_constant("truncated", np.array(_TRUNCATED, np.float32))
            cast.input[0] = graph.add("Sub", [cast.input[0], half], f"{cast.output[0]}_float")
        cast.op_type = "Identity"
        del cast.attribute[:]
    graph.declare_output(output, TensorProto.FLOAT, graph.shape(output))
    return widened(graph.close()), True


def _was_rounded(graph: GraphEditor, values: str) -> bool:
    """Take out the ``Round`` or ``Floor`` before a cast and its limits; return whether it rounded to the nearest."""
    producers = graph.producers()
    before = producers.get(values)
    while before is not None and before.op_type == "Clip":
        before = producers.get(before.input[0])
    if before is None or before.op_type not in ("Floor", "Round"):
        return False
    rounded = before.op_type == "Round"
    before.op_type = "Identity"
    return rounded


def limits_of(model: onnx.ModelProto, feed: Mapping[str, npt.NDArray[Any]]) -> tuple[float, float] | None:
    """Return the least and the largest value that the end of a graph can make; ``None`` if it sets no limits.

    The end, after the last weights, is run on random numbers that are far apart, so that its spelling does not matter.

    Args:
        model: A clean float32 model with one output.
        feed: Inputs of one run.
    """
    graph = GraphEditor(model)
    output = graph.outputs[0]
    nodes, leaves = end_of(graph, output, _ENDS)
    rng, found = np.random.default_rng(0), []
    try:
        values = run_part(part_of(graph, graph.nodes, graph.inputs, leaves), feed)
        for spread in _WIDE:
            given = {name: _spread(values[name], spread, rng) for name in leaves}
            made = list(run_part(part_of(graph, nodes, leaves, [output]), given).values())[-1]
            found.append((float(np.nanmin(made)), float(np.nanmax(made))))
    except (BackendError, ValueError):  # the end does not run by itself, so that nothing is known of it
        return None
    (low, high), far = found
    same = np.allclose((low, high), far, rtol=0, atol=_NEAR * (high - low))
    return far if nodes and same else None


def is_range(limits: tuple[float, float] | None) -> OutputRange | None:
    """Return the range that has such limits.

    Example:
        >>> is_range((-1.0, 1.0)), is_range((0.002, 0.998)), is_range((-2.0, 2.0))
        ('symmetric', '0-1', None)
    """
    if limits is None:
        return None
    near = {
        name: max(abs(limits[0] - low), abs(limits[1] - high)) / (high - low) for name, (low, high) in RANGES.items()
    }
    return next((name for name, distance in near.items() if distance <= _NEAR), None)


def _spread(values: npt.NDArray[Any], spread: float, rng: np.random.Generator) -> npt.NDArray[Any]:
    """Return random numbers in place of floats."""
    return rng.normal(0, spread, values.shape).astype(np.float32) if values.dtype == np.float32 else values


def to_levels(graph: GraphEditor, made: ImageOutput, unit: OutputRange) -> tuple[str, list[str]]:
    """Add the nodes from a generator's output to images ``[N, C, H, W]`` of 0 to 255 in RGB.

    Args:
        graph: The graph, with its own output in float32.
        made: How the output is laid out.
        unit: Range of its values.

    Returns:
        The tensor with the images, and descriptions of the changes.
    """
    images, changes = graph.outputs[0], list[str]()
    layout = (made.height, made.width, made.channels) if made.layout == "NHWC" else made.planes
    if made.shape != layout or len(graph.shape(images) or ()) != len(layout) + 1:
        target = graph.add_constant("images_shape", np.array([-1, *layout], np.int64))
        images = graph.add("Reshape", [images, target], "images_shaped")
        changes.append(f"the output was brought to [batch, {', '.join(map(str, layout))}]")
    images, further = in_levels(graph, images, made.layout, made.order, unit)
    return images, [*changes, *further]


def in_levels(
    graph: GraphEditor, images: str, layout: Layout, order: ChannelOrder, unit: OutputRange
) -> tuple[str, list[str]]:
    """Add the nodes from images of any size to images ``[N, C, H, W]`` of 0 to 255 in RGB.

    Args:
        graph: The graph.
        images: The images, in float32.
        layout: ``"NHWC"``, or ``"NCHW"`` for all others.
        order: Order of their channels.
        unit: Range of their values.

    Returns:
        The tensor with the images, and descriptions of the changes.
    """
    changes = list[str]()
    if layout == "NHWC":
        images = _channels_first(graph, images)
        changes.append("the output, which was NHWC, is NCHW")
    if order == "bgr":
        backwards = graph.add_constant("bgr", np.array([2, 1, 0], np.int64))
        images = graph.add("Gather", [images, backwards], "images_rgb", axis=1)
        changes.append("the channels are brought into the order RGB in the graph")
    low, high = RANGES[unit]
    if (low, high) != RANGES["0-255"]:
        factor = 255 / (high - low)
        images = graph.add("Mul", [images, graph.add_constant("level", np.array(factor, np.float32))], "images_scaled")
        changes.append("the output is brought to 0 to 255")
        if low:
            offset = graph.add_constant("black", np.array(-low * factor, np.float32))
            images = graph.add("Add", [images, offset], "images_moved")
    return images, changes


def _channels_first(graph: GraphEditor, images: str) -> str:
    """Return images ``[N, H, W, C]`` as ``[N, C, H, W]``: what a ``Transpose`` made them of, or that of one."""
    producer = graph.producers().get(images)
    if producer is not None and producer.op_type == "Transpose" and attribute(producer, "perm", None) == TO_NHWC:
        return str(producer.input[0])
    return graph.add("Transpose", [images], "images_nchw", perm=TO_NCHW)
