"""Stored infinities: what is accepted, and where an infinite value may follow from them."""

from __future__ import annotations

import numpy as np
import onnx
import pytest
from onnx import helper, numpy_helper

from _helpers.graphs import graph, node
from _helpers.masked import FORMS, constant, tensor
from krl_deploy.graph.cleanup import clean
from krl_deploy.graph.image_input import raise_opset
from krl_deploy.graph.infinities import check_numbers, intended_infinities
from krl_runtime.errors import ModelError

INF, NAN = np.float32(np.inf), np.float32(np.nan)
PLUS, MINUS, BOTH = {np.inf}, {-np.inf}, {np.inf, -np.inf}


@pytest.mark.parametrize("form", FORMS)
def test_infinities_in_every_form_are_accepted(form: str):
    check_numbers(FORMS[form]())


def layer(op: str, values: dict[str, np.ndarray], **attributes: object) -> onnx.ModelProto:
    shape = [1, 2, 4, 4] if op != "Gemm" else [1, 2]
    return graph([node(op, ["x", *values], "y", **attributes)], {"x": shape}, {"y": None}, values)


def bad(shape: tuple[int, ...], value: np.float32) -> np.ndarray:
    array = np.ones(shape, np.float32)
    array.flat[-1] = value
    return array


@pytest.mark.parametrize("value", [INF, -INF, NAN])
@pytest.mark.parametrize(
    ("op", "name", "shapes"),
    [
        ("Conv", "w", {"w": (3, 2, 1, 1)}),
        ("Conv", "b", {"w": (3, 2, 1, 1), "b": (3,)}),
        ("ConvTranspose", "w", {"w": (2, 3, 1, 1)}),
        ("Gemm", "w", {"w": (2, 3)}),
        ("Gemm", "b", {"w": (2, 3), "b": (3,)}),
        ("MatMul", "w", {"w": (4, 3)}),
        ("BatchNormalization", "v", {"g": (2,), "b": (2,), "m": (2,), "v": (2,)}),
        ("BatchNormalization", "g", {"g": (2,), "b": (2,), "m": (2,), "v": (2,)}),
    ],
)
def test_weights_that_are_not_finite_are_refused(op, name, shapes, value):
    values = {each: bad(shape, value if each == name else np.float32(1)) for each, shape in shapes.items()}
    with pytest.raises(ModelError, match=f"the model's weight {name} has values that are not finite numbers"):
        check_numbers(layer(op, values))


def test_a_weight_behind_other_nodes_is_refused_by_its_name():
    nodes = [constant("w", value=tensor(bad((3, 4), INF))), node("Transpose", ["w"], "t"), node("Identity", ["t"], "i")]
    model = graph([*nodes, node("MatMul", ["x", "i"], "y")], {"x": [1, 4]}, {"y": None})
    with pytest.raises(ModelError, match="weight w has values that are not finite numbers; MatMul n_y reads it"):
        check_numbers(model)


@pytest.mark.parametrize(
    "item",
    [
        constant("k", value=tensor(np.float32([NAN]))),
        constant("k", value_float=float("nan")),
        constant("k", value_floats=[0.0, float("nan"), 1.0]),
        node("LeakyRelu", ["x"], "k", alpha=float("nan")),
    ],
)
def test_nan_is_refused_wherever_it_is_stored(item):
    with pytest.raises(ModelError, match="not finite numbers: NaN"):
        check_numbers(graph([item, node("Add", ["x", "k"], "y")], {"x": [3]}, {"y": None}))


