from __future__ import annotations

import numpy as np
import pytest
from onnx import helper, numpy_helper

from _helpers.graphs import constants, graph, node, ops, run
from krl_deploy.graph.cleanup import clean

RNG = np.random.default_rng(0)
X = RNG.normal(size=(2, 3, 6, 6)).astype(np.float32)


def normal(*shape):
    return RNG.normal(size=shape).astype(np.float32)


def same(model, **feeds):
    cleaned = clean(model)
    for before, after in zip(run(model, **feeds), run(cleaned, **feeds), strict=True):
        np.testing.assert_allclose(after, before, atol=2e-5)
    return cleaned


def test_batch_normalization_and_constant_factors_move_into_the_convolution():
    nodes = [
        node("Conv", ["x", "w"], "c", pads=[1, 1, 1, 1]),
        node("BatchNormalization", ["c", "gamma", "beta", "mean", "var"], "b", epsilon=1e-3),
        node("Mul", ["b", "factor"], "m"),
        node("Add", ["offset", "m"], "y"),
    ]
    values = {
        "w": normal(4, 3, 3, 3),
        "gamma": normal(4),
        "beta": normal(4),
        "mean": normal(4),
        "var": np.abs(normal(4)) + 0.1,
        "factor": normal(4, 1, 1),
        "offset": normal(1, 4, 1, 1),
    }
    cleaned = same(graph(nodes, {"x": ["batch", 3, 6, 6]}, {"y": ["batch", 4, 6, 6]}, values), x=X)
    assert ops(cleaned) == ["Conv"]


def test_batch_normalization_moves_into_a_transposed_convolution():
    nodes = [
        node("ConvTranspose", ["x", "w", "bias"], "c", strides=[2, 2]),
        node("BatchNormalization", ["c", "gamma", "beta", "mean", "var"], "y"),
    ]
    values = {"w": normal(3, 5, 2, 2), "bias": normal(5), "gamma": normal(5), "beta": normal(5), "mean": normal(5)}
    values["var"] = np.abs(normal(5)) + 0.1
    cleaned = same(graph(nodes, {"x": ["batch", 3, 6, 6]}, {"y": ["batch", 5, 12, 12]}, values), x=X)
    assert ops(cleaned) == ["ConvTranspose"]


def test_what_others_read_is_not_folded():
    """The convolution's output is read twice, once before the offset: folding would change the other reader."""
    nodes = [
        node("Conv", ["x", "w"], "c"),
        node("Add", ["c", "offset"], "a"),
        node("Mul", ["a", "c"], "y"),
    ]
    values = {"w": normal(4, 3, 1, 1), "offset": normal(4, 1, 1)}
    cleaned = same(graph(nodes, {"x": ["batch", 3, 6, 6]}, {"y": ["batch", 4, 6, 6]}, values), x=X)
    assert ops(cleaned) == ["Conv", "Add", "Mul"]


def test_an_offset_along_another_axis_is_not_folded():
    nodes = [node("Conv", ["x", "w"], "c"), node("Add", ["c", "offset"], "y")]
    values = {"w": normal(4, 3, 1, 1), "offset": normal(6)}
    cleaned = same(graph(nodes, {"x": ["batch", 3, 6, 6]}, {"y": ["batch", 4, 6, 6]}, values), x=X)
    assert ops(cleaned) == ["Conv", "Add"]


def test_constants_identity_and_dropout_go():
    constant = helper.make_node("Constant", [], ["k"], value=numpy_helper.from_array(np.float32([2.0]), "k"))
    nodes = [
        constant,
        node("Identity", ["k"], "k2"),
        node("Dropout", ["x"], "d"),
        node("Mul", ["d", "k2"], "m"),
        node("Identity", ["m"], "y"),
    ]
    cleaned = same(graph(nodes, {"x": [2]}, {"y": [2]}), x=np.float32([1, 3]))
    assert ops(cleaned) == ["Mul"]
    assert cleaned.graph.output[0].name == "y"


def test_an_input_that_is_an_output_keeps_its_identity():
    cleaned = same(graph([node("Identity", ["x"], "y")], {"x": [2]}, {"y": [2]}), x=np.float32([1, 3]))
    assert ops(cleaned) == ["Identity"]


def test_computations_on_constants_are_done_once():
    nodes = [node("Reshape", ["p", "shape"], "w"), node("MatMul", ["x", "w"], "y")]
    values = {"p": np.arange(6, dtype=np.float32), "shape": np.int64([2, 3])}
    cleaned = same(graph(nodes, {"x": [1, 2]}, {"y": [1, 3]}, values), x=np.float32([[1, 1]]))
    assert ops(cleaned) == ["MatMul"]
    assert constants(cleaned)["w"].tolist() == [[0, 1, 2], [3, 4, 5]]


def test_constants_in_the_type_of_another_tensor_are_constants():
    """As torch.onnx.export(dynamo=True, optimize=False) writes biases, limits and factors."""
    nodes = [
        node("Shape", ["w"], "all", start=0, end=1),
        node("CastLike", ["zero", "x"], "z"),
        node("Expand", ["z", "all"], "b"),
        node("Conv", ["x", "w", "b"], "c"),
        node("CastLike", ["low", "c"], "l"),
        node("CastLike", ["high", "l"], "h"),
        node("Clip", ["c", "l", "h"], "k"),
        node("CastLike", ["two", "k"], "f"),
        node("Mul", ["k", "f"], "y"),
    ]
    values = {
        "w": normal(4, 3, 3, 3),
        "zero": np.float64(0.5),
        "low": np.int64(0),
        "high": np.int32(1),
        "two": np.int8(2),
    }
    model = graph(nodes, {"x": ["n", 3, 6, 6]}, {"y": ["n", 4, 4, 4]}, values)
    cleaned = same(model, x=X)
    assert ops(cleaned) == ["Conv", "Clip", "Mul"]


