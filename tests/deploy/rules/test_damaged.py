"""Damaged models: findings or a clean refusal, whatever stands in them."""

from __future__ import annotations

import random

import numpy as np
import onnx
import pytest
from onnx import numpy_helper

from _helpers.planted import block, transformer
from krl_deploy.rules.report import as_text
from krl_deploy.rules.run import check_file
from krl_deploy.rules.targets import parse_target
from krl_runtime.errors import KrlError

OPERATORS = ("Attention", "Cast", "Concat", "Conv", "DequantizeLinear", "GridSample", "MatMul", "MaxPool", "Nope",
             "Pad", "QuantizeLinear", "ReduceMean", "Relu", "Resize", "Softmax", "TopK", "Transpose")  # fmt: skip
VALUES = (0, -1, 5, -100, 1.5, "x", b"\xff", [1, 2], [0.5], ["a"])
ARRAYS = (np.zeros((), np.int8), np.zeros(0, np.float32), np.float32([np.nan]), np.ones((2, 2), np.uint8),
          np.array(["a"], object), np.ones(1, np.complex64), np.array(True), np.int64(2**62))  # fmt: skip


def damage(model: onnx.ModelProto, rng: random.Random) -> None:
    graph = model.graph
    node, tensor = rng.choice(graph.node), rng.choice(graph.initializer)
    border = rng.choice([*graph.input, *graph.output])
    tensors = [
        "",
        "nope",
        *(item.name for item in graph.initializer),
        *(name for item in graph.node for name in item.output),
    ]
    match rng.randrange(9):
        case 0:
            node.input[rng.randrange(len(node.input))] = rng.choice(tensors)
        case 1 if node.attribute:
            item = rng.choice(node.attribute)
            item.CopyFrom(onnx.helper.make_attribute(item.name, rng.choice(VALUES)))
        case 2 if node.attribute:
            del node.attribute[0]
        case 3:
            del node.input[-1]
        case 4:
            node.op_type = rng.choice(OPERATORS)
        case 5:
            tensor.CopyFrom(numpy_helper.from_array(rng.choice(ARRAYS), tensor.name))
        case 6:
            border.type.tensor_type.elem_type = rng.choice([0, 2, 3, 7, 10, 11, 16, 23, 99])
        case 7:
            border.type.tensor_type.ClearField("shape")
        case _:
            model.opset_import[0].version = rng.choice([1, 9, 13, 18, 22, 25, 99])


@pytest.mark.parametrize("seed", range(4))
def test_nothing_but_findings_and_errors_of_krl(tmp_path, seed):
    rng = random.Random(seed)
    originals = [block(), block(half=True), transformer(), transformer(half=False)]
    path, target = tmp_path / "m.onnx", parse_target("jetpack-7.2")
    refused = 0
    for _ in range(100):
        model = onnx.ModelProto()
        model.CopyFrom(rng.choice(originals))
        try:
            damage(model, rng)
        except (IndexError, ValueError):  # there was nothing to damage
            continue
        path.write_bytes(model.SerializeToString())
        try:
            checked = check_file(path, target)
            assert as_text([checked], target, [])
        except KrlError:
            refused += 1
    assert 0 < refused < 100
