from __future__ import annotations

from itertools import permutations

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper
from onnx.external_data_helper import set_external_data

from _helpers.graphs import graph, node, ops, run
from krl_deploy.graph import files
from krl_deploy.graph.edit import GraphEditor
from krl_deploy.graph.files import opset_of, read_model, to_bytes
from krl_runtime.errors import ModelError


def small():
    return graph([node("Add", ["x", "c"], "y")], {"x": [2]}, {"y": [2]}, {"c": np.ones(2, np.float32)}, opset=18)


def test_reading_gives_back_what_was_written(tmp_path):
    path = tmp_path / "a.onnx"
    path.write_bytes(to_bytes(small()))
    assert read_model(path) == small()
    assert opset_of(read_model(path)) == 18


def test_same_model_gives_same_bytes():
    assert to_bytes(small()) == to_bytes(small())


def test_initializers_among_the_inputs_of_old_files_are_inputs_no_longer(tmp_path):
    model = small()
    model.ir_version = 3
    model.opset_import[0].version = 8
    model.graph.input.append(helper.make_tensor_value_info("c", TensorProto.FLOAT, [2]))
    path = tmp_path / "old.onnx"
    path.write_bytes(model.SerializeToString())
    read = read_model(path)
    assert [value.name for value in read.graph.input] == ["x"]
    assert read.ir_version >= 4
    onnx.checker.check_model(read)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"not protobuf at all, but long enough", "not an ONNX file, or is damaged"),
        (b"", "its graph is empty"),
        (to_bytes(small())[:-7], "not an ONNX file, or is damaged"),
    ],
)
def test_damaged_files_are_refused(tmp_path, content, message):
    path = tmp_path / "bad.onnx"
    path.write_bytes(content)
    with pytest.raises(ModelError, match=message):
        read_model(path)


def test_nodes_in_any_order_are_sorted(tmp_path):
    """ONNX Runtime takes such files, and its FP16 converter writes them."""
    nodes = [node("Relu", ["x"], "a"), node("Neg", ["a"], "b"), node("Add", ["b", "x"], "y")]
    x = np.float32([-1, 2])
    for order in permutations(nodes):
        model = graph(nodes, {"x": [2]}, {"y": [2]}, opset=18)
        del model.graph.node[:]
        model.graph.node.extend(order)
        path = tmp_path / "any.onnx"
        path.write_bytes(model.SerializeToString())
        read = read_model(path)
        assert ops(read) == ["Relu", "Neg", "Add"]
        np.testing.assert_array_equal(run(read, x=x)[0], x - np.maximum(x, 0))


def test_what_a_branch_reads_comes_before_it(tmp_path):
    inner = [node("Neg", ["a"], "n"), node("Add", ["n", "a"], "m")]
    branches = [helper.make_graph(part, "branch", [], [helper.make_tensor_value_info("m", TensorProto.FLOAT, [2])])
                for part in (inner, inner[::-1])]  # fmt: skip
    choice = node("If", ["yes"], "y", then_branch=branches[0], else_branch=branches[1])
    values = {"yes": np.array(False)}
    model = graph([node("Relu", ["x"], "a")], {"x": [2]}, {"a": [2]}, values, opset=18)
    model.graph.node.insert(0, choice)
    model.graph.output[0].name = "y"
    path = tmp_path / "branch.onnx"
    path.write_bytes(model.SerializeToString())
    read = read_model(path)
    assert ops(read) == ["Relu", "If"]
    np.testing.assert_array_equal(run(read, x=np.float32([3, -4]))[0], [0, 0])


def test_a_cycle_is_refused(tmp_path):
    model = graph([node("Relu", ["x"], "a"), node("Add", ["a", "x"], "y")], {"x": [2]}, {"y": [2]}, opset=18)
    model.graph.node[0].input[0] = "y"
    path = tmp_path / "cycle.onnx"
    path.write_bytes(model.SerializeToString())
    with pytest.raises(ModelError, match=r"cycle\.onnx is not valid ONNX: the graph has a cycle"):
        read_model(path)


def test_a_tensor_that_is_made_twice_is_named(tmp_path):
    model = graph([node("Relu", ["x"], "a"), node("Add", ["a", "x"], "y")], {"x": [2]}, {"y": [2]}, opset=18)
    model.graph.node.append(node("Neg", ["y"], "a"))
    path = tmp_path / "twice.onnx"
    path.write_bytes(model.SerializeToString())
    with pytest.raises(ModelError, match="single static assignment"):
        read_model(path)


def of_no_known_type():
    model = small()
    model.graph.initializer[0].data_type = 70
    return model.SerializeToString()


@pytest.mark.parametrize("content", [small().SerializeToString().replace(b"n_y", b"n_\xff"), of_no_known_type()])
def test_names_and_types_that_protobuf_does_not_look_at(tmp_path, content):
    path = tmp_path / "bad.onnx"
    path.write_bytes(content)
    with pytest.raises(ModelError, match="is damaged: it has names that are not text, or weights of no known type"):
        read_model(path)


def test_missing_file_and_folder_are_named(tmp_path):
    with pytest.raises(ModelError, match=r"none.onnx does not exist"):
        read_model(tmp_path / "none.onnx")
    with pytest.raises(ModelError, match="is a folder, not a file"):
        read_model(tmp_path)


