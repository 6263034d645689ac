"""Mutants for ``scorecard.py``: networks with one random change each, which nobody chose with a rule in mind."""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator, Sequence

import numpy as np
import onnx
from onnx import AttributeProto, GraphProto, TensorProto, helper, numpy_helper

__all__ = ["mutants"]

_TYPES = (TensorProto.FLOAT16, TensorProto.INT32, TensorProto.INT64, TensorProto.UINT8, TensorProto.DOUBLE)
_VALUES = (-2, -1, 0, 1, 2, 3, 4, 5, 7, 16)


def mutants(
    models: Sequence[tuple[str, onnx.ModelProto]], count: int, seed: int
) -> Iterator[tuple[str, onnx.ModelProto]]:
    """Yield mutants of models, the kinds of changes in turn."""
    rng = random.Random(seed)
    for number in range(count):
        name, model = rng.choice(models)
        mutant = onnx.ModelProto()
        mutant.CopyFrom(model)
        kind = _KINDS[number % len(_KINDS)]
        kind(mutant.graph, rng)
        yield f"{number} {kind.__name__.strip('_')} of {name}", mutant


def _number(graph: GraphProto, rng: random.Random) -> None:
    """Change one number of an attribute."""
    kinds = (AttributeProto.INT, AttributeProto.INTS)
    found = [item for node in graph.node for item in node.attribute if item.type in kinds and item.name != "to"]
    item = rng.choice(found)
    if item.type == AttributeProto.INT:
        item.i = rng.choice(_VALUES)
    elif item.ints:
        item.ints[rng.randrange(len(item.ints))] = rng.choice(_VALUES)


def _operator(graph: GraphProto, rng: random.Random) -> None:
    """Put another operator with as many inputs in the place of one."""
    node = rng.choice([node for node in graph.node if len(node.input) <= 2])
    others = [
        schema.name
        for schema in onnx.defs.get_all_schemas()
        if schema.domain == "" and schema.min_input <= len(node.input) <= schema.max_input and schema.min_output == 1
    ]
    node.op_type = rng.choice(sorted(others))
    del node.attribute[:]


def _weight_type(graph: GraphProto, rng: random.Random) -> None:
    tensor = rng.choice(graph.initializer)
    values = numpy_helper.to_array(tensor)
    dtype = helper.tensor_dtype_to_np_dtype(rng.choice(_TYPES))
    tensor.CopyFrom(numpy_helper.from_array(values.astype(dtype), tensor.name))


def _weight_shape(graph: GraphProto, rng: random.Random) -> None:
    tensor = rng.choice([item for item in graph.initializer if len(item.dims)])
    values = numpy_helper.to_array(tensor)
    axis = rng.randrange(values.ndim)
    changed = rng.choice(
        (
            np.concatenate([values, values], axis=axis),
            np.take(values, [0], axis=axis),
            np.moveaxis(values, axis, 0),
            values.reshape(-1),
            values[None],
        )
    )
    tensor.CopyFrom(numpy_helper.from_array(np.ascontiguousarray(changed), tensor.name))


def _weight_values(graph: GraphProto, rng: random.Random) -> None:
    """Make a constant negative, zero, or not a number: scales and sizes must not be."""
    tensor = rng.choice([item for item in graph.initializer if np.prod(item.dims) <= 64] or graph.initializer)
    values = numpy_helper.to_array(tensor).copy()
    values[...] = rng.choice((0, 1, 127)) if values.dtype.kind in "iub" else rng.choice((0.0, -1.0, np.nan, np.inf))
    tensor.CopyFrom(numpy_helper.from_array(values, tensor.name))


def _cast(graph: GraphProto, rng: random.Random) -> None:
    """Cast one input of a node to another type."""
    index = rng.randrange(len(graph.node))
    node = graph.node[index]
    if not node.input or not node.input[0]:
        return
    made = helper.make_node("Cast", [node.input[0]], [f"{node.input[0]}_mutant"], name="mutant", to=rng.choice(_TYPES))
    node.input[0] = made.output[0]
    graph.node.insert(index, made)


def _wire(graph: GraphProto, rng: random.Random) -> None:
    """Let a node read another tensor that was computed before."""
    index = rng.randrange(1, len(graph.node))
    before = [name for node in graph.node[:index] for name in node.output if name]
    node = graph.node[index]
    if node.input:
        node.input[rng.randrange(len(node.input))] = rng.choice(before)


def _attribute(graph: GraphProto, rng: random.Random) -> None:
    """Leave an attribute out."""
    node = rng.choice([node for node in graph.node if node.attribute])
    del node.attribute[rng.randrange(len(node.attribute))]


_KINDS: tuple[Callable[[GraphProto, random.Random], None], ...] = (
    _number,
    _operator,
    _weight_type,
    _weight_shape,
    _weight_values,
    _cast,
    _wire,
    _attribute,
)
