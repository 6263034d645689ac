from __future__ import annotations

import numpy as np
import pytest

from _helpers.graphs import graph, measured_ranges, node
from krl_deploy.calibration.collect import collect, collect_int8
from krl_runtime.errors import ModelError

RNG = np.random.default_rng(0)
PIXELS = RNG.integers(0, 256, (70, 1, 4, 4), dtype=np.uint8)


def model(batch: int | str = "batch"):
    nodes = [
        node("Cast", ["pixels"], "f", to=1),
        node("Sub", ["f", "half"], "s"),
        node("Conv", ["s", "w"], "c"),
        node("Relu", ["c"], "logits"),
    ]
    values = {"half": np.float32(128), "w": RNG.normal(size=(2, 1, 3, 3)).astype(np.float32)}
    return graph(nodes, {"pixels": [batch, 1, 4, 4]}, {"logits": None}, values, dtypes={"pixels": "uint8"})


@pytest.mark.parametrize("batch", ["batch", 1])
def test_extremes_are_those_of_all_images(batch):
    taken = model(batch)
    names = ["s", "c", "logits"]
    found = collect(taken, names, PIXELS)
    each = [measured_ranges(taken, pixels=image[None]) for image in PIXELS]
    for name in names:
        expected = (min(item[name][0] for item in each), max(item[name][1] for item in each))
        assert found[name] == pytest.approx(expected, rel=1e-5)


def test_percentile_of_everything_is_the_extremes():
    taken = model()
    names = ["s", "c", "logits"]
    extremes = collect(taken, names, PIXELS)
    for name, values in collect_int8(taken, names, PIXELS, method="percentile", share=100).cpu.items():
        assert values == pytest.approx(extremes[name], rel=1e-5)


def test_percentile_leaves_the_ends_out():
    low, high = collect_int8(model(), ["s"], PIXELS, method="percentile", share=90).tensorrt["s"]
    values = PIXELS.astype(np.float32) - 128
    np.testing.assert_allclose([low, high], np.percentile(values, [5, 95]), atol=1)


@pytest.mark.parametrize("method", ["minmax", "percentile"])
def test_values_that_are_not_finite_are_named(method):
    nodes = [node("Cast", ["pixels"], "f", to=1), node("Log", ["f"], "l"), node("Neg", ["l"], "logits")]
    broken = graph(nodes, {"pixels": ["batch", 1, 4, 4]}, {"logits": None}, dtypes={"pixels": "uint8"})
    pixels = np.zeros((3, 1, 4, 4), np.uint8)
    with pytest.raises(ModelError, match=r"tensor l: .*not finite numbers on a calibration image"):
        collect_int8(broken, ["l"], pixels, method=method)
