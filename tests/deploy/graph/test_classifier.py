from __future__ import annotations

import numpy as np
import pytest
from onnx import TensorProto

from _helpers.graphs import graph, node, ops, run
from krl_deploy.graph.classifier import Head, to_classifier
from krl_deploy.graph.image_input import any_signature
from krl_runtime.images.preprocessing import Preprocessing

RNG = np.random.default_rng(0)
SPEC = Preprocessing(4, 4, mean=(0.5, 0.4, 0.3), std=(0.2, 0.3, 0.4))
X = RNG.integers(0, 256, (3, 3, 4, 4), dtype=np.uint8)


def third_party(batch: int | str = 1, *, spatial=False, dtype="float32", classes=5):
    """A classifier; a fixed batch stands in the target of its Reshape, as old exporters write it."""
    nodes = [node("Relu", ["image"], "pixels")] if dtype == "float32" else [node("Cast", ["image"], "pixels", to=1)]
    nodes += [node("Conv", ["pixels", "w"], "c")]
    if spatial:
        nodes += [node("GlobalAveragePool", ["c"], "out")]
    else:
        nodes += [node("GlobalAveragePool", ["c"], "g"), node("Reshape", ["g", "target"], "out")]
    values = {
        "w": RNG.normal(size=(classes, 3, 1, 1)).astype(np.float32),
        "target": np.int64([batch if batch == 1 else 0, classes]),
    }
    return graph(nodes, {"image": [batch, 3, 4, 4]}, {"out": None}, values, dtypes={"image": dtype})


def rewritten(model, head, *, opened=True):
    return to_classifier(model, any_signature(model), SPEC, head, opened=opened)


def normalized():
    mean, std = (np.reshape(part, (1, -1, 1, 1)) for part in (SPEC.mean, SPEC.std))
    return ((X / 255 - mean) / std).astype(np.float32)


def original(model):
    return np.concatenate([run(model, image=item[None])[0].reshape(1, -1) for item in normalized()])


def test_a_float_input_takes_pixels_and_any_batch():
    model = third_party()
    imported, changes = rewritten(model, Head("out", 5))
    np.testing.assert_allclose(run(imported, pixels=X)[0], original(model), atol=1e-5)
    np.testing.assert_allclose(run(imported, pixels=X[:1])[0], original(model)[:1], atol=1e-5)
    assert imported.graph.input[0].type.tensor_type.elem_type == TensorProto.UINT8
    assert [value.name for value in (*imported.graph.input, *imported.graph.output)] == ["pixels", "logits"]
    assert changes == ["uint8 pixels are normalized in the graph", "the batch of 1 was opened"]


def test_a_batch_may_stay_fixed():
    model = third_party()
    imported, changes = rewritten(model, Head("out", 5), opened=False)
    assert imported.graph.input[0].type.tensor_type.shape.dim[0].dim_value == 1
    np.testing.assert_allclose(run(imported, pixels=X[:1])[0], original(model)[:1], atol=1e-5)
    assert changes == ["uint8 pixels are normalized in the graph"]


def test_an_open_batch_stays_open():
    model = third_party("N")
    imported, changes = rewritten(model, Head("out", 5))
    np.testing.assert_allclose(run(imported, pixels=X)[0], original(model), atol=1e-5)
    assert changes == ["uint8 pixels are normalized in the graph"]


@pytest.mark.parametrize("opened", [True, False])
def test_an_output_with_two_more_dimensions_is_flattened(opened):
    model = third_party("N", spatial=True)
    imported, changes = rewritten(model, Head("out", 5), opened=opened)
    count = 3 if opened else 1
    np.testing.assert_allclose(run(imported, pixels=X[:count])[0], original(model)[:count], atol=1e-5)
    assert "the output was brought to [batch, classes]" in changes


def test_a_uint8_input_is_taken_as_it_is():
    imported, changes = rewritten(third_party("N", dtype="uint8"), Head("out", 5))
    assert ops(imported).count("Cast") == 1
    assert changes == []


@pytest.mark.parametrize("kind", ["logit", "score"])
def test_one_output_becomes_two(kind):
    model = third_party("N", classes=1)
    imported, changes = rewritten(model, Head("out", 1, kind))
    given = original(model)
    first = np.zeros_like(given) if kind == "logit" else 1 - given
    np.testing.assert_allclose(run(imported, pixels=X)[0], np.concatenate([first, given], axis=1), atol=1e-5)
    assert "the one output for the second class became one for each of two classes" in changes
