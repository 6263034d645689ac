"""Reading what the output of a third-party classifier means, from the graph that makes it.

The end of a graph, from a tensor that is not made by weights to the output, is a function of that tensor alone. It is
run on random numbers, and compared with softmax, log-softmax and sigmoid. So it does not matter how the file spells
them: as one operator, by hand, or with reshapes, casts and clips behind them.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final, Literal, TypeAlias

import numpy as np
import numpy.typing as npt
import onnx
from onnx import helper

from krl_runtime.bundle.output_kind import scores_of
from krl_runtime.errors import BackendError, ModelError

from .edit import GraphEditor
from .number_types import FLOATS
from .operators import MOVES_OR_CASTS
from .parts import end_of, part_of, run_part

__all__ = ["ENDS", "Activation", "ClassOutput", "as_in_file", "read_output", "scores_tensor", "with_output"]

Activation: TypeAlias = Literal["", "softmax", "log-softmax", "sigmoid"]
"""Function from logits to a file's output; ``""`` gives them as they are."""

ENDS: Final = MOVES_OR_CASTS | {
    *(
        "Abs",
        "Add",
        "Clip",
        "Concat",
        "Div",
        "Exp",
        "Expand",
        "Gather",
        "HardSigmoid",
        "Log",
        "LogSoftmax",
        "Max",
        "Min",
    ),
    *("Mul", "Neg", "Pow", "Reciprocal", "ReduceLogSumExp", "ReduceMax", "ReduceSum", "Sigmoid", "Slice", "Softmax"),
    *("Softplus", "Split", "Sqrt", "Sub", "Sum", "Tanh", "Tile", "Where", "Greater", "GreaterOrEqual", "Less"),
    *("LessOrEqual", "LpNormalization", "Not", "ReduceL1", "ReduceLogSum", "ReduceMean", "ReduceMin", "Round"),
}
"""Operators that the end of a classifier may have after its last weights."""

_SPREADS = (0.5, 3.0)  # deviations of the random logits: nearly uniform probabilities, and clearly different ones
_WIDE = 30.0  # deviation that shows whether an output has bounds: a sigmoid is 0 or 1 there
_CLOSE = 1e-4  # largest difference from a softmax: a clip at 1e-5 passes, another temperature or smoothing does not

_SCORES_TO_INDICES: Final = frozenset({"ArgMax", "TopK"})
"""Operators that make indices of scores."""


@dataclass(frozen=True)
class ClassOutput:
    """The parts that a file's output is made of.

    Attributes:
        source: Tensor that the bundle takes its output from: the output's own, or one before its last operators.
        activation: The function from ``source`` to the output, apart from its shape.
        bounded: Whether the output is 0 to 1 for every input, by the graph.
    """

    source: str
    activation: Activation = ""
    bounded: bool = False


def with_output(model: onnx.ModelProto, name: str | None, *, of: str = "classes") -> onnx.ModelProto:
    """Return the model with one output, without what made the others alone.

    Args:
        model: A model with one or more outputs.
        name: The output, or any tensor of the graph; ``None`` for the only one.
        of: The wanted output's content, for people.

    Raises:
        ModelError: There are several and none was named, or there is no tensor of this name.
    """
    outputs = [value.name for value in model.graph.output]
    if name is None and len(outputs) == 1:
        return model
    graph = GraphEditor(model)
    if name is None:
        shapes = ", ".join(f"{each} {list(graph.shape(each) or ())}" for each in outputs)
        raise ModelError(f"the model has {len(outputs)} outputs: {shapes}; give the one with the {of} as --output")
    if name not in graph.producers():
        raise ModelError(f"the model makes no tensor {name!r} for --output; its outputs are: {', '.join(outputs)}")
    graph.declare_output(name, graph.dtype(name), graph.shape(name))
    return graph.close()


