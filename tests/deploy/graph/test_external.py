"""Weights in files beside the model: read from its folder alone, and bounded before they are read."""

from __future__ import annotations

import os

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from _helpers.graphs import graph, node, run
from krl_deploy.graph import files
from krl_deploy.graph.external import size_of
from krl_deploy.graph.files import one_file, read_model
from krl_runtime.errors import ModelError

X = np.float32([[1, -2, 3], [0, 1, 0]])
WEIGHT = np.arange(12, dtype=np.float32).reshape(3, 4)


def product(**constants):
    nodes = [node("MatMul", ["x", "w"], "m"), node("Add", ["m", "bias"], "y")]
    values = {"w": WEIGHT, "bias": np.float32([1, 2, 3, 4]), **constants}
    return graph(nodes, {"x": ["batch", 3]}, {"y": None}, values)


def outside(tensor, location, **entries):
    """Let a tensor be in another file."""
    tensor.ClearField("raw_data")
    tensor.data_location = TensorProto.EXTERNAL
    del tensor.external_data[:]
    for key, value in {"location": location, **entries}.items():
        tensor.external_data.add(key=key, value=str(value))


def written(tmp_path, location="weights.bin", change=lambda tensor: None, **entries):
    """Write a model whose first weight is in another file."""
    model = product()
    outside(model.graph.initializer[0], location, **entries)
    change(model.graph.initializer[0])
    path = tmp_path / "models" / "model.onnx"
    path.parent.mkdir(exist_ok=True)
    path.write_bytes(model.SerializeToString())
    return path


def test_all_weights_in_one_file(tmp_path):
    path = tmp_path / "model.onnx"
    onnx.save_model(product(), path, save_as_external_data=True, location="model.onnx.data", size_threshold=0)
    read = read_model(path, beside=True)
    assert run(read, x=X)[0].tolist() == (X @ WEIGHT + [1, 2, 3, 4]).tolist()
    assert run(onnx.load_model_from_string(one_file(path)), x=X)[0].tolist() == run(read, x=X)[0].tolist()


def test_a_file_for_each_weight_and_folders_below(tmp_path):
    path = written(tmp_path, "parts/w.bin", offset=4)
    (path.parent / "parts").mkdir()
    (path.parent / "parts" / "w.bin").write_bytes(b"skip" + WEIGHT.tobytes() + b"more")
    assert run(read_model(path, beside=True), x=X)[0].tolist() == (X @ WEIGHT + [1, 2, 3, 4]).tolist()


def constant_node(model):
    tensor = model.graph.initializer.pop(0)
    model.graph.node.insert(0, helper.make_node("Constant", [], ["w"], value=tensor))
    return model.graph.node[0].attribute[0].t


def in_a_function(model):
    tensor = model.graph.initializer.pop(0)
    body = [helper.make_node("Constant", [], ["r"], value=tensor)]
    model.functions.append(helper.make_function("local", "F", [], ["r"], body, [helper.make_opsetid("", 20)]))
    model.opset_import.append(helper.make_opsetid("local", 1))
    model.graph.node.insert(0, helper.make_node("F", [], ["w"], domain="local"))
    return model.functions[0].node[0].attribute[0].t


@pytest.mark.parametrize("place", [constant_node, in_a_function])
def test_weights_that_are_no_initializers(tmp_path, place):
    model, path = product(), tmp_path / "model.onnx"
    outside(place(model), "w.bin")
    path.write_bytes(model.SerializeToString())
    with pytest.raises(ModelError, match="keeps 1 weights in other files"):
        read_model(path)
    (tmp_path / "w.bin").write_bytes(WEIGHT.tobytes())
    assert run(read_model(path, beside=True), x=X)[0].tolist() == (X @ WEIGHT + [1, 2, 3, 4]).tolist()


@pytest.mark.parametrize("location", ["../secret.bin", "a/../../secret.bin", "{absolute}", "link.bin", "", "."])
def test_data_outside_the_folder_stay_refused(tmp_path, location):
    secret = tmp_path / "secret.bin"
    secret.write_bytes(WEIGHT.tobytes())
    path = written(tmp_path, location.format(absolute=secret))
    (path.parent / "a").mkdir()
    os.symlink(secret, path.parent / "link.bin")
    with pytest.raises(ModelError, match=r"tensor w in another file, '.*', which is (outside the model|not a file)"):
        read_model(path, beside=True)


def many(tensor):
    tensor.dims[:] = [2**40, 2**20]


def negative(tensor):
    tensor.dims[:] = [-3, 4]


def unknown(tensor):
    tensor.data_type = 77


@pytest.mark.parametrize(
    ("change", "entries", "message"),
    [
        (None, {"location": "none.bin"}, "none.bin, which does not exist in .*; copy it there"),
        (None, {"location": "a\0b"}, "cannot be read"),
        (None, {"offset": 4}, "which has 44 of its 48 bytes"),
        (None, {"offset": 2**62}, "which has 0 of its 48 bytes"),
        (None, {"offset": -4}, "at byte -4"),
        (None, {"offset": "many"}, "an entry of it is wrong"),
        (None, {"length": 44}, r"with 44 bytes; its shape \[3, 4\] needs 48"),
        (many, {}, "which has 48 of its 4611686018427387904 bytes"),
        (negative, {}, "a negative size"),
        (unknown, {}, "no known type"),
    ],
)
def test_entries_that_do_not_fit_are_named(tmp_path, change, entries, message):
    path = written(tmp_path, change=change or (lambda tensor: None), **{"location": "weights.bin", **entries})
    (path.parent / "weights.bin").write_bytes(WEIGHT.tobytes())
    with pytest.raises(ModelError, match=message):
        read_model(path, beside=True)


def test_one_file_that_many_weights_name_counts_each_time(tmp_path, monkeypatch):
    model = product(**{f"w{number}": WEIGHT for number in range(9)})
    for tensor in model.graph.initializer:
        if tensor.name.startswith("w"):
            outside(tensor, "w.bin")
    path = tmp_path / "model.onnx"
    path.write_bytes(model.SerializeToString())
    (tmp_path / "w.bin").write_bytes(WEIGHT.tobytes())
    size = path.stat().st_size
    monkeypatch.setattr(files, "MAX_BYTES", size + 479)
    with pytest.raises(ModelError, match=rf"has {size + 480} bytes with its data in other files; at most {size + 479}"):
        read_model(path, beside=True)
    monkeypatch.setattr(files, "MAX_BYTES", size + 480)
    assert run(read_model(path, beside=True), x=X)[0].tolist() == (X @ WEIGHT + [1, 2, 3, 4]).tolist()


@pytest.mark.parametrize(
    ("dtype", "shape"),
    [("FLOAT", (3, 5)), ("INT8", ()), ("DOUBLE", (0, 4)), ("INT4", (3, 5)), ("UINT4", (1,)), ("BOOL", (7,))],
)
def test_sizes_are_those_that_onnx_writes(dtype, shape):
    kind = helper.tensor_dtype_to_np_dtype(getattr(TensorProto, dtype))
    tensor = numpy_helper.from_array(np.zeros(shape, kind), "t")
    assert size_of(tensor) == len(tensor.raw_data)
