"""ONNX's tests of operators, each with one random edit, for ``scorecard.py``: what a hand or a tool does to a graph.

Most edits leave the file valid. The seed is the number of the graph, so that the same number gives the same graph.
"""

from __future__ import annotations

import random
import warnings
from collections.abc import Callable, Iterable, Iterator
from typing import Any

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

from krl_deploy.graph.operators import STANDARD_INTEGER
from krl_deploy.rules.operators import UNSUPPORTED

__all__ = ["edited"]

_TRIES = 20  # some edits have nothing to edit in a graph
_OPSET = 17  # at least: what the files of today have
_CONSTANTS = 0.7  # the share of graphs whose inputs behind the first are constants, as weights are

_WORDS: dict[str, tuple[str, ...]] = {
    "auto_pad": ("SAME_UPPER", "SAME_LOWER", "VALID", "NOTSET"),
    "mode": ("nearest", "linear", "cubic", "reflect", "edge", "wrap", "constant", "DCR", "CRD", "bilinear"),
    "coordinate_transformation_mode": ("align_corners", "asymmetric", "half_pixel_symmetric", "tf_crop_and_resize"),
    "nearest_mode": ("ceil", "floor", "round_prefer_ceil", "round_prefer_floor"),
    "keep_aspect_ratio_policy": ("not_larger", "not_smaller", "stretch"),
    "padding_mode": ("zeros", "border", "reflection"),
    "reduction": ("none", "add", "mul", "max", "min"),
    "approximate": ("none", "tanh"),
    "direction": ("forward", "reverse", "bidirectional"),
    "equation": ("ij,jk->ik", "ii->i", "...ij->...ji", "bij,bjk->bik", "ij->"),
}
_FLAGS = (
    *("ceil_mode", "count_include_pad", "storage_order", "select_last_index", "keepdims", "exclusive", "reverse"),
    *("antialias", "exclude_outside", "fmod", "largest", "sorted", "noop_with_empty_axes", "allowzero", "transA"),
    *(
        "transB",
        "training_mode",
        "align_corners",
        "upper",
        "is_causal",
        "linear_before_reset",
        "input_forget",
        "layout",
    ),
)
_NUMBERS = ("axis", "group", "blocksize", "size", "p", "batch_dims", "num_groups", "num_outputs", "start", "end", "to")
_LISTS = ("kernel_shape", "strides", "pads", "dilations", "perm", "axes", "output_padding", "output_shape", "split")
_TYPES = (
    *(TensorProto.FLOAT16, TensorProto.BFLOAT16, TensorProto.DOUBLE, TensorProto.INT32, TensorProto.INT64),
    *(TensorProto.INT8, TensorProto.UINT8, TensorProto.BOOL, TensorProto.INT16, TensorProto.FLOAT),
)

Edit = Callable[[onnx.ModelProto, random.Random], str]
"""Edits a model in place, and returns what it did; empty if there was nothing to edit."""


def edited(names: Iterable[str], count: int) -> Iterator[tuple[str, onnx.ModelProto]]:
    """Yield edits of the tests of these names, some of which are no valid ONNX."""
    cases = _cases(names)
    for number in range(count):
        rng = random.Random(number)
        name, base, arrays = rng.choice(cases)
        model = onnx.ModelProto.FromString(base)
        if rng.random() < _CONSTANTS:
            _to_constants(model, arrays)
        for _ in range(_TRIES):
            if done := rng.choice(_EDITS)(model, rng):
                yield f"{number}: {name}, {done}", model
                break