def scores_tensor(model: onnx.ModelProto) -> str:
    """Return the tensor with the scores: the output, or what ``ArgMax`` or ``TopK`` makes the output of.

    Raises:
        ModelError: The output is integers or truth values that something else made.
    """
    graph = GraphEditor(model)
    producers, output = graph.producers(), graph.outputs[0]
    node = producers.get(output)
    while node is not None and node.op_type in MOVES_OR_CASTS:
        node = producers.get(node.input[0])
    if node is not None and node.op_type in _SCORES_TO_INDICES:
        return str(node.input[0])
    if graph.dtype(output) not in FLOATS:
        kind = helper.tensor_dtype_to_string(graph.dtype(output)).removeprefix("TensorProto.")
        made = f", made by {node.op_type}" if node is not None else ""
        raise ModelError(
            f"the model's output {output} is {kind}{made}: labels, and no scores; give the tensor of floats that they "
            "are made of as --output"
        )
    return output


def read_output(model: onnx.ModelProto, feed: Mapping[str, npt.NDArray[Any]], classes: int) -> ClassOutput:
    """Return the parts that the output of a model is made of.

    Args:
        model: A clean float32 model with one output.
        feed: Inputs of one run.
        classes: Number of values in the output for each image.
    """
    graph = GraphEditor(model)
    output, images = graph.outputs[0], len(next(iter(feed.values())))
    nodes, leaves = end_of(graph, output, ENDS)
    tensors = [*leaves, *(name for node in nodes for name in node.output if name)]
    try:
        values = run_part(part_of(graph, graph.nodes, graph.inputs, tensors), feed)
        plain = output
        for name in tensors:  # from the one that is farthest from the output
            inner, ends = end_of(graph, output, ENDS, stop=name)
            alone = [end for end in ends if values[end].dtype == np.float32] == [name]
            if not alone or values[name].dtype != np.float32 or values[name].size != images * classes:
                continue
            function = _activation(part_of(graph, inner, ends, [output]), values, name, (images, classes))
            if function:
                return ClassOutput(name, function)
            if function == "" and plain == output:
                plain = name
        return ClassOutput(plain, "", _is_bounded(part_of(graph, nodes, leaves, [output]), values, leaves))
    except BackendError:  # the end does not run by itself, so that nothing is known of it
        return ClassOutput(output)


def as_in_file(function: Activation, outputs: npt.NDArray[Any]) -> npt.NDArray[np.float64]:
    """Return the values that a file's last operators make of outputs ``[N, classes]``.

    Example:
        >>> as_in_file("softmax", np.zeros((1, 2))), as_in_file("sigmoid", np.zeros((1, 1)))
        (array([[0.5, 0.5]]), array([[0.5]]))
    """
    if function == "sigmoid":
        return scores_of("sigmoid-logits", outputs)
    if function == "softmax":
        return scores_of("logits", outputs)
    values = outputs.astype(np.float64)
    if function == "log-softmax":
        values = values - values.max(axis=-1, keepdims=True)
        return np.asarray(values - np.log(np.exp(values).sum(axis=-1, keepdims=True)))
    return values


def _activation(
    part: onnx.ModelProto, values: Mapping[str, npt.NDArray[Any]], name: str, shape: tuple[int, int]
) -> Activation | None:
    """Return which function of one of its inputs a part of a graph is, row by row; ``None`` for another one."""
    rng = np.random.default_rng(0)
    functions: list[Activation] = ["", "sigmoid", *(("softmax", "log-softmax") if shape[1] > 1 else ())]
    others = {value.name: values[value.name] for value in part.graph.input}
    for spread in _SPREADS:
        given = rng.normal(0, spread, values[name].shape).astype(np.float32)
        made = list(run_part(part, {**others, name: given}).values())[-1].reshape(shape)
        functions = [each for each in functions if np.abs(as_in_file(each, given.reshape(shape)) - made).max() < _CLOSE]
    return functions[0] if functions else None


def _is_bounded(part: onnx.ModelProto, values: Mapping[str, npt.NDArray[Any]], leaves: Sequence[str]) -> bool:
    """Return whether the output of a part of a graph is 0 to 1, whatever the floats that it starts from are."""
    rng = np.random.default_rng(0)
    floats = [name for name in leaves if values[name].dtype == np.float32]
    feed = {name: values[name] for name in leaves}
    feed |= {name: rng.normal(0, _WIDE, values[name].shape).astype(np.float32) for name in floats}
    made = list(run_part(part, feed).values())[-1]
    return bool((made >= 0).all() and (made <= 1).all())
