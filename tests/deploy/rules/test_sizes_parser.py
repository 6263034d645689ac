"""Sizes, axes and types that do not fit: krl's rules against NVIDIA's parser and builder, TensorRT-RTX.

Each fault stands alone in a graph, since the parser stops at the first. What is right beside it shares one graph.
"""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor

import numpy as np
import onnx
import pytest
from onnx import TensorProto, compose, helper, numpy_helper

from _helpers.planted import findings, one
from _helpers.required import real_rtx
from krl_deploy.rules.targets import RTX
from krl_deploy.tensorrt.ask import ask

OPSET = 23
IMAGE, ROWS = [1, 4, 8, 8], [2, 8]
UP = {"roi": np.float32([]), "scales": np.float32([1, 1, 2, 2])}


def floats(*shape):
    return np.ones(shape, np.float32)


def whole(*values):
    return np.int64(values)


def of(op, shape, constants=None, **more):
    return one(op, shape, constants, opset=OPSET, **more)


def typed(op, dtype, shape=ROWS, result=None, **more):
    """A node whose input and output have a type."""
    return of(op, shape, dtypes={"x": dtype, "y": result or dtype}, **more)


def scales_given():
    nodes = [helper.make_node("Resize", ["x", "", "scales"], ["y"], name="node")]
    values = [
        helper.make_tensor_value_info(name, TensorProto.FLOAT, shape) for name, shape in (("x", IMAGE), ("scales", [4]))
    ]
    graph = helper.make_graph(nodes, "g", values, [helper.make_tensor_value_info("y", TensorProto.FLOAT, None)])
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", OPSET)], ir_version=10)


def scaled(scales):
    model = of("Mul", ROWS, {"d": floats(8)})
    model.graph.node.insert(0, helper.make_node("DequantizeLinear", ["q", "s"], ["d"], name="scaled", axis=1))
    del model.graph.initializer[:]
    model.graph.initializer.append(numpy_helper.from_array(np.ones((2, 8), np.int8), "q"))
    model.graph.initializer.append(numpy_helper.from_array(scales, "s"))
    return model


def sequence():
    tensor = helper.make_tensor_type_proto(TensorProto.FLOAT, [2])
    value = [helper.make_value_info(name, helper.make_sequence_type_proto(tensor)) for name in "xy"]
    graph = helper.make_graph([helper.make_node("Identity", ["x"], ["y"], name="node")], "g", value[:1], value[1:])
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", OPSET)], ir_version=10)