def _cases(names: Iterable[str]) -> list[tuple[str, bytes, list[Any]]]:
    from onnx.backend.test.case.node import collect_testcases

    with warnings.catch_warnings():
        warnings.simplefilter("ignore", RuntimeWarning)
        cases = {case.name: case for case in collect_testcases(None)}
    found = []
    for name in sorted(names):
        case = cases[name]
        model = onnx.ModelProto.FromString(case.model.SerializeToString())
        kinds = {node.op_type for node in model.graph.node}
        if case.data_sets and not kinds & (UNSUPPORTED | STANDARD_INTEGER):  # no edit makes a difference to these
            imported = model.opset_import[0]
            since = max(onnx.defs.get_schema(kind, imported.version, "").since_version for kind in kinds)
            imported.version = min(max(since, _OPSET), imported.version)
            found.append((name, model.SerializeToString(), list(case.data_sets[0][0])))
    return found


def _to_constants(model: onnx.ModelProto, arrays: list[Any]) -> None:
    """Make every input but the first a constant, with the test's own value."""
    for value, array in list(zip(model.graph.input, arrays, strict=False))[1:]:
        if isinstance(array, np.ndarray) and value.type.HasField("tensor_type"):
            model.graph.initializer.append(numpy_helper.from_array(array, value.name))
            model.graph.input.remove(value)


def _attribute(model: onnx.ModelProto, rng: random.Random, value_of: Callable[[str, str], Any], *names: str) -> str:
    """Set an attribute that the operator has by ONNX."""
    node = rng.choice(list(model.graph.node))
    try:
        known = onnx.defs.get_schema(node.op_type, model.opset_import[0].version, "").attributes
    except onnx.defs.SchemaError:
        return ""
    able = [name for name in names if name in known]
    if not able:
        return ""
    name = rng.choice(able)
    value = value_of(node.op_type, name)
    kept = [item for item in node.attribute if item.name != name]
    del node.attribute[:]
    node.attribute.extend([*kept, helper.make_attribute(name, value)])
    return f"{name} {value}"


def _word(model: onnx.ModelProto, rng: random.Random) -> str:
    return _attribute(model, rng, lambda _, name: rng.choice(_WORDS[name]), *_WORDS)


def _flag(model: onnx.ModelProto, rng: random.Random) -> str:
    return _attribute(model, rng, lambda *_: rng.randint(0, 1), *_FLAGS)


def _number(model: onnx.ModelProto, rng: random.Random) -> str:
    return _attribute(model, rng, lambda *_: rng.choice((-2, -1, 0, 1, 2, 3, 5)), *_NUMBERS)


def _list(model: onnx.ModelProto, rng: random.Random) -> str:
    lists = [item for node in model.graph.node for item in node.attribute if item.name in _LISTS and item.ints]
    if not lists:
        return _attribute(model, rng, lambda *_: [rng.choice((0, 1, 2, 3)) for _ in range(2)], *_LISTS)
    item = rng.choice(lists)
    item.ints[rng.randrange(len(item.ints))] = rng.choice((-1, 0, 1, 2, 3, 5))
    return f"{item.name} {list(item.ints)}"


def _everywhere(model: onnx.ModelProto, rng: random.Random) -> str:
    """Change a type everywhere in the graph, as a converter does."""
    values = [*model.graph.input, *model.graph.output]
    old = {value.type.tensor_type.elem_type for value in values if value.type.HasField("tensor_type")}
    if not old:
        return ""
    before, after = rng.choice(sorted(old)), rng.choice(_TYPES)
    if before == after:
        return ""
    for value in values:
        if value.type.tensor_type.elem_type == before:
            value.type.tensor_type.elem_type = after
    for tensor in model.graph.initializer:
        if tensor.data_type == before:
            _retype(tensor, after)
    return f"{_name(before)} to {_name(after)}"


def _constant_type(model: onnx.ModelProto, rng: random.Random) -> str:
    if not model.graph.initializer:
        return ""
    tensor = rng.choice(list(model.graph.initializer))
    after = rng.choice(_TYPES)
    if tensor.data_type == after:
        return ""
    _retype(tensor, after)
    return f"{tensor.name} in {_name(after)}"


