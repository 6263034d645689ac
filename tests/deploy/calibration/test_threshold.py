"""Thresholds against direct computations on the values themselves."""

from __future__ import annotations

import numpy as np
import pytest
from scipy.stats import entropy as divergence

from krl_deploy.calibration.histogram import Histogram
from krl_deploy.calibration.threshold import entropy, mse, mse_uint8

RNG = np.random.default_rng(0)
CHOICES = [entropy, mse, mse_uint8]
SAMPLES = {
    "normal": RNG.normal(size=40000),
    "laplace": RNG.laplace(size=40000),
    "relu": np.maximum(RNG.normal(size=40000), 0),
    "outlier": np.append(RNG.normal(size=40000), 40.0),
    "skewed": np.append(RNG.exponential(size=40000) - 0.4, [-3.0, 30.0]),
}


def filled(values):
    histogram = Histogram()
    histogram.add(np.asarray(values, np.float32))
    return histogram


@pytest.mark.parametrize("name", SAMPLES)
def test_mse_is_the_least_error_of_rounding(name):
    values = SAMPLES[name]

    def error(largest):
        scale = largest / 127
        return np.square(values - scale * np.clip(np.rint(values / scale), -127, 127)).mean()

    low, high = mse(filled(values))
    best = min(error(largest) for largest in np.linspace(0.02, 1, 500) * np.abs(values).max())
    assert error(max(-low, high)) <= 1.02 * best


@pytest.mark.parametrize("name", SAMPLES)
def test_mse_uint8_is_the_least_error_of_rounding(name):
    values = SAMPLES[name]

    def error(low, high):
        scale = (high - low) / 255
        zero = np.rint(-low / scale)
        return np.square(values - scale * (np.clip(np.rint(values / scale) + zero, 0, 255) - zero)).mean()

    found = error(*mse_uint8(filled(values)))
    ends = np.linspace(0.04, 1, 25)
    best = min(error(low, high) for low in ends * values.min() for high in ends * values.max())
    assert found <= 1.02 * best
    assert found <= 1.001 * error(*mse(filled(values)))


def reference_entropy(values, width, bins):
    """The algorithm of TensorRT's slides, written out bin by bin."""
    counts = np.bincount((np.abs(values) / width).astype(int), minlength=bins).astype(float)
    counts[0] = 0
    best, chosen = np.inf, None
    for stop in [*range(128, bins, 32), bins]:
        p = counts[:stop].copy()
        p[-1] += counts[stop:].sum()
        q = np.zeros(stop)
        for level in range(128):
            start, end = level * stop // 128, (level + 1) * stop // 128
            full = [index for index in range(start, end) if counts[index]]
            for index in full:
                q[index] = counts[start:end].sum() / len(full)
        q = np.maximum(q / q.sum(), 1e-9)
        found = divergence(p / p.sum(), q / q.sum())
        if found < best:
            best, chosen = found, stop
    return chosen * width


@pytest.mark.parametrize("name", SAMPLES)
def test_entropy_is_the_published_algorithm(name):
    values = SAMPLES[name].astype(np.float32)
    histogram = filled(values)
    used = int(np.flatnonzero(histogram.magnitudes())[-1]) + 1
    low, high = entropy(histogram)
    assert max(-low, high) == pytest.approx(
        min(reference_entropy(values, histogram.width, used), np.abs(values).max()), abs=32 * histogram.width
    )


@pytest.mark.parametrize("choose", CHOICES)
def test_one_outlier_is_cut_off(choose):
    low, high = choose(filled(SAMPLES["outlier"]))
    least = SAMPLES["outlier"].min()
    assert high < (39 if choose is mse_uint8 else 36)
    assert low == pytest.approx(least, abs=1 if choose is mse_uint8 else 1e-5)


@pytest.mark.parametrize("choose", CHOICES)
def test_what_is_never_negative_stays_so(choose):
    assert choose(filled(SAMPLES["relu"]))[0] == 0


@pytest.mark.parametrize("choose", CHOICES)
def test_few_values_are_kept_whole(choose):
    assert choose(filled(np.zeros(5))) == (0, 0)
    low, high = choose(filled([-1e-3, 1.0]))
    assert low == pytest.approx(-1e-3, rel=0.3)  # within a bin
    assert high == pytest.approx(1.0, abs=0.01)
