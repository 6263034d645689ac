"""Known bugs: said for the versions and graphs that they are about, and for no other."""

from __future__ import annotations

import numpy as np
import pytest

from _helpers.graphs import graph, node
from _helpers.planted import block, normal, of_rule, transformer


@pytest.mark.parametrize(
    ("model", "rule", "concerned", "others"),
    [
        (
            transformer(),
            "bugs/transformer-10.3",
            ["jetpack-6.2", "tensorrt-10.3", "tensorrt-10.4"],
            ["tensorrt-10.5", "jetpack-7.2", "tensorrt-11.4"],
        ),
        (transformer(), "bugs/attention-sm120", ["tensorrt-10.16"], ["jetpack-7.2", "tensorrt-10.13", "tensorrt-11.4"]),
        (block(), "bugs/int8-orin", ["jetpack-7.2"], ["jetpack-6.2", "jetpack-7.1", "tensorrt-10.16"]),
    ],
)
def test_by_version_and_board(model, rule, concerned, others):
    for target in concerned:
        assert {finding.severity for finding in of_rule(model, rule, target)} == {"warning"}, target
    for target in others:
        assert of_rule(model, rule, target) == [], target


def test_graphs_without_what_a_bug_is_about():
    assert of_rule(block(half=True), "bugs/transformer-10.3", "jetpack-6.2") == []
    assert of_rule(transformer(half=False), "bugs/attention-sm120", "tensorrt-10.16") == []
    assert of_rule(transformer(layers=False), "bugs/int8-orin", "jetpack-7.2") == []


def sampler(mode, opset):
    return graph(
        [node("GridSample", ["x", "g"], "y", mode=mode)], {"x": ["n", 3, 8, 8], "g": ["n", 4, 4, 2]}, {"y": None},
        opset=opset,
    )  # fmt: skip


@pytest.mark.parametrize(("target", "severity"), [("tensorrt-10.13", "error"), ("tensorrt-11.4", "warning")])
def test_grid_sample_by_the_names_of_opset_20(target, severity):
    assert [found.severity for found in of_rule(sampler("linear", 20), "bugs/grid-sample", target)] == [severity]
    assert of_rule(sampler("nearest", 20), "bugs/grid-sample", target) == []
    assert of_rule(sampler("bilinear", 18), "bugs/grid-sample", target) == []


def test_a_shortcut_that_is_also_a_part_of_a_concatenation():
    def model(part):
        constants = {"w": normal(8, 8, 3, 3).astype(np.float16)}
        nodes = [
            node("Conv", ["x", "w"], "c", pads=[1, 1, 1, 1]),
            node("Relu", ["c"], "r"),
            node("Add", ["r", "x"], "a"),
            node("Concat", [part, "a"], "y", axis=1),
        ]
        types = {"x": "float16", "y": "float16"}
        return graph(nodes, {"x": ["n", 8, 8, 8]}, {"y": None}, constants, dtypes=types)

    assert [found.node for found in of_rule(model("x"), "bugs/strided-shortcut", "tensorrt-11.2")] == ["n_a"]
    assert of_rule(model("c"), "bugs/strided-shortcut", "tensorrt-11.2") == []
    assert of_rule(model("x"), "bugs/strided-shortcut", "tensorrt-11.4") == []


def test_transposed_convolutions_in_int8():
    model = graph(
        [node("ConvTranspose", ["x", "w"], "y")], {"x": ["n", 32, 4, 4]}, {"y": None}, {"w": normal(32, 16, 2, 2)}
    )
    assert of_rule(model, "bugs/int8-deconvolution") == []
    nodes = [
        node("QuantizeLinear", ["x", "s", "z"], "q"),
        node("DequantizeLinear", ["q", "s", "z"], "d"),
        node("DequantizeLinear", ["w", "ws", "wz"], "dw", axis=1),
        node("ConvTranspose", ["d", "dw"], "y"),
    ]
    constants = {"s": np.float32(0.1), "z": np.int8(0), "w": np.ones((32, 16, 2, 2), np.int8)}
    constants |= {"ws": np.full(16, 0.1, np.float32), "wz": np.zeros(16, np.int8)}
    quantized = graph(nodes, {"x": ["n", 32, 4, 4]}, {"y": None}, constants)
    (found,) = of_rule(quantized, "bugs/int8-deconvolution")
    assert (found.severity, found.node) == ("warning", "n_y")
    assert of_rule(quantized, "qdq/thin") == []
