"""TensorRT's plugins, quantizers of another domain, and attributes that TensorRT ignores."""

from __future__ import annotations

import numpy as np
import pytest
from onnx import TensorProto, helper, numpy_helper

from _helpers.graphs import graph, node, run
from krl_deploy.cli import main
from krl_deploy.graph.files import read_model
from krl_deploy.graph.operators import PLUGINS
from krl_deploy.rules.run import findings_of
from krl_deploy.rules.targets import parse_target


def with_plugin(kind, domain, *, imported=True):
    """A plugin behind a convolution, with two outputs."""
    nodes = [
        helper.make_node("Conv", ["x", "w"], ["c"], name="conv"),
        helper.make_node(kind, ["c"], ["a", "b"], name="plugin", domain=domain, plugin_version="1", score=0.5),
    ]
    values = [helper.make_tensor_value_info(name, TensorProto.FLOAT, ["n", "m"]) for name in ("a", "b")]
    x = helper.make_tensor_value_info("x", TensorProto.FLOAT, ["n", 3, 8, 8])
    weight = numpy_helper.from_array(np.ones((4, 3, 3, 3), np.float32), "w")
    opsets = [helper.make_opsetid("", 17)] + ([helper.make_opsetid(domain, 1)] if domain and imported else [])
    return helper.make_model(helper.make_graph(nodes, "g", [x], values, [weight]), opset_imports=opsets, ir_version=8)


def found(model, tmp_path, target="jetpack-6.2"):
    path = tmp_path / "m.onnx"
    path.write_bytes(model.SerializeToString())
    return [(item.severity, item.rule) for item in findings_of(read_model(path), parse_target(target))]


@pytest.mark.parametrize(
    "kind", ["EfficientNMS_TRT", "BatchedNMSDynamic_TRT", "ROIAlign_TRT", "InstanceNormalization_TRT"]
)
@pytest.mark.parametrize(("domain", "imported"), [("", True), ("TRT", True), ("TRT", False), ("trt.plugins", True)])
def test_plugins_are_noted(kind, domain, imported, tmp_path):
    model = with_plugin(kind, domain, imported=imported)
    assert found(model, tmp_path) == [("note", "operators/plugin")]
    assert found(model, tmp_path, "rtx") == [("error", "operators/plugin")]
    assert ("error", "cpu/opens") in found(model, tmp_path, "onnxruntime-cpu")


def test_unknown_operators_stay_errors(tmp_path, capsys):
    assert found(with_plugin("OwnPlugin", "own"), tmp_path) == [("error", "operators/domain")]
    path = tmp_path / "m.onnx"
    path.write_bytes(with_plugin("OwnPlugin", "").SerializeToString())
    assert main(["check", str(path), "--target", "jetpack-6.2"]) == 2
    assert "No Op registered for OwnPlugin" in capsys.readouterr().err


def test_no_plugin_has_the_name_of_a_standard_operator():
    from onnx import defs

    assert not PLUGINS & {schema.name for schema in defs.get_all_schemas_with_history()}


def quantized(dtype, *, domain, zero=True):
    names = ["s", "z"] if zero else ["s"]
    nodes = [
        helper.make_node("QuantizeLinear", ["x", *names], ["q"], name="quantize", domain=domain),
        helper.make_node("DequantizeLinear", ["q", *names], ["d"], name="dequantize", domain=domain),
        helper.make_node("Relu", ["d"], ["y"], name="relu"),
    ]
    constants = [numpy_helper.from_array(np.float32(0.01), "s")]
    constants += [numpy_helper.from_array(np.array(0, dtype), "z")] if zero else []
    values = [helper.make_tensor_value_info(name, TensorProto.FLOAT, ["n", 3, 8, 8]) for name in ("x", "y")]
    opsets = [helper.make_opsetid("", 21)] + ([helper.make_opsetid(domain, 1)] if domain else [])
    inner = helper.make_graph(nodes, "g", values[:1], values[1:], constants)
    return helper.make_model(inner, opset_imports=opsets, ir_version=10)


