"""Networks that FP16 breaks: the plain conversion is wrong, and krl's is not. NumPy's float16 is the judge."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import onnx
import pytest
from onnx import NodeProto

from _helpers.graphs import graph, measured_ranges, node, run
from _helpers.half import emulate
from krl_deploy.precision.emit_fp16 import to_fp16
from krl_deploy.precision.fp16_limits import Fp16Limits

LAST = np.array([-1])
EPS, TINY = np.float32(1e-8), np.float32(1e-12)


def network(nodes: Sequence[NodeProto], constants: dict[str, np.ndarray]) -> onnx.ModelProto:
    """Return a network in which ``t`` is the input behind a matrix product, and ``y`` the output."""
    first = node("MatMul", ["x", "unit"], "t")
    values = {"unit": np.eye(16, dtype=np.float32), "last": LAST, **constants}
    used = {name for item in nodes for name in item.input} | {"unit"}
    values = {name: value for name, value in values.items() if name in used}
    return graph([first, *nodes], {"x": [8, 16]}, {"y": None}, values)


def plain(model: onnx.ModelProto, monkeypatch: pytest.MonkeyPatch) -> onnx.ModelProto:
    """Return the model with every node in FP16."""
    with monkeypatch.context() as patch:
        patch.setattr(Fp16Limits, "why_float", lambda self, node: None)
        return to_fp16(model, {}).model


def error(made: np.ndarray, expected: np.ndarray) -> float:
    """Return the largest error of a value, as a share of the largest of its row; infinite for NaN."""
    with np.errstate(invalid="ignore"):
        share = np.abs(made - expected) / np.maximum(np.abs(expected).max(axis=-1, keepdims=True), 1e-30)
    return float(share.max()) if np.isfinite(share).all() else np.inf


def judge(
    model: onnx.ModelProto, seen: np.ndarray, unseen: np.ndarray, monkeypatch: pytest.MonkeyPatch, share: float = 0.02
) -> dict[str, str]:
    """Compare both conversions on inputs, of which calibration has seen a part; return the nodes kept in FP32."""
    converted = to_fp16(model, measured_ranges(model, x=seen))
    everything = np.concatenate([seen, unseen])
    pieces = [everything[start : start + 8] for start in range(0, len(everything), 8)]
    expected = np.concatenate([run(model, x=piece)[0] for piece in pieces])
    assert np.isfinite(expected).all()
    naive = plain(model, monkeypatch)
    assert error(np.concatenate([emulate(naive, x=piece) for piece in pieces]), expected) > 0.1
    assert error(np.concatenate([emulate(converted.model, x=piece) for piece in pieces]), expected) < share
    return dict(converted.kept)


def values(scale: float = 1.0) -> np.ndarray:
    return (np.random.default_rng(0).normal(size=(8, 16)) * scale).astype(np.float32)


def variance(source: str = "t") -> list[NodeProto]:
    return [node("Mul", [source, source], "q"), node("ReduceMean", ["q", "last"], "v")]


NORM = node("ReduceL2", ["t", "last"], "n")
WIDE = {"wide": np.array([8, 16])}
EPSILONS = {
    "Add before Sqrt and Div": (
        [*variance(), node("Add", ["v", "e"], "a"), node("Sqrt", ["a"], "s"), node("Div", ["t", "s"], "y")],
        {"e": EPS},
    ),
    "Add before Pow(-0.5)": (
        [*variance(), node("Add", ["e", "v"], "a"), node("Pow", ["a", "p"], "r"), node("Mul", ["t", "r"], "y")],
        {"e": TINY, "p": np.float32(-0.5)},
    ),
    "Add before Sqrt and Reciprocal": (
        [
            *variance(),
            *(node("Add", ["v", "e"], "a"), node("Sqrt", ["a"], "s"), node("Reciprocal", ["s"], "r")),
            node("Mul", ["r", "g"], "k"),
            node("Mul", ["t", "k"], "y"),
        ],
        {"e": TINY, "g": np.float32(2)},
    ),
    "Add before Log": (
        [node("Abs", ["t"], "m"), node("Add", ["m", "e"], "a"), node("Log", ["a"], "y")],
        {"e": EPS},
    ),
    "Add of 1e-7 behind Sqrt": (
        [*variance(), node("Sqrt", ["v"], "s"), node("Add", ["s", "e"], "a"), node("Div", ["t", "a"], "y")],
        {"e": np.float32(1e-9)},
    ),
    "Clip before Expand and Div": (
        [NORM, node("Clip", ["n", "e"], "c"), node("Expand", ["c", "wide"], "w"), node("Div", ["t", "w"], "y")],
        {"e": TINY, **WIDE},
    ),
    "Where before Sqrt and Div": (
        [
            *(*variance(), node("Greater", ["v", "none"], "g"), node("Where", ["g", "v", "e"], "a")),
            *(node("Sqrt", ["a"], "s"), node("Div", ["t", "s"], "y")),
        ],
        {"e": EPS, "none": np.float32(0)},
    ),
    "Max before Div": ([NORM, node("Max", ["n", "e"], "c"), node("Div", ["t", "c"], "y")], {"e": EPS}),
}


@pytest.mark.parametrize("name", EPSILONS)
def test_an_epsilon_that_would_vanish(name: str, monkeypatch: pytest.MonkeyPatch):
    """Calibration has seen no row of zeros, which the epsilon is there for."""
    nodes, constants = EPSILONS[name]
    kept = judge(network(nodes, constants), values(), np.zeros((8, 16), np.float32), monkeypatch)
    assert len(kept) < len(nodes) + 1  # not everything


@pytest.mark.parametrize("epsilon", [1e-3, 1e-5, 1e-6])
def test_an_epsilon_that_fp16_holds_keeps_nothing_in_fp32(epsilon: float):
    nodes, _ = EPSILONS["Add before Sqrt and Div"]
    model = network(nodes, {"e": np.float32(epsilon)})
    assert to_fp16(model, measured_ranges(model, x=values())).kept == {}


PLANES = [node("Reshape", ["t", "planes"], "r"), node("Reshape", ["i", "rows"], "y")]
ONES = {"one": np.ones(16, np.float32), "zero": np.zeros(16, np.float32)}
ATTRIBUTES = {
    "LayerNormalization 1e-12": ([node("LayerNormalization", ["t", "one", "zero"], "y", epsilon=1e-12)], ONES),
    "LayerNormalization 1e-8": ([node("LayerNormalization", ["t", "one"], "y", epsilon=1e-8)], ONES),
    "InstanceNormalization 1e-9": (
        [PLANES[0], node("InstanceNormalization", ["r", "s", "b"], "i", epsilon=1e-9), PLANES[1]],
        {
            **{"planes": np.array([8, 4, 2, 2]), "rows": np.array([8, 16])},
            **{"s": np.ones(4, np.float32), "b": np.zeros(4, np.float32)},
        },
    ),
    "BatchNormalization 1e-9": (
        [node("BatchNormalization", ["t", "small", "zero", "zero", "zero"], "y", epsilon=1e-9)],
        {**ONES, "small": np.full(16, 1e-3, np.float32)},
    ),
    "MeanOfSquares 1e-10": (
        [*variance(), node("Max", ["v", "e"], "a"), node("Sqrt", ["a"], "s"), node("Div", ["t", "s"], "y")],
        {"e": np.float32(1e-10)},
    ),
}


@pytest.mark.parametrize("name", ATTRIBUTES)
def test_an_epsilon_in_an_attribute(name: str, monkeypatch: pytest.MonkeyPatch):
    nodes, constants = ATTRIBUTES[name]
    judge(network(nodes, constants), values(), np.zeros((8, 16), np.float32), monkeypatch)


@pytest.mark.parametrize("entry", [1e-7, 8.9e-8, 1.5e-8])
def test_a_divisor_with_one_tiny_entry(entry: float, monkeypatch: pytest.MonkeyPatch):
    divisor, seen = np.ones(16, np.float32), values()
    divisor[3] = entry
    seen[:, 3] = np.float32(entry) * np.linspace(1000, 2000, 8)
    kept = judge(network([node("Div", ["t", "d"], "y")], {"d": divisor}), seen, seen[:0], monkeypatch)
    assert "n_y" in kept


SQUARES = {
    "ReduceL2 of 300": ([NORM, node("Div", ["t", "n"], "y")], 300.0),
    "ReduceL2 of 1e-4": ([NORM, node("Div", ["t", "n"], "y")], 1e-4),
    "ReduceSumSquare of 1e-4": (
        [node("ReduceSumSquare", ["t", "last"], "n"), node("Sqrt", ["n"], "s"), node("Div", ["t", "s"], "y")],
        1e-4,
    ),
    "Mul of 3e-4": ([*variance(), node("Sqrt", ["v"], "s"), node("Div", ["t", "s"], "y")], 3e-4),
    "Pow of 300": (
        [
            *(node("Pow", ["t", "two"], "q"), node("ReduceMean", ["q", "last"], "v")),
            *(node("Sqrt", ["v"], "s"), node("Div", ["t", "s"], "y")),
        ],
        300.0,
    ),
    "LpNormalization of 300": ([node("LpNormalization", ["t"], "y", axis=-1)], 300.0),
    "LpNormalization of 1e-4": ([node("LpNormalization", ["t"], "y", axis=-1)], 1e-4),
    "LayerNormalization of 300": ([node("LayerNormalization", ["t", "one"], "y", epsilon=1e-6)], 300.0),
}


@pytest.mark.parametrize("name", SQUARES)
def test_squares_that_do_not_fit(name: str, monkeypatch: pytest.MonkeyPatch):
    """The input of the operator, and its output, are FP16 numbers."""
    nodes, scale = SQUARES[name]
    seen = values(scale)
    judge(network(nodes, {**ONES, "two": np.float32(2)}), seen, seen[:0], monkeypatch)


def test_small_rows_among_large_ones_are_seen(monkeypatch: pytest.MonkeyPatch):
    seen = values() * np.float32([1, 1, 1, 1, 1, 1, 1e-4, 1])[:, None]
    seen[:, 0] = 0  # so that no smallest value shows it
    nodes = [*variance(), node("Sqrt", ["v"], "s"), node("Div", ["t", "s"], "y")]
    kept = judge(network(nodes, {}), seen, seen[:0], monkeypatch)
    assert "the mean of the squares q goes down to" in kept["n_q"]


@pytest.mark.parametrize(
    ("kind", "seen", "unseen"),
    [("Softplus", 9, 12), ("Softplus", 11.5, 11.5), ("ReduceLogSumExp", 9, 12), ("ReduceLogSumExp", 0, -20)],
)
def test_exponentials_near_the_ends_of_the_range(
    kind: str, seen: float, unseen: float, monkeypatch: pytest.MonkeyPatch
):
    """Input and output are small numbers; the exponentials inside are not, or are too small."""
    last = node(kind, ["t", "last"], "y") if kind == "ReduceLogSumExp" else node(kind, ["t"], "y")
    given = np.clip(values(3), -9, 9) + np.float32(seen - 9)
    given[0] = seen if unseen > 0 else unseen
    judge(network([last], {}), given, np.full((8, 16), unseen, np.float32), monkeypatch)


@pytest.mark.parametrize("largest", [1e-6, 1e-7, 3e-8])
def test_weights_of_one_output_that_fp16_holds_with_few_digits(largest: float, monkeypatch: pytest.MonkeyPatch):
    weight = values().T @ values()
    weight[:, 5] *= largest / np.abs(weight[:, 5]).max()
    seen = values(50)
    model = network([node("MatMul", ["t", "w"], "y")], {"w": weight})
    converted = to_fp16(model, measured_ranges(model, x=seen))
    assert "weights of output 5 are at most" in converted.kept["n_y"]
    expected = run(model, x=seen)[0][:, 5]
    made, naive = (emulate(each, x=seen)[:, 5] for each in (converted.model, plain(model, monkeypatch)))
    assert np.abs(made - expected).max() < 0.01 * np.abs(expected).max() < np.abs(naive - expected).max()


@pytest.mark.parametrize(("largest", "bias"), [(0.0, None), (1e-12, None), (1e-7, 1.0)])
def test_dead_weights_keep_nothing_in_fp32(largest: float, bias: float | None):
    weight = values().T @ values()
    weight[:, 5] *= largest / np.abs(weight[:, 5]).max()
    extra = {} if bias is None else {"b": np.full(16, bias, np.float32)}
    model = network([node("Gemm", ["t", "w", *extra], "y")], {"w": weight, **extra})
    assert to_fp16(model, measured_ranges(model, x=values())).kept == {}
