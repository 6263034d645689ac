"""Operators by version: what NVIDIA's tables say of each, right at the version where it changes."""

from __future__ import annotations

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper

from _helpers.graphs import graph, node
from _helpers.planted import findings, of_rule
from krl_deploy.graph.files import inline_functions
from krl_deploy.rules.operators import RTX_LACKS, SINCE, TYPES, UNSUPPORTED
from krl_deploy.rules.support import check_operators, check_stored
from krl_deploy.rules.targets import parse_target


def relu(opset=20):
    return graph([node("Relu", ["x"], "y")], {"x": ["n", 3]}, {"y": ["n", 3]}, opset=opset, ir=8)


@pytest.mark.parametrize(
    ("opset", "target", "severity"),
    [
        (6, "tensorrt-10.3", "warning"),  # not documented, but NVIDIA's parser takes it
        (8, "tensorrt-10.3", "warning"),
        (9, "tensorrt-10.3", None),
        (20, "jetpack-6.2", None),
        (21, "jetpack-6.2", "warning"),  # documented for 10.15, not for what is between
        (24, "tensorrt-10.14", "warning"),
        (25, "tensorrt-10.14", "error"),
        (24, "tensorrt-10.15", None),
        (25, "tensorrt-10.16", "warning"),
        (25, "tensorrt-11.0", None),
        (26, "tensorrt-11.4", "error"),
    ],
)
def test_opsets(opset, target, severity):
    model = relu()
    model.opset_import[0].version = opset
    assert [finding.severity for finding in of_rule(model, "operators/opset", target)] == (
        [severity] if severity else []
    )


def bare(op, *, domain="", opset=20, outputs=1, **attributes):
    """A model of one operator, whatever its inputs mean."""
    names = [f"y{index}" for index in range(outputs)]
    made = helper.make_node(op, ["x"], names, name="node", domain=domain, **attributes)
    values = [helper.make_tensor_value_info(name, TensorProto.FLOAT, ["n", 3]) for name in ("x", *names)]
    imports = [helper.make_opsetid("", opset)] + ([helper.make_opsetid(domain, 1)] if domain else [])
    return helper.make_model(helper.make_graph([made], "g", values[:1], values[1:]), opset_imports=imports)


def of_bare(model, rule, target="tensorrt-11.4"):
    """Return what the rules of operators say, which do not look at inputs."""
    return [found for found in check_operators(model, parse_target(target)) if found.rule == rule]


@pytest.mark.parametrize(
    ("op", "before", "since"),
    [
        ("HannWindow", "tensorrt-10.3", "tensorrt-10.4"),
        ("STFT", "tensorrt-10.4", "tensorrt-10.5"),
        ("Attention", "tensorrt-10.13", "tensorrt-10.14"),
        ("RMSNormalization", "tensorrt-10.14", "tensorrt-10.15"),
        ("Swish", "tensorrt-10.16", "tensorrt-11.0"),
        ("DFT", "tensorrt-11.1", "tensorrt-11.2"),
    ],
)
def test_operators_that_came_later(op, before, since):
    (found,) = of_bare(bare(op), "operators/supported", before)
    assert found.severity == "error"
    assert found.why == f"TensorRT takes it from version {since.removeprefix('tensorrt-')} on"
    assert of_bare(bare(op), "operators/supported", since) == []


def test_operators_that_tensorrt_does_not_have():
    (found,) = of_bare(bare("Det"), "operators/supported")
    assert (found.severity, found.node, found.op) == ("error", "node", "Det")
    assert of_bare(bare("Relu"), "operators/supported") == []


@pytest.mark.parametrize("op", sorted(RTX_LACKS))
def test_operators_that_tensorrt_rtx_has_no_plugin_for(op):
    (found,) = of_bare(bare(op), "operators/supported", "rtx")
    assert (found.severity, found.why) == ("error", "TensorRT-RTX has no plugin for it")
    assert of_bare(bare(op), "operators/supported", "tensorrt-11.4") == []


def test_operators_that_no_table_lists_are_not_condemned():
    (found,) = of_bare(bare("BitCast"), "operators/supported")
    assert found.severity == "warning"
    assert "not known" in found.why


@pytest.mark.parametrize(
    "op", ["QLinearConv", "QLinearMatMul", "ConvInteger", "MatMulInteger", "DynamicQuantizeLinear"]
)
def test_integer_operators(op):
    (found,) = of_bare(bare(op), "operators/integer")
    assert (found.severity, found.why) == ("error", "integer operators are not taken")
    assert "krl-deploy quantize" in found.do
    assert of_bare(bare(op), "operators/supported") == []  # said once


