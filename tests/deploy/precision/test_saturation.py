"""INT8 on x86 without VNNI, in NumPy: the instruction ``vpmaddubsw`` adds two products up in 16 bits and saturates.

krl's file for the CPU is read here and computed in both ways. The processor that runs the tests may have VNNI. So they
show what saturation would do, and that krl's sessions do not saturate here; not that they do not elsewhere.
"""

from __future__ import annotations

import numpy as np
import onnx
import pytest

from _helpers.graphs import constants, graph, measured_ranges, node
from krl_deploy.precision.emit_cpu import to_cpu
from krl_runtime.backends.onnxruntime import open_session

CHANNELS = 32
LARGEST = np.iinfo(np.int16).max


def network(spread: float) -> tuple[onnx.ModelProto, np.ndarray]:
    """Return a matrix product and inputs; without spread all weights and inputs are as large as the largest."""
    rng = np.random.default_rng(0)
    weight = (1 - spread * rng.random((CHANNELS, CHANNELS))).astype(np.float32)
    x = (1 - spread * rng.random((8, CHANNELS))).astype(np.float32)
    x[0, 0] = -0.1  # so that the zero point is not 0
    return graph([node("Gemm", ["x", "w"], "y")], {"x": [8, CHANNELS]}, {"y": None}, {"w": weight}), x


def computed(emitted: onnx.ModelProto, x: np.ndarray, *, saturating: bool) -> np.ndarray:
    """Return what the file computes of ``x``, from its stored integers and scales."""
    stored = constants(emitted)
    scale, zero = stored["x_scale"], int(stored["x_zero_point"])
    inputs = np.clip(np.rint(x / scale) + zero, 0, 255).astype(np.int64)
    weight = stored["w_int8"].astype(np.int64)
    products = inputs[:, :, None] * weight
    pairs = products[:, 0::2] + products[:, 1::2]
    if saturating:
        pairs = np.clip(pairs, -LARGEST - 1, LARGEST)
    sums = pairs.sum(axis=1) - zero * weight.sum(axis=0)
    return (sums * scale * stored["w_scale"]).astype(np.float32)


@pytest.mark.parametrize(("spread", "error"), [(0.0, 0.3), (0.5, 0.05), (1.0, 0.001)])
def test_saturation_would_be_wrong_and_does_not_happen_here(spread: float, error: float):
    model, x = network(spread)
    emitted = to_cpu(model, measured_ranges(model, x=x)).model
    exact, saturated = (computed(emitted, x, saturating=each) for each in (False, True))
    assert np.abs(saturated - exact).max() > error * np.abs(exact).max()
    (made,) = open_session(emitted.SerializeToString(), cuda=False).run(None, {"x": x})
    np.testing.assert_allclose(made, exact, rtol=1e-5, atol=1e-5)


def test_small_products_do_not_saturate():
    """255 times 64, twice, is 32,640: with weights of 7 bits the two ways agree."""
    model, x = network(1.0)
    emitted = to_cpu(model, measured_ranges(model, x=x)).model
    for tensor in emitted.graph.initializer:
        if tensor.name == "w_int8":
            halved = constants(emitted)["w_int8"] // 2
            tensor.CopyFrom(onnx.numpy_helper.from_array(halved, "w_int8"))
    assert np.abs(constants(emitted)["w_int8"]).max() <= 64
    np.testing.assert_array_equal(computed(emitted, x, saturating=True), computed(emitted, x, saturating=False))


def test_sessions_on_the_cpu_ask_for_the_exact_mode(monkeypatch: pytest.MonkeyPatch):
    import onnxruntime as ort

    asked = {}

    class Options(ort.SessionOptions):
        def add_session_config_entry(self, key: str, value: str) -> None:
            asked[key] = value
            super().add_session_config_entry(key, value)

    monkeypatch.setattr(ort, "SessionOptions", Options)
    model, _ = network(1.0)
    open_session(model.SerializeToString(), cuda=False)
    assert asked["session.x64quantprecision"] == "1"
