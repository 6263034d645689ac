"""Making a third-party classifier take pixels: uint8 at its input, normalization in the graph, any batch."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import onnx
from onnx import TensorProto, helper

from krl_runtime.errors import ModelError
from krl_runtime.images.preprocessing import Preprocessing

from . import LOGITS, PIXELS
from .edit import GraphEditor, attribute

__all__ = ["Signature", "feed_pixels", "raise_opset", "signature", "to_classifier"]


@dataclass(frozen=True)
class Signature:
    """Input and output of a third-party model.

    Attributes:
        input: Name of its input.
        dtype: Element type of the input, as in ``TensorProto``.
        shape: Batch, channels, height and width; names for open ones.
        output: Name of its output.
    """

    input: str
    dtype: int
    shape: tuple[int | str, ...]
    output: str


def signature(model: onnx.ModelProto) -> Signature:
    """Return the signature of a classifier.

    Raises:
        ModelError: It has several inputs or outputs, or its input is not a batch of images ``[N, C, H, W]``.
    """
    graph = GraphEditor(model)
    if len(graph.inputs) != 1 or len(graph.outputs) != 1:
        raise ModelError(
            f"the model has inputs {graph.inputs} and outputs {graph.outputs}; a classifier has one of each; cut the "
            "rest off first, for instance with onnx.utils.extract_model"
        )
    name = graph.inputs[0]
    shape, dtype = graph.shape(name), graph.dtype(name)
    if shape is None or len(shape) != 4 or dtype not in (TensorProto.FLOAT, TensorProto.UINT8):
        kind = helper.tensor_dtype_to_string(dtype).removeprefix("TensorProto.")
        raise ModelError(
            f"the model's input {name} is {kind} {list(shape or ())}; accepted: float32 or uint8 of shape "
            "[batch, channels, height, width]"
        )
    if shape[1] not in (1, 3):
        hint = (
            "; it seems to take [batch, height, width, channels]: export it channels first"
            if shape[3] in (1, 3)
            else ""
        )
        raise ModelError(f"the model's input {name} has shape {list(shape)}; accepted: 1 or 3 channels{hint}")
    return Signature(name, dtype, shape, graph.outputs[0])


def raise_opset(model: onnx.ModelProto, wanted: int) -> onnx.ModelProto:
    """Return the model in a newer opset.

    Raises:
        ModelError: ONNX's converter cannot do that with this model.
    """
    try:
        return onnx.version_converter.convert_version(model, wanted)
    except (RuntimeError, ValueError, onnx.checker.ValidationError) as error:  # its C++ assertions are RuntimeErrors
        raise ModelError(str(error).strip().partition("\n")[0]) from error


def to_classifier(
    model: onnx.ModelProto, preprocessing: Preprocessing, *, open_batch: bool
) -> tuple[onnx.ModelProto, list[str]]:
    """Return the model with input ``pixels``, uint8, and output ``logits``, and a list of the changes.

    The graph normalizes a float input. A last ``Softmax`` is removed, since the runtime turns logits into probabilities
    itself. An output ``[batch, classes, 1, 1]`` is flattened.

    Args:
        model: A clean model with a ``Signature``.
        preprocessing: Size, mean and std of its input.
        open_batch: Open a fixed batch in the input, the output and the targets of ``Reshape``. Only a run shows
            whether the graph then computes the same.

    Raises:
        ModelError: The output is not ``[batch, classes]``.
    """
    graph = GraphEditor(model)
    source, output = graph.inputs[0], graph.outputs[0]
    batch = (graph.shape(source) or (1,))[0]
    changes = [feed_pixels(graph, source, preprocessing)] if graph.dtype(source) == TensorProto.FLOAT else []
    classes = _classes(graph, output)
    logits = _before_softmax(graph, output)
    if logits != output:
        changes.append("the last Softmax was taken out")
    if len(graph.shape(output) or ()) != 2:
        logits = graph.add("Flatten", [logits], "logits_flat", axis=1)
        changes.append("the output was flattened to [batch, classes]")
    if isinstance(batch, int) and open_batch:
        _open_reshapes(graph, batch)
        changes.append(f"the batch, which was fixed to {batch}, was opened")
    for old, new in ((source, PIXELS), (logits, LOGITS)):
        if old != new:
            graph.rename(new, graph.fresh(f"{new}_inner"))  # whatever had that name
            graph.rename(old, new)
    first = "batch" if open_batch or isinstance(batch, str) else batch
    graph.declare_input(PIXELS, TensorProto.UINT8, (first, *preprocessing.shape))
    graph.declare_output(LOGITS, TensorProto.FLOAT, (first, classes))
    return graph.close(), changes


def _classes(graph: GraphEditor, output: str) -> int:
    shape = graph.shape(output)
    classes = shape[1] if shape is not None and len(shape) >= 2 else None
    if not isinstance(classes, int) or shape is None or any(size != 1 for size in shape[2:]):
        raise ModelError(
            f"the model's output {output} has shape {list(shape or ())}; accepted: logits [batch, classes]"
        )
    return classes


def feed_pixels(graph: GraphEditor, source: str, preprocessing: Preprocessing) -> str:
    """Put the normalization between the graph's input and its readers; return a description of the change."""
    readers = {id(node) for node in graph.nodes}
    mean, std = (np.asarray(part, np.float64) for part in (preprocessing.mean, preprocessing.std))
    # (x / 255 - mean) / std as one multiplication and one addition
    scale = graph.add_constant("pixels_scale", (1 / (255 * std)).astype(np.float32).reshape(1, -1, 1, 1))
    offset = graph.add_constant("pixels_offset", (-mean / std).astype(np.float32).reshape(1, -1, 1, 1))
    values = graph.add("Cast", [source], "pixels_float", to=TensorProto.FLOAT)
    values = graph.add("Add", [graph.add("Mul", [values, scale], "pixels_scaled"), offset], "pixels_normalized")
    graph.reroute(source, values, only=lambda node: id(node) in readers)
    return "uint8 pixels are normalized in the graph"


def _before_softmax(graph: GraphEditor, output: str) -> str:
    node = graph.producers()[output]
    rank = len(graph.shape(output) or ())
    if node.op_type != "Softmax" or attribute(node, "axis", -1) not in (1, -1, rank - 1):
        return output
    graph.remove([node])
    return str(node.input[0])


def _open_reshapes(graph: GraphEditor, batch: int) -> None:
    """Let the target shapes of ``Reshape`` nodes that name the fixed batch follow the input instead."""
    for node in graph.nodes:
        shape = graph.constant(node.input[1]) if node.op_type == "Reshape" else None
        if shape is None or shape.size < 2 or shape[0] != batch or node.input[0] in graph.constants:
            continue
        target = shape.copy()
        target[0] = 0 if (shape[1:] == -1).any() else -1
        node.input[1] = graph.add_constant(f"{node.input[1]}_open", target)