def _constant_shape(model: onnx.ModelProto, rng: random.Random) -> str:
    if not model.graph.initializer:
        return ""
    tensor = rng.choice(list(model.graph.initializer))
    array = numpy_helper.to_array(tensor)
    axis = rng.randrange(array.ndim) if array.ndim else -1
    wide = array[None] if axis < 0 or rng.random() < 0.3 else np.concatenate([array, array], axis)
    tensor.CopyFrom(numpy_helper.from_array(np.ascontiguousarray(wide), tensor.name))
    return f"{tensor.name} of shape {list(wide.shape)}"


def _constant_value(model: onnx.ModelProto, rng: random.Random) -> str:
    whole = [item for item in model.graph.initializer if item.data_type == TensorProto.INT64]
    if not whole:
        return ""
    tensor = rng.choice(whole)
    array = numpy_helper.to_array(tensor).copy()
    if not array.size:
        return ""
    array.flat[rng.randrange(array.size)] = rng.choice((-9, -1, 0, 1, 2, 9))
    tensor.CopyFrom(numpy_helper.from_array(array, tensor.name))
    return f"{tensor.name} {array.tolist()}"


def _input_shape(model: onnx.ModelProto, rng: random.Random) -> str:
    """Change a size of an input, or leave its batch open; the output is not declared any more."""
    value = rng.choice(list(model.graph.input)) if model.graph.input else None
    if value is None or not value.type.tensor_type.shape.dim:
        return ""
    dims = value.type.tensor_type.shape.dim
    axis = rng.randrange(len(dims))
    if rng.random() < 0.3:
        dims[0].dim_param = "n"
    elif rng.random() < 0.5:
        dims[axis].dim_value += 1
    else:
        dims.add().dim_value = 1
    for output in model.graph.output:
        output.type.tensor_type.ClearField("shape")
    return f"{value.name} of shape {[item.dim_param or item.dim_value for item in dims]}"


def _opset(model: onnx.ModelProto, rng: random.Random) -> str:
    model.opset_import[0].version = rng.choice((7, 9, 11, 13, 17, 20, 22))
    return f"opset {model.opset_import[0].version}"


def _cast_between(model: onnx.ModelProto, rng: random.Random) -> str:
    """Compute an operator in another type, between casts."""
    node, after = model.graph.node[0], rng.choice(_TYPES)
    if not node.input or not node.input[0] or not node.output[0]:
        return ""
    source, result = node.input[0], node.output[0]
    declared = {item.name: item.type.tensor_type.elem_type for item in (*model.graph.input, *model.graph.output)}
    others = {declared.get(name) for name in node.input[1:]}
    if not declared.get(source) or not declared.get(result) or declared[source] in others:
        return ""
    for tensor in model.graph.initializer:
        if tensor.data_type == declared[source]:
            _retype(tensor, after)
    before = helper.make_node("Cast", [source], ["cast_before"], name="cast_before", to=after)
    behind = helper.make_node("Cast", ["cast_behind"], [result], name="cast_behind", to=declared[result])
    for each in model.graph.node:
        each.input[:] = ["cast_before" if name == source else name for name in each.input]
        each.output[:] = ["cast_behind" if name == result else name for name in each.output]
    nodes = [before, *model.graph.node, behind]
    del model.graph.node[:]
    model.graph.node.extend(nodes)
    return f"in {_name(after)}"


def _retype(tensor: TensorProto, after: int) -> None:
    array = numpy_helper.to_array(tensor)
    if array.dtype.kind not in "OSUc":
        with np.errstate(all="ignore"):
            kept = array.astype(helper.tensor_dtype_to_np_dtype(after))
        tensor.CopyFrom(numpy_helper.from_array(kept, tensor.name))


def _name(dtype: int) -> str:
    return TensorProto.DataType.Name(dtype).lower()


_EDITS: tuple[Edit, ...] = (
    *(_word, _word, _flag, _flag, _number, _number, _list, _list, _everywhere, _everywhere, _constant_type),
    *(_constant_shape, _constant_value, _constant_value, _input_shape, _opset, _cast_between, _cast_between),
)
