"""Cross-layer equalization: the same answers, and channels of like magnitudes."""

from __future__ import annotations

import numpy as np
import pytest

from _helpers.graphs import graph, measured_ranges, node, run
from krl_deploy.precision.emit_tensorrt import to_tensorrt
from krl_deploy.precision.equalization import equalizable, equalize, factors, is_uneven

RNG = np.random.default_rng(0)


def normal(*shape):
    return RNG.normal(size=shape).astype(np.float32)


def chain(*, group=1, between="Relu", outlier=1.0, extra=()):
    """Two convolutions with ``between`` in the middle; channel 3 between them is ``outlier``."""
    first, second = normal(16, 16, 3, 3), normal(16 if group == 1 else 32, 16 // group, 3, 3)
    first[3] *= outlier
    if group == 1:
        second[:, 3] /= outlier
    else:
        second[6:8] /= outlier
    nodes = [
        node("Conv", ["x", "w1", "b1"], "c"),
        node(between, ["c"], "r"),
        node("Conv", ["r", "w2"], "y", group=group),
        *extra,
    ]
    bias = normal(16)
    bias[3] *= outlier
    values = {"w1": first, "b1": bias, "w2": second}
    outputs = {"y": None, **{item.output[0]: None for item in extra}}
    return graph(nodes, {"x": ["batch", 16, 9, 9]}, outputs, values)


X = normal(4, 16, 9, 9)


def channels(model, name="r"):
    model = type(model).FromString(model.SerializeToString())
    model.graph.output.append(next(value for value in model.graph.value_info if value.name == name))
    return {name: np.abs(run(model, x=X)[-1]).max(axis=(0, 2, 3))}


@pytest.mark.parametrize("group", [1, 16])
@pytest.mark.parametrize("between", ["Relu", "LeakyRelu"])
def test_the_answers_stay_and_the_channels_become_alike(group, between):
    model = chain(group=group, between=between, outlier=50.0)
    assert equalizable(model) == ["r"]
    largest = channels(model)
    assert is_uneven(largest["r"])
    equal = equalize(model, factors(model, largest))
    np.testing.assert_allclose(run(equal, x=X)[0], run(model, x=X)[0], rtol=1e-3, atol=1e-3)
    spread = channels(equal)["r"]
    assert not is_uneven(spread)
    if group > 1:
        assert spread.max() / spread.min() < 1.01  # a depthwise weight does not limit the factor


def test_a_loud_channel_no_longer_silences_the_others():
    model = chain(outlier=300.0)
    expected = run(model, x=X)[0]
    equal = equalize(model, factors(model, channels(model)))
    errors = [
        (run(to_tensorrt(net, measured_ranges(net, x=X)).model, x=X)[0] - expected).std() / expected.std()
        for net in (model, equal)
    ]
    assert errors[0] > 0.2
    assert errors[1] < 0.03


def test_the_factors_by_hand():
    """Magnitudes 4 and 1 read by weights of 1 and 1: roots 2 and 1, over their geometric mean."""
    nodes = [node("Conv", ["x", "w1"], "c"), node("Conv", ["c", "w2"], "y")]
    values = {"w1": np.ones((2, 1, 1, 1), np.float32), "w2": np.ones((1, 2, 1, 1), np.float32)}
    model = graph(nodes, {"x": ["batch", 1, 2, 2]}, {"y": None}, values)
    (found,) = factors(model, {"c": np.float32([4, 1])}).values()
    np.testing.assert_allclose(found, [np.sqrt(2), np.sqrt(0.5)], rtol=1e-6)
    (found,) = factors(model, {"c": np.float32([0, 1])}).values()
    assert found.tolist() == [1, 1]  # no signal, no factor


@pytest.mark.parametrize(
    "model",
    [
        chain(between="Sigmoid"),
        chain(extra=[node("Neg", ["r"], "z")]),  # another node reads it
        chain(extra=[node("Neg", ["c"], "z")]),
        chain(group=4),
    ],
    ids=["not homogeneous", "read twice", "read before the ReLU", "groups"],
)
def test_where_it_would_change_the_answers_nothing_is_done(model):
    assert equalizable(model) == []
    assert factors(model, {}) == {}


def test_an_output_of_the_graph_is_left_alone():
    model = chain()
    model.graph.output.append(next(value for value in model.graph.value_info if value.name == "r"))
    assert equalizable(model) == []


def test_even_channels():
    assert not is_uneven(np.float32([1, 2, 3.9, 0]))
    assert is_uneven(np.float32([1, 1, 1, 4.1]))
    assert not is_uneven(np.zeros(4, np.float32))