I64, ONES = TensorProto.INT64, floats(4, 4, 3, 3)
WRONG_AND_RIGHT = {
    "another kernel_shape": (
        of("Conv", IMAGE, {"w": ONES}, kernel_shape=[5, 5]),
        of("Conv", IMAGE, {"w": ONES}, kernel_shape=[3, 3]),
    ),
    "a pool beyond its input": (
        of("MaxPool", IMAGE, kernel_shape=[10, 10]),
        of("MaxPool", IMAGE, kernel_shape=[9, 9]),
    ),
    "scales of channels": (
        of("InstanceNormalization", IMAGE, {"s": floats(3), "b": floats(3)}),
        of("InstanceNormalization", IMAGE, {"s": floats(4), "b": floats(4)}),
    ),
    "scales of groups": (
        of("GroupNormalization", IMAGE, {"s": floats(2), "b": floats(2)}, num_groups=2),
        of("GroupNormalization", IMAGE, {"s": floats(4), "b": floats(4)}, num_groups=2),
    ),
    "groups of channels": (of("GroupNormalization", IMAGE, {"s": floats(4), "b": floats(4)}, num_groups=3), None),
    "scale of the last axes": (
        of("LayerNormalization", ROWS, {"s": floats(7)}),
        of("LayerNormalization", ROWS, {"s": floats(8)}),
    ),
    "scale of the root mean square": (
        of("RMSNormalization", ROWS, {"s": floats(7)}),
        of("RMSNormalization", ROWS, {"s": floats(1)}),
    ),
    "nine axes": (
        of("Unsqueeze", IMAGE, {"a": whole(0, 1, 2, 3, 4)}),
        of("Unsqueeze", IMAGE, {"a": whole(0, 1, 2, 3)}),
    ),
    "axes named twice": (of("Squeeze", [1, 1, 3], {"a": whole(0, -3)}), of("Squeeze", [1, 1, 3], {"a": whole(0, 1)})),
    "axes that an input gives": (
        of("Unsqueeze", ROWS, free={"a": [1]}, dtypes={"a": I64}),
        of("Unsqueeze", ROWS, {"a": whole(-1)}),
    ),
    "scales that an input gives": (scales_given(), of("Resize", IMAGE, UP)),
    "a sequence": (sequence(), None),
    "a negative scale": (
        of("Resize", IMAGE, {"roi": floats(0), "scales": np.float32([1, 1, -1, 2])}),
        of("Resize", IMAGE, {"roi": floats(0), "scales": np.float32([1, 1, 0, 2])}),
    ),
    "indices of elements, axes": (
        of("GatherElements", ROWS, {"i": whole(0, 1)}),
        of("GatherElements", ROWS, {"i": whole([0, 1])}),
    ),
    "indices of elements, too many": (
        of("GatherElements", ROWS, {"i": np.zeros((2, 9), np.int64)}),
        of("GatherElements", ROWS, {"i": np.zeros((9, 8), np.int64)}),
    ),
    "updates of elements": (
        of("ScatterElements", ROWS, {"i": whole([0, 1]), "u": floats(1, 3)}),
        of("ScatterElements", ROWS, {"i": whole([0, 1]), "u": floats(1, 2)}),
    ),
    "updates of rows": (
        of("ScatterND", ROWS, {"i": whole([0]), "u": floats(2, 8)}),
        of("ScatterND", ROWS, {"i": whole([0]), "u": floats(1, 8)}),
    ),
    "a reduction of elements": (
        of("ScatterElements", ROWS, {"i": whole([0, 1]), "u": floats(1, 2)}, reduction="add"),
        None,
    ),
    "more than all is cut": (of("Pad", ROWS, {"p": whole(0, -9, 0, 0)}), of("Pad", ROWS, {"p": whole(0, -4, 0, 0)})),
    "a mode of Pad": (
        of("Pad", ROWS, {"p": whole(0, 1, 0, 1)}, mode="symmetric"),
        of("Pad", ROWS, {"p": whole(0, 1, 0, 1)}, mode="wrap"),
    ),
    "a letter for two sizes": (
        of("Einsum", ROWS, {"w": floats(7, 3)}, equation="ab,bc->ac"),
        of("Einsum", ROWS, {"w": floats(8, 3)}, equation="ab,bc->ac"),
    ),
    "an axis of LpNormalization": (of("LpNormalization", ROWS, axis=2), of("LpNormalization", ROWS, axis=-2)),
    "an axis of CumSum": (of("CumSum", ROWS, {"a": np.int64(2)}), of("CumSum", ROWS, {"a": np.int64(-2)})),
    "an even window": (of("LRN", IMAGE, size=4), of("LRN", IMAGE, size=15)),
    "axes of two axes": (of("Unsqueeze", ROWS, {"a": whole([0])}), of("Unsqueeze", ROWS, {"a": whole(0, 3)})),
    "starts and axes": (
        of("Slice", ROWS, {"s": whole(0, 0), "e": whole(1, 1), "a": whole(1)}),
        of("Slice", ROWS, {"s": whole(0), "e": whole(1), "a": whole(1)}),
    ),
    "factors of a Gemm": (
        of("Gemm", ROWS, {"w": floats(8, 3)}, transB=1),
        of("Gemm", ROWS, {"w": floats(3, 8)}, transB=1),
    ),
    "scales of two axes": (scaled(floats(1, 8)), scaled(floats(8))),
    "a negative size": (of("Expand", ROWS, {"s": whole(-1, 8)}), of("Expand", ROWS, {"s": whole(3, 1, 8)})),
    "a negative repeat": (of("Tile", ROWS, {"r": whole(-1, 1)}), of("Tile", ROWS, {"r": whole(1, 2)})),
    "more than there are": (
        of("TopK", ROWS, {"k": whole(9)}, outputs=("y", "i"), dtypes={"i": I64}),
        of("TopK", ROWS, {"k": whole(8)}, outputs=("y", "i"), dtypes={"i": I64}),
    ),
    "keys unlike values": (of("Attention", [1, 2, 4, 8], {"k": floats(1, 2, 4, 8), "v": floats(1, 2, 4, 6)}), None),
    "Mod of floats": (of("Mod", ROWS, {"d": np.float32(2)}), of("Mod", ROWS, {"d": np.float32(2)}, fmod=1)),
    "an INT8 constant": (typed("Add", TensorProto.INT8, constants={"c": np.ones(8, np.int8)}), None),
    "a type of Einsum": (typed("Einsum", I64, equation="ab->ba"), typed("Transpose", I64)),
    "a type of Relu": (typed("Relu", TensorProto.INT32), typed("Relu", I64)),
    "a type of Mean": (typed("Mean", TensorProto.INT8), typed("Sum", TensorProto.BFLOAT16)),
    "a type of ReduceMax": (
        typed("ReduceMax", TensorProto.BOOL, constants={"a": whole(1)}),
        typed("ReduceMax", I64, constants={"a": whole(1)}),
    ),
    "a type of Mish": (typed("Mish", TensorProto.BFLOAT16), typed("Mish", TensorProto.FLOAT16)),
    "a type of Celu": (typed("Celu", TensorProto.FLOAT16), typed("Elu", TensorProto.FLOAT16)),
    "a type that another tensor has": (
        of("CastLike", ROWS, {"t": np.zeros(1, np.uint8)}, dtypes={"y": TensorProto.UINT8}),
        of("CastLike", ROWS, {"t": np.float16([0])}, dtypes={"y": TensorProto.FLOAT16}),
    ),
}


