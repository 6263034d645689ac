"""Small scales and stored infinities, judged by NVIDIA's parser and builder."""

from __future__ import annotations

import onnx
import pytest

from _helpers.graphs import measured_ranges
from _helpers.inspection import Plan, faults
from _helpers.masked import FORMS, inputs
from _helpers.parsed import read_layers
from _helpers.required import real_rtx
from _helpers.small import DEAD, SMALL, batch
from krl_deploy.calibration.collect import collect
from krl_deploy.graph.cleanup import clean
from krl_deploy.graph.files import opset_of, to_bytes
from krl_deploy.graph.image_input import raise_opset
from krl_deploy.precision.emit_fp16 import float_tensors, to_fp16
from krl_deploy.precision.emit_tensorrt import to_tensorrt
from krl_deploy.precision.weights import Rounding
from krl_deploy.tensorrt.builder import build_plan
from krl_deploy.tensorrt.options import BuildOptions


def wrong(emitted: onnx.ModelProto, plan: Plan) -> list[str]:
    """Return the faults of a parsed graph that also builds."""
    library, data = real_rtx(), to_bytes(emitted)
    found = faults(read_layers(data, library), plan, emitted)
    assert build_plan(data, BuildOptions(), library).plan
    return found


@pytest.mark.parametrize("name", [*SMALL, *DEAD])
def test_scales_below_the_normal_numbers_of_fp16(name: str):
    """Those that FP16 holds are FP16; the operators of the others have FP32 around them, without a cast between."""
    model = ({**SMALL, **DEAD}[name])()
    ranges = measured_ranges(model, x=batch())
    exact = to_tensorrt(model, ranges, rounding=Rounding(fp16=True))
    around = to_fp16(exact.model, ranges, around_int8=True)
    unquantized = frozenset(exact.kept_float)
    plan = Plan(model, half=True, int8=True, fp32=frozenset(around.kept), unquantized=unquantized)
    assert wrong(around.model, plan) == []


@pytest.mark.parametrize("form", FORMS)
def test_stored_infinities(form: str):
    given = FORMS[form]()
    model = clean(given if opset_of(given) > 18 else raise_opset(given, 20))
    x = inputs(model)
    ranges = {**collect(model, float_tensors(model), x), "x": (float(x.min()), float(x.max()))}
    half = to_fp16(model, ranges)
    assert wrong(half.model, Plan(model, half=True, fp32=frozenset(half.kept))) == []
    exact = to_tensorrt(model, ranges, rounding=Rounding(fp16=True))
    around = to_fp16(exact.model, ranges, around_int8=True)
    unquantized = frozenset(exact.kept_float) | {item.name for item in model.graph.node if item.op_type == "MatMul"}
    plan = Plan(
        model, half=True, int8=True, fp32=frozenset(around.kept), unquantized=unquantized - quantized(exact.model)
    )
    assert wrong(around.model, plan) == []


def quantized(model: onnx.ModelProto) -> frozenset[str]:
    """Return the names of the operators that read two pairs."""
    pairs = {item.output[0] for item in model.graph.node if item.op_type == "DequantizeLinear"}
    return frozenset(item.name for item in model.graph.node if pairs.issuperset(item.input[:2]) and item.input)
