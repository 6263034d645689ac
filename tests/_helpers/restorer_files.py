"""Third-party restorers whose sides cannot be opened: their middle needs one size."""

from __future__ import annotations

import numpy as np

from _helpers.graphs import graph, node

SIDE, WIDTH, SCALE, CHANNELS = 16, 24, 2, 16
RNG = np.random.default_rng(0)


def fixed_restorer(kind, *, batch=1):
    """A convolution, a middle that needs one size, and a pixel shuffle."""
    rng = np.random.default_rng(3)
    values = {
        "w": rng.normal(0, 0.2, (CHANNELS, 3, 3, 3)).astype(np.float32),
        "v": rng.normal(0, 0.05, (3 * SCALE**2, CHANNELS, 3, 3)).astype(np.float32),
        "half": np.full(3 * SCALE**2, 0.5, np.float32),
    }
    start = [node("Conv", ["input", "w"], "a", pads=[1] * 4), node("Relu", ["a"], "b")]
    middle, more = {**MIDDLES, **REFUSED}[kind](batch)
    end = [node("Conv", ["m", "v", "half"], "d", pads=[1] * 4), node("DepthToSpace", ["d"], "e", blocksize=SCALE)]
    last = node("Add", ["e", "skip"], "output") if kind == "skip" else node("Identity", ["e"], "output")
    return graph(
        [*start, *middle, *end, last],
        {"input": [batch, 3, SIDE, WIDTH]},
        {"output": [batch, 3, SCALE * SIDE, SCALE * WIDTH]},
        {**values, **more},
        opset=18,
        ir=8,
    )


def windows(batch):
    """Attention in windows of 8 x 8, as in SwinIR."""
    rows, columns = SIDE // 8, WIDTH // 8
    shapes = {
        "s1": [batch, CHANNELS, rows, 8, columns, 8],
        "s2": [batch * rows * columns, 64, CHANNELS],
        "s3": [batch, rows, columns, 8, 8, CHANNELS],
        "s4": [batch, CHANNELS, SIDE, WIDTH],
    }
    nodes = [
        node("Reshape", ["b", "s1"], "t1"),
        node("Transpose", ["t1"], "t2", perm=[0, 2, 4, 3, 5, 1]),
        node("Reshape", ["t2", "s2"], "t3"),
        node("Transpose", ["t3"], "t4", perm=[0, 2, 1]),
        node("MatMul", ["t3", "t4"], "scores"),
        node("Softmax", ["scores"], "p", axis=-1),
        node("MatMul", ["p", "t3"], "t5"),
        node("Reshape", ["t5", "s3"], "t6"),
        node("Transpose", ["t6"], "t7", perm=[0, 5, 1, 3, 2, 4]),
        node("Reshape", ["t7", "s4"], "m"),
    ]
    return nodes, {name: np.int64(shape) for name, shape in shapes.items()}


def channel_attention(batch):
    nodes = [
        node("GlobalAveragePool", ["b"], "g"),
        node("Sigmoid", ["g"], "s"),
        node("Mul", ["b", "s"], "t"),
        node("Reshape", ["t", "shape"], "m"),
    ]
    return nodes, {"shape": np.int64([batch, CHANNELS, SIDE, WIDTH])}


def tokens(batch):
    """A product over all pixels, whose weight has one size."""
    nodes = [
        node("Reshape", ["b", "flat"], "t1"),
        node("MatMul", ["t1", "mix"], "t2"),
        node("Reshape", ["t2", "shape"], "m"),
    ]
    values = {
        "flat": np.int64([batch, CHANNELS, SIDE * WIDTH]),
        "mix": (np.eye(SIDE * WIDTH) + RNG.normal(0, 0.005, (SIDE * WIDTH, SIDE * WIDTH))).astype(np.float32),
        "shape": np.int64([batch, CHANNELS, SIDE, WIDTH]),
    }
    return nodes, values


def skip(batch):
    size = np.int64([batch, 3, SCALE * SIDE, SCALE * WIDTH])
    return [node("Identity", ["b"], "m"), node("Resize", ["input", "", "", "size"], "skip", mode="cubic")], {
        "size": size
    }


def position(batch):
    return [node("Add", ["b", "p"], "m")], {"p": RNG.normal(0, 0.1, (1, CHANNELS, SIDE, WIDTH)).astype(np.float32)}


def constants(batch):
    values = RNG.normal(0, 0.1, (batch, CHANNELS, SIDE, WIDTH)).astype(np.float32)
    return [node("Add", ["b", "p"], "m")], {"p": values}


MIDDLES = {
    "windows": windows,
    "channel attention": channel_attention,
    "tokens": tokens,
    "skip": skip,
    "position": position,
}
REFUSED = {"a constant for each": constants}
