"""Networks with intended infinities in FP16 and INT8: they compute as in FP32, and no rule calls them wrong."""

from __future__ import annotations

import numpy as np
import onnx
import pytest

from _helpers.graphs import assert_alike, graph, node, run
from _helpers.half import emulate
from _helpers.masked import ADD, FORMS, MASK, attention, inputs
from _helpers.planted import findings
from krl_deploy.calibration.collect import collect, collect_int8
from krl_deploy.config import Method
from krl_deploy.graph.cleanup import clean
from krl_deploy.graph.files import opset_of
from krl_deploy.graph.image_input import raise_opset
from krl_deploy.precision.emit_cpu import to_cpu
from krl_deploy.precision.emit_fp16 import float_tensors, round_to_fp16, to_fp16
from krl_deploy.precision.emit_tensorrt import to_tensorrt
from krl_deploy.precision.weights import Rounding
from krl_runtime.errors import ModelError

ALMOST = {"float32 min": np.finfo(np.float32).min, "-1e9": -1e9, "twice FP16's end": -65504.0 * 2, "-1e4": -1e4}


def opened(form: str) -> onnx.ModelProto:
    model = FORMS[form]()
    return clean(model if opset_of(model) > 18 else raise_opset(model, 20))


def variants(model: onnx.ModelProto, x: np.ndarray) -> dict[str, onnx.ModelProto]:
    ranges = collect(model, float_tensors(model), x)
    assert np.isfinite(list(ranges.values())).all()
    ranges["x"] = float(x.min()), float(x.max())
    half = to_fp16(model, ranges)
    exact = to_tensorrt(model, ranges, rounding=Rounding(fp16=True)).model
    around = to_fp16(exact, ranges, around_int8=True)
    return {
        "fp16": half.model,
        "fp16.rounded": round_to_fp16(model, half.nodes),
        "int8": to_tensorrt(model, ranges).model,
        "int8 in fp16": around.model,
        "int8.rounded": round_to_fp16(exact, around.nodes),
        "int8.cpu": to_cpu(model, ranges).model,
    }


@pytest.mark.parametrize("form", FORMS)
def test_every_variant_computes_the_same(form: str):
    model = opened(form)
    x = inputs(model)
    expected = run(model, x=x)[0]
    np.testing.assert_allclose(run(FORMS[form](), x=x)[0], expected, rtol=1e-4, atol=1e-5)
    assert np.isfinite(expected).all()
    for name, variant in variants(model, x).items():
        assert_alike(run(variant, x=x)[0], expected, 0.003 if "fp16" in name and "int8" not in name else 0.05)


@pytest.mark.parametrize("form", FORMS)
def test_no_rule_calls_them_wrong(form: str):
    model = opened(form)
    for name, variant in {"fp32": model, **variants(model, inputs(model))}.items():
        targets = ["onnxruntime-cpu"] if name == "int8.cpu" else ["jetpack-6.2", "tensorrt-11.4", "rtx"]
        if "rounded" not in name:
            assert [item for target in targets for item in findings(variant, target) if item.severity == "error"] == []


def test_a_mask_of_infinities_stays_in_fp16():
    model = opened("initializer")
    ranges = collect(model, float_tensors(model), inputs(model))
    assert to_fp16(model, ranges).kept == {}


@pytest.mark.parametrize("value", ALMOST)
def test_a_mask_that_is_almost_infinite_still_masks(value: str):
    model = clean(attention([], ADD, {"mask": np.where(np.isinf(MASK), ALMOST[value], 0).astype(np.float32)}))
    x = inputs(model)
    expected = run(model, x=x)[0]
    np.testing.assert_allclose(expected, run(opened("initializer"), x=x)[0], rtol=1e-5, atol=1e-6)
    for name, variant in variants(model, x).items():
        assert_alike(run(variant, x=x)[0], expected, 0.003 if "fp16" in name and "int8" not in name else 0.05)


HIDING = {
    "Mul": [node("Cast", ["hidden"], "h", to=1), node("Mul", ["h", "large"], "mask"), node("Add", ["t", "mask"], "m")],
    "Where": [node("Where", ["hidden", "large", "zero"], "mask"), node("Add", ["t", "mask"], "m")],
    "Where of products": [node("Where", ["hidden", "large", "t"], "m")],
    "Sub": [node("Where", ["hidden", "above", "zero"], "mask"), node("Sub", ["t", "mask"], "m")],
}


