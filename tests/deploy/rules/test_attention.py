"""Attention and what is around it."""

from __future__ import annotations

import numpy as np
import pytest
from onnx import helper

from _helpers.graphs import graph, node
from _helpers.planted import (
    add_constant,
    edited,
    family,
    find,
    insert_pair,
    of_rule,
    place,
    producer_of,
    remove_pair,
    transformer,
    value,
)


@pytest.mark.parametrize("half", [False, True])
def test_our_own_transformer_has_no_finding(half):
    assert family(transformer(half=half), "qdq") == []


def half_pair(model, reader, index):
    insert_pair(model, reader, index)
    for item in model.graph.initializer:
        if item.name == f"{reader}_{index}_s":
            array = np.asarray(value(model, item.name), np.float16)
            item.CopyFrom(type(item)())
            item.CopyFrom(_tensor(array, f"{reader}_{index}_s"))


def _tensor(array, name):
    from onnx import numpy_helper

    return numpy_helper.from_array(array, name)


def int8_scores(model):
    half_pair(model, "n_scores", 0)
    half_pair(model, "n_scores", 1)


def int8_attention(model):
    int8_scores(model)
    half_pair(model, "n_applied", 0)
    half_pair(model, "n_applied", 1)


def int8_projection(model):
    half_pair(model, "n_projected", 0)
    name = add_constant(model, "wo_int8", np.ones((32, 32), np.int8))
    scale = add_constant(model, "wo_s", np.full(32, 0.01, np.float16))
    restored = helper.make_node("DequantizeLinear", [name, scale], ["wo_d"], name="DQ_wo", axis=1)
    find(model, "n_projected").input[1] = "wo_d"
    place(model, [restored], before="n_projected")


def test_half_of_an_attention_in_int8():
    assert of_rule(transformer(), "qdq/attention") == []
    (found,) = of_rule(edited(transformer(), int8_scores), "qdq/attention")
    assert (found.severity, found.node) == ("warning", "n_applied")
    assert of_rule(edited(transformer(), int8_attention), "qdq/attention") == []


@pytest.mark.parametrize(("target", "severity"), [("tensorrt-11.4", "error"), ("tensorrt-10.16", "warning")])
def test_an_int8_projection_behind_an_fp16_attention(target, severity):
    assert of_rule(transformer(), "qdq/projection", target) == []
    (found,) = of_rule(edited(transformer(), int8_projection), "qdq/projection", target)
    assert (found.severity, found.node) == (severity, "n_projected")

    def both(model):
        int8_attention(model)
        int8_projection(model)

    assert of_rule(edited(transformer(), both), "qdq/projection", target) == []


def second_product_in_fp16(model):
    remove_pair(model, "n_y", 0)
    restored = producer_of(model, "n_y", 1)
    find(model, "n_y").input[1] = add_constant(model, "w2_half", np.ones((32, 32), np.float16))
    model.graph.node.remove(restored)


@pytest.mark.parametrize(
    ("target", "severity"), [("tensorrt-11.3", "error"), ("tensorrt-10.16", "error"), ("tensorrt-11.4", "warning")]
)
def test_an_int8_product_whose_gelu_feeds_an_fp16_product(target, severity):
    assert of_rule(transformer(), "qdq/mlp", target) == []
    (found,) = of_rule(edited(transformer(), second_product_in_fp16), "qdq/mlp", target)
    assert (found.severity, found.node) == (severity, "n_wide")
    assert "n_y behind its GELU is in FP16" in found.why


def layer_norm(dtype):
    """A layer normalization out of single operators."""
    nodes = [
        node("ReduceMean", ["x"], "mean", axes=[-1]),
        node("Sub", ["x", "mean"], "centered"),
        node("Pow", ["centered", "two"], "square"),
        node("ReduceMean", ["square"], "variance", axes=[-1]),
        node("Add", ["variance", "epsilon"], "shifted"),
        node("Sqrt", ["shifted"], "deviation"),
        node("Div", ["centered", "deviation"], "y"),
    ]
    constants = {"two": np.asarray(2, dtype), "epsilon": np.asarray(1e-3, dtype)}
    names = ("x", "y")
    shape = ["n", 4, 8]
    return graph(nodes, {"x": shape}, {"y": shape}, constants, opset=17, dtypes=dict.fromkeys(names, dtype))


def test_a_layer_normalization_out_of_single_operators_in_fp16():
    assert of_rule(layer_norm("float32"), "fp16/layer-normalization") == []
    (found,) = of_rule(layer_norm("float16"), "fp16/layer-normalization")
    assert (found.severity, found.node) == ("warning", "n_variance")