def test_operators_of_other_domains():
    (found,) = of_bare(bare("QLinearAdd", domain="com.microsoft"), "operators/domain")
    assert found.severity == "error"
    (found,) = of_bare(bare("Gelu", domain="com.microsoft"), "operators/domain")
    assert found.severity == "warning"
    assert of_bare(bare("Gelu"), "operators/domain") == []


def test_the_tables_do_not_contradict_each_other():
    assert not UNSUPPORTED & (TYPES.keys() | SINCE.keys())
    known = {schema.name for schema in onnx.defs.get_all_schemas() if schema.domain == ""}
    historical = {"ImageScaler", "ParametricSoftplus", "ScaledTanh", "Upsample", "Scatter"}
    assert (TYPES.keys() | SINCE.keys() | UNSUPPORTED) - known - historical == set()


def single(
    op, inputs, constants, *, shape=("n", 3, 8, 8), outputs=("y",), opset=20, extra=(), result=None, **attributes
):
    """A checked model of one node; the shape of its output is inferred unless given."""
    made = helper.make_node(op, ["x", *inputs], list(outputs), name="node", **attributes)
    free = {name: [size] for name, size in extra}
    return graph(
        [made], {"x": shape, **free}, {"y": result}, constants, opset=opset, dtypes=dict.fromkeys(free, "int64")
    )


NORM = {name: np.ones(3, np.float32) for name in "sbmv"}
LSTM = {"w": np.ones((1, 16, 3), np.float32), "r": np.ones((1, 16, 4), np.float32)}
BOTH = {name: np.concatenate([array, array]) for name, array in LSTM.items()}
AXES = {"axes": np.int64([2])}
SIZES = {"roi": np.float32([]), "scales": np.float32([1, 1, 2, 2])}
UP = (["roi", "scales"], SIZES)


