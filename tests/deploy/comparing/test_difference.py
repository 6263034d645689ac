"""Differences of tensors, against NumPy on the whole arrays and against cases by hand."""

from __future__ import annotations

import numpy as np
import pytest

from krl_deploy.comparing.difference import Difference
from krl_runtime.errors import ModelError


def of(*pairs) -> Difference:
    found = Difference()
    for a, b in pairs:
        found.add(np.asarray(a, np.float32), np.asarray(b, np.float32))
    return found


def test_batches_add_up_to_the_whole():
    rng = np.random.default_rng(3)
    a = rng.normal(3, 2, (9, 4, 5)).astype(np.float32)
    b = a + rng.normal(0, 0.01, a.shape).astype(np.float32)
    found = of(*((a[i : i + 2], b[i : i + 2]) for i in range(0, 9, 2)))
    one, two = a.astype(np.longdouble).ravel(), b.astype(np.longdouble).ravel()
    assert found.snr_db == pytest.approx(float(10 * np.log10((one**2).sum() / ((one - two) ** 2).sum())), abs=1e-6)
    cosine = (one * two).sum() / np.sqrt((one**2).sum() * (two**2).sum())
    assert found.cosine == pytest.approx(float(cosine), abs=1e-12)
    assert found.largest == float(np.abs(one - two).max())


def test_by_hand():
    found = of(([3, 4], [3, 5]))
    assert found.snr_db == pytest.approx(13.9794, abs=1e-4)  # 25 : 1
    assert found.cosine == pytest.approx(29 / (5 * np.sqrt(34)))
    assert found.largest == 1
    assert of(([1, 2], [1, 2])).snr_db == 200
    assert of(([0, 0], [0, 0])).to_dict() == {"snr_db": 200.0, "cosine": 1.0, "max_error": 0.0}
    assert of(([0, 0], [0, 2])).cosine == 0
    assert of(([1, 1], [-1, -1])).cosine == pytest.approx(-1)


def test_an_infinity_of_both_is_no_error_and_one_of_b_alone_is():
    inf, nan = np.inf, np.nan
    assert of(([1, -inf, nan], [1, -inf, nan])).to_dict() == {"snr_db": 200.0, "cosine": 1.0, "max_error": 0.0}
    for wrong in (inf, -inf, nan):
        found = of(([1, 2], [1, wrong]), ([3, 4], [3, 4])).to_dict()
        assert found["not_finite"] == 1
        assert found["snr_db"] == -200
        assert found["max_error"] == 0
    assert of(([inf], [-inf])).not_finite == 1


def test_other_shapes_are_refused():
    with pytest.raises(ModelError, match=r"\[2\] in a, and \[1, 2\] in b"):
        of(([1, 2], [[1, 2]]))
