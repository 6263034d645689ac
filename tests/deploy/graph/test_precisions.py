"""The type of each operator, in graphs that are written by hand."""

import numpy as np
import pytest

from _helpers.graphs import graph, node
from krl_deploy.graph.precisions import count_precisions

SCALE = {"s": np.float32(0.1), "z": np.int8(0), "w": np.ones((4, 4), np.int8), "v": np.ones((4, 4), np.float32)}


def pair(source, target):
    return [
        node("QuantizeLinear", [source, "s", "z"], f"{target}_q"),
        node("DequantizeLinear", [f"{target}_q", "s", "z"], target),
    ]


WEIGHT = [node("DequantizeLinear", ["w", "s", "z"], "wd")]


@pytest.mark.parametrize(
    ("nodes", "counts"),
    [
        ([node("MatMul", ["x", "v"], "y")], {"fp32": 1}),
        ([*pair("x", "d"), *WEIGHT, node("MatMul", ["d", "wd"], "y")], {"int8": 1}),
        ([*WEIGHT, node("MatMul", ["x", "wd"], "y")], {"fp32": 1}),  # a quantized weight alone
        ([*pair("x", "d"), node("MatMul", ["d", "v"], "y")], {"fp32": 1}),  # and a quantized activation alone
        (
            [*pair("x", "d"), *WEIGHT, node("MatMul", ["d", "wd"], "m"), node("Relu", ["m"], "y")],
            {"int8": 1, "fp32": 1},
        ),
        ([*pair("x", "d"), node("Relu", ["d"], "r"), *pair("r", "y")], {"int8": 1}),  # between two pairs
        ([*pair("x", "d"), node("Relu", ["d"], "y")], {"fp32": 1}),
        ([*pair("x", "d"), node("Add", ["d", "x"], "r"), *pair("r", "y")], {"fp32": 1}),  # one of two values
        (
            [
                node("Cast", ["x"], "h", to=10),
                node("Relu", ["h"], "r"),
                node("Sigmoid", ["r"], "t"),
                node("Cast", ["t"], "f", to=1),
                node("Flatten", ["f"], "g"),
                node("Relu", ["g"], "y"),
            ],
            {"fp16": 2, "fp32": 1},
        ),
        ([node("DynamicQuantizeLinear", ["x"], "q"), node("Relu", ["x"], "y")], {"int8": 1, "fp32": 1}),
    ],
)
def test_each_operator(nodes, counts):
    for item in nodes:
        if item.op_type == "DynamicQuantizeLinear":
            item.output.extend(["qs", "qz"])
    used = {name for item in nodes for name in item.input}
    constants = {name: value for name, value in SCALE.items() if name in used}
    model = graph(nodes, {"x": [1, 4]}, {"y": None}, constants)
    assert count_precisions(model) == {"int8": 0, **counts}
