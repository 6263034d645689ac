"""Channels whose weights may be rounded coarsely: it changes nothing. The network itself is the judge."""

from __future__ import annotations

import numpy as np
import onnx
import pytest
from onnx import NodeProto, numpy_helper

from _helpers.graphs import constants, graph, measured_ranges, named, node, run
from krl_deploy.graph.edit import GraphEditor
from krl_deploy.precision.insensitive_channels import InsensitiveChannels

CHANNEL, STEP = 5, 2.0**-19


def normal(*shape: int) -> np.ndarray:
    return np.random.default_rng(sum(shape)).normal(size=shape).astype(np.float32)


X = normal(4, 16, 6, 6)
DENSE = node("Conv", ["r", "w2"], "y")
POOLED = [
    node("ReduceMean", ["r", "plane"], "m", keepdims=0),
    node("Gemm", ["m", "w3"], "y"),
]
BEHIND: dict[str, list[NodeProto]] = {
    "Relu and a convolution": [node("Relu", ["c"], "r"), DENSE],
    "an addition": [node("Add", ["c", "x"], "r"), DENSE],
    "two readers": [
        node("Relu", ["c"], "r"),
        node("Conv", ["r", "w2"], "a"),
        *POOLED[:1],
        node("Gemm", ["m", "w3"], "b"),
        *(node("Flatten", ["a"], "f"), node("ReduceMax", ["f", "last"], "g"), node("Add", ["b", "g"], "y")),
    ],
    "a mean and a product": [node("HardSwish", ["c"], "r"), *POOLED],
    "a depthwise convolution": [node("Conv", ["c", "wd"], "r", group=16, pads=[1, 1, 1, 1]), DENSE],
    "a gate": [node("Sigmoid", ["c"], "s"), node("Mul", ["c", "s"], "r"), DENSE],
    "padded channels": [
        *(node("Slice", ["c", "zero", "end", "two"], "h"), node("Pad", ["h", "pads"], "r")),
        node("Conv", ["r", "wide"], "y"),
    ],
    "joined channels": [node("Concat", ["x", "c"], "r", axis=1), node("Conv", ["r", "wide"], "y")],
    "nothing": [node("Identity", ["c"], "y")],
    "a normalization": [node("InstanceNormalization", ["c", "one", "none"], "r"), DENSE],
    "weights that enlarge it": [node("Relu", ["c"], "r"), node("Conv", ["r", "enlarging"], "y")],
    "a depthwise convolution that enlarges it": [node("Conv", ["c", "large"], "r", group=16), DENSE],
    "a factor that enlarges it": [node("Mul", ["c", "factor"], "r"), DENSE],
}
HEARD = ("nothing", "a normalization", *(name for name in BEHIND if "enlarge" in name))


def network(name: str, size: float) -> onnx.ModelProto:
    weight, enlarging, large = normal(16, 16, 3, 3), normal(16, 16, 1, 1), normal(16, 1, 1, 1)
    weight[CHANNEL] *= np.float32(size) / np.abs(weight[CHANNEL]).max()
    enlarging[:, CHANNEL] *= 1e5
    large[CHANNEL] = 1e5
    values = {
        **{"w1": weight, "w2": normal(16, 16, 1, 1), "w3": normal(16, 16), "wd": normal(16, 1, 3, 3)},
        **{"wide": normal(16, 32, 1, 1), "enlarging": enlarging, "large": large},
        **{"one": np.ones(16, np.float32), "none": np.zeros(16, np.float32), "factor": np.float32(1e5)},
        **{"plane": np.array([2, 3]), "last": np.array([1]), "zero": np.array([0]), "two": np.array([2])},
        **{"end": np.array([3]), "pads": np.array([0, 8, 0, 0, 0, 8, 0, 0])},
    }
    if name == "a factor that enlarges it":
        values["factor"] = np.where(np.arange(16) == CHANNEL, 1e5, 1).astype(np.float32).reshape(16, 1, 1)
    nodes = [node("Conv", ["x", "w1"], "c", pads=[1, 1, 1, 1]), *BEHIND[name]]
    used = {source for item in nodes for source in item.input}
    return graph(nodes, {"x": ["n", 16, 6, 6]}, {"y": None}, {k: v for k, v in values.items() if k in used})


def rounded(model: onnx.ModelProto) -> onnx.ModelProto:
    """Return the model with the small channel's weights in multiples of the step."""
    made = onnx.ModelProto()
    made.CopyFrom(model)
    weight = constants(model)["w1"].copy()
    weight[CHANNEL] = np.rint(weight[CHANNEL] / STEP) * STEP
    for tensor in made.graph.initializer:
        if tensor.name == "w1":
            tensor.CopyFrom(numpy_helper.from_array(weight, "w1"))
    return made


@pytest.mark.parametrize("name", BEHIND)
@pytest.mark.parametrize("size", [1e-4, 1e-6, 1e-9])
def test_what_counts_as_insensitive_is(name: str, size: float):
    model = network(name, size)
    editor, ranges = GraphEditor(model), measured_ranges(model, x=X)
    insensitive = InsensitiveChannels(editor, ranges).of(named(model, "n_c"), 0, STEP)[CHANNEL]
    expected = run(model, x=X)[0]
    share = np.abs(run(rounded(model), x=X)[0] - expected).max() / np.abs(expected).max()
    assert share < 2.0**-11 or not insensitive
    if size > 1e-9:
        assert insensitive == (name not in HEARD)


@pytest.mark.parametrize("name", [name for name in BEHIND if "enlarge" in name])
def test_a_small_channel_that_is_enlarged_matters(name: str):
    """The planted networks are not vacuous: coarse rounding does change them."""
    model = network(name, 1e-5)
    expected = run(model, x=X)[0]
    assert np.abs(run(rounded(model), x=X)[0] - expected).max() > 0.01 * np.abs(expected).max()


def test_without_ranges_only_zeros_are_insensitive():
    for size, zeros in ((1e-6, []), (0.0, [CHANNEL])):
        model = network("Relu and a convolution", size)
        found = InsensitiveChannels(GraphEditor(model), {}).of(named(model, "n_c"), 0, STEP)
        assert np.flatnonzero(found).tolist() == zeros
