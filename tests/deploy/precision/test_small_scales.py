"""INT8 with FP16 around it, where scales are below FP16's normal range: it is as accurate as with FP32 around it."""

from __future__ import annotations

import numpy as np
import onnx
import pytest

from _helpers.graphs import constants, measured_ranges, run
from _helpers.small import CHANNEL, DEAD, SMALL, batch, channel, shared
from krl_deploy.precision.emit_fp16 import Fp16Graph, round_to_fp16, to_fp16
from krl_deploy.precision.emit_tensorrt import to_tensorrt
from krl_deploy.precision.weights import Rounding

X = batch()


def snr(model: onnx.ModelProto, expected: np.ndarray, outputs: slice = slice(None)) -> float:
    """Return the signal-to-noise ratio in dB of some of the output channels."""
    signal, error = (part[:, outputs].astype(np.float64) for part in (expected, run(model, x=X)[0] - expected))
    return float(10 * np.log10(np.square(signal).mean() / np.square(error).mean()))


def around(model: onnx.ModelProto) -> tuple[Fp16Graph, onnx.ModelProto, onnx.ModelProto]:
    """Return INT8 with FP16 around it, its simulation, and INT8 with FP32 around it."""
    ranges = measured_ranges(model, x=X)
    exact = to_tensorrt(model, ranges, rounding=Rounding(fp16=True)).model
    converted = to_fp16(exact, ranges, around_int8=True)
    return converted, round_to_fp16(exact, converted.nodes), to_tensorrt(model, ranges).model


@pytest.mark.parametrize("name", SMALL)
def test_it_is_as_accurate_as_with_fp32_around_it(name: str):
    model = SMALL[name]()
    expected = run(model, x=X)[0]
    outputs = slice(None) if name.startswith("activations") else slice(CHANNEL, CHANNEL + 1)
    converted, simulated, wide = around(model)
    best = snr(wide, expected, outputs)
    assert best > 30
    assert snr(converted.model, expected, outputs) > best - 0.5
    assert snr(simulated, expected, outputs) > best - 0.5


@pytest.mark.parametrize("name", SMALL)
def test_no_cast_stands_between_a_pair_and_its_operator(name: str):
    converted, _, _ = around(SMALL[name]())
    makers = {item.output[0]: item for item in converted.model.graph.node}
    stored = constants(converted.model)
    for item in converted.model.graph.node:
        if item.op_type == "Conv":
            pairs = [makers[source] for source in item.input[:2]]
            assert [pair.op_type for pair in pairs] == ["DequantizeLinear"] * 2
            assert len({stored[pair.input[1]].dtype for pair in pairs}) == 1
            wanted = np.float32 if item.name in converted.kept else np.float16
            assert stored[pairs[0].input[1]].dtype == wanted
        if item.op_type == "Cast":
            assert makers.get(item.input[0], item).op_type != "DequantizeLinear"


@pytest.mark.parametrize(
    ("name", "kept"),
    [
        ("activations of 0.001", False),
        ("activations of 1e-05", True),
        ("activations of 1e-06", True),
        ("one output's weights of 0.004", False),
        ("one output's weights of 0.0001", True),
        ("one output's weights of 1e-06", True),
    ],
)
def test_what_fp16_does_not_hold_stays_in_fp32_with_its_reason(name: str, kept: bool):
    converted, _, _ = around(SMALL[name]())
    assert ("n_y" in converted.kept) == kept
    if "weights" in name and kept:
        assert "w1_scale has" in converted.kept["n_y"]
        assert "FP16 scales begin at 1.9e-06" in converted.kept["n_y"]


def test_half_the_levels_are_lost_where_scales_end_at_normal_numbers(monkeypatch: pytest.MonkeyPatch):
    """The planted fault: scales that are raised to 6.1e-5."""
    model = SMALL["activations of 0.001"]()
    expected = run(model, x=X)[0]
    best = snr(around(model)[2], expected)
    exact = Rounding.scale
    monkeypatch.setattr(Rounding, "scale", lambda self, value: exact(self, np.maximum(value, 2.0**-14)))
    assert snr(around(model)[0].model, expected) < best - 3


@pytest.mark.parametrize("name", DEAD)
def test_dead_weights_keep_nothing_in_fp32(name: str):
    model = DEAD[name]()
    converted, simulated, wide = around(model)
    assert converted.kept == {}
    expected = run(model, x=X)[0]
    noise = {
        variant: np.square(run(each, x=X)[0] - expected).mean()
        for variant, each in {"file": converted.model, "simulated": simulated, "wide": wide}.items()
    }
    assert max(noise["file"], noise["simulated"]) < 1.1 * noise["wide"]


def test_a_small_output_that_something_reads_in_float_is_not_dead():
    assert around(channel(1e-5))[0].kept != {}
    assert around(channel(1e-5, hidden=True))[0].kept == {}


def test_operators_that_share_a_tensor_have_each_their_type():
    converted, _, _ = around(shared(1e-5))
    assert set(converted.kept) == {"n_a"}
    dequantized = [item for item in converted.model.graph.node if item.op_type == "DequantizeLinear"]
    of_shared = [item for item in dequantized if item.input[0] == "r_quantized"]
    assert sorted(str(constants(converted.model)[item.input[1]].dtype) for item in of_shared) == ["float16", "float32"]


def test_a_scale_beyond_fp16_stays_in_fp32():
    model = SMALL["activations of 0.001"]()
    ranges = {**measured_ranges(model, x=X), "r": (0.0, 1e7)}
    exact = to_tensorrt(model, ranges, rounding=Rounding(fp16=True)).model
    converted = to_fp16(exact, ranges, around_int8=True)
    assert all(np.isfinite(value).all() for value in constants(converted.model).values())
    assert "n_y" in converted.kept
