"""Biases of every form: INT8 keeps what they add, or leaves the operator in floating point and says why."""

from __future__ import annotations

import numpy as np
import onnx
import pytest

from _helpers.graphs import assert_alike, graph, measured_ranges, node, run
from krl_deploy.graph.cleanup import clean
from krl_deploy.graph.quantized import read_quantized
from krl_deploy.precision.emit_cpu import to_cpu
from krl_deploy.precision.emit_tensorrt import to_tensorrt
from krl_deploy.precision.equalization import equalizable, equalize
from krl_deploy.precision.weights import Rounding

EMITTERS = {"tensorrt": to_tensorrt, "cpu": to_cpu}
MEANS = {"x": np.full(32, 0.1, np.float32)}


def normal(*shape: int) -> np.ndarray:
    return np.random.default_rng(sum(shape)).normal(size=shape).astype(np.float32)


def product(bias: np.ndarray, **attributes: int) -> onnx.ModelProto:
    return graph(
        [node("Gemm", ["x", "w", "b"], "y", **attributes)],
        {"x": [4, 32]},
        {"y": [4, 32]},
        {"w": normal(32, 32), "b": bias},
    )


def quantized(emit, model: onnx.ModelProto, feeds: dict, *, correct: bool):
    rounding = Rounding(means=MEANS) if correct else Rounding()
    return EMITTERS[emit](model, measured_ranges(model, **feeds), rounding=rounding)


@pytest.mark.parametrize("emit", EMITTERS)
@pytest.mark.parametrize("correct", [False, True])
@pytest.mark.parametrize(
    ("shape", "in_int8"), [((32,), 1), ((1, 32), 1), ((), 1), ((1,), 1), ((1, 1), 1), ((4, 1), 0), ((4, 32), 0)]
)
@pytest.mark.parametrize("transposed", [0, 1])
def test_the_bias_of_a_product_in_every_shape(emit, correct, shape, in_int8, transposed):
    """The bias is large beside the product: without it the result would be far off."""
    model = product(20 * normal(*shape) + 50, transB=transposed)
    feeds = {"x": normal(4, 32)}
    expected = run(model, **feeds)[0]
    made = quantized(emit, model, feeds, correct=correct)
    assert made.count == in_int8
    if not in_int8:
        (why,) = made.kept_float.values()
        assert f"its bias has shape {list(shape)}: INT8 needs one number for each of the 32 outputs" in why
    found = run(made.model, **feeds)[0]
    assert found.shape == expected.shape
    assert np.abs(found - expected).max() < 0.5  # the product alone is up to 20, the bias 50 and more


def with_computed_bias(op: str) -> onnx.ModelProto:
    """The bias is the sum of another input and a constant: it is known only when the model runs."""
    constants = {"offset": np.full(32, 40, np.float32)}
    first = node("Add", ["given", "offset"], "b")
    if op == "Gemm":
        constants["w"] = normal(32, 32)
        inputs, outputs = {"x": [4, 32], "given": [32]}, {"y": [4, 32]}
        return graph([first, node("Gemm", ["x", "w", "b"], "y")], inputs, outputs, constants)
    constants |= {"w": normal(32, 32, 3, 3), "w2": normal(32, 32, 1, 1)}
    nodes = [
        first,
        node("Conv", ["x", "w", "b"], "c", pads=[1, 1, 1, 1]),
        node("Relu", ["c"], "r"),
        node("Conv", ["r", "w2"], "y"),
    ]
    return graph(nodes, {"x": [4, 32, 6, 6], "given": [32]}, {"y": [4, 32, 6, 6]}, constants)


@pytest.mark.parametrize("emit", EMITTERS)
@pytest.mark.parametrize("correct", [False, True])
@pytest.mark.parametrize("op", ["Gemm", "Conv"])
def test_a_computed_bias_is_not_dropped(emit, correct, op):
    model = with_computed_bias(op)
    feeds = {"x": normal(4, 32) if op == "Gemm" else normal(4, 32, 6, 6), "given": normal(32)}
    made = quantized(emit, model, feeds, correct=correct)
    assert "its bias is computed" in made.kept_float.values()
    assert made.count == (0 if op == "Gemm" else 1)
    assert_alike(run(made.model, **feeds)[0], run(model, **feeds)[0])


COMPUTED = {
    "sum of two constants": ([node("Add", ["b1", "b2"], "b")], {"b1": (32,), "b2": (32,)}),
    "product of the input": (
        [node("Gemm", ["x", "w2", "b1"], "p"), node("ReduceMean", ["p", "first"], "b", keepdims=0)],
        {"w2": (32, 32), "b1": (32,)},
    ),
    "stored in FP16": ([node("Cast", ["b1"], "h", to=10), node("Cast", ["h"], "b", to=1)], {"b1": (32,)}),
    "part of a larger constant": ([node("Gather", ["b1", "first_row"], "b")], {"b1": (3, 32)}),
}


