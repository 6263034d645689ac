from __future__ import annotations

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper
from onnx.external_data_helper import set_external_data

from _helpers.graphs import graph, node
from krl_deploy.graph import files
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


def test_initialisers_among_the_inputs_of_old_files_are_inputs_no_longer(tmp_path):
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
