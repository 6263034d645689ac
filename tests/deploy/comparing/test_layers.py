"""One wrong layer of fifty, planted in either network, in each precision and in each place."""

from __future__ import annotations

import numpy as np
import onnx
import pytest
from onnx import numpy_helper

from _helpers.graphs import measured_ranges
from _helpers.planted_nets import SIDE, Net
from krl_deploy.comparing.measuring import find_first, measure_layers
from krl_deploy.comparing.sides import Pair, Side
from krl_deploy.graph.cleanup import clean
from krl_deploy.precision.emit_cpu import to_cpu
from krl_deploy.precision.emit_fp16 import to_fp16
from krl_deploy.precision.emit_tensorrt import to_tensorrt

LIMITS = {"fp32": 60.0, "fp16": 30.0, "int8": 10.0, "int8.fp32": 10.0, "int8.cpu": 10.0}
CONVOLUTIONS = 50
PIXELS = np.random.default_rng(5).integers(0, 256, (6, 3, SIDE, SIDE), np.uint8)


def fifty_layers() -> onnx.ModelProto:
    """Blocks of two 3×3 convolutions and a shortcut, with a pooling on the way: 50 convolutions."""
    rng = np.random.default_rng(7)
    net = Net()

    def conv(name: str, channels: int, scale: float = 1.0) -> str:
        weight = rng.normal(0, scale * np.sqrt(2 / 9 / channels), (16, channels, 3, 3))
        return net.conv(name, weight, rng.normal(0, 0.05, 16), pads=[1, 1, 1, 1])

    conv("conv00", 3)
    stream = net.add("Relu", "conv00")
    for index in range(1, CONVOLUTIONS - 1, 2):
        conv(f"conv{index:02d}", 16)
        net.add("Relu", f"conv{index:02d}")
        conv(f"conv{index + 1:02d}", 16, 0.3)
        added = net.add("Add", f"conv{index + 1:02d}", stream)
        stream = net.add("Relu", added)
        if index == 21:
            stream = net.add("MaxPool", stream, kernel_shape=[2, 2], strides=[2, 2])
    net.tensor = stream
    conv(f"conv{CONVOLUTIONS - 1}", 16)
    net.add("GlobalAveragePool", net.tensor)
    net.add("Flatten", net.tensor)
    net.gemm("logits", rng.normal(0, 1, (4, 16)), np.zeros(4))
    return clean(net.model())


@pytest.fixture(scope="module")
def files():
    model = fifty_layers()
    ranges = measured_ranges(model, pixels=PIXELS)
    return {
        "fp32": model,
        "fp16": to_fp16(model, ranges).model,
        "int8.fp32": (tensorrt := to_tensorrt(model, ranges).model),
        "int8": to_fp16(tensorrt, ranges, around_int8=True).model,
        "int8.cpu": to_cpu(model, ranges).model,
    }


def planted(model: onnx.ModelProto, layer: str) -> onnx.ModelProto:
    """Return the model with the weights of one layer in another order of their inputs: of the same size, and wrong."""
    wrong = onnx.ModelProto.FromString(model.SerializeToString())
    at = next(node for node in wrong.graph.node if node.name == f"n_{layer}")
    producers = {output: node for node in wrong.graph.node for output in node.output}
    name = at.input[1]
    while name in producers:  # behind a DequantizeLinear
        name = producers[name].input[0]
    tensor = next(item for item in wrong.graph.initializer if item.name == name)
    values = numpy_helper.to_array(tensor)
    tensor.CopyFrom(numpy_helper.from_array(np.ascontiguousarray(np.flip(values, axis=1)), name))
    return wrong


def compared(a: tuple[str, onnx.ModelProto], b: tuple[str, onnx.ModelProto]):
    pair = Pair(*(Side(name, model.SerializeToString()) for name, model in (a, b)))
    limit = min(LIMITS[a[0]], LIMITS[b[0]])
    inputs = [{"pixels": PIXELS[:4]}, {"pixels": PIXELS[4:]}]
    found = measure_layers(pair, inputs)
    return found, find_first(pair, found, inputs, limit), limit


NAMES = ("fp16", "int8", "int8.fp32", "int8.cpu")


@pytest.mark.parametrize("name", NAMES)
def test_all_layers_of_right_files_are_found_and_none_is_wrong(files, name):
    found, first, limit = compared(("fp32", files["fp32"]), (name, files[name]))
    assert {f"n_conv{index:02d}" for index in range(CONVOLUTIONS)} < {item.layer.name for item in found}
    assert [item.layer.name for item in found if item.alone.snr_db < limit] == []
    for item in found: print(item.layer.name, round(item.total.snr_db,1), round(item.alone.snr_db,1))