@pytest.mark.parametrize(
    ("wrong", "mended", "target", "why"),
    [
        (
            single("MaxPool", [], {}, kernel_shape=[2, 2], dilations=[2, 2]),
            single("MaxPool", [], {}, kernel_shape=[2, 2]),
            "tensorrt-11.4",
            "its dilations are not all 1",
        ),
        (
            single("AveragePool", [], {}, shape=("n", 3, 4, 4, 4, 4), kernel_shape=[2] * 4),
            single("AveragePool", [], {}, shape=("n", 3, 8), kernel_shape=[2]),
            "tensorrt-11.4",
            "its input has 6 axes; 1D, 2D and 3D pooling alone is taken",
        ),
        (
            single("MaxPool", [], {}, outputs=("y", "indices"), kernel_shape=[2, 2]),
            single("MaxPool", [], {}, kernel_shape=[2, 2]),
            "tensorrt-11.4",
            "its second output, the indices, is not supported",
        ),
        (
            single("Resize", *UP, coordinate_transformation_mode="tf_half_pixel_for_nn", nearest_mode="ceil"),
            single("Resize", *UP, mode="cubic"),
            "tensorrt-11.4",
            "its nearest_mode is ceil; accepted with tf_half_pixel_for_nn: round_prefer_floor",
        ),
        (
            single("Resize", *UP, mode="linear", antialias=1),
            single("Resize", *UP, mode="linear", antialias=0),
            "tensorrt-11.4",
            "antialiasing is not supported",
        ),
        (
            single("Resize", *UP, mode="nearest", coordinate_transformation_mode="tf_crop_and_resize"),
            single("Resize", *UP, mode="nearest", coordinate_transformation_mode="align_corners"),
            "tensorrt-11.4",
            "its coordinate_transformation_mode is tf_crop_and_resize",
        ),
        (
            single("ReduceMean", ["axes"], {}, extra=[("axes", 1)], result=list("abcd")),
            single("ReduceMean", ["axes"], AXES),
            "tensorrt-11.4",
            "its input number 2 has to be a constant",
        ),
        (
            single("Squeeze", ["axes"], {}, shape=("n", 3, 1), extra=[("axes", 1)], result=["a", "b"]),
            single("Squeeze", ["axes"], AXES, shape=("n", 3, 1)),
            "tensorrt-10.3",
            "its input number 2 has to be a constant before TensorRT 10.7",
        ),
        (
            single("LayerNormalization", ["g"], {"g": np.ones(8, np.float32)}, outputs=("y", "mean")),
            single("LayerNormalization", ["g"], {"g": np.ones(8, np.float32)}),
            "tensorrt-11.4",
            "its outputs Mean and InvStdDev are not supported",
        ),
        (
            single("Dropout", ["r", "t"], {"r": np.float32(0.5), "t": np.True_}),
            single("Dropout", ["r", "t"], {"r": np.float32(0.5), "t": np.False_}),
            "tensorrt-11.4",
            "it is in training mode",
        ),
        (
            single("TopK", ["k"], {"k": np.int64([4000])}, shape=("n", 5000), outputs=("y", "i")),
            single("TopK", ["k"], {"k": np.int64([3839])}, shape=("n", 5000), outputs=("y", "i")),
            "tensorrt-11.4",
            "its K is not below 3840",
        ),
        (
            single("BatchNormalization", list("sbmv"), NORM, training_mode=1, outputs=("y", "mean", "var")),
            single("BatchNormalization", list("sbmv"), NORM, training_mode=0),
            "tensorrt-11.4",
            "it is in training mode",
        ),
        (
            single("Conv", ["w"], {"w": np.ones((2, 3, 2, 2, 2, 2), np.float32)}, shape=("n", 3, 4, 4, 4, 4)),
            single("Conv", ["w"], {"w": np.ones((2, 3, 2, 2, 2), np.float32)}, shape=("n", 3, 4, 4, 4)),
            "tensorrt-11.4",
            "its input has 6 axes; 1D, 2D and 3D convolution alone is taken",
        ),
        (
            single("Einsum", ["w"], {"w": np.ones((4, 2), np.float32)}, shape=(3, 4), equation="Ab,bc->Ac"),
            single("Einsum", ["w"], {"w": np.ones((4, 2), np.float32)}, shape=(3, 4), equation="ab,bc->ac"),
            "tensorrt-11.4",
            "its equation has A; accepted: small letters",
        ),
        (
            single("LpPool", [], {}, kernel_shape=[2, 2], p=3),
            single("LpPool", [], {}, kernel_shape=[2, 2], p=2),
            "tensorrt-11.4",
            "its p is 3; accepted: 1, 2",
        ),
        (
            single("LSTM", ["w", "r"], LSTM, shape=(5, 1, 3), hidden_size=4, input_forget=1),
            single("LSTM", ["w", "r"], LSTM, shape=(5, 1, 3), hidden_size=4),
            "tensorrt-11.4",
            "its input_forget is not supported",
        ),
        (
            single("LSTM", ["w", "r"], BOTH, shape=(5, 1, 3), hidden_size=4, direction="bidirectional",
                   activations=["Sigmoid", "Tanh", "Tanh", "Sigmoid", "Tanh", "Relu"]),
            single("LSTM", ["w", "r"], BOTH, shape=(5, 1, 3), hidden_size=4, direction="bidirectional"),
            "tensorrt-11.4",
            "its activations differ between the directions",
        ),
        (
            single("RandomUniformLike", [], {}, result=list("abcd"), dtype=TensorProto.DOUBLE),
            single("RandomUniformLike", [], {}, result=list("abcd"), dtype=TensorProto.FLOAT),
            "tensorrt-11.4",
            "its dtype is DOUBLE; accepted: FLOAT, FLOAT16",
        ),
        (
            single("ReverseSequence", ["l"], {"l": np.int64([2] * 8)}, shape=(8, 8), batch_axis=1, time_axis=1),
            single("ReverseSequence", ["l"], {"l": np.int64([2] * 8)}, shape=(8, 8), batch_axis=1, time_axis=0),
            "tensorrt-11.4",
            "its batch_axis is its time_axis",
        ),
        (
            single("ScatterND", ["i", "u"], {"i": np.int64([[0]]), "u": np.zeros((1, 8), np.float32)},
                   shape=(4, 8), reduction="add"),
            single("ScatterND", ["i", "u"], {"i": np.int64([[0]]), "u": np.zeros((1, 8), np.float32)}, shape=(4, 8)),
            "tensorrt-11.4",
            "its reduction is not supported",
        ),
    ],
)  # fmt: skip
def test_restrictions(wrong, mended, target, why):
    (found,) = of_rule(wrong, "operators/restriction", target)
    assert found.severity == "error"
    assert found.node == "node"
    assert why in found.why
    assert of_rule(mended, "operators/restriction", target) == []


