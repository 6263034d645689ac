"""Quantized files of others, read back into a float model and its ranges."""

from __future__ import annotations

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper
from onnxruntime.quantization import QuantType

from _helpers.graphs import constants, graph, node, ops, run
from _helpers.quantized import ranges_of, static
from krl_deploy.graph.contrib import foreign_operators
from krl_deploy.graph.quantized import is_qdq_model, read_quantized
from krl_deploy.precision.emit_cpu import to_cpu
from krl_deploy.precision.emit_fp16 import to_fp16
from krl_deploy.precision.emit_tensorrt import to_tensorrt
from krl_deploy.precision.weights import Rounding
from krl_runtime.errors import ModelError

RNG = np.random.default_rng(0)
X = RNG.normal(size=(4, 16, 8, 8)).astype(np.float32)


def floats() -> onnx.ModelProto:
    """x → conv, relu, max pooling → conv → add (with what was pooled), relu → pooling → Gemm."""
    values = {"w0": RNG.normal(size=(16, 16, 3, 3)) / 12, "w1": RNG.normal(size=(16, 16, 3, 3)) / 12}
    values |= {"b0": RNG.normal(size=16) / 4, "b1": RNG.normal(size=16) / 4, "w2": RNG.normal(size=(16, 20))}
    nodes = [
        node("Conv", ["x", "w0", "b0"], "c0", pads=[1, 1, 1, 1]),
        node("Relu", ["c0"], "r0"),
        node("MaxPool", ["r0"], "p", kernel_shape=[2, 2], strides=[2, 2]),
        node("Conv", ["p", "w1", "b1"], "c1", pads=[1, 1, 1, 1]),
        node("Add", ["c1", "p"], "a"),
        node("Relu", ["a"], "r1"),
        node("GlobalAveragePool", ["r1"], "g"),
        node("Flatten", ["g"], "f"),
        node("Gemm", ["f", "w2"], "y"),
    ]
    cast = {name: value.astype(np.float32) for name, value in values.items()}
    return graph(nodes, {"x": ["n", 16, 8, 8]}, {"y": None}, cast)


MODEL = floats()
RANGES = ranges_of(MODEL, X)


@pytest.fixture
def model() -> onnx.ModelProto:
    return MODEL


def test_what_we_wrote_for_tensorrt_is_read_back_exactly(model):
    written = to_tensorrt(model, RANGES).model
    assert is_qdq_model(written)
    assert not is_qdq_model(model)
    read = read_quantized(written)
    assert ops(read.model) == ops(model)
    # Symmetric scales are float32 numbers: 127 of them are the largest magnitude.
    assert read.ranges.keys() == {"x", "p", "f"}
    largest = np.abs(X).max()
    assert read.ranges["x"] == pytest.approx((-largest, largest))
    assert sorted(scale.size for scale in read.weight_scales.values()) == [16, 16, 20]
    again = to_tensorrt(read.model, read.ranges, rounding=Rounding(scales=read.weight_scales)).model
    assert np.array_equal(run(written, x=X)[0], run(again, x=X)[0])
    integers = [{v.tobytes() for v in constants(each).values() if v.dtype == np.int8} for each in (written, again)]
    assert integers[0] == integers[1]


