from __future__ import annotations

import numpy as np

from _helpers.graphs import graph, node, run
from krl_deploy.calibration.channels import measure_channels

RNG = np.random.default_rng(0)
PIXELS = RNG.integers(0, 256, (21, 3, 5, 4), dtype=np.uint8)


def model():
    nodes = [
        node("Cast", ["pixels"], "f", to=1),
        node("Conv", ["f", "w"], "c"),
        node("ReduceMean", ["c", "axes"], "flat", keepdims=0),
        node("Relu", ["flat"], "logits"),
    ]
    values = {"w": RNG.normal(size=(6, 3, 2, 2)).astype(np.float32), "axes": np.array([2, 3])}
    return graph(nodes, {"pixels": ["batch", 3, 5, 4]}, {"logits": None}, values, dtypes={"pixels": "uint8"})


def test_against_numpy():
    net = model()
    found = measure_channels(net, ["f", "c", "logits"], PIXELS)
    net.graph.output.append(next(value for value in net.graph.value_info if value.name == "c"))
    logits, c = run(net, pixels=PIXELS)
    for name, values, axes in (("f", PIXELS.astype(np.float32), (0, 2, 3)), ("c", c, (0, 2, 3)), ("logits", logits, 0)):
        np.testing.assert_allclose(found[name].mean, values.mean(axis=axes), rtol=1e-4, atol=1e-3)
        np.testing.assert_allclose(found[name].largest, np.abs(values).max(axis=axes), rtol=1e-5)


def test_nothing_to_measure():
    assert measure_channels(model(), [], PIXELS) == {}
