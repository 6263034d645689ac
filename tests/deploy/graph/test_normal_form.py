"""Spellings of third-party files, each judged by ONNX Runtime on the file as it is."""

from __future__ import annotations

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from _helpers.graphs import graph, node, ops, run
from krl_deploy.graph import normal_form
from krl_deploy.graph.cleanup import clean
from krl_deploy.graph.files import read_model
from krl_runtime.errors import ModelError

X = np.random.default_rng(0).normal(size=(2, 3)).astype(np.float32)
DENSE = np.float32([[0, 2, 0], [0, 0, -1], [0, 0, 0]])


def added(constant_nodes=(), values=None, *, name="k"):
    nodes = [*constant_nodes, node("Add", ["x", name], "y")]
    return graph(nodes, {"x": ["batch", 3]}, {"y": None}, values or {}, opset=18)


def read(model, tmp_path):
    path = tmp_path / "m.onnx"
    path.write_bytes(model.SerializeToString())
    return read_model(path)


def sparse(indices, values=(2, -1), dims=(3, 3), name="w"):
    return helper.make_sparse_tensor(
        numpy_helper.from_array(np.float32(values), name), numpy_helper.from_array(np.int64(indices), "i"), dims
    )


def with_sparse(tensor, *, constant):
    model = graph([node("MatMul", ["x", "w"], "y")], {"x": ["batch", 3]}, {"y": None}, {"w": DENSE}, opset=18)
    del model.graph.initializer[:]
    if constant:
        model.graph.node.insert(0, helper.make_node("Constant", [], ["w"], name="c", sparse_value=tensor))
    else:
        model.graph.sparse_initializer.append(tensor)
    return model


@pytest.mark.parametrize("constant", [False, True])
@pytest.mark.parametrize("indices", [[1, 5], [[0, 1], [1, 2]]])
def test_sparse_weights_become_dense(constant, indices, tmp_path):
    found = read(with_sparse(sparse(indices), constant=constant), tmp_path)
    assert run(clean(found), x=X)[0].tolist() == (X @ DENSE).tolist()
    assert ops(clean(found)) == ["MatMul"]


def test_many_zeros_are_bounded(tmp_path):
    side = 2**20
    with pytest.raises(ModelError, match=rf"1 sparse weights \(w …\) have {side * side * 4} bytes with their zeros"):
        read(with_sparse(sparse([1, 5], dims=(side, side)), constant=False), tmp_path)


@pytest.mark.parametrize("indices", [[1, 9], [-1, 5], [[0, 1], [1, 3]]])
def test_sparse_weights_with_wrong_places_are_refused(indices):
    model = with_sparse(sparse(indices), constant=False)
    with pytest.raises(ModelError, match=r"sparse weight w of shape .* is damaged"):
        normal_form.make_dense(model)


CONSTANTS = {
    "value_float": (0.5, np.float32(0.5)),
    "value_floats": ([1.0, 2.0, 3.0], np.float32([1, 2, 3])),
    "value": (numpy_helper.from_array(np.float32([1, 2, 3])), np.float32([1, 2, 3])),
}


@pytest.mark.parametrize("name", CONSTANTS)
def test_constants_in_their_forms(name, tmp_path):
    given, expected = CONSTANTS[name]
    cleaned = clean(read(added([helper.make_node("Constant", [], ["k"], **{name: given})]), tmp_path))
    assert ops(cleaned) == ["Add"]
    assert run(cleaned, x=X)[0].tolist() == (X + expected).tolist()


@pytest.mark.parametrize(("name", "given"), [("value_int", 1), ("value_ints", [1])])
def test_whole_numbers_as_constants(name, given, tmp_path):
    nodes = [
        helper.make_node("Constant", [], ["axis"], **{name: given}),
        node("CumSum" if name == "value_int" else "ReduceSum", ["x", "axis"], "y"),
    ]
    model = graph(nodes, {"x": ["batch", 3]}, {"y": None}, opset=18)
    cleaned = clean(read(model, tmp_path))
    assert len(cleaned.graph.node) == 1
    expected = X.cumsum(1) if name == "value_int" else X.sum(1, keepdims=True)
    np.testing.assert_allclose(run(cleaned, x=X)[0], expected, rtol=1e-6)


@pytest.mark.parametrize("size", [0, -1])
def test_open_sizes_that_have_a_number(size, tmp_path):
    model = added(values={"k": np.float32([1, 2, 3])})
    for value in (*model.graph.input, *model.graph.output):
        value.type.tensor_type.shape.dim[0].dim_value = size
    found = read(model, tmp_path)
    assert found.graph.input[0].type.tensor_type.shape.dim[0].dim_param == "batch"
    assert run(found, x=X)[0].tolist() == (X + np.float32([1, 2, 3])).tolist()


@pytest.mark.parametrize("what", ["type", "shape"])
def test_outputs_without_a_type_or_a_shape(what, tmp_path):
    model = added(values={"k": np.float32([1, 2, 3])})
    model.graph.output[0].ClearField("type")
    if what == "shape":
        model.graph.output[0].type.tensor_type.elem_type = TensorProto.FLOAT
    found = clean(read(model, tmp_path)).graph.output[0].type.tensor_type
    assert found.elem_type == TensorProto.FLOAT
    assert found.shape.dim[1].dim_value == 3


def test_a_loop_is_refused_and_no_crash(tmp_path):
    model = added(values={"k": np.float32([1, 2, 3])})
    model.graph.node[0].input[1] = "y"
    model.graph.output[0].ClearField("type")
    with pytest.raises(ModelError, match="not valid ONNX"):
        read(model, tmp_path)
    assert isinstance(model, onnx.ModelProto)