def test_scales_that_came_are_kept(model):
    # A weight of which no channel reaches 127: from its largest value the scale would be another.
    written = to_tensorrt(model, RANGES).model
    for tensor in written.graph.initializer:
        if tensor.name.startswith("w1") and tensor.data_type == TensorProto.INT8 and len(tensor.dims) == 4:
            tensor.CopyFrom(onnx.numpy_helper.from_array(onnx.numpy_helper.to_array(tensor) // 2, tensor.name))
    read = read_quantized(written)
    kept = to_tensorrt(read.model, read.ranges, rounding=Rounding(scales=read.weight_scales)).model
    assert np.array_equal(run(kept, x=X)[0], run(written, x=X)[0])
    anew = to_tensorrt(read.model, read.ranges).model
    assert not np.array_equal(run(anew, x=X)[0], run(written, x=X)[0])


def test_the_form_for_the_cpu_has_offsets_and_integers_between(model):
    written = to_cpu(model, RANGES).model
    assert "Relu" not in ops(written)  # it is in the range
    read = read_quantized(written)
    assert not {"QuantizeLinear", "DequantizeLinear"} & set(ops(read.model))
    assert ops(read.model) == ops(model)
    np.testing.assert_allclose(run(read.model, x=X)[0], run(model, x=X)[0], atol=0.1)
    scale = (X.max() - X.min()) / 255
    zero = round(-X.min() / scale)
    assert read.ranges["x"] == pytest.approx((-zero * scale, (255 - zero) * scale), rel=1e-6)


def test_fp16_around_int8(model):
    exact = to_tensorrt(model, RANGES, rounding=Rounding(fp16=True)).model
    read = read_quantized(to_fp16(exact, {}, around_int8=True).model)
    assert all(value.dtype != np.float16 for value in constants(read.model).values())
    again = to_tensorrt(read.model, read.ranges, rounding=Rounding(scales=read.weight_scales)).model
    np.testing.assert_allclose(run(again, x=X)[0], run(exact, x=X)[0], atol=0.02)


def test_float_weights_behind_a_pair(model):
    """NVIDIA's quantizer leaves weights in floating point and puts both operators behind them."""
    values = {"s": np.float32(0.05), "z": np.int8(0), "ws": np.full(16, 0.01, np.float32), "wz": np.zeros(16, np.int8)}
    values["w"] = RNG.normal(size=(16, 16, 1, 1)).astype(np.float32) / 4
    nodes = [
        node("QuantizeLinear", ["x", "s", "z"], "q"),
        node("DequantizeLinear", ["q", "s", "z"], "d"),
        node("QuantizeLinear", ["w", "ws", "wz"], "wq", axis=0),
        node("DequantizeLinear", ["wq", "ws", "wz"], "wd", axis=0),
        node("Conv", ["d", "wd"], "y"),
    ]
    written = graph(nodes, {"x": ["n", 16, 8, 8]}, {"y": None}, values)
    read = read_quantized(written)
    assert ops(read.model) == ["Conv"]
    assert np.array_equal(constants(read.model)["w"], values["w"])
    assert read.ranges == {"x": pytest.approx((-6.35, 6.35))}
    again = to_tensorrt(read.model, read.ranges, rounding=Rounding(scales=read.weight_scales)).model
    np.testing.assert_allclose(run(again, x=X)[0], run(written, x=X, optimize=False)[0], atol=1e-6)


@pytest.mark.parametrize(
    ("symmetric", "options"),
    [
        (False, {}),
        (True, {}),
        (False, {"per_channel": False}),
        (False, {"reduce_range": True}),
        (False, {"weight_type": QuantType.QUInt8, "per_channel": False}),
        (False, {"extra_options": {"UseQDQContribOps": True}}),  # operators of com.microsoft
        (False, {"extra_options": {"AddQDQPairToWeight": True}}),  # weights stay in floating point behind a pair
        (False, {"extra_options": {"DedicatedQDQPair": True}}),
        (False, {"extra_options": {"QuantizeBias": False}}),
    ],
)
def test_a_file_of_onnx_runtimes_quantizer(model, symmetric, options):
    written = static(model, X, symmetric=symmetric, **options)
    assert is_qdq_model(written)
    assert bool(foreign_operators(written)) == ("UseQDQContribOps" in options.get("extra_options", {}))
    read = read_quantized(written)
    assert not foreign_operators(read.model)
    exact, theirs = run(model, x=X)[0], run(written, x=X, optimize=False)[0]
    error = np.abs(theirs - exact).max()
    np.testing.assert_allclose(run(read.model, x=X)[0], exact, atol=0.3 * np.abs(exact).max())
    for emit in (to_tensorrt, to_cpu):
        ours = run(emit(read.model, {**ranges_of(read.model, X), **read.ranges}).model, x=X)[0]
        assert np.abs(ours - theirs).max() < 3 * error


def faulty(kind: str) -> onnx.ModelProto:
    values = {"s": np.float32(0.05), "z": np.int8(0), "w": RNG.normal(size=(16, 16, 1, 1)).astype(np.float32)}
    quantizer = node("QuantizeLinear", ["x", "s", "z"], "q")
    dequantizer = node("DequantizeLinear", ["q", "s", "z"], "d")
    between: list[onnx.NodeProto] = []
    if kind == "channels":
        values |= {"s": np.full(16, 0.05, np.float32), "z": np.zeros(16, np.int8)}
    if kind == "computed":
        between.append(node("ReduceMax", ["x"], "m", keepdims=0))
        quantizer.input[1] = dequantizer.input[1] = "m"
    if kind == "type":
        values["z"] = np.int16(0)
    if kind == "between":
        between.append(node("Clip", ["q", "z"], "q2"))
        dequantizer.input[0] = "q2"
    nodes = [*between[: kind == "computed"], quantizer, *between[kind == "computed" :], dequantizer]
    nodes.append(node("Conv", ["d", "w"], "y"))
    return graph(nodes, {"x": ["n", 16, 8, 8]}, {"y": None}, values, opset=21)


@pytest.mark.parametrize(
    ("kind", "message"),
    [
        ("channels", "a scale for each channel of an activation"),
        ("computed", "a scale that is computed"),
        ("type", "has the type INT16; int8 and uint8 can be read"),
        ("between", "Clip n_q2 computes on stored integers"),
    ],
)
def test_what_cannot_be_read_is_refused(kind, message):
    with pytest.raises(ModelError, match=message):
        read_quantized(faulty(kind))


def test_blocks_are_refused():
    model = faulty("none")
    model.graph.node[0].attribute.append(helper.make_attribute("block_size", 4))
    with pytest.raises(ModelError, match="quantizes in blocks"):
        read_quantized(model)
