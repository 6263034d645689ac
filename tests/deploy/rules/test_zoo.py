"""No finding of the Q/DQ rules on what krl itself writes, whatever the network."""

from __future__ import annotations

from collections import defaultdict

import onnx
import pytest

from _helpers.planted import family, findings
from krl_deploy.exporters.conversion import to_onnx
from krl_deploy.precision.emit_cpu import to_cpu
from krl_deploy.precision.emit_fp16 import to_fp16
from krl_deploy.precision.emit_tensorrt import to_tensorrt
from krl_deploy.precision.weights import Rounding
from krl_deploy.rules.targets import ONNXRUNTIME_CPU
from krl_runtime.images.preprocessing import Preprocessing
from krl_train.models import Network, build_model

TARGETS = ("jetpack-6.2", "jetpack-7.2", "tensorrt-11.4")
FAMILIES = ("fp16", "operators", "qdq", "shapes", "types")

ZOO = [
    ("resnet8", 32),
    ("resnet20", 32),
    ("wrn-16-2", 32),
    ("dscnn-0.5", 32),
    ("resnet18", 64),
    ("mobilenet_v3_small", 64),
    ("efficientnet_b0", 64),
    ("shufflenet_v2_x0_5", 64),
    pytest.param("convnext_tiny", 64, marks=pytest.mark.slow),
    pytest.param("vit_b_16", 224, marks=pytest.mark.slow),
]


def graphs(name: str, size: int) -> dict[str, onnx.ModelProto]:
    """Return the forms of a network with random weights; every range is -1 to 1."""
    network = Network(build_model(name, 10), Preprocessing(size, size)).eval()
    model = to_onnx(network, (3, size, size), 20)
    ranges: dict[str, tuple[float, float]] = defaultdict(lambda: (-1.0, 1.0))
    exact = to_tensorrt(model, ranges, rounding=Rounding(fp16=True)).model
    return {
        "fp32": model,
        "fp16": to_fp16(model, {}).model,
        "int8 and fp32": to_tensorrt(model, ranges).model,
        "int8 and fp16": to_fp16(exact, {}, around_int8=True).model,
        "int8 for the CPU": to_cpu(model, ranges).model,
    }


@pytest.mark.parametrize(("name", "size"), ZOO)
def test_our_own_output(name, size):
    made = graphs(name, size)
    for form in ("int8 for the CPU", "fp32"):
        assert findings(made[form], ONNXRUNTIME_CPU) == [], form
    del made["int8 for the CPU"]
    for form, model in made.items():
        for target in TARGETS:
            assert [found for each in FAMILIES for found in family(model, each, target)] == [], (form, target)
            assert [found for found in findings(model, target) if found.severity == "error"] == [], (form, target)
