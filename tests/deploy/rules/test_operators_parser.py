"""Single operators, used as TensorRT takes them and as it does not: krl's rules against NVIDIA's parser and builder.

The judge is TensorRT-RTX's parser or builder. ``CONFIRMED`` has what both refuse, beside the same operator used so that
both take it; ``POLICY`` has what krl refuses for TensorRT, and TensorRT-RTX takes.
"""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper

from _helpers.planted import findings, one
from _helpers.required import real_rtx
from krl_deploy.rules.targets import RTX
from krl_deploy.tensorrt.ask import ask


@pytest.fixture(scope="module", autouse=True)
def rtx():
    return real_rtx()


@pytest.fixture
def refused(tmp_path):
    """Ask NVIDIA's parser and builder about models, at once."""

    def one_of(numbered: tuple[int, onnx.ModelProto]) -> bool:
        path = tmp_path / f"{numbered[0]}.onnx"
        path.write_bytes(numbered[1].SerializeToString())
        said, found = ask(path, RTX)
        assert bool(found) == (not said.parsed or said.built is False)
        return bool(found)

    def judge(*models: onnx.ModelProto) -> list[bool]:
        with ThreadPoolExecutor(2) as pool:
            return list(pool.map(one_of, enumerate(models)))

    return judge


def cast(to, after=TensorProto.FLOAT, **first):
    """A cast to a type, and from there to what the graph gives out."""
    model = one("Cast", ["n", 3], to=to, outputs=("between",), **first)
    model.graph.node.append(helper.make_node("Cast", ["between"], ["y"], name="back", to=after))
    model.graph.output[0].CopyFrom(helper.make_tensor_value_info("y", after, None))
    return model


IMAGE = ["n", 3, 8, 8]
NORM = {name: np.ones(3, np.float32) for name in "sbmv"}
GAIN = {"g": np.ones(8, np.float32)}
LSTM = {"w": np.ones((1, 16, 3), np.float32), "r": np.ones((1, 16, 4), np.float32)}
UP = {"roi": np.float32([]), "scales": np.float32([1, 1, 2, 2])}
RATIO = {"ratio": np.float32(0.5)}
PIXELS = {"x": TensorProto.UINT8, "y": TensorProto.UINT8}
INDICES = {"i": TensorProto.INT64}
MATRIX = {"w": np.ones((4, 2), np.float32)}

