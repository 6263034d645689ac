"""Folding that changes a shape: judged by ONNX Runtime on the graph as it was."""

from __future__ import annotations

import numpy as np
import pytest

from _helpers.graphs import graph, node, ops, run
from krl_deploy.graph.cleanup import clean

RNG = np.random.default_rng(0)


def normal(*shape):
    return RNG.normal(size=shape).astype(np.float32)


def same(nodes, x, values):
    """Assert that the clean graph makes the same, in the same shape; return its operators."""
    model = graph(nodes, {"x": ["batch", *x.shape[1:]]}, {"y": None}, values)
    cleaned = clean(model)
    (before,), (after,) = run(model, x=x), run(cleaned, x=x)
    assert after.shape == before.shape
    np.testing.assert_allclose(after, before, atol=1e-4)
    return ops(cleaned)


BATCH_NORMALIZATION = {"gamma": normal(3), "beta": normal(3), "mean": normal(3), "var": np.abs(normal(3)) + 0.1}
NORMALIZE = ["gamma", "beta", "mean", "var"]
IMAGE = normal(2, 3, 6, 6)


@pytest.mark.parametrize("op", ["Add", "Mul"])
@pytest.mark.parametrize("kind", ["Conv", "ConvTranspose"])
@pytest.mark.parametrize("shape", [(1, 3, 1, 1), (4, 1, 1), (2, 1, 1)])
def test_a_constant_that_widens_one_channel_stays(op, kind, shape):
    weight = normal(1, 3, 3, 3) if kind == "Conv" else normal(3, 1, 2, 2)
    nodes = [node(kind, ["x", "w", "bias"], "c"), node(op, ["k", "c"], "y")]
    assert same(nodes, IMAGE, {"w": weight, "bias": normal(1), "k": normal(*shape)}) == [kind, op]


def test_batch_normalization_behind_a_wider_constant_stays():
    nodes = [
        node("Conv", ["x", "w"], "c"),
        node("Mul", ["c", "k"], "m"),
        node("BatchNormalization", ["m", *NORMALIZE], "y"),
    ]
    values = {"w": normal(1, 3, 3, 3), "k": normal(1, 3, 1, 1), **BATCH_NORMALIZATION}
    assert same(nodes, IMAGE, values) == ["Conv", "Mul", "BatchNormalization"]


@pytest.mark.parametrize("rank", [1, 2, 3])
@pytest.mark.parametrize("groups", [1, 3])
def test_convolutions_of_each_rank_take_what_is_behind_them(rank, groups):
    nodes = [
        node("Conv", ["x", "w"], "c", group=groups),
        node("Mul", ["c", "k"], "m"),
        node("BatchNormalization", ["m", *NORMALIZE], "y"),
    ]
    values = {"w": normal(3, 3 // groups, *[2] * rank), "k": normal(3, *[1] * rank), **BATCH_NORMALIZATION}
    assert same(nodes, normal(2, 3, *[4, 5, 6][:rank]), values) == ["Conv"]


@pytest.mark.parametrize("rank", [1, 3])
def test_a_constant_along_the_last_axis_stays(rank):
    nodes = [node("Conv", ["x", "w"], "c"), node("Add", ["c", "k"], "y")]
    assert same(nodes, normal(2, 3, *[4] * rank), {"w": normal(3, 3, *[2] * rank), "k": normal(3)}) == ["Conv", "Add"]


@pytest.mark.parametrize(
    ("bias", "expected"),
    [
        ((4,), ["Gemm"]),
        ((1, 4), ["Gemm"]),
        ((1, 1, 4), ["MatMul", "Add"]),
        ((1,), ["MatMul", "Add"]),
        ((2, 4), ["MatMul", "Add"]),
        ((5, 2, 4), ["MatMul", "Add"]),
        ((1, 1), ["MatMul", "Add"]),
    ],
)
def test_a_matrix_product_takes_a_bias_that_keeps_its_rank(bias, expected):
    nodes = [node("MatMul", ["x", "w"], "m"), node("Add", ["m", "bias"], "y")]
    assert same(nodes, normal(2, 6), {"w": normal(6, 4), "bias": normal(*bias)}) == expected


@pytest.mark.parametrize("bias", [(1, 4), (4,), (1, 1, 4)])
def test_a_product_with_one_column_is_widened_by_its_bias(bias):
    nodes = [node("MatMul", ["x", "w"], "m"), node("Add", ["bias", "m"], "y")]
    assert same(nodes, normal(2, 6), {"w": normal(6, 1), "bias": normal(*bias)}) == ["MatMul", "Add"]


@pytest.mark.parametrize("axes", [[2, 3], [-1, -2], [3], [-2]])
@pytest.mark.parametrize("mode", ["constant", "edge", "reflect"])
def test_padding_of_some_axes_before_a_folded_batch_normalization(axes, mode):
    nodes = [
        node("Pad", ["x", "pads", "", "axes"], "p", mode=mode),
        node("Conv", ["p", "w"], "c"),
        node("BatchNormalization", ["c", *NORMALIZE], "y"),
    ]
    values = {"pads": np.arange(1, 2 * len(axes) + 1), "axes": np.int64(axes), "w": normal(3, 3, 2, 2)}
    assert same(nodes, IMAGE, {**values, **BATCH_NORMALIZATION}) == ["Pad", "Conv"]


@pytest.mark.parametrize(
    ("low", "high", "left"),
    [
        (0, 6, 2),
        (2, 1, 2),
        (-np.inf, 0.5, 1),
        (-0.5, np.finfo(np.float32).max, 1),
        (np.finfo(np.float32).min, np.inf, 0),
    ],
)
def test_the_ends_of_a_clip_that_limit_something_stay(low, high, left):
    model = graph(
        [node("Clip", ["x", "low", "high"], "y")],
        {"x": [2, 3, 6, 6]},
        {"y": None},
        {"low": np.float32(low), "high": np.float32(high)},
    )
    cleaned = clean(model)
    assert run(cleaned, x=3 * IMAGE)[0].tolist() == run(model, x=3 * IMAGE)[0].tolist()
    assert sum(name != "" for name in cleaned.graph.node[0].input[1:]) == left