@pytest.mark.parametrize("domain", ["", "com.microsoft", "com.example"])
@pytest.mark.parametrize("dtype", [np.uint16, np.int16, np.uint8])
def test_quantizers_of_any_domain_are_read(dtype, domain, tmp_path):
    rules = found(quantized(dtype, domain=domain), tmp_path, "tensorrt-10.15")
    assert rules.count(("error", "qdq/int8")) == 2


@pytest.mark.parametrize("domain", ["", "com.microsoft"])
def test_int8_of_any_domain_is_taken(domain, tmp_path):
    assert ("error", "qdq/int8") not in found(quantized(np.int8, domain=domain), tmp_path, "tensorrt-10.15")


def test_without_a_zero_point_the_other_domain_means_uint8_too(tmp_path):
    model = quantized(np.uint8, domain="com.microsoft", zero=False)
    assert run(model, x=np.full((1, 3, 8, 8), 9, np.float32))[0].max() == pytest.approx(2.55)  # not 1.27
    assert ("error", "qdq/int8") in found(model, tmp_path, "tensorrt-10.15")


def normalized(opset, **attributes):
    """Batch normalization as the opsets before 9 write it."""
    values = {name: np.ones(3, np.float32) for name in "smbv"}
    node_ = helper.make_node("BatchNormalization", ["x", *values], ["y"], name="bn", **attributes)
    x, y = (helper.make_tensor_value_info(name, TensorProto.FLOAT, ["n", 3, 8, 8]) for name in "xy")
    constants = [numpy_helper.from_array(value, name) for name, value in values.items()]
    proto = helper.make_graph([node_], "g", [x], [y], constants)
    return helper.make_model(proto, opset_imports=[helper.make_opsetid("", opset)], ir_version=8)


@pytest.mark.parametrize(
    ("opset", "attributes", "wrong"),
    [
        (6, {"is_test": 0}, True),
        (6, {}, True),  # ONNX's default there is training
        (6, {"is_test": 1}, False),
        (6, {"is_test": 1, "spatial": 0}, True),
        (8, {}, False),
        (8, {"spatial": 1}, False),
        (8, {"spatial": 0}, True),
        (9, {}, False),
        (14, {"training_mode": 0}, False),
        (15, {"training_mode": 1}, True),
    ],
)
def test_attributes_of_batch_normalization_that_tensorrt_ignores(opset, attributes, wrong, tmp_path):
    assert (("error", "operators/restriction") in found(normalized(opset, **attributes), tmp_path)) == wrong


@pytest.mark.parametrize("opset", [8, 9, 11, 12])
def test_old_opsets_have_no_error_of_their_own(opset, tmp_path):
    nodes = [
        node("Conv", ["x", "w"], "a"),
        node("Mul", ["a", "k"], "b"),
        node("PRelu", ["b", "slope"], "c"),
        node("Flatten", ["c"], "f"),
        node("Gemm", ["f", "v", "bias"], "g"),
        node("Softmax", ["g"], "y", axis=1),
    ]
    values = {
        "w": np.ones((4, 3, 3, 3), np.float32),
        "k": np.ones((4, 1, 1), np.float32),
        "slope": np.ones((4, 1, 1), np.float32),
        "v": np.ones((4 * 36, 5), np.float32),
        "bias": np.ones((1, 5), np.float32),
    }
    model = graph(nodes, {"x": ["n", 3, 8, 8]}, {"y": None}, values, opset=opset, ir=8)
    assert [item for item in found(model, tmp_path, "tensorrt-11.4") if item[0] == "error"] == []


@pytest.mark.parametrize("form", ["value_int", "value_ints", "value_float", "value_floats"])
def test_constants_in_any_form_have_no_error(form, tmp_path):
    value = {"value_int": 1, "value_ints": [1], "value_float": 2.0, "value_floats": [2.0]}[form]
    use = [node("Mul", ["x", "k"], "y")] if "float" in form else [node("Gather", ["x", "k"], "y", axis=1)]
    model = graph([helper.make_node("Constant", [], ["k"], name="k", **{form: value}), *use],
                  {"x": ["n", 3, 8, 8]}, {"y": None}, opset=17, ir=8)  # fmt: skip
    assert [item for item in found(model, tmp_path) if item[0] == "error"] == []
