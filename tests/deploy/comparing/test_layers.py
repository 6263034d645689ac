"""One wrong layer of fifty, planted in either network, in each precision and in each place."""

from __future__ import annotations

import numpy as np
import onnx
import pytest
from onnx import numpy_helper

from _helpers.graphs import measured_ranges
from _helpers.planted_nets import SIDE, Net
from krl_deploy.comparing import measuring
from krl_deploy.comparing.measuring import find_first, measure_layers
from krl_deploy.comparing.sides import Pair, Side
from krl_deploy.graph.cleanup import clean
from krl_deploy.precision.emit_cpu import to_cpu
from krl_deploy.precision.emit_fp16 import to_fp16
from krl_deploy.precision.emit_tensorrt import to_tensorrt
from krl_deploy.precision.equalization import divided_layers, equalize
from krl_runtime.errors import ModelError

LIMITS = {"fp32": 60.0, "fp16": 35.0, "int8": 15.0, "int8.fp32": 15.0, "int8.cpu": 15.0}
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


INT8 = ("int8", "int8.fp32", "int8.cpu")


@pytest.mark.parametrize("name", ["fp16", *INT8])
def test_the_layers_of_right_files_are_matched_and_none_is_wrong(files, name):
    found, first, limit = compared(("fp32", files["fp32"]), (name, files[name]))
    assert {f"n_conv{index:02d}" for index in range(CONVOLUTIONS)} < {item.layer.name for item in found}
    assert first is None
    assert {item.status(limit) for item in found} == {""}
    # Without rounding alone would be 200 dB, and without the rounding of the layers before it in its place as well.
    assert max(item.alone.snr_db for item in found if item.layer.name.startswith("n_conv")) < 100
    assert all(item.total.snr_db < item.alone.snr_db + 3 for item in found)


@pytest.mark.parametrize("layer", ["conv00", "conv24", "logits"])
@pytest.mark.parametrize("name", ["fp32", "fp16", *INT8])
@pytest.mark.parametrize("side", ["a", "b"])
def test_one_wrong_layer_is_found_in_either_network(files, name, layer, side):
    """In a: a wrong fp32 file and a right one; in b: the other way round. Each with the file of every precision."""
    right, wrong = ("fp32", files["fp32"]), (name, planted(files[name], layer))
    found, first, limit = compared(*((wrong, right) if side == "a" else (right, wrong)))
    assert first is not None
    assert (first.layer, first.since, first.length) == (f"n_{layer}", f"n_{layer}", 1)
    statuses = {item.layer.name: item.status(limit) for item in found}
    assert [each for each, status in statuses.items() if status == "wrong"] == [f"n_{layer}"]
    names = list(statuses)
    behind = names[names.index(f"n_{layer}") + 1 :]
    assert all(statuses[each] == "" for each in names[: names.index(f"n_{layer}")])
    assert not behind or "inherits" in {statuses[each] for each in behind}


@pytest.mark.parametrize("name", INT8)
def test_a_wrong_fp32_file_is_found_beside_right_int8(files, name):
    _, first, _ = compared(("fp32", planted(files["fp32"], "conv31")), (name, files[name]))
    assert first is not None
    assert (first.layer, first.length) == ("n_conv31", 1)


def test_the_two_int8_graphs_are_compared_with_each_other(files):
    for pair in (("int8", "int8.cpu"), ("int8.cpu", "int8.fp32"), ("int8.cpu", "fp16")):
        found, first, _ = compared(*((name, files[name]) for name in pair))
        assert first is None, pair
        assert len(found) > CONVOLUTIONS
    _, first, _ = compared(("int8.cpu", files["int8.cpu"]), ("int8", planted(files["int8"], "conv12")))
    assert first is not None
    assert first.layer == "n_conv12"


def test_groups_bound_what_is_held_and_change_nothing(files, monkeypatch):
    whole, _, _ = compared(("fp32", files["fp32"]), ("int8.cpu", files["int8.cpu"]))
    read: list[int] = []
    run_a = Pair.run_a
    monkeypatch.setattr(Pair, "run_a", lambda pair, layers: read.append(len(layers)) or run_a(pair, layers))
    monkeypatch.setattr(measuring, "_VALUES_IN_GROUP", 8 * 16 * SIDE * SIDE * 4)
    parts, _, _ = compared(("fp32", files["fp32"]), ("int8.cpu", files["int8.cpu"]))
    assert len(read) > 5
    assert max(read) < len(whole) / 2
    for one, other in zip(whole, parts, strict=True):
        assert one.layer.name == other.layer.name
        assert one.total.snr_db == pytest.approx(other.total.snr_db, abs=0.5)
        assert one.alone.snr_db == pytest.approx(other.alone.snr_db, abs=0.5)


