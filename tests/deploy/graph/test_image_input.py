from __future__ import annotations

import numpy as np
import pytest

from _helpers.graphs import graph, node, run
from krl_deploy.graph.image_input import any_signature, raise_opset
from krl_runtime.errors import ModelError


def test_signature():
    found = any_signature(graph([node("Relu", ["x"], "y")], {"x": ["N", 3, 4, 4]}, {"y": None}))
    assert (found.input, found.output, found.shape, found.layout) == ("x", "y", ("N", 3, 4, 4), "NCHW")


@pytest.mark.parametrize(
    ("model", "message"),
    [
        (
            graph([node("Relu", ["x"], "y")], {"x": ["N", 3, 4, 4]}, {"y": None}, dtypes={"x": "int32", "y": "int32"}),
            r"x is INT32 \['N', 3, 4, 4\]; accepted: float32, float16, float64 or uint8",
        ),
        (
            graph([node("Relu", ["x"], "y")], {"x": [1, 8, 8, 4]}, {"y": None}),
            r"x is FLOAT \[1, 8, 8, 4\]; accepted: .* with 1 or 3 channels",
        ),
        (graph([node("Relu", ["x"], "y")], {"x": ["n", "v"]}, {"y": None}), r"x is FLOAT \['n', 'v'\]; accepted"),
        (
            graph([node("Add", ["x", "z"], "y")], {"x": [1, 3, 4, 4], "z": [1]}, {"y": None}),
            r"has inputs \['x', 'z'\] and outputs \['y'\]; accepted: one of each",
        ),
    ],
)
def test_what_is_no_classifier_is_refused(model, message):
    with pytest.raises(ModelError, match=message):
        any_signature(model)


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
