"""Graphs of every family that krl trains, judged by NVIDIA's parser and builder, and by krl's own rules beside them.

TensorRT-RTX builds without a GPU. So the parser, the types of the network and the builder's rules are the real ones.
The outputs of an engine are not tested here.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator

import onnx
import pytest

from _helpers.inspection import Plan, faults
from _helpers.parsed import read_layers
from _helpers.planted import findings
from _helpers.required import real_rtx
from _helpers.zoo import ZOO, Case
from krl_deploy.graph.files import to_bytes
from krl_deploy.precision.emit_cpu import to_cpu
from krl_deploy.precision.emit_fp16 import to_fp16
from krl_deploy.precision.emit_tensorrt import to_tensorrt
from krl_deploy.precision.weights import Rounding
from krl_deploy.rules.targets import ONNXRUNTIME_CPU
from krl_deploy.tensorrt.builder import build_plan

TARGETS = ("jetpack-6.2", "jetpack-7.2", "tensorrt-11.4", "rtx")
FAMILIES = ("fp16", "operators", "qdq", "shapes", "types")
OPEN_SIDES = "shapes/inputs"
SPEED = (
    "cpu/float-convolutions"  # true of transposed convolutions, which ONNX Runtime's CPU provider has in float alone
)
CPU = "int8 for the CPU"


def forms(model: onnx.ModelProto) -> Iterator[tuple[str, onnx.ModelProto, Plan]]:
    """Yield the forms of a network for TensorRT, each with its plan; every range is -1 to 1."""
    ranges: dict[str, tuple[float, float]] = defaultdict(lambda: (-1.0, 1.0))
    yield "fp32", model, Plan(model)
    half = to_fp16(model, {})
    yield "fp16", half.model, Plan(model, half=True, fp32=frozenset(half.kept))
    int8 = to_tensorrt(model, ranges)
    unquantized = frozenset(int8.kept_float)
    yield "int8 in fp32", int8.model, Plan(model, int8=True, unquantized=unquantized)
    exact = to_tensorrt(model, ranges, rounding=Rounding(fp16=True)).model
    around = to_fp16(exact, {}, around_int8=True)
    plan = Plan(model, half=True, int8=True, fp32=frozenset(around.kept), unquantized=unquantized)
    yield "int8 in fp16", around.model, plan


def advice(model: onnx.ModelProto, form: str) -> list[str]:
    """Return the findings of krl's own rules in a graph of krl's own: errors, and all of the families of Q/DQ rules.

    That the sides of images are open is no fault. Known bugs of TensorRT and missing kernels are not faults either.
    """
    found = [] if form == CPU else [(target, item) for target in TARGETS for item in findings(model, target)]
    found = [(target, item) for target, item in found if item.severity == "error" or is_judged(item.rule)]
    if form in ("fp32", CPU):
        transposed = any(node.op_type == "ConvTranspose" for node in model.graph.node)
        on_cpu = [item for item in findings(model, ONNXRUNTIME_CPU) if item.rule != SPEED or not transposed]
        found += [(ONNXRUNTIME_CPU, item) for item in on_cpu]
    return [f"{target}: {finding.rule} at {finding.node}: {finding.why}" for target, finding in found]


def is_judged(rule: str) -> bool:
    return rule.partition("/")[0] in FAMILIES and rule != OPEN_SIDES


@pytest.mark.parametrize("case", ZOO, ids=[case.name for case in ZOO])
def test_krl_s_own_graphs(case: Case):
    library = real_rtx()
    model = case.make()
    wrong = {}
    for form, emitted, plan in forms(model):
        data = to_bytes(emitted)
        wrong[form] = faults(read_layers(data, library), plan, emitted) + advice(emitted, form)
        assert build_plan(data, case.options, library).plan  # a refusal is a ModelError or a BackendError
    on_cpu = to_cpu(model, defaultdict(lambda: (-1.0, 1.0))).model
    wrong[CPU] = advice(on_cpu, CPU)
    assert wrong == {form: [] for form in wrong}
