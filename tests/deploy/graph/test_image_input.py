from __future__ import annotations

import numpy as np
import pytest
from onnx import TensorProto

from _helpers.graphs import graph, node, ops, run
from krl_deploy.graph.image_input import raise_opset, signature, to_classifier
from krl_runtime.errors import ModelError
from krl_runtime.images.preprocessing import Preprocessing

RNG = np.random.default_rng(0)
SPEC = Preprocessing(4, 4, mean=(0.5, 0.4, 0.3), std=(0.2, 0.3, 0.4))
X = RNG.integers(0, 256, (3, 3, 4, 4), dtype=np.uint8)


def third_party(batch: int | str = 1, *, softmax=False, spatial=False, dtype="float32", shape=(3, 4, 4)):
    """A classifier of five classes; a fixed batch stands in the target of its Reshape, as old exporters write it."""
    nodes = [node("Relu", ["image"], "pixels")] if dtype == "float32" else [node("Cast", ["image"], "pixels", to=1)]
    nodes += [node("Conv", ["pixels", "w"], "c")]
    if spatial:
        nodes += [node("GlobalAveragePool", ["c"], "out")]
    else:
        nodes += [node("GlobalAveragePool", ["c"], "g"), node("Reshape", ["g", "target"], "z")]
        nodes += [node("Softmax", ["z"], "out") if softmax else node("Neg", ["z"], "out")]
    values = {
        "w": RNG.normal(size=(5, 3, 1, 1)).astype(np.float32),
        "target": np.int64([batch if batch == 1 else 0, 5]),
    }
    return graph(nodes, {"image": [batch, *shape]}, {"out": None}, values, dtypes={"image": dtype})


def normalized():
    mean, std = (np.reshape(part, (1, -1, 1, 1)) for part in (SPEC.mean, SPEC.std))
    return ((X / 255 - mean) / std).astype(np.float32)


def original(model):
    return np.concatenate([run(model, image=item[None])[0].reshape(1, -1) for item in normalized()])


def test_a_float_input_takes_pixels_and_any_batch():
    model = third_party()
    imported, changes = to_classifier(model, SPEC, open_batch=True)
    np.testing.assert_allclose(run(imported, pixels=X)[0], original(model), atol=1e-5)
    np.testing.assert_allclose(run(imported, pixels=X[:1])[0], original(model)[:1], atol=1e-5)
    assert imported.graph.input[0].type.tensor_type.elem_type == TensorProto.UINT8
    assert [value.name for value in (*imported.graph.input, *imported.graph.output)] == ["pixels", "logits"]
    assert changes == ["uint8 pixels are normalized in the graph", "the batch, which was fixed to 1, was opened"]


def test_a_batch_may_stay_fixed():
    model = third_party()
    imported, changes = to_classifier(model, SPEC, open_batch=False)
    assert imported.graph.input[0].type.tensor_type.shape.dim[0].dim_value == 1
    np.testing.assert_allclose(run(imported, pixels=X[:1])[0], original(model)[:1], atol=1e-5)
    assert changes == ["uint8 pixels are normalized in the graph"]


def test_an_open_batch_stays_open():
    model = third_party("N")
    imported, changes = to_classifier(model, SPEC, open_batch=False)
    np.testing.assert_allclose(run(imported, pixels=X)[0], original(model), atol=1e-5)
    assert changes == ["uint8 pixels are normalized in the graph"]


def test_a_last_softmax_goes():
    model = third_party(softmax=True)
    imported, changes = to_classifier(model, SPEC, open_batch=True)
    assert "Softmax" not in ops(imported)
    assert "the last Softmax was taken out" in changes
    logits = run(imported, pixels=X)[0]
    powers = np.exp(logits - logits.max(1, keepdims=True))
    np.testing.assert_allclose(powers / powers.sum(1, keepdims=True), original(model), atol=1e-5)


def test_an_output_with_two_more_dimensions_is_flattened():
    model = third_party("N", spatial=True)
    imported, changes = to_classifier(model, SPEC, open_batch=True)
    assert run(imported, pixels=X)[0].shape == (3, 5)
    assert "the output was flattened to [batch, classes]" in changes


def test_a_uint8_input_is_taken_as_it_is():
    imported, changes = to_classifier(third_party("N", dtype="uint8"), SPEC, open_batch=True)
    assert ops(imported).count("Cast") == 1
    assert changes == []


def test_signature():
    found = signature(third_party("N"))
    assert (found.input, found.output, found.shape) == ("image", "out", ("N", 3, 4, 4))


@pytest.mark.parametrize(
    ("model", "message"),
    [
        (
            third_party("N", shape=(3, 4, 4), dtype="float16"),
            r"image is FLOAT16 \['N', 3, 4, 4\]; accepted: float32 or uint8",
        ),
        (
            graph([node("Relu", ["x"], "y")], {"x": [1, 8, 8, 3]}, {"y": None}),
            "1 or 3 channels; it seems to take .batch, height, width, channels.: export it channels first",
        ),
        (graph([node("Relu", ["x"], "y")], {"x": [1, 7]}, {"y": None}), r"x is FLOAT \[1, 7\]; accepted"),
        (
            graph([node("Add", ["x", "z"], "y")], {"x": [1, 3, 4, 4], "z": [1]}, {"y": None}),
            r"has inputs \['x', 'z'\] and outputs \['y'\]; a classifier has one of each",
        ),
    ],
)
def test_what_is_no_classifier_is_refused(model, message):
    with pytest.raises(ModelError, match=message):
        signature(model)


def test_an_output_that_is_an_image_is_refused():
    model = graph([node("Relu", ["x"], "y")], {"x": [1, 3, 4, 4]}, {"y": None})
    with pytest.raises(ModelError, match=r"output y has shape \[1, 3, 4, 4\]; accepted: logits"):
        to_classifier(model, SPEC, open_batch=True)


def test_opset_is_raised_and_failure_is_reported(monkeypatch):
    model = graph([node("ReduceMean", ["x"], "y", axes=[1])], {"x": [2, 3]}, {"y": None}, opset=13, ir=8)
    raised = raise_opset(model, 18)
    assert raised.opset_import[0].version == 18
    x = np.float32([[1, 2, 3], [4, 5, 6]])
    np.testing.assert_allclose(run(raised, x=x)[0], run(model, x=x)[0])

    def fail(*_):
        raise RuntimeError("No Adapter From Version 16 for Identity\nand more")

    monkeypatch.setattr("onnx.version_converter.convert_version", fail)
    with pytest.raises(ModelError, match=r"^No Adapter From Version 16 for Identity$"):
        raise_opset(model, 18)