def test_restrictions_that_a_later_version_lifts():
    squeeze = single("Squeeze", ["axes"], {}, shape=("n", 3, 1), extra=[("axes", 1)], result=["a", "b"])
    assert of_rule(squeeze, "operators/restriction", "tensorrt-10.7") == []
    volume = graph(
        [node("GridSample", ["x", "g"], "y", mode="nearest")],
        {"x": ["n", 3, 4, 4, 4], "g": ["n", 4, 4, 4, 3]},
        {"y": None},
    )
    (found,) = of_rule(volume, "operators/restriction", "tensorrt-11.1")
    assert found.why == "its input has 5 axes; before TensorRT 11.2 it has to have 4"
    assert of_rule(volume, "operators/restriction", "tensorrt-11.2") == []


def test_sparse_constants():
    values = helper.make_tensor("v", TensorProto.FLOAT, [1], [1.0])
    sparse = helper.make_sparse_tensor(values, helper.make_tensor("i", TensorProto.INT64, [1], [0]), [3])

    def model(**attributes):
        nodes = [helper.make_node("Constant", [], ["c"], name="c", **attributes), node("Add", ["x", "c"], "y")]
        return graph(nodes, {"x": ["n", 3]}, {"y": ["n", 3]})

    (found,) = check_stored(model(sparse_value=sparse).SerializeToString())
    assert (found.rule, found.node, found.why) == ("operators/restriction", "c", "its sparse_value is not supported")
    assert list(check_stored(model(value_float=1.0).SerializeToString())) == []
    assert of_rule(model(value_floats=[1.0, 2.0, 3.0]), "operators/restriction") == []


def test_a_fused_attention():
    values = [helper.make_tensor_value_info(name, TensorProto.FLOAT, ["n", 2, 4, 8]) for name in ("q", "k", "v", "y")]

    def model(**attributes):
        made = helper.make_node("Attention", ["q", "k", "v"], ["y"], name="node", **attributes)
        shell = helper.make_graph([made], "g", values[:3], values[3:])
        return helper.make_model(shell, opset_imports=[helper.make_opsetid("", 23)])

    assert of_rule(model(), "operators/restriction") == []
    (found,) = of_rule(model(softcap=1.0), "operators/restriction")
    assert found.why == "its softcap and qk_matmul_output_mode are not supported"


def test_control_flow_is_looked_at_for_its_operators():
    """The node that TensorRT does not have stands in a branch."""

    def branch(op):
        inner = helper.make_node(op, ["x"], [f"{op}_y"], name=f"inner_{op}")
        return helper.make_graph([inner], op, [], [helper.make_tensor_value_info(f"{op}_y", TensorProto.FLOAT, None)])

    def model(op):
        made = helper.make_node("If", ["c"], ["y"], name="if", then_branch=branch("Relu"), else_branch=branch(op))
        inputs = [
            helper.make_tensor_value_info("x", TensorProto.FLOAT, [2, 2]),
            helper.make_tensor_value_info("c", TensorProto.BOOL, []),
        ]
        shell = helper.make_graph([made], "g", inputs, [helper.make_tensor_value_info("y", TensorProto.FLOAT, None)])
        return helper.make_model(shell, opset_imports=[helper.make_opsetid("", 20)])

    assert [(found.severity, found.rule) for found in findings(model("Tanh"))] == [
        ("warning", "operators/control-flow")
    ]
    assert [found.node for found in of_rule(model("Det"), "operators/supported")] == ["inner_Det"]
    assert of_rule(relu(), "operators/control-flow") == []


def test_local_functions_are_looked_into():
    body = [helper.make_node("Det", ["a"], ["b"], name="inner")]
    function = helper.make_function("local", "F", ["a"], ["b"], body, [helper.make_opsetid("", 20)])
    values = [
        helper.make_tensor_value_info(name, TensorProto.FLOAT, shape) for name, shape in (("x", [2, 2]), ("y", []))
    ]
    shell = helper.make_graph([helper.make_node("F", ["x"], ["y"], domain="local")], "g", values[:1], values[1:])
    imports = [helper.make_opsetid("", 20), helper.make_opsetid("local", 1)]
    model = helper.make_model(shell, functions=[function], opset_imports=imports)
    assert [found.op for found in of_rule(inline_functions(model), "operators/supported")] == ["Det"]