@pytest.fixture(scope="module", autouse=True)
def rtx():
    return real_rtx()


@pytest.fixture(scope="module")
def refused(tmp_path_factory):
    """Return for each wrong graph whether NVIDIA's parser or builder refuses it."""

    def asked(numbered: tuple[int, onnx.ModelProto]) -> bool:
        path = tmp_path_factory.mktemp("wrong") / f"{numbered[0]}.onnx"
        path.write_bytes(numbered[1].SerializeToString())
        verdict, _ = ask(path, RTX)
        return not verdict.parsed or verdict.built is False

    with ThreadPoolExecutor(2) as pool:
        wrong = [wrong for wrong, _ in WRONG_AND_RIGHT.values()]
        return dict(zip(WRONG_AND_RIGHT, pool.map(asked, enumerate(wrong)), strict=True))


def errors(model: onnx.ModelProto) -> list[str]:
    return [f"{item.rule} {item.node}: {item.why}" for item in findings(model, "rtx") if item.severity == "error"]


@pytest.mark.parametrize("use", WRONG_AND_RIGHT)
def test_both_refuse_it(use, refused):
    assert refused[use]
    assert errors(WRONG_AND_RIGHT[use][0])


def test_both_take_it_mended(tmp_path):
    right = [model for _, model in WRONG_AND_RIGHT.values() if model is not None]
    whole = onnx.ModelProto.FromString(right[0].SerializeToString())
    for number, model in enumerate(right[1:]):
        graph = compose.add_prefix(model, f"m{number}_").graph
        for field in ("node", "input", "output", "initializer"):
            getattr(whole.graph, field).extend(getattr(graph, field))
    path = tmp_path / "right.onnx"
    path.write_bytes(whole.SerializeToString())
    verdict, _ = ask(path, RTX)
    assert verdict.built
    assert {index: found for index, model in enumerate(right) if (found := errors(model))} == {}