CONFIRMED = {
    "pooling, dilations": (
        one("MaxPool", IMAGE, kernel_shape=[2, 2], dilations=[2, 2]),
        one("MaxPool", IMAGE, kernel_shape=[2, 2]),
    ),
    "pooling, four sides": (
        one("MaxPool", ["n", 3, 4, 4, 4, 4], kernel_shape=[2] * 4),
        one("MaxPool", ["n", 3, 8], kernel_shape=[2]),
    ),
    "pooling, indices": (
        one("MaxPool", IMAGE, outputs=("y", "i"), dtypes=INDICES, kernel_shape=[2, 2]),
        one("MaxPool", IMAGE, kernel_shape=[2, 2]),
    ),
    "pooling, p": (one("LpPool", IMAGE, kernel_shape=[2, 2], p=3), one("LpPool", IMAGE, kernel_shape=[2, 2], p=1)),
    "normalization, p": (one("LpNormalization", IMAGE, p=3), one("LpNormalization", IMAGE, p=1)),
    "convolution, four sides": (
        one("Conv", ["n", 3, 4, 4, 4, 4], {"w": np.ones((2, 3, 2, 2, 2, 2), np.float32)}),
        one("Conv", ["n", 3, 8], {"w": np.ones((2, 3, 2), np.float32)}),
    ),
    "resize, antialias": (one("Resize", IMAGE, UP, mode="linear", antialias=1), one("Resize", IMAGE, UP, mode="cubic")),
    "resize, coordinates": (
        one("Resize", IMAGE, UP, coordinate_transformation_mode="tf_crop_and_resize"),
        one("Resize", IMAGE, UP, coordinate_transformation_mode="asymmetric"),
    ),
    "resize, nearest_mode": (
        one("Resize", IMAGE, UP, coordinate_transformation_mode="tf_half_pixel_for_nn", nearest_mode="ceil"),
        one("Resize", IMAGE, UP, nearest_mode="ceil"),
    ),
    "batch normalization, training": (
        one("BatchNormalization", IMAGE, NORM, outputs=("y", "a", "b"), training_mode=1),
        one("BatchNormalization", IMAGE, NORM),
    ),
    "layer normalization, mean": (
        one("LayerNormalization", ["n", 8], GAIN, outputs=("y", "mean")),
        one("LayerNormalization", ["n", 8], GAIN),
    ),
    "LSTM, input_forget": (
        one("LSTM", [5, 1, 3], LSTM, hidden_size=4, input_forget=1),
        one("LSTM", [5, 1, 3], LSTM, hidden_size=4),
    ),
    "Einsum, capitals": (
        one("Einsum", [3, 4], MATRIX, equation="Ab,bc->Ac"),
        one("Einsum", [3, 4], MATRIX, equation="ab,bc->ac"),
    ),
    "random numbers, FP64": (
        one("RandomUniformLike", ["n", 3], dtypes={"y": TensorProto.DOUBLE}, dtype=TensorProto.DOUBLE),
        one("RandomUniformLike", ["n", 3], dtype=TensorProto.FLOAT),
    ),
    "reversed sequences, axes": (
        one("ReverseSequence", [8, 8], {"l": np.int64([2] * 8)}, batch_axis=1, time_axis=1),
        one("ReverseSequence", [8, 8], {"l": np.int64([2] * 8)}, batch_axis=1, time_axis=0),
    ),
    "reduced axes that are an input": (
        one("ReduceMean", [2, 3, 4], free={"axes": [1]}, dtypes={"axes": TensorProto.INT64}),
        one("ReduceMean", [2, 3, 4], {"axes": np.int64([1])}),
    ),
    "TopK, K too large": (
        one("TopK", ["n", 5000], {"k": np.int64([4000])}, outputs=("y", "i"), dtypes=INDICES),
        one("TopK", ["n", 5000], {"k": np.int64([3839])}, outputs=("y", "i"), dtypes=INDICES),
    ),
    "ScatterND, reduction": (
        one("ScatterND", [4, 8], {"i": np.int64([[0]]), "u": np.zeros((1, 8), np.float32)}, opset=18, reduction="add"),
        one("ScatterND", [4, 8], {"i": np.int64([[0]]), "u": np.zeros((1, 8), np.float32)}),
    ),
    "dropout, training": (
        one("Dropout", ["n", 3], {**RATIO, "t": np.True_}),
        one("Dropout", ["n", 3], {**RATIO, "t": np.False_}),
    ),
    "depth to space, channels": (
        one("DepthToSpace", IMAGE, blocksize=2),
        one("DepthToSpace", ["n", 4, 8, 8], blocksize=2),
    ),
    "depth to space, blocksize 0": (
        one("DepthToSpace", ["n", 4, 8, 8], blocksize=0),
        one("DepthToSpace", ["n", 4, 8, 8], blocksize=1),
    ),
    "reshape, volume": (one("Reshape", [2, 3], {"s": np.int64([7])}), one("Reshape", [2, 3], {"s": np.int64([3, -1])})),
    "pixels that are transposed": (
        one("Transpose", IMAGE, dtypes=PIXELS, perm=[0, 2, 3, 1]),
        one("Cast", IMAGE, dtypes={"x": TensorProto.UINT8}, to=TensorProto.FLOAT),
    ),
    "a cast to uint8 inside": (
        cast(TensorProto.UINT8),
        one("Cast", ["n", 3], dtypes={"y": TensorProto.UINT8}, to=TensorProto.UINT8),
    ),
    "a cast to int16": (cast(TensorProto.INT16), cast(TensorProto.INT32)),
    "a cast to FP8 E5M2": (cast(TensorProto.FLOAT8E5M2), cast(TensorProto.BFLOAT16)),
    "a cast to FP8 E4M3": (cast(TensorProto.FLOAT8E4M3FN), cast(TensorProto.FLOAT16)),
    "int32 and int64": (
        one("Add", ["n"], {"c": np.int64(1)}, dtypes={"x": TensorProto.INT32, "y": TensorProto.INT32}),
        one("Add", ["n"], {"c": np.int32(1)}, dtypes={"x": TensorProto.INT32, "y": TensorProto.INT32}),
    ),
    "softmax of int32": (
        one("Softmax", ["n", 3], dtypes={"x": TensorProto.INT32, "y": TensorProto.INT32}),
        one("Softmax", ["n", 3]),
    ),
    "an integer operator": (
        one(
            "MatMulInteger",
            ["n", 4],
            {"w": np.ones((4, 2), np.int8)},
            dtypes={"x": TensorProto.INT8, "y": TensorProto.INT32},
        ),
        one("MatMul", ["n", 4], MATRIX),
    ),
    "an operator that TensorRT lacks": (one("Det", [3, 3]), one("Trilu", [3, 3])),
    "regions, on TensorRT-RTX": (
        one("RoiAlign", [1, 3, 8, 8], {"r": np.ones((2, 4), np.float32), "b": np.int64([0, 0])}),
        one("GridSample", [1, 3, 8, 8], {"g": np.zeros((1, 4, 4, 2), np.float32)}, opset=16),
    ),
    "NonZero, on TensorRT-RTX": (one("NonZero", [2, 3], dtypes={"y": TensorProto.INT64}), one("Abs", [2, 3])),
    "DFT, on TensorRT-RTX": (one("DFT", [1, 8, 1], opset=17), one("Abs", [1, 8, 1])),
    "opset 6, elementwise": (
        one("Max", ["n", 3], {"c": np.ones((1, 3), np.float32)}, opset=6),
        one("Max", ["n", 3], {"c": np.ones((1, 3), np.float32)}, opset=8),
    ),
    "opset 6, bias": (
        one("Gemm", ["n", 4], {**MATRIX, "b": np.ones(2, np.float32)}, opset=6, broadcast=1),
        one("Gemm", ["n", 4], {**MATRIX, "b": np.ones(2, np.float32)}, opset=7),
    ),
    "opset 6, slope": (
        one("PRelu", IMAGE, {"s": np.ones(3, np.float32)}, opset=6),
        one("PRelu", IMAGE, {"s": np.ones((3, 1, 1), np.float32)}, opset=7),
    ),
    "opset 6, dropout": (one("Dropout", ["n", 3], opset=6, is_test=0), one("Dropout", ["n", 3], opset=7)),
}


