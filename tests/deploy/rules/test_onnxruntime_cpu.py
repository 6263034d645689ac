"""ONNX Runtime's CPU provider."""

from __future__ import annotations

from collections import defaultdict

import numpy as np
import pytest
from onnx import TensorProto, helper

from _helpers.graphs import graph, node
from _helpers.planted import block, findings, normal, of_rule
from krl_deploy.precision.emit_cpu import to_cpu
from krl_deploy.rules.bugs import unknown_without_gpu
from krl_deploy.rules.targets import ONNXRUNTIME_CPU, parse_target


def floats():
    nodes = [
        node("Conv", ["x", "w0", "b0"], "c", pads=[1, 1, 1, 1]),
        node("Relu", ["c"], "r"),
        node("Conv", ["r", "w1", "b1"], "y", pads=[1, 1, 1, 1]),
    ]
    weights = {"w0": normal(16, 3, 3, 3), "w1": normal(16, 16, 3, 3), "b0": normal(16), "b1": normal(16)}
    return graph(nodes, {"x": ["batch", 3, 8, 8]}, {"y": None}, weights)


def test_our_own_forms_have_no_finding():
    ranges = defaultdict(lambda: (-1.0, 1.0))
    assert findings(floats(), ONNXRUNTIME_CPU) == []
    assert findings(to_cpu(floats(), ranges).model, ONNXRUNTIME_CPU) == []


@pytest.mark.parametrize(
    ("half", "rules"),
    [
        (False, {"cpu/int8-activations", "cpu/float-convolutions"}),
        (True, {"cpu/int8-activations", "cpu/fp16-scales", "cpu/float-convolutions"}),
    ],
)
def test_the_form_for_tensorrt_is_slow_there(half, rules):
    found = findings(block(half=half), ONNXRUNTIME_CPU)
    assert {finding.rule for finding in found} == rules
    assert {finding.severity for finding in found} == {"warning"}


def test_what_onnx_runtime_does_not_open():
    """BF16 convolutions: ONNX defines them from opset 22 on, ONNX Runtime's CPU provider has none."""
    weight = helper.make_tensor("w", TensorProto.BFLOAT16, [4, 3, 1, 1], np.zeros(12))
    values = [
        helper.make_tensor_value_info(name, TensorProto.BFLOAT16, ["n", channels, 4, 4])
        for name, channels in (("x", 3), ("y", 4))
    ]
    shell = helper.make_graph([node("Conv", ["x", "w"], "y")], "g", values[:1], values[1:], [weight])
    model = helper.make_model(shell, opset_imports=[helper.make_opsetid("", 22)], ir_version=10)
    (found,) = findings(model, ONNXRUNTIME_CPU)
    assert (found.severity, found.rule) == ("error", "cpu/opens")
    assert "ONNX Runtime does not open it" in found.why
    assert of_rule(floats(), "cpu/opens", ONNXRUNTIME_CPU) == []


def test_what_stays_unknown_depends_on_target_and_model():
    board = unknown_without_gpu(parse_target("jetpack-6.2"), quantized=True)
    assert any("the accuracy of INT8 on the device" in line for line in board)
    assert any("DLA" in line for line in board)
    thor = unknown_without_gpu(parse_target("jetpack-7.1"), quantized=False)
    assert not any("DLA" in line or "INT8" in line for line in thor)
    processor = unknown_without_gpu(parse_target(ONNXRUNTIME_CPU), quantized=True)
    assert not any("TensorRT" in line for line in processor)
