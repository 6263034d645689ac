"""Integer weights: scales, and biases that make up for rounding."""

from __future__ import annotations

import numpy as np
import pytest

from _helpers.graphs import constants, graph, node, run
from krl_deploy.graph.edit import GraphEditor
from krl_deploy.graph.placement import weighted_nodes
from krl_deploy.precision.emit_cpu import to_cpu
from krl_deploy.precision.emit_tensorrt import to_tensorrt
from krl_deploy.precision.weights import Rounding, bias_shift, quantize_weight

RNG = np.random.default_rng(0)


def normal(*shape):
    return RNG.normal(size=shape).astype(np.float32)


def test_optimal_scales_are_the_least_squared_error():
    weight = RNG.laplace(size=(4, 4000)).astype(np.float32)
    values, scale = quantize_weight(weight, 0, rounding=Rounding(optimal_scales=True))
    for row, number, step in zip(weight, values, scale, strict=True):
        error = np.square(row - number * step).sum()
        tried = np.linspace(0.5, 1, 200) * np.abs(row).max() / 127
        best = min(np.square(row - s * np.clip(np.rint(row / s), -127, 127)).sum() for s in tried)
        assert error <= 1.1 * best
    plain_values, plain = quantize_weight(weight, 0)
    errors = [np.square(weight - v * s[:, None]).sum() for v, s in ((values, scale), (plain_values, plain))]
    assert errors[0] < 0.99 * errors[1]


def test_scales_for_fp16_are_fp16_numbers():
    weight = np.concatenate([normal(4, 50), normal(1, 50) * 1e-3, np.zeros((1, 50), np.float32)])
    values, scale = quantize_weight(weight, 0, 2.0**-19, Rounding(fp16=True))
    assert (scale.astype(np.float16).astype(np.float32) == scale).all()
    assert scale[4] < np.finfo(np.float16).tiny
    assert 2.0**-19 <= scale.min() == scale[5]  # a channel of zeros
    np.testing.assert_allclose(values * scale[:, None], weight, atol=float(scale.max()) * 0.51)
    assert np.abs(values[4]).max() > 120  # no level is lost


@pytest.mark.parametrize("scale", [1e-3, 6.2e-5, 6e-5, 7.87e-6, 2.0**-19])
def test_a_subnormal_scale_is_rounded_up_a_little(scale):
    (found,) = Rounding(fp16=True).scale([scale])
    assert float(np.float16(found)) == found
    assert -(2.0**-11) <= found / np.float32(scale) - 1 <= 1 / 32
    assert found >= np.float32(scale) or scale > 6.1e-5


@pytest.mark.parametrize("scale", [1e-6, 2.0**-25, 1e-20, 7e4])
def test_a_scale_without_an_fp16_number_stays(scale):
    assert Rounding(fp16=True).scale([scale, 0.1]).tolist() == np.float32([scale, 0.1]).tolist()