def errors(model: onnx.ModelProto, target: str = "rtx") -> set[str]:
    """Return the nodes that krl finds errors in."""
    return {item.node for item in findings(model, target) if item.severity == "error"}


@pytest.mark.parametrize("use", CONFIRMED)
def test_both_refuse_it_and_both_take_it_mended(use, refused):
    wrong, right = CONFIRMED[use]
    assert refused(wrong, right) == [True, False]
    assert errors(wrong) & {"node", ""}
    assert errors(right) == set()


HEADS = {name: [1, 4, 32] for name in "kv"}
DOUBLE = {"x": TensorProto.DOUBLE, "y": TensorProto.DOUBLE}

POLICY = {
    # The tables of 10.14 and later ask for four axes; this parser puts reshapes around it.
    "attention on three axes": one("Attention", [1, 4, 32], free=HEADS, opset=23, q_num_heads=2, kv_num_heads=2),
}


def test_the_tables_refuse_it_and_tensorrt_rtx_takes_it(refused):
    """TensorRT itself was not asked, so that krl keeps to its tables for it."""
    assert [errors(model, "tensorrt-11.4") for model in POLICY.values()] == [{"node"}] * len(POLICY)
    assert [errors(model) for model in POLICY.values()] == [set()] * len(POLICY)
    assert refused(*POLICY.values()) == [False] * len(POLICY)


TAKEN = {
    "pixels that are passed on": one("Identity", IMAGE, dtypes=PIXELS),
    "FP64": one("Add", ["n"], {"c": np.float64(1)}, dtypes=DOUBLE),
    "FP64 and FP32": one("Add", ["n"], {"c": np.float64(1)}),
    "Clip of FP16 with limits in FP32": one(
        "Clip", ["n"], {"low": np.float32(0)}, dtypes=dict.fromkeys("xy", TensorProto.FLOAT16)
    ),
    "TopK that is not sorted": one(
        "TopK", ["n", 9], {"k": np.int64([3])}, outputs=("y", "i"), dtypes=INDICES, sorted=0
    ),
    "opset 6": one("Relu", ["n", 3], opset=6),
    "opset 7": one("Relu", ["n", 3], opset=7),
    "opset 8": one("Relu", ["n", 3], opset=8),
    "pixels that are cast to int32": one(
        "Cast", IMAGE, dtypes={"x": TensorProto.UINT8, "y": TensorProto.INT32}, to=TensorProto.INT32
    ),
    "the shape of pixels": one("Shape", IMAGE, dtypes={"x": TensorProto.UINT8, "y": TensorProto.INT64}),
    "an operator that ONNX defines by a function": one("MeanVarianceNormalization", [1, 3, 4, 4]),
}


def test_neither_refuses_it(refused):
    verdicts = dict(zip(TAKEN, refused(*TAKEN.values()), strict=True))
    assert verdicts == dict.fromkeys(TAKEN, False)
    assert {use: errors(model) for use, model in TAKEN.items()} == {use: set() for use in TAKEN}
