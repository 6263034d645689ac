from __future__ import annotations

import numpy as np
import pytest

from krl_deploy.calibration.histogram import Histogram
from krl_runtime.errors import ModelError


@pytest.fixture
def rng():
    """The same numbers for each test, whichever tests ran before it."""
    return np.random.default_rng(0)


def filled(*parts):
    histogram = Histogram()
    for part in parts:
        histogram.add(np.asarray(part, np.float32))
    return histogram


def test_counts_by_hand():
    histogram = filled([-1.0, 0.0, 0.5, 1.0])
    assert histogram.limit == 1
    bins = np.flatnonzero(histogram.counts)
    assert bins.tolist() == [0, 4096, 6144, 8191]  # 0 is the lower edge of the first bin above it
    assert histogram.counts.sum() == 4


def test_widening_loses_no_value_and_keeps_zero_an_edge():
    histogram = filled([-1.0, -1e-6, 0.0, 1.0], [3.0], [-100.0])
    assert histogram.limit == 128
    assert histogram.counts.sum() == 6
    assert histogram.counts[:4096].sum() == 3
    assert (histogram.low, histogram.high) == (-100, 3)


def test_memory_does_not_grow(rng):
    histogram = filled(*(rng.normal(size=1000) * 2.0**step for step in range(20)))
    assert histogram.counts.shape == (8192,)
    assert histogram.counts.sum() == 20000


@pytest.mark.parametrize("share", [99.0, 99.9, 90.0])
def test_percentile_against_numpy(rng, share):
    parts = [rng.normal(size=5000), rng.normal(size=5000) * 3 + 1]
    found = filled(*parts).percentile(share)
    values = np.concatenate(parts)
    shares = [(100 - share) / 2, 100 - (100 - share) / 2]
    width = 2 * max(abs(values)) / 2048
    # Between two neighbors in the sparse tails there is no one right value: NumPy interpolates, a histogram does not.
    assert np.all(found >= np.percentile(values, shares, method="lower") - 2 * width)
    assert np.all(found <= np.percentile(values, shares, method="higher") + 2 * width)


def test_all_values_is_their_range():
    values = np.float32([-0.3, 0.1, 2.7])
    assert filled(values).percentile(100) == (float(values.min()), float(values.max()))


def test_values_after_relu_have_no_negative_end(rng):
    values = np.maximum(rng.normal(size=10000), 0)
    low, high = filled(values).percentile(99.9)
    assert low == 0
    assert 2.5 < high < values.max()


def test_a_tensor_of_zeros():
    histogram = filled(np.zeros(10), np.zeros(5))
    assert histogram.percentile(99.999) == (0, 0)
    histogram.add(np.float32([4.0]))
    assert histogram.counts.sum() == 16
    assert histogram.percentile(100) == (0, 4)


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_values_that_are_not_finite_are_refused(bad):
    with pytest.raises(ModelError, match="not finite"):
        filled([0.0, bad])
