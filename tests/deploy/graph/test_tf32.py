"""TF32 in simulation, against its bits; and the limits that a bundle gets from it."""

from __future__ import annotations

import numpy as np
import onnx
from onnx import numpy_helper

from _helpers.bundles import LABELS, TinyNet
from _helpers.graphs import graph, node, run
from krl_deploy.bundles.reference import make_reference
from krl_deploy.graph.tf32 import round_to_tf32, to_tf32
from krl_runtime.evaluation.golden import device_limits
from krl_runtime.images.preprocessing import Preprocessing


def by_bits(values):
    """Round the 23 bits of the mantissa to 10, ties to even."""
    bits = values.view(np.uint32).astype(np.uint64)
    rounded = bits + 0xFFF + ((bits >> 13) & 1)
    return (rounded & 0xFFFFE000).astype(np.uint32).view(np.float32)


def test_numbers_are_rounded_to_ten_bits():
    rng = np.random.default_rng(0)
    values = (rng.normal(size=20_000) * 10.0 ** rng.integers(-20, 20, 20_000)).astype(np.float32)
    np.testing.assert_array_equal(round_to_tf32(values), by_bits(values))
    assert round_to_tf32(np.float32([0.0]))[0] == 0


def test_factors_of_products_are_rounded_and_sums_are_not():
    rng = np.random.default_rng(1)
    x, weight = rng.normal(size=(3, 8)).astype(np.float32), rng.normal(size=(8, 4)).astype(np.float32)
    model = graph([node("MatMul", ["x", "w"], "p"), node("Add", ["p", "x4"], "y")], {"x": [3, 8]}, {"y": None},
                  {"w": weight, "x4": np.full(4, 1.2345678, np.float32)})  # fmt: skip
    expected = by_bits(x).astype(np.float64) @ by_bits(weight).astype(np.float64) + np.float32(1.2345678)
    (made,) = run(to_tf32(model), x=x)
    np.testing.assert_allclose(made, expected, rtol=1e-6, atol=1e-6)
    assert np.abs(made - run(model, x=x)[0]).max() > 1e-5  # and it does make a difference


def test_a_bundle_has_limits_for_tf32():
    spec = Preprocessing(12, 10)
    net = TinyNet.random(spec, len(LABELS))
    pixels = np.random.default_rng(2).integers(0, 256, (8, 3, 12, 10), dtype=np.uint8)
    logits = net.logits(pixels)
    made = make_reference(net.onnx(), {"pixels": pixels}, {"logits": logits}, name="tiny", preprocessing=spec,
                          source={}, labels=LABELS)  # fmt: skip
    exact, wide = (device_limits(made.manifest, "fp32", tf32=tf32) for tf32 in (False, True))
    (rounded,) = run(to_tf32(onnx.load_model_from_string(net.onnx())), pixels=pixels)
    error = np.abs(rounded - logits).max()
    assert exact.tolerance < wide.tolerance
    assert wide.tolerance >= 4 * error > 0
    assert wide.agreement <= exact.agreement


def test_what_overflows_has_no_limits():
    """Masks of attention stand in sums; a weight of 1e38 stands in a product, and becomes NaN in the simulation."""
    spec = Preprocessing(12, 10)
    model = onnx.load_model_from_string(TinyNet.random(spec, len(LABELS)).onnx())
    head = next(item for item in model.graph.initializer if item.name == "head")
    head.CopyFrom(numpy_helper.from_array(np.full_like(numpy_helper.to_array(head), 1e35), "head"))
    pixels = np.zeros((2, 3, 12, 10), np.uint8)
    (logits,) = run(model, pixels=pixels)
    made = make_reference(model.SerializeToString(), {"pixels": pixels}, {"logits": logits}, name="large",
                          preprocessing=spec, source={}, labels=LABELS)  # fmt: skip
    assert made.manifest.variants["fp32"].tf32 == {}
