"""Graphs with FP16 are opened without the optimizers that end the process on some of them."""

import numpy as np
import onnx
import onnxruntime
import pytest
from onnx import TensorProto, helper, numpy_helper

from krl_runtime.backends import onnxruntime as module
from krl_runtime.bundle.onnx_check import check_onnx, has_float16

ONE = np.ones((2, 2), np.float32)


def graph(nodes, weights=(), name="g", output="y"):
    values = [helper.make_tensor_value_info(item, TensorProto.FLOAT, [2, 2]) for item in ("x", output)]
    return helper.make_graph(nodes, name, values[:1], values[1:], list(weights))


def model(made, functions=()):
    opsets = [helper.make_opsetid("", 18), *([helper.make_opsetid("own", 1)] if functions else [])]
    return helper.make_model(made, opset_imports=opsets, functions=list(functions), ir_version=9).SerializeToString()


def cast(source, target, to):
    return helper.make_node("Cast", [source], [target], to=to)


def branch(to):
    made = [helper.make_tensor_value_info("b", TensorProto.FLOAT, [2, 2])]
    inner = helper.make_graph([cast("x", "h", to), cast("h", "b", TensorProto.FLOAT)], "b", [], made)
    return [helper.make_node("If", ["c"], ["y"], then_branch=inner, else_branch=inner)]


FLOAT, FLOAT16, TRUE = TensorProto.FLOAT, TensorProto.FLOAT16, numpy_helper.from_array(np.array(True), "c")
HALF = numpy_helper.from_array(ONE.astype(np.float16), "w")
FUNCTION = helper.make_function(
    "own", "F", ["a"], ["b"], [cast("a", "h", FLOAT16), cast("h", "b", FLOAT)], [helper.make_opsetid("", 18)]
)
SOFTMAX = [helper.make_node("Softmax", ["x"], ["h"], axis=1), helper.make_node("Flatten", ["h"], ["y"], axis=1)]
CASES = {
    "weights": (graph([cast("w", "y", FLOAT)], [HALF]), (), True),
    "casts": (graph([cast("x", "h", FLOAT16), cast("h", "y", FLOAT)]), (), True),
    "constants": (graph([helper.make_node("Constant", [], ["h"], value=HALF), cast("h", "y", FLOAT)]), (), True),
    "branches": (graph(branch(FLOAT16), [TRUE]), (), True),
    "functions": (graph([helper.make_node("F", ["x"], ["y"], domain="own")]), [FUNCTION], True),
    "float alone": (
        graph([helper.make_node("Add", ["x", "w"], ["y"])], [numpy_helper.from_array(ONE, "w")]),
        (),
        False,
    ),
    "other casts": (graph(branch(TensorProto.INT32), [TRUE]), (), False),
    "other attributes": (graph(SOFTMAX), (), False),
}


@pytest.mark.parametrize("name", CASES)
def test_fp16_is_found_wherever_it_stands(name, monkeypatch):
    made, functions, wanted = CASES[name]
    data = model(made, functions)
    onnx.checker.check_model(onnx.load_model_from_string(data))
    assert has_float16(check_onnx(data)) == wanted
    disabled = []
    real = onnxruntime.InferenceSession

    def spy(*arguments, disabled_optimizers, **options):
        disabled.append(disabled_optimizers)
        return real(*arguments, disabled_optimizers=disabled_optimizers, **options)

    monkeypatch.setattr(onnxruntime, "InferenceSession", spy)
    session = module.open_session(data, cuda=False, threads=1)
    assert disabled == [["WeightBiasQuantization", *(["NchwcTransformer"] if wanted else [])]]
    assert session.run(None, {"x": ONE})[0].shape == (2, 2)
