"""Samples of large activations, against all of their values."""

from __future__ import annotations

import numpy as np
import pytest

from _helpers.graphs import graph, node, run
from krl_deploy.calibration import collect as module
from krl_deploy.calibration import sampling
from krl_deploy.calibration.collect import collect_int8
from krl_deploy.calibration.sampling import add_samples, image_tensors, sample_of, tile
from krl_runtime.errors import ModelError

COUNT, CHANNELS, SIDE = 24, 6, 36
RNG = np.random.default_rng(0)


@pytest.fixture
def small(monkeypatch):
    """Samples of an eighth of what these small activations have."""
    monkeypatch.setattr(
        module, "values_needed", lambda share: COUNT * CHANNELS * SIDE**2 / 8 if share < 100 else np.inf
    )


@pytest.mark.parametrize("shape", [(1, 96, 112, 112), (2, 24, 56, 28), (1, 7, 113, 60), (1, 3, 1, 1000)])
@pytest.mark.parametrize("needed", [1e5, 1e6, 1e7])
def test_tiles_leave_no_rest_and_give_enough_values(shape, needed):
    down, across = tile(shape, 50, needed)
    assert shape[2] % down == shape[3] % across == 0
    everything = 50 * np.prod(shape[1:])
    assert everything / (down * across) >= min(needed, everything)


@pytest.mark.parametrize("size", [(2, 3), (4, 4), (1, 12), (6, 1)])
def test_a_sample_has_one_value_of_each_tile_of_each_channel(size):
    model = graph([node("Relu", ["x"], "y")], {"x": [2, 16, 12, 12]}, {"y": None})
    model.graph.output[0].name = sample_of("y")
    model.graph.output[0].type.tensor_type.ClearField("shape")
    add_samples(model, {"y": (16, *size)})
    x = 1 + np.arange(2 * 16 * 144, dtype=np.float32).reshape(2, 16, 12, 12)
    taken = run(model, x=x)[0]
    assert taken.shape == (2, 16, 12 // size[0], 12 // size[1])
    image, channel, row, column = np.unravel_index(taken.astype(int) - 1, x.shape)
    expected = np.indices(taken.shape)
    np.testing.assert_array_equal([image, channel, row // size[0], column // size[1]], expected)
    places = {(int(a), int(b)) for a, b in zip(row.ravel() % size[0], column.ravel() % size[1], strict=True)}
    assert len(places) > 1  # of all channels; the same place everywhere would favor borders


def test_only_tensors_of_convolutions_are_images_of_channels():
    nodes = [
        node("Conv", ["x", "w"], "c"),
        node("Transpose", ["c"], "t", perm=[0, 2, 3, 1]),
        node("MatMul", ["t", "m"], "y"),
    ]
    values = {"w": np.ones((4, 3, 1, 1), np.float32), "m": np.ones((4, 5), np.float32)}
    assert image_tensors(graph(nodes, {"x": [1, 3, 8, 8]}, {"y": None}, values)) == {"x", "c"}


def network(op="Tanh"):
    """Pixels to a large activation ``a`` that a convolution reads."""
    nodes = [
        node("Cast", ["pixels"], "f", to=1),
        node("Sub", ["f", "half"], "s"),
        node("Mul", ["s", "scales"], "m"),
        node(op, ["m"], "a"),
        node("Conv", ["a", "w"], "logits"),
    ]
    scales = (0.02 * RNG.uniform(0.5, 2, (1, CHANNELS, 1, 1))).astype(np.float32)
    values = {"half": np.float32(128), "scales": scales, "w": np.ones((2, CHANNELS, 1, 1), np.float32)}
    shape = {"pixels": ["batch", CHANNELS, SIDE, SIDE]}
    return graph(nodes, shape, {"logits": None}, values, dtypes={"pixels": "uint8"}), scales


PIXELS = RNG.integers(1, 256, (COUNT, CHANNELS, SIDE, SIDE), dtype=np.uint8)
CURVES = {"Tanh": np.tanh, "Relu": lambda x: np.maximum(x, 0), "Softplus": lambda x: np.log1p(np.exp(x))}


@pytest.mark.parametrize("op", CURVES)
def test_percentiles_of_a_sample_against_all_values(op, small):
    model, scales = network(op)
    values = CURVES[op]((PIXELS.astype(np.float32) - 128) * scales)
    low, high = collect_int8(model, ["a"], PIXELS, method="percentile", share=98).cpu["a"]
    # An eighth of 186,624 values: the standard error of a share of 1 % is 0.07 %. A bin is 1/2048 of the limit at most.
    width = 2 * np.abs(values).max() / 2048
    for found, share in ((low, 0.01), (high, 0.99)):
        least, most = np.quantile(values, [share - 0.003, share + 0.003])
        assert least - width <= found <= most + width


@pytest.mark.parametrize("method", ["percentile", "entropy", "mse"])
def test_ranges_depend_neither_on_batches_nor_on_the_order(method, small):
    model, _ = network()
    found = [
        collect_int8(model, ["a", "logits"], pixels, method=method, size=size)
        for pixels, size in ((PIXELS, 1), (PIXELS, 8), (PIXELS[::-1].copy(), 5))
    ]
    assert found[0] == found[1] == found[2]


@pytest.mark.parametrize("place", [(0, 0, 0, 0), (13, 2, 17, 35), (23, 5, 35, 35)])
@pytest.mark.parametrize("other", [0.0, 1.0])
def test_a_value_that_is_not_finite_is_found_wherever_it_is(place, other, small):
    nodes = [
        node("Cast", ["pixels"], "f", to=1),
        node("Mul", ["f", "other"], "g"),
        node("Sub", ["f", "one"], "h"),
        node("Div", ["g", "h"], "a"),
        node("Conv", ["a", "w"], "logits"),
    ]
    values = {"other": np.float32(other), "one": np.float32(1), "w": np.ones((2, CHANNELS, 1, 1), np.float32)}
    model = graph(
        nodes, {"pixels": ["batch", CHANNELS, SIDE, SIDE]}, {"logits": None}, values, dtypes={"pixels": "uint8"}
    )
    pixels = np.maximum(PIXELS, 2)
    assert collect_int8(model, ["a"], pixels, method="mse").cpu["a"][1] < 3
    pixels[place] = 1  # 0 / 0 or 1 / 0
    with pytest.raises(ModelError, match=r"tensor a: .*not finite numbers on a calibration image"):
        collect_int8(model, ["a"], pixels, method="mse")


def test_all_values_are_read_for_all_percent(small):
    model, scales = network("Softplus")
    values = CURVES["Softplus"]((PIXELS.astype(np.float32) - 128) * scales)
    found = collect_int8(model, ["a"], PIXELS, method="percentile", share=100).cpu["a"]
    assert found == pytest.approx((values.min(), values.max()), rel=1e-5)


@pytest.mark.parametrize(("share", "outside"), [(99.999, 40), (99.9999, 40), (99.99, 200)])
def test_enough_values_are_beyond_an_end(share, outside):
    assert sampling.values_needed(share) * (100 - share) / 200 >= outside * (1 - 1e-6)
