"""The image input of a third-party model: how it is laid out, and uint8 pixels in its place."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final, Literal, TypeAlias

import numpy as np
import numpy.typing as npt
import onnx
from onnx import NodeProto, TensorProto, helper

from krl_runtime.errors import ModelError, UsageError
from krl_runtime.images.modes import ChannelOrder
from krl_runtime.images.preprocessing import Preprocessing

from .edit import GraphEditor, attribute

__all__ = [
    "NUMPY_FLOATS",
    "TO_NCHW",
    "TO_NHWC",
    "Layout",
    "Signature",
    "any_signature",
    "arranged",
    "feed_pixels",
    "layout_of",
    "raise_opset",
    "unflattened",
]

Layout: TypeAlias = Literal["NCHW", "NHWC", "NHW", "flat"]
"""Order of an input's dimensions; ``"flat"`` is ``[N, C * H * W]``."""

_CHANNELS: Final = (1, 3)  # gray, and colors
_OTHERS: Final = {4: "RGBA", 2: "gray with alpha"}  # that the runtime does not give to networks
NUMPY_FLOATS: Final[Mapping[int, type[np.floating[Any]]]] = {
    TensorProto.FLOAT: np.float32,
    TensorProto.FLOAT16: np.float16,
    TensorProto.DOUBLE: np.float64,
}
"""NumPy's types of the floats that a third-party model may take."""

TO_NHWC: Final = [0, 2, 3, 1]  # order of the axes for a Transpose from NCHW
TO_NCHW: Final = [0, 3, 1, 2]  # and back


@dataclass(frozen=True)
class Signature:
    """Input and output of a third-party model.

    Attributes:
        input: Name of its input.
        dtype: Element type of the input, as in ``TensorProto``.
        shape: Batch, channels, height and width, whatever the layout; names for open ones.
        output: Name of its output.
        layout: Order of the input's dimensions.
        order: Order of the channels.
    """

    input: str
    dtype: int
    shape: tuple[int | str, ...]
    output: str
    layout: Layout = "NCHW"
    order: ChannelOrder = "rgb"


def any_signature(
    model: onnx.ModelProto, *, height: int | None = None, width: int | None = None, order: ChannelOrder = "rgb"
) -> Signature:
    """Return the signature of a model that takes images in any layout, as floats of any size or as uint8.

    Args:
        model: The model, with one output.
        height: Height of its images, if the user gave it: a flat input does not say it.
        width: The same for the width.
        order: Order in which it takes the channels.

    Raises:
        ModelError: It has several inputs or outputs, or its input is no batch of images.
        UsageError: A flat input needs height and width, or they do not fit it.
    """
    name, output, shape, dtype = _ends(model)
    found = layout_of(shape)
    if found is None or shape is None or dtype not in (*NUMPY_FLOATS, TensorProto.UINT8):
        raise ModelError(
            f"the model's input {name} is {_described(shape, dtype)}; accepted: float32, float16, float64 or uint8 of "
            "shape [batch, channels, height, width], [batch, height, width, channels], [batch, height, width] or "
            f"[batch, values], with 1 or 3 channels{_other_channels(shape)}"
        )
    batch = shape[0]
    planes: tuple[int | str, ...] = {
        "NCHW": shape[1:],
        "NHWC": (*shape[3:], *shape[1:3]),
        "NHW": (1, *shape[1:]),
        "flat": (),
    }[found]
    if found == "flat":
        planes = unflattened(f"input {name}", int(shape[1]), height, width)
    if order == "bgr" and planes[0] != len("bgr"):
        raise UsageError(f"--channel-order is bgr, but the model's input {name} has {planes[0]} channel; leave it out")
    return Signature(name, dtype, (batch, *planes), output, found, order)


def _ends(model: onnx.ModelProto) -> tuple[str, str, tuple[int | str, ...] | None, int]:
    """Return the names of the one input and the one output, and the input's shape and type."""
    graph = GraphEditor(model)
    if len(graph.inputs) != 1 or len(graph.outputs) != 1:
        raise ModelError(
            f"the model has inputs {graph.inputs} and outputs {graph.outputs}; accepted: one of each; cut the "
            "rest off first, for instance with onnx.utils.extract_model"
        )
    name = graph.inputs[0]
    return name, graph.outputs[0], graph.shape(name), graph.dtype(name)


def _other_channels(shape: Sequence[int | str] | None) -> str:
    """Return the images that are not taken, by their name; nothing if a shape is not that of such."""
    sizes = () if shape is None or len(shape) != 4 else (shape[1], shape[3])
    names = [f"; this one seems to take {name} ({count} channels)" for count, name in _OTHERS.items() if count in sizes]
    return names[0] if names else ""


def _described(shape: Sequence[int | str] | None, dtype: int) -> str:
    return f"{helper.tensor_dtype_to_string(dtype).removeprefix('TensorProto.')} {list(shape or ())}"


def layout_of(shape: Sequence[int | str] | None) -> Layout | None:
    """Return the layout of an input; channels first where both could be."""
    if shape is None:
        return None
    if len(shape) == 4:
        return "NCHW" if shape[1] in _CHANNELS else "NHWC" if shape[3] in _CHANNELS else None
    if len(shape) == 3:
        return "NHW"
    return "flat" if len(shape) == 2 and isinstance(shape[1], int) else None