@pytest.mark.parametrize(
    ("nodes", "expected"),
    [
        ([node("Add", ["x", "minus"], "y")], MINUS),
        ([node("Add", ["x", "plus"], "a"), node("Concat", ["a", "x"], "y", axis=0)], PLUS),
        ([node("Add", ["x", "minus"], "a"), node("Softmax", ["a"], "y")], set()),
        ([node("Add", ["x", "minus"], "a"), node("Relu", ["a"], "y")], set()),
        ([node("Add", ["x", "plus"], "a"), node("Relu", ["a"], "y")], PLUS),
        ([node("Add", ["x", "minus"], "a"), node("Neg", ["a"], "y")], BOTH),
        ([node("Add", ["x", "minus"], "a"), node("Exp", ["a"], "y")], set()),
        ([node("Clip", ["x", "zero", "plus"], "y")], set()),  # an open end makes no infinity
        ([node("Add", ["x", "plus"], "a"), node("Clip", ["a", "zero", "one"], "y")], set()),
        ([node("Add", ["x", "plus"], "a"), node("Clip", ["a", "zero"], "y")], PLUS),
        ([node("Min", ["x", "plus"], "y")], set()),
        ([node("Min", ["x", "minus"], "y")], MINUS),
        ([node("Max", ["x", "minus"], "y")], set()),
        ([node("Mul", ["x", "plus"], "a"), node("Sigmoid", ["a"], "b"), node("Mul", ["x", "b"], "y")], set()),
        ([node("Exp", ["x"], "y")], set()),  # it may overflow, and nothing stored explains that
    ],
)
def test_infinities_follow_from_stored_ones_alone(nodes, expected):
    constants = {"plus": INF, "minus": -INF, "zero": np.float32(0), "one": np.float32(1)}
    used = {name for item in nodes for name in item.input}
    model = graph(nodes, {"x": [3]}, {"y": None}, {k: v for k, v in constants.items() if k in used})
    assert intended_infinities(model).get("y", set()) == expected


@pytest.mark.parametrize("form", [name for name in FORMS if "Clip" in name])
def test_open_ends_of_a_clip_are_left_out(form: str):
    model = FORMS[form]()
    tidy = clean(raise_opset(model, 18) if "attributes" in form else model)
    (limited,) = [item for item in tidy.graph.node if item.op_type == "Clip"]
    assert list(limited.input)[1:] == (["", "low"] if form == "Clip below" else [limited.input[1]])
    assert intended_infinities(tidy) == {}
    assert all(np.isfinite(numpy_helper.to_array(item)).all() for item in tidy.graph.initializer)


@pytest.mark.parametrize("name", ["value_float", "value_floats", "value_int", "value_ints"])
def test_constants_in_every_form_become_initializers(name: str):
    values = {"value_float": 2.5, "value_floats": [2.5, 1.0], "value_int": 3, "value_ints": [1, 2]}
    nodes = [constant("k", **{name: values[name]}), node("Cast", ["k"], "f", to=1), node("Mul", ["x", "f"], "y")]
    tidy = clean(graph(nodes, {"x": ["n", 2]}, {"y": None}))
    assert [item.op_type for item in tidy.graph.node] == ["Mul"]
    assert helper.tensor_dtype_to_string(tidy.graph.initializer[0].data_type) == "TensorProto.FLOAT"
    np.testing.assert_array_equal(numpy_helper.to_array(tidy.graph.initializer[0]), np.float32(values[name]))


def test_a_mask_becomes_no_weight():
    mask = np.float32([0, -np.inf, 0])
    nodes = [node("MatMul", ["x", "w"], "p"), node("Add", ["p", "mask"], "m"), node("Softmax", ["m"], "y")]
    tidy = clean(graph(nodes, {"x": [2, 4]}, {"y": None}, {"w": np.ones((4, 3), np.float32), "mask": mask}))
    check_numbers(tidy)
    assert [item.op_type for item in tidy.graph.node] == ["MatMul", "Add", "Softmax"]
    planes = [node("Conv", ["x", "w"], "c"), node("Add", ["c", "mask"], "y")]
    weights = {"w": np.ones((3, 2, 1, 1), np.float32), "mask": mask.reshape(1, 3, 1, 1)}
    tidy = clean(graph(planes, {"x": [1, 2, 4, 4]}, {"y": None}, weights))
    check_numbers(tidy)
    assert [item.op_type for item in tidy.graph.node] == ["Conv", "Add"]
