"""Making a third-party classifier take pixels and give one row of outputs for each image."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import numpy as np
import onnx
from onnx import TensorProto

from krl_runtime.errors import ModelError
from krl_runtime.images.preprocessing import Preprocessing

from . import LOGITS, PIXELS
from .edit import GraphEditor
from .image_input import Signature, feed_pixels
from .open_batch import Shapes, open_batch

__all__ = ["Head", "to_classifier"]


@dataclass(frozen=True)
class Head:
    """Where a bundle's output comes from.

    Attributes:
        source: Tensor with the outputs of all images.
        columns: Number of them for one image.
        pair: Make two outputs of one: of a ``"logit"`` z the logits 0 and z, of a ``"score"`` p the scores 1 - p and p.
            The second class is the one that the file's output stands for.
    """

    source: str
    columns: int
    pair: Literal["", "logit", "score"] = ""

    @property
    def classes(self) -> int:
        """Return the number of the bundle's outputs for one image."""
        return 2 if self.pair else self.columns


def to_classifier(
    model: onnx.ModelProto,
    taken: Signature,
    preprocessing: Preprocessing,
    head: Head,
    *,
    opened: bool,
    inside: bool = True,
    shapes: Shapes | None = None,
) -> tuple[onnx.ModelProto, list[str]]:
    """Return the model with input ``pixels``, uint8, and output ``logits``, and a list of the changes.

    Args:
        model: A clean model of float32 with one input and one output.
        taken: Its input.
        preprocessing: Size, mean and std of its input.
        head: Where the output is taken from.
        opened: Open the batch; see ``krl_deploy.graph.open_batch``. Else it is fixed to 1.
        inside: Open it within the graph as well; a file whose batch is open may need no change there.
        shapes: Shapes by which it is opened.

    Raises:
        ModelError: The rewritten graph is not valid.
    """
    graph = GraphEditor(model)
    rank = len(graph.shape(head.source) or ())
    graph.declare_output(head.source, TensorProto.FLOAT, None)
    model = graph.close()
    graph = GraphEditor(open_batch(model, shapes) if opened and inside else model)
    source, output = graph.inputs[0], head.source
    changes = feed_pixels(graph, source, preprocessing, taken)
    if rank != 2 or len(graph.shape(output) or ()) != 2:
        target = graph.add_constant("logits_shape", np.array([-1, head.columns], np.int64))
        output = graph.add("Reshape", [output, target], "logits_flat")
        changes.append("the output was brought to [batch, classes]")
    if head.pair:
        output = _pair(graph, output, head.pair)
        changes.append("the one output for the second class became one for each of two classes")
    if opened and isinstance(taken.shape[0], int):
        changes.append(f"the batch of {taken.shape[0]} was opened")
    for old, new in ((source, PIXELS), (output, LOGITS)):
        if old != new:
            graph.rename(new, graph.fresh(f"{new}_inner"))  # whatever had that name
            graph.rename(old, new)
    first = "batch" if opened else 1
    graph.declare_input(PIXELS, TensorProto.UINT8, (first, *preprocessing.shape))
    graph.declare_output(LOGITS, TensorProto.FLOAT, (first, head.classes))
    result = graph.close()
    _check_output(result, head.classes)
    return result, changes


def _pair(graph: GraphEditor, output: str, kind: str) -> str:
    """Add the nodes that make two outputs of one."""
    factor = graph.add_constant("pair_factor", np.array([[0, 1] if kind == "logit" else [-1, 1]], np.float32))
    output = graph.add("Mul", [output, factor], "pair_scaled")
    if kind == "logit":
        return output
    return graph.add("Add", [output, graph.add_constant("pair_offset", np.array([[1, 0]], np.float32))], "pair")


def _check_output(model: onnx.ModelProto, classes: int) -> None:
    """Refuse a graph whose output cannot be ``[batch, classes]``."""
    shape = GraphEditor(model).shape(LOGITS) or ()
    if len(shape) != 2 or shape[1] not in (classes, "?"):
        raise ModelError(f"the model's output has shape {list(shape)}; accepted: [batch, classes]")
