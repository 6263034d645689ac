from __future__ import annotations

import numpy as np
import pytest
from onnx import TensorProto, helper

from _helpers.graphs import graph, node, ops, run
from krl_deploy.graph.edit import GraphEditor, attribute
from krl_runtime.errors import ModelError


def chain():
    nodes = [node("Relu", ["x"], "a"), node("Mul", ["a", "c"], "b"), node("Neg", ["b"], "y")]
    return graph(nodes, {"x": ["batch", 3]}, {"y": ["batch", 3]}, {"c": np.float32([1, 2, 3])})


def test_look_ups():
    editor = GraphEditor(chain())
    assert editor.inputs == ["x"]
    assert editor.outputs == ["y"]
    assert editor.producers()["b"].op_type == "Mul"
    assert [item.op_type for item in editor.consumers()["a"]] == ["Mul"]
    assert editor.constant("c").tolist() == [1, 2, 3]
    assert editor.constant("a") is None
    assert editor.shape("b") == ("batch", 3)
    assert editor.shape("c") == (3,)
    assert editor.shape("nothing") is None
    assert editor.dtype("b") == TensorProto.FLOAT
    assert editor.dtype("nothing") == 0


def test_the_model_it_was_opened_on_stays_as_it_was():
    model = chain()
    before = model.SerializeToString()
    editor = GraphEditor(model)
    editor.reroute("a", "x")
    editor.close()
    assert model.SerializeToString() == before


def test_close_sorts_drops_dead_nodes_and_unused_constants():
    editor = GraphEditor(chain())
    two = editor.add_constant("c", np.float32([2, 2, 2]))
    editor.add("Mul", ["x", two], "dead")
    doubled = editor.add("Mul", ["b", two], "doubled")
    editor.reroute("b", doubled, only=lambda item: item.op_type == "Neg")
    model = editor.close()
    assert two == "c_1"
    assert ops(model) == ["Relu", "Mul", "Mul", "Neg"]
    x = np.float32([[-1, 1, 2]])
    assert run(model, x=x)[0].tolist() == [[0, -4, -12]]
    editor = GraphEditor(model)
    editor.reroute("doubled", "b")
    assert [tensor.name for tensor in editor.close().graph.initializer] == ["c"]


def test_nodes_without_a_name_of_their_own_get_one():
    model = chain()
    for item in model.graph.node:
        item.name = "same"
    names = [item.name for item in GraphEditor(model).nodes]
    assert names == ["same", "Mul_b", "Neg_y"]


def test_control_flow_is_refused():
    branch = graph([node("Neg", ["x"], "z")], {"x": [1]}, {"z": [1]}).graph
    del branch.input[:]
    choice = helper.make_node("If", ["flag"], ["y"], then_branch=branch, else_branch=branch)
    model = graph([node("Relu", ["x"], "a")], {"x": [1]}, {"a": [1]})
    model.graph.node.append(choice)
    with pytest.raises(ModelError, match="the graph has If, which cannot be rewritten"):
        GraphEditor(model)


def test_a_cycle_and_an_invalid_result_are_refused():
    editor = GraphEditor(chain())
    editor.reroute("x", "b")
    with pytest.raises(ModelError, match="cycle"):
        editor.close()
    editor = GraphEditor(chain())
    editor.reroute("x", "nowhere")
    with pytest.raises(ModelError, match="not valid ONNX"):
        editor.close()


def test_rename_follows_constants_and_nodes():
    editor = GraphEditor(chain())
    editor.rename("c", "factor")
    editor.rename("b", "product")
    model = editor.close()
    assert model.graph.node[1].output[0] == "product"
    assert model.graph.initializer[0].name == "factor"


def test_attribute_and_its_default():
    item = node("Softmax", ["x"], "y", axis=1)
    assert attribute(item, "axis", -1) == 1
    assert attribute(item, "missing", 7) == 7