@pytest.mark.parametrize("axis", [1, -3])
@pytest.mark.parametrize("sizes", [[1, 2], 2])
@pytest.mark.parametrize("places", [(0, 1), (1, 0), (-1, -2), (1, 1)])
def test_parts_of_a_sequence_become_a_split(places, sizes, axis):
    """As torch writes split and chunk with optimize=False."""
    nodes = [
        node("SplitToSequence", ["x", "sizes"], "parts", axis=axis),
        node("SequenceAt", ["parts", "one"], "a"),
        node("SequenceAt", ["parts", "other"], "b"),
        node("Concat", ["b", "a"], "y", axis=1),
    ]
    values = {"sizes": np.int64(sizes), "one": np.int64(places[0]), "other": np.int64(places[1])}
    model = graph(nodes, {"x": ["n", 3, 6, 6]}, {"y": None}, values)
    assert ops(same(model, x=X)) == ["Split", "Concat"]


def test_a_type_that_is_not_known_stays_open():
    """An operator of another domain says nothing of its type."""
    nodes = [
        node("Silu", ["x"], "s", domain="com.microsoft"),
        node("CastLike", ["two", "s"], "f"),
        node("Mul", ["s", "f"], "y"),
    ]
    model = graph(
        [node("CastLike", ["two", "x"], "f"), node("Mul", ["x", "f"], "y")], {"x": [2]}, {"y": [2]}, {"two": np.int8(2)}
    )
    del model.graph.node[:]
    model.graph.node.extend(nodes)
    model.opset_import.append(helper.make_opsetid("com.microsoft", 1))
    assert ops(clean(model)) == ["Silu", "CastLike", "Mul"]


def test_a_quantized_weight_is_not_folded_back():
    nodes = [node("DequantizeLinear", ["q", "s"], "w"), node("MatMul", ["x", "w"], "y")]
    values = {"q": np.int8([[1, 2], [3, 4]]), "s": np.float32(0.5)}
    cleaned = clean(graph(nodes, {"x": [1, 2]}, {"y": [1, 2]}, values))
    assert ops(cleaned) == ["DequantizeLinear", "MatMul"]


def test_shared_weights_and_biases_are_given_to_each_node():
    """A tensor that legacy exports share through Identity kept ONNX Runtime from quantizing 16 of 20 convolutions."""
    nodes = [
        node("Identity", ["bias"], "bias2"),
        node("Conv", ["x", "w", "bias"], "a"),
        node("Conv", ["a", "w", "bias2"], "y"),
    ]
    values = {"w": normal(3, 3, 1, 1), "bias": normal(3)}
    cleaned = same(graph(nodes, {"x": ["batch", 3, 6, 6]}, {"y": ["batch", 3, 6, 6]}, values), x=X)
    first, second = cleaned.graph.node
    assert not set(first.input[1:]) & set(second.input[1:])


def test_matmul_and_its_bias_become_one_gemm():
    nodes = [node("MatMul", ["x", "w"], "m"), node("Add", ["bias", "m"], "y")]
    values = {"w": normal(6, 4), "bias": normal(1, 4)}
    x = normal(2, 6)
    cleaned = same(graph(nodes, {"x": ["batch", 6]}, {"y": ["batch", 4]}, values), x=x)
    assert ops(cleaned) == ["Gemm"]


def test_matmul_of_a_batch_of_matrices_stays():
    nodes = [node("MatMul", ["x", "w"], "m"), node("Add", ["m", "bias"], "y")]
    values = {"w": normal(6, 4), "bias": normal(4)}
    cleaned = same(graph(nodes, {"x": ["batch", 5, 6]}, {"y": ["batch", 5, 4]}, values), x=normal(2, 5, 6))
    assert ops(cleaned) == ["MatMul", "Add"]


def test_where_it_came_from_is_forgotten():
    model = graph([node("Relu", ["x"], "y")], {"x": [1]}, {"y": [1]})
    entry = model.graph.node[0].metadata_props.add()
    entry.key, entry.value = "stack_trace", "/home/somebody/secret.py"
    model.doc_string = model.graph.doc_string = model.graph.node[0].doc_string = "/home/somebody"
    assert b"somebody" not in clean(model).SerializeToString()


def test_the_shape_of_pixels_is_taken_behind_their_cast():
    nodes = [
        node("Shape", ["x"], "s"),
        node("Cast", ["x"], "f", to=1),
        node("Expand", ["one", "s"], "e"),
        node("Add", ["f", "e"], "y"),
    ]
    values = {"one": np.ones((1,), np.float32)}
    model = graph(nodes, {"x": ["n", 3]}, {"y": ["n", 3]}, values, dtypes={"x": "uint8"})
    cleaned = same(model, x=np.uint8([[1, 2, 3], [4, 5, 255]]))
    assert next(item for item in cleaned.graph.node if item.op_type == "Shape").input[0] == "f"