def test_an_error_that_adds_up_is_no_wrong_layer(files):
    """Each layer of a row has a little noise: the limit lies between what one has and what all of them have."""
    noisy = onnx.ModelProto.FromString(files["fp32"].SerializeToString())
    rng = np.random.default_rng(0)
    for tensor in noisy.graph.initializer:
        index = tensor.name[4:6] if tensor.name.startswith("conv") and "_w" in tensor.name else ""
        if index and 10 <= int(index) < 40:
            values = numpy_helper.to_array(tensor)
            values = values + rng.normal(0, 0.03 * values.std(), values.shape).astype(np.float32)
            tensor.CopyFrom(numpy_helper.from_array(values, tensor.name))
    pair = Pair(*(Side("fp32", model.SerializeToString()) for model in (files["fp32"], noisy)))
    inputs = [{"pixels": PIXELS}]
    found = measure_layers(pair, inputs)
    order = [item.layer.name for item in found]
    limit = 28.0  # in its place a layer may have 5 dB less
    assert min(item.alone.snr_db for item in found) > limit
    first = find_first(pair, found, inputs, limit)
    assert first is not None
    assert first.length > 1
    assert order.index("n_conv10") <= order.index(first.since) < order.index(first.layer) <= order.index("n_conv39")
    assert first.snr_db < limit - 5
    # A row that is one layer shorter is within the limit, as an independent run of it shows.
    start = order.index(first.since) + 1
    shorter = pair.layers[start : order.index(first.layer) + 1]
    before = pair.sources(shorter[-1:], shorter)
    values = pair.run_a([*before, shorter[-1]])(inputs[0], {})
    made = pair.run_b_on_a(shorter[-1:], shorter)(inputs[0], values)[first.layer]
    error = ((values[first.layer] - made) ** 2).sum() / (values[first.layer] ** 2).sum()
    assert -10 * np.log10(error) >= limit - 5


def test_a_value_beyond_fp16_is_seen_where_it_is_made(files):
    """The output of one layer is 1e5 times as large as in fp32, which FP16 does not have."""
    large = onnx.ModelProto.FromString(files["fp16"].SerializeToString())
    tensor = next(item for item in large.graph.initializer if item.name.startswith("conv05_w"))
    values = numpy_helper.to_array(tensor)
    tensor.CopyFrom(numpy_helper.from_array(np.full_like(values, 60000), tensor.name))
    found, first, _ = compared(("fp32", files["fp32"]), ("fp16", large))
    assert first is not None
    assert first.layer == "n_conv05"
    item = next(item for item in found if item.layer.name == "n_conv05")
    assert item.alone.not_finite > 0
    assert item.alone.snr_db == -200


def test_networks_without_a_common_layer_are_refused(files):
    other = onnx.ModelProto.FromString(files["fp32"].SerializeToString())
    for node in other.graph.node:
        node.name = f"other_{node.name}"
    with pytest.raises(ModelError, match="have no node with the same name"):
        Pair(Side("fp32", files["fp32"].SerializeToString()), Side("fp16", other.SerializeToString()))


def test_equalized_channels_are_compared_as_they_were():
    """Channels that equalization divided by 3 are no error; read as they are, they would be one."""
    net = Net()
    net.conv("first", net.mixing(in_channels=3), np.full(32, 0.1))
    net.add("Relu", "first")
    net.conv("second", net.mixing())
    net.add("Relu", "second")
    net.add("GlobalAveragePool", net.tensor)
    net.add("Flatten", net.tensor)
    net.gemm("logits", *net.head())
    model = clean(net.model())
    relu = next(node.output[0] for node in model.graph.node if node.op_type == "Relu")
    factors = {relu: np.where(np.arange(32) % 2, 3.0, 1.0).astype(np.float32)}
    equalized = equalize(model, factors)
    divisors = divided_layers(model, factors)
    assert set(divisors) == {"n_first", next(n.name for n in model.graph.node if relu in n.output)}
    for name, made in (("int8.cpu", to_cpu), ("int8", to_tensorrt)):
        data = made(equalized, measured_ranges(equalized, pixels=PIXELS)).model.SerializeToString()
        sides = [Side("fp32", model.SerializeToString()), Side(name, data, divisors=divisors)]
        for pair in (Pair(*sides), Pair(*sides[::-1])):
            assert min(item.alone.snr_db for item in measure_layers(pair, [{"pixels": PIXELS}])) > 25
        blind = Pair(sides[0], Side(name, data))
        assert min(item.alone.snr_db for item in measure_layers(blind, [{"pixels": PIXELS}])) < 10