@pytest.mark.parametrize("value", ["float32 min", "-1e9", "twice FP16's end"])
@pytest.mark.parametrize("how", HIDING)
def test_a_mask_that_calibration_has_not_seen_at_work(how: str, value: str):
    """Rows of which a part is hidden, and all: FP32 then weighs all alike, and FP16 must not give NaN."""
    constants = {"zero": 0.0, "large": ALMOST[value], "above": -ALMOST[value], "edge": 1.0}
    nodes = [
        node("MatMul", ["x", "unit"], "t"),
        node("Greater", ["t", "edge"], "hidden"),
        *HIDING[how],
        node("Softmax", ["m"], "y"),
    ]
    used = {name: np.float32(number) for name, number in constants.items() if any(name in n.input for n in nodes)}
    model = graph(nodes, {"x": [8, 16]}, {"y": None}, {"unit": np.eye(16, dtype=np.float32), **used})
    seen = np.random.default_rng(0).uniform(-1, 1, (8, 16)).astype(np.float32)
    unseen = seen * np.float32(2)
    unseen[3] = 1.5  # the whole row is hidden
    ranges = collect(model, float_tensors(model), seen)
    converted = to_fp16(model, ranges).model
    for x in (seen, unseen):
        expected = run(model, x=x)[0]
        np.testing.assert_allclose(emulate(converted, x=x), expected, atol=2e-3)
    assert (run(model, x=unseen)[0] == 0).any()


@pytest.mark.parametrize("method", ["minmax", "percentile", "mse", "entropy"])
@pytest.mark.parametrize("form", ["initializer", "ConstantOfShape", "Pad"])
def test_ranges_are_those_of_the_finite_values(form: str, method: Method):
    model = opened(form)
    x, name = inputs(model), "d" if form == "Pad" else "m"
    extended = onnx.ModelProto()
    extended.CopyFrom(model)
    extended.graph.output.extend(value for value in model.graph.value_info if value.name == name)
    values = run(extended, optimize=False, x=x)[1]
    finite = values[np.isfinite(values)]
    assert finite.size < values.size
    low, high = collect_int8(model, [name], x, method=method, share=100).tensorrt[name]
    if method in ("minmax", "percentile"):
        assert (low, high) == pytest.approx((finite.min(), finite.max()), rel=1e-5)
    assert finite.min() <= low < high <= finite.max()


def test_a_tensor_of_infinities_alone_has_an_empty_range():
    model = graph([node("Add", ["x", "none"], "y")], {"x": ["n", 4]}, {"y": None}, {"none": np.float32(-np.inf)})
    for method in ("minmax", "percentile", "mse", "entropy"):
        ranges = collect_int8(model, ["y"], np.ones((3, 4), np.float32), method=method)
        assert ranges.tensorrt == ranges.cpu == {"y": (0.0, 0.0)}


@pytest.mark.parametrize("method", ["minmax", "percentile"])
@pytest.mark.parametrize("position", [0, 5, 15])
@pytest.mark.parametrize("cause", ["NaN", "overflow beside a mask", "overflow behind a mask", "the other sign"])
def test_what_no_stored_infinity_explains_is_an_error(method: Method, position: int, cause: str):
    """The first value of a tensor is no special one: ONNX Runtime's extremes see NaN there alone."""
    x = np.zeros((2, 16), np.float32)
    x[1, position] = {"NaN": -1.0}.get(cause, 1e30)
    constants = {"none": np.where(np.arange(16) == 3, -np.inf, 0).astype(np.float32)}
    nodes = {
        "NaN": [node("Sqrt", ["x"], "a"), node("Add", ["a", "none"], "y")],
        "overflow beside a mask": [node("Add", ["x", "none"], "b"), node("Mul", ["x", "x"], "y")],
        "overflow behind a mask": [
            *(node("Add", ["x", "none"], "b"), node("Softmax", ["b"], "p")),
            *(node("Add", ["p", "x"], "c"), node("Mul", ["c", "c"], "y")),
        ],
        "the other sign": [node("Mul", ["x", "x"], "a"), node("Add", ["a", "none"], "y")],
    }[cause]
    model = graph(nodes, {"x": ["n", 16]}, {"y": None}, constants)
    with pytest.raises(ModelError, match=r"tensor y: values are not finite numbers on a calibration image"):
        collect_int8(model, ["y"], x, method=method)


def test_a_mask_is_not_quantized_beside_a_product():
    """It would be the other branch of a residual addition, with one infinity for all of its range."""
    nodes = [
        node("MatMul", ["x", "w"], "p"),
        node("Greater", ["x", "zero"], "seen"),
        node("Where", ["seen", "little", "none"], "mask"),
        node("Add", ["p", "mask"], "m"),
        node("Softmax", ["m"], "y"),
    ]
    weight = np.random.default_rng(0).normal(size=(16, 16)).astype(np.float32)
    constants = {"w": weight, "zero": np.float32(0), "little": np.float32(0.01), "none": np.float32(-np.inf)}
    model = graph(nodes, {"x": ["n", 16]}, {"y": None}, constants)
    x = np.random.default_rng(1).normal(size=(8, 16)).astype(np.float32)
    for variant in variants(model, x).values():
        found = run(variant, x=x)[0]
        assert (found[x <= 0] == 0).all()
        assert_alike(found, run(model, x=x)[0], 0.1)