def test_invalid_graph_is_refused(tmp_path):
    model = small()
    model.graph.node[0].input[1] = "nowhere"
    path = tmp_path / "invalid.onnx"
    path.write_bytes(model.SerializeToString())
    with pytest.raises(ModelError, match="not valid ONNX"):
        read_model(path)


def test_weights_in_other_files_are_refused(tmp_path):
    model = small()
    set_external_data(model.graph.initializer[0], "weights.bin")
    model.graph.initializer[0].ClearField("raw_data")
    path = tmp_path / "external.onnx"
    path.write_bytes(model.SerializeToString())
    with pytest.raises(ModelError, match=r"keeps 1 weights in other files \(c …\); write it as one file"):
        read_model(path)


def test_too_large_files_and_models_are_refused(tmp_path, monkeypatch):
    path = tmp_path / "large.onnx"
    path.write_bytes(to_bytes(small()))
    monkeypatch.setattr(files, "MAX_BYTES", 50)
    with pytest.raises(ModelError, match="at most 50 are accepted"):
        read_model(path)
    with pytest.raises(ModelError, match="one ONNX file has at most 50"):
        to_bytes(small())


def test_opset_of_a_model_without_one():
    model = small()
    del model.opset_import[:]
    assert opset_of(model) == 1
    assert numpy_helper.to_array(model.graph.initializer[0]).sum() == 2


def with_functions(*functions, opset=18, calls=("F",)):
    """A model that calls local functions one after the other, from x to y, on its constant c."""
    names = ["x", *(f"t{number}" for number in range(1, len(calls))), "y"]
    made = [
        helper.make_node(kind, [names[i], "c"], [names[i + 1]], name=f"call{i}", domain="local")
        for i, kind in enumerate(calls)
    ]
    model = small()
    del model.graph.node[:]
    model.graph.node.extend(made)
    model.functions.extend(functions)
    model.opset_import[0].version = opset
    model.opset_import.append(helper.make_opsetid("local", 1))
    return model


def function(name, body, opset=18, attributes=()):
    imports = [helper.make_opsetid("", opset), helper.make_opsetid("local", 1)]
    return helper.make_function("local", name, ["p", "q"], ["r"], body, imports, attributes)


def scaled(opset=18):
    """x * q + t, whose inner names are those of the graph around it."""
    return function("F", [node("Mul", ["p", "q"], "t1"), node("Add", ["t1", "p"], "r")], opset)


@pytest.mark.parametrize("opset", [17, 18])
def test_local_functions_are_inlined_and_compute_the_same(tmp_path, opset):
    outer = function("G", [helper.make_node("F", ["p", "q"], ["r"], domain="local")], opset)
    unused = function("Unused", [node("Add", ["p", "q"], "r")], opset)
    model = with_functions(scaled(opset), outer, unused, calls=("F", "G", "F"))
    weight = np.float16([2, 3])
    model.graph.initializer.append(numpy_helper.from_array(weight, "half"))
    path = tmp_path / "functions.onnx"
    path.write_bytes(to_bytes(model))
    read = read_model(path)
    assert not read.functions
    assert ops(read) == ["Mul", "Add"] * 3
    assert [(item.domain, item.version) for item in read.opset_import] == [("", 18)]
    assert read.graph.initializer[1].raw_data == weight.tobytes()
    x = np.float32([1, -2])
    assert run(read, x=x)[0].tolist() == run(model, x=x)[0].tolist() == [8, -16]
    assert run(GraphEditor(read).close(), x=x)[0].tolist() == [8, -16]


def test_attributes_of_local_functions_are_followed(tmp_path):
    body = node("LeakyRelu", ["p"], "r")
    body.attribute.append(onnx.AttributeProto(name="alpha", ref_attr_name="slope", type=onnx.AttributeProto.FLOAT))
    model = with_functions(function("F", [body], attributes=["slope"]))
    model.graph.node[0].attribute.append(helper.make_attribute("slope", 0.5))
    path = tmp_path / "attributes.onnx"
    path.write_bytes(to_bytes(model))
    assert run(read_model(path), x=np.float32([4, -4]))[0].tolist() == [4, -2]


def test_local_functions_that_cannot_be_inlined_are_refused(tmp_path):
    model = with_functions(scaled())
    model.opset_import.append(helper.make_opsetid("custom", 1))
    model.functions[0].opset_import.append(helper.make_opsetid("custom", 2))
    path = tmp_path / "custom.onnx"
    path.write_bytes(to_bytes(model))
    with pytest.raises(ModelError, match=r"custom.onnx has local functions that cannot be inlined: Opset mismatch"):
        read_model(path)


def test_a_local_function_of_another_meaning_is_refused(tmp_path):
    squeeze = function("F", [node("Squeeze", ["p"], "r")], opset=12)  # from opset 13 on its axes are an input
    path = tmp_path / "older.onnx"
    path.write_bytes(to_bytes(with_functions(squeeze)))
    with pytest.raises(ModelError, match="not valid ONNX: Opset import"):
        read_model(path)