@pytest.mark.parametrize("emit", EMITTERS)
@pytest.mark.parametrize("correct", [False, True])
@pytest.mark.parametrize("origin", COMPUTED)
def test_computed_biases_of_every_origin(emit, correct, origin):
    """Each adds as much as the product does, so that an error of 2 % shows it."""
    nodes, shapes = COMPUTED[origin]
    constants = {name: 5 * normal(*shape) + 3 for name, shape in shapes.items()} | {"w": normal(32, 32)}
    indices = {"first": np.array([0]), "first_row": np.array(0)}
    constants |= {name: value for name, value in indices.items() if any(name in item.input for item in nodes)}
    last = [node("Gemm", ["x", "w", "b"], "g"), node("Relu", ["g"], "r"), node("MatMul", ["r", "w1"], "y")]
    model = graph([*nodes, *last], {"x": [4, 32]}, {"y": [4, 32]}, constants | {"w1": normal(32, 32)})
    feeds = {"x": normal(4, 32)}
    expected = run(model, **feeds)[0]
    made = quantized(emit, model, feeds, correct=correct)
    assert made.kept_float["n_g"] == "its bias is computed"
    assert made.count >= 1
    assert np.linalg.norm(run(made.model, **feeds)[0] - expected) < 0.02 * np.linalg.norm(expected)


@pytest.mark.parametrize("emit", EMITTERS)
@pytest.mark.parametrize("scales", [(), (32,)])
def test_a_bias_behind_a_dequantizer_is_kept(emit, scales):
    """As files of other quantizers store it: int32, at one scale or one for each output."""
    counts = np.rint(1e4 * normal(32)).astype(np.int32)
    constants = {"w": normal(32, 32), "q": counts, "s": np.full(scales, 1e-3, np.float32)}
    constants["z"] = np.zeros(scales, np.int32)
    nodes = [node("DequantizeLinear", ["q", "s", "z"], "b", axis=0), node("Gemm", ["x", "w", "b"], "y")]
    model = graph(nodes, {"x": [4, 32]}, {"y": [4, 32]}, constants)
    feeds = {"x": normal(4, 32)}
    expected = feeds["x"] @ constants["w"] + counts * np.float32(1e-3)
    made = quantized(emit, read_quantized(model).model, feeds, correct=False)
    assert made.count == 1
    assert np.linalg.norm(run(made.model, **feeds)[0] - expected) < 0.02 * np.linalg.norm(expected)


def test_channels_behind_a_computed_bias_are_not_equalized():
    """The bias would have to be divided as well, and nobody knows it."""
    model = with_computed_bias("Conv")
    assert equalizable(model) == []
    feeds = {"x": normal(4, 32, 6, 6), "given": normal(32)}
    scaled = equalize(model, {"r": np.linspace(0.5, 2, 32, dtype=np.float32)})
    np.testing.assert_allclose(run(scaled, **feeds)[0], run(model, **feeds)[0], rtol=1e-4, atol=1e-3)


@pytest.mark.parametrize(
    ("axes", "pads"), [([2, 3], [1, 2, 3, 0]), ([-2, -1], [1, 2, 3, 0]), ([3, 2], [2, 1, 0, 3]), ([3], [2, 1])]
)
@pytest.mark.parametrize("mode", ["constant", "reflect", "edge"])
def test_padding_that_names_its_axes_becomes_padding_of_all(axes, pads, mode):
    """ONNX Runtime's optimizer of INT8 graphs read the amounts of such a node as those of all axes."""
    constants = {
        "amounts": np.array(pads),
        "axes": np.array(axes),
        "w": normal(32, 32, 3, 3),
        "w2": normal(32, 32, 3, 3),
    }
    nodes = [
        node("Conv", ["x", "w"], "c"),
        node("Pad", ["c", "amounts", "", "axes"], "p", mode=mode),
        node("Conv", ["p", "w2"], "y"),
    ]
    model = graph(nodes, {"x": [1, 32, 9, 9]}, {"y": None}, constants)
    tidy = clean(model)
    (padding,) = [each for each in tidy.graph.node if each.op_type == "Pad"]
    assert len(padding.input) == 2
    feeds = {"x": normal(1, 32, 9, 9)}
    expected = run(model, **feeds)[0]
    np.testing.assert_allclose(run(tidy, **feeds)[0], expected, rtol=1e-4, atol=1e-3)
    for emit in EMITTERS:
        assert_alike(run(quantized(emit, tidy, feeds, correct=False).model, **feeds)[0], expected)
