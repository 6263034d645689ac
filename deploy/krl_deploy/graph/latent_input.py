"""The latent input of a third-party generator: its form, and what may not stand beside it."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Final

import numpy as np
import numpy.typing as npt
import onnx
from onnx import NodeProto, TensorProto, helper

from krl_runtime.errors import ModelError

from .edit import GraphEditor, attribute
from .image_input import NUMPY_FLOATS

__all__ = ["LatentInput", "check_not_random", "latent_input"]

_RANDOM: Final = frozenset({"Bernoulli", "Multinomial"})
"""Operators that draw numbers, beside those whose names begin with ``Random``, and ``Dropout`` in training."""

_ACCEPTED: Final = "float32, float16 or float64 of shape [batch, size], [batch, size, 1, 1] or [batch, 1, 1, size]"


@dataclass(frozen=True)
class LatentInput:
    """The one input of a generator.

    Attributes:
        name: Name in the file.
        dtype: Element type, as in ``TensorProto``.
        batch: First dimension: a number if it is fixed.
        shape: Shape of one latent: its size, and any number of ones.
    """

    name: str
    dtype: int
    batch: int | str
    shape: tuple[int, ...]

    @property
    def size(self) -> int:
        """Return the number of values of a latent."""
        return math.prod(self.shape)

    def arranged(self, latents: npt.NDArray[np.float32]) -> npt.NDArray[Any]:
        """Return latents ``[N, size]`` as the file takes them."""
        return latents.reshape(len(latents), *self.shape).astype(NUMPY_FLOATS[self.dtype])


def latent_input(model: onnx.ModelProto) -> tuple[onnx.ModelProto, LatentInput]:
    """Return the model without inputs and nodes that its output does not need, and its latent.

    Args:
        model: A model with one output.

    Raises:
        ModelError: The output needs several inputs, none, or one that is no latent.
    """
    graph = GraphEditor(GraphEditor(model).close())
    read = {name for node in graph.nodes for name in node.input}
    names = [name for name in graph.inputs if name in read]
    described = {name: _described(graph, name) for name in names}
    if not names:
        raise ModelError(f"the model's output {graph.outputs[0]} needs no input; accepted: images of a latent")
    latents = [name for name in names if _latent_shape(graph.shape(name)) and graph.dtype(name) in NUMPY_FLOATS]
    if len(names) > 1:
        others = [name for name in names if latents != [name]]
        raise ModelError(
            f"the model takes {len(names)} inputs: {', '.join(described.values())}; accepted: the latent alone. "
            f"Make {' and '.join(others if len(latents) == 1 else ['all but the latent'])} constant: export the model "
            "with fixed values, or add initializers of the same names"
        )
    if not latents:
        raise ModelError(f"the model's input {described[names[0]]} is no latent; accepted: {_ACCEPTED}")
    name, shape, dtype = names[0], graph.shape(names[0]) or (), graph.dtype(names[0])
    graph.declare_input(name, dtype, shape)
    return graph.close(), LatentInput(name, dtype, shape[0], _latent_shape(shape))


def _described(graph: GraphEditor, name: str) -> str:
    kind = helper.tensor_dtype_to_string(graph.dtype(name)).removeprefix("TensorProto.")
    return f"{name} {kind} [{', '.join(map(str, graph.shape(name) or ()))}]"


def _latent_shape(shape: Sequence[int | str] | None) -> tuple[int, ...]:
    """Return the shape of one latent: a size, with ones around it; nothing for another one."""
    sizes = tuple(size for size in (shape or ())[1:] if isinstance(size, int))
    whole = shape is not None and len(sizes) == len(shape) - 1
    return sizes if whole and sum(size != 1 for size in sizes) <= 1 else ()


def check_not_random(model: onnx.ModelProto) -> None:
    """Refuse a generator that draws random numbers: the same latent must give the same image.

    Args:
        model: A model without nodes that its output does not need.

    Raises:
        ModelError: It has such operators.
    """
    graph = GraphEditor(model)
    found = [f"{node.op_type} {node.name}" for node in graph.nodes if _is_random(graph, node)]
    if found:
        raise ModelError(
            f"the model draws random numbers itself: {', '.join(found)}; accepted: the same image for the same latent. "
            "Export it in eval mode, with its noise as a constant or without it, and of a VAE the decoder alone"
        )


def _is_random(graph: GraphEditor, node: NodeProto) -> bool:
    if node.op_type != "Dropout":
        return node.op_type in _RANDOM or node.op_type.startswith("Random")
    if len(node.input) < 3 or not node.input[2]:
        return False
    training, producer = graph.constant(node.input[2]), graph.producers().get(node.input[2])
    if training is None and producer is not None and producer.op_type == "Constant":
        training = onnx.numpy_helper.to_array(attribute(producer, "value", TensorProto()))
    return training is None or bool(np.any(training))