@pytest.mark.parametrize(
    ("attributes", "group"),
    [
        ({}, 1),
        ({"pads": [1, 1, 1, 1]}, 1),
        ({"pads": [1, 0, 2, 1], "strides": [2, 1]}, 1),
        ({"pads": [2, 2, 2, 2], "dilations": [2, 2], "strides": [2, 2]}, 2),
        ({"pads": [1, 1, 1, 1]}, 4),
    ],
)
def test_the_shift_is_what_rounding_moves_the_mean_by(attributes, group):
    """Exact where an input is the same everywhere in a plane, padding and strides included."""
    weight = normal(8, 4 // group, 3, 3)
    model = graph(
        [node("Conv", ["x", "w"], "y", group=group, **attributes)],
        {"x": ["batch", 4, 7, 6]},
        {"y": None},
        {"w": weight},
    )
    mean = normal(4)
    x = np.broadcast_to(mean[None, :, None, None], (1, 4, 7, 6)).astype(np.float32)
    editor = GraphEditor(model)
    (item,) = weighted_nodes(editor)
    values, scale = quantize_weight(weight, 0)
    shift = bias_shift(editor, item, values, scale, {"x": mean})
    rounded = graph(
        [node("Conv", ["x", "w"], "y", group=group, **attributes)],
        {"x": ["batch", 4, 7, 6]},
        {"y": None},
        {"w": values * scale.reshape(-1, 1, 1, 1)},
    )
    moved = (run(model, x=x)[0] - run(rounded, x=x)[0]).mean(axis=(0, 2, 3))
    np.testing.assert_allclose(shift, moved, atol=1e-5)


@pytest.mark.parametrize("transposed", [0, 1])
def test_the_shift_of_a_matrix_product(transposed):
    weight, mean = normal(32, 16), normal(32)
    stored = weight.T.copy() if transposed else weight
    nodes = [node("Gemm", ["x", "w"], "y", transB=transposed)]
    editor = GraphEditor(graph(nodes, {"x": ["batch", 32]}, {"y": None}, {"w": stored}))
    (item,) = weighted_nodes(editor)
    values, scale = quantize_weight(stored, item.axis)
    shift = bias_shift(editor, item, values, scale, {"x": mean})
    restored = values * scale.reshape([-1, 1] if transposed else [1, -1])
    np.testing.assert_allclose(shift, mean @ (weight - (restored.T if transposed else restored)), rtol=1e-4, atol=1e-6)


def test_without_a_mean_or_a_bias_there_is_no_shift():
    editor = GraphEditor(graph([node("MatMul", ["x", "w"], "y")], {"x": ["b", 16]}, {"y": None}, {"w": normal(16, 16)}))
    (item,) = weighted_nodes(editor)
    values, scale = quantize_weight(normal(16, 16), 1)
    assert bias_shift(editor, item, values, scale, {"x": normal(16)}) is None
    assert bias_shift(editor, item, values, scale, {}) is None


@pytest.mark.parametrize("emit", [to_tensorrt, to_cpu])
@pytest.mark.parametrize("bias", [True, False])
def test_both_forms_keep_the_mean(emit, bias):
    """Weights of few distinct values, all rounded in the same direction, and an input far from 0."""
    rng = np.random.default_rng(0)  # of its own, whatever tests ran before
    weight = np.full((16, 16, 3, 3), 0.3, np.float32) * (1 + np.arange(16, dtype=np.float32)[None, :, None, None] / 99)
    weight[:, 0, 0, 0] = 127 / 2  # the scale is 0.5: everything else becomes 1 instead of 0.6
    names = ["x", "w", "b"][: 2 + bias]
    nodes = [node("Conv", names, "y", pads=[1, 1, 1, 1])]
    model = graph(
        nodes,
        {"x": ["batch", 16, 6, 6]},
        {"y": None},
        {"w": weight, "b": rng.normal(size=16).astype(np.float32)} if bias else {"w": weight},
    )
    x = (2 + 0.1 * rng.normal(size=(4, 16, 6, 6))).astype(np.float32)
    expected = run(model, x=x)[0]
    ranges = {"x": (0.0, 3.0), "y": (float(expected.min()), float(expected.max()))}
    means = {"x": x.mean(axis=(0, 2, 3))}
    plain, corrected = (
        run(emit(model, ranges, rounding=rounding).model, x=x)[0] for rounding in (Rounding(), Rounding(means=means))
    )
    error, better = (abs((values - expected).mean()) for values in (plain, corrected))
    assert error > 1
    assert better < 0.1 * error


def test_scales_in_the_file_are_fp16_numbers():
    model = graph([node("Conv", ["x", "w"], "y")], {"x": ["b", 16, 4, 4]}, {"y": None}, {"w": normal(16, 16, 1, 1)})
    values = constants(to_tensorrt(model, {"x": (-1.0, 3.1)}, rounding=Rounding(fp16=True)).model)
    for name, value in values.items():
        if name.endswith("_scale"):
            assert (value.astype(np.float16).astype(np.float32) == value).all()