def unflattened(tensor: str, size: int, height: int | None, width: int | None) -> tuple[int, int, int]:
    """Return channels, height and width of an image of ``size`` values: as given, or a square.

    Args:
        tensor: What it is flat in, for people: ``"input x"``.
        size: Number of its values.
        height: Height, if it is known.
        width: Width, if it is known.

    Raises:
        UsageError: They fit no image, or several.
    """
    found = []
    for channels in _CHANNELS:
        pixels = size // channels
        first = height or (pixels // width if width else math.isqrt(pixels))
        second = width or pixels // first
        if channels * first * second == size and (height or width or first == second):
            found.append((channels, first, second))
    chosen = [image for image in found if image[1] == image[2]] or found
    if len(chosen) != 1:
        given = "" if height is None and width is None else f" with height {height} and width {width}"
        raise UsageError(
            f"the model's {tensor} has {size} values for an image, which is not one image of 1 or 3 channels"
            f"{given}; give the --height and --width that it was flattened from"
        )
    return chosen[0]


def arranged(images: npt.NDArray[Any], taken: Signature) -> npt.NDArray[Any]:
    """Return images ``[N, C, H, W]`` in RGB as a model takes them."""
    values = images[:, ::-1] if taken.order == "bgr" else images
    if taken.layout == "NHWC":
        values = values.transpose(TO_NHWC)
    elif taken.layout == "NHW":
        values = values[:, 0]
    elif taken.layout == "flat":
        values = values.reshape(len(values), -1)
    if taken.dtype in NUMPY_FLOATS:
        values = values.astype(NUMPY_FLOATS[taken.dtype])
    return np.ascontiguousarray(values)


def raise_opset(model: onnx.ModelProto, wanted: int) -> onnx.ModelProto:
    """Return the model in a newer opset.

    Raises:
        ModelError: ONNX's converter cannot do that with this model.
    """
    try:
        return onnx.version_converter.convert_version(model, wanted)
    except (RuntimeError, ValueError, onnx.checker.ValidationError) as error:  # its C++ assertions are RuntimeErrors
        raise ModelError(str(error).strip().partition("\n")[0]) from error


def feed_pixels(
    graph: GraphEditor, source: str, preprocessing: Preprocessing, taken: Signature | None = None
) -> list[str]:
    """Put what makes the model's input of uint8 pixels ``[N, C, H, W]`` between the input and its readers.

    Args:
        graph: The graph, with float32 or uint8 in its input.
        source: Its input, which becomes that of the pixels.
        preprocessing: Size, mean and std.
        taken: Layout and order of the channels that the readers take; left out: ``[N, C, H, W]`` in RGB.

    Returns:
        Descriptions of the changes.
    """
    readers = [node for node in graph.nodes if source in node.input]
    if graph.dtype(source) == TensorProto.FLOAT:
        mean, std = (np.asarray(part, np.float64) for part in (preprocessing.mean, preprocessing.std))
        # (x / 255 - mean) / std as one multiplication and one addition
        scale = graph.add_constant("pixels_scale", (1 / (255 * std)).astype(np.float32).reshape(1, -1, 1, 1))
        offset = graph.add_constant("pixels_offset", (-mean / std).astype(np.float32).reshape(1, -1, 1, 1))
        values = graph.add("Cast", [source], "pixels_float", to=TensorProto.FLOAT)
        values = graph.add("Add", [graph.add("Mul", [values, scale], "pixels_scaled"), offset], "pixels_normalized")
        made, changes = [(values, source, readers)], ["uint8 pixels are normalized in the graph"]
    elif all(node.op_type == "Cast" for node in readers):  # the only operator that TensorRT runs on uint8
        made, changes = [(node.output[0], node.output[0], graph.consumers()[node.output[0]]) for node in readers], []
    else:
        made, changes = [(source, source, readers)], []
    for values, old, users in made:
        wanted = _rearrange(graph, values, preprocessing, taken)
        graph.reroute(old, wanted, only=_among(users))
        if taken is not None and taken.layout == "NHWC":
            _undo_transposes(graph, wanted, users)
    if taken is not None and taken.layout != "NCHW":
        changes.append(f"the input, which was {taken.layout}, is NCHW")
    if taken is not None and taken.order == "bgr":
        changes.append("the channels are brought into the order BGR in the graph")
    return changes


def _among(nodes: Sequence[NodeProto]) -> Callable[[NodeProto], bool]:
    known = {id(node) for node in nodes}
    return lambda node: id(node) in known


def _rearrange(graph: GraphEditor, values: str, preprocessing: Preprocessing, taken: Signature | None) -> str:
    """Add the nodes that bring images ``[N, C, H, W]`` in RGB to the layout and order that the model takes."""
    if taken is None:
        return values
    if taken.order == "bgr":
        backwards = graph.add_constant("bgr", np.array([2, 1, 0], np.int64))
        values = graph.add("Gather", [values, backwards], "pixels_bgr", axis=1)
    if taken.layout == "NHWC":
        return graph.add("Transpose", [values], "pixels_nhwc", perm=TO_NHWC)
    if taken.layout == "NCHW":
        return values
    if taken.layout == "NHW":
        return graph.add("Squeeze", [values, graph.add_constant("channel", np.array([1], np.int64))], "pixels_nhw")
    target = graph.add_constant("pixels_shape", np.array([-1, math.prod(preprocessing.shape)], np.int64))
    return graph.add("Reshape", [values, target], "pixels_shaped")


def _undo_transposes(graph: GraphEditor, values: str, users: Sequence[NodeProto]) -> None:
    """Take out each ``Transpose`` of the model that only undoes the one before it."""
    before = graph.producers()[values].input[0]
    undone = [node for node in users if node.op_type == "Transpose" and attribute(node, "perm", None) == TO_NCHW]
    for node in undone:
        if node.output[0] not in graph.outputs:
            graph.reroute(node.output[0], before)
    graph.remove(node for node in undone if node.output[0] not in graph.outputs)
