"""Making a third-party generator take latents ``[batch, size]`` and make images of 0 to 255."""

from __future__ import annotations

import numpy as np
import onnx
from onnx import TensorProto

from krl_deploy.config import OutputRange
from krl_runtime.pipelines.generator import LATENT

from . import IMAGES
from .cleanup import clean
from .edit import GraphEditor
from .image_output import ImageOutput, to_levels
from .latent_input import LatentInput
from .open_batch import Shapes, open_batch

__all__ = ["to_generator"]


def to_generator(
    model: onnx.ModelProto,
    taken: LatentInput,
    made: ImageOutput,
    unit: OutputRange,
    *,
    opened: bool,
    inside: bool = True,
    shapes: Shapes | None = None,
) -> tuple[onnx.ModelProto, list[str]]:
    """Return the model with input ``latent`` and output ``images``, both float32, and a list of the changes.

    Args:
        model: A clean model of float32 with one input and one output.
        taken: Its input.
        made: Its output.
        unit: Range of the output's values.
        opened: Open the batch; see ``krl_deploy.graph.open_batch``. Else it is fixed to 1.
        inside: Open it within the graph as well; a file whose batch is open may need no change there.
        shapes: Shapes by which it is opened.

    Raises:
        ModelError: The rewritten graph is not valid.
    """
    graph = GraphEditor(model)
    graph.declare_output(graph.outputs[0], TensorProto.FLOAT, None)
    model = graph.close()
    graph = GraphEditor(open_batch(model, shapes) if opened and inside else model)
    changes = []
    if opened and isinstance(taken.batch, int):
        changes.append(f"the batch of {taken.batch} was opened")
    source = graph.inputs[0]
    if len(taken.shape) > 1:
        readers = {id(node) for node in graph.nodes if source in node.input}
        target = graph.add_constant("latent_shape", np.array([-1, *taken.shape], np.int64))
        shaped = graph.add("Reshape", [source, target], "latent_shaped")
        graph.reroute(source, shaped, only=lambda node: id(node) in readers)
        changes.append(f"the latent, which was [batch, {', '.join(map(str, taken.shape))}], is [batch, {taken.size}]")
    images, further = to_levels(graph, made, unit)
    _name(graph, source, images)
    batch = "batch" if opened else 1
    graph.declare_input(LATENT, TensorProto.FLOAT, (batch, taken.size))
    graph.declare_output(IMAGES, TensorProto.FLOAT, (batch, *made.planes))
    return clean(graph.close()), [*changes, *further]


def _name(graph: GraphEditor, source: str, images: str) -> None:
    """Give the input and the output the names of a bundle, which other tensors of the file may have."""
    ends = {source: LATENT, images: IMAGES}
    apart = {old: graph.fresh(f"{new}_end") for old, new in ends.items()}
    for old, name in apart.items():
        graph.rename(old, name)
    for old, new in ends.items():
        graph.rename(new, graph.fresh(f"{new}_inner"))
        graph.rename(apart[old], new)
