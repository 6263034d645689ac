"""Networks whose INT8 scales are small beside the numbers of FP16."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import onnx

from _helpers.graphs import graph, node

CHANNEL = 5
"""The output of ``channel`` with small weights."""


def _normal(*shape: int) -> np.ndarray:
    return np.random.default_rng(sum(shape)).normal(size=shape).astype(np.float32)


def activations(size: float, *, after: float = 1.0) -> onnx.ModelProto:
    """Return two convolutions, the second of weights around ``after``; the tensor between them goes up to ``size``."""
    first, second = _normal(16, 16, 3, 3), _normal(16, 16, 3, 3) * np.float32(after / 12)
    nodes = [
        node("Conv", ["x", "w1"], "c", pads=[1, 1, 1, 1]),
        node("Relu", ["c"], "r"),
        node("Conv", ["r", "w2"], "y", pads=[1, 1, 1, 1]),
    ]
    first *= np.float32(size / 45)  # 45 to 50: what the first convolution reaches on normal numbers
    return graph(nodes, {"x": ["n", 16, 8, 8]}, {"y": None}, {"w1": first, "w2": second})


def channel(size: float, *, bias: float | None = None, hidden: bool = False) -> onnx.ModelProto:
    """Return a convolution of which one output has weights up to ``size``, and perhaps another one behind it."""
    weight = _normal(16, 16, 3, 3)
    weight[CHANNEL] *= np.float32(size) / np.abs(weight[CHANNEL]).max()
    values = {"w1": weight, **({} if bias is None else {"b": np.full(16, bias, np.float32)})}
    last = "c" if hidden else "y"
    nodes = [node("Conv", ["x", *values], last, pads=[1, 1, 1, 1])]
    if hidden:
        nodes += [node("Relu", ["c"], "r"), node("Conv", ["r", "w2"], "y")]
        values["w2"] = _normal(16, 16, 1, 1)
    return graph(nodes, {"x": ["n", 16, 8, 8]}, {"y": None}, values)


def shared(size: float) -> onnx.ModelProto:
    """Return a tensor that two convolutions and an addition read; one of the convolutions has a small channel."""
    small = _normal(16, 16, 1, 1)
    small[CHANNEL] *= np.float32(size) / np.abs(small[CHANNEL]).max()
    nodes = [
        node("Conv", ["x", "w0"], "r"),
        node("Conv", ["r", "w1"], "a"),
        node("Conv", ["r", "w2"], "b"),
        node("Add", ["b", "r"], "s"),
        node("Concat", ["a", "s"], "y", axis=1),
    ]
    values = {"w0": _normal(16, 16, 1, 1), "w1": small, "w2": _normal(16, 16, 1, 1)}
    return graph(nodes, {"x": ["n", 16, 8, 8]}, {"y": None}, values)


SMALL: dict[str, Callable[[], onnx.ModelProto]] = {
    **{f"activations of {size:g}": lambda size=size: activations(size) for size in (1e-3, 2e-4, 1e-5, 1e-6)},
    "activations of 1e-3, weights of 1e3": lambda: activations(1e-3, after=1e3),
    **{f"one output's weights of {size:g}": lambda size=size: channel(size) for size in (4e-3, 1e-4, 1e-6, 1e-8)},
    **{f"a shared tensor, weights of {size:g}": lambda size=size: shared(size) for size in (4e-3, 1e-5)},
}
DEAD: dict[str, Callable[[], onnx.ModelProto]] = {
    "zeros": lambda: channel(0.0),
    "1e-20": lambda: channel(1e-20),
    "1e-12": lambda: channel(1e-12),
    "1e-7 beside a bias": lambda: channel(1e-7, bias=2.0),
    "1e-5 that INT8 hides": lambda: channel(1e-5, hidden=True),
}


def batch() -> np.ndarray:
    return np.random.default_rng(1).normal(size=(8, 16, 8, 8)).astype(np.float32)
