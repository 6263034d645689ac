"""Limits on golden inputs: from the gate, with a floor, and never looser for an artifact that is worse."""

import numpy as np
import pytest
from scipy.stats import binom

from _helpers.embeddings import write_embedder
from krl_runtime.bundle import Variant
from krl_runtime.evaluation.golden import Likeness, compare, content_of, golden_limits, likeness, makes_images

LABELS, NONE = {"max_drop_points": 1.0}, {"least_agreement": 0.95}


@pytest.mark.parametrize("count", [1, 8, 16, 32, 200])
@pytest.mark.parametrize(("precision", "share"), [("int8", 0.95), ("fp16", 0.99)])
def test_the_floor_of_agreement(precision, share, count):
    """More misses than an accepted variant has with a chance of 0.1 % are refused."""
    _, passes = golden_limits(precision, Likeness(count, 1.0, 0.0, 1.0), NONE, content="predictions")
    usual = int(binom.ppf(0.999, count, 1 - share))
    most = min(usual, count // 2)
    for misses in range(count + 1):
        measured = Likeness(count, 1.0, 0.0, 1 - misses / count)
        limits, fault = golden_limits(precision, measured, NONE, content="predictions")
        assert bool(fault) == (misses > most), misses
        assert limits["agreement"] >= max(0.5, 1 - usual / count) - 1e-12
    assert passes == ""


@pytest.mark.parametrize("accepted", [LABELS, NONE, {"max_drop_points": 5.0}, {"max_drop_points": 90.0}])
def test_no_agreement_passes_with_no_agreement(accepted):
    limits, fault = golden_limits("int8", Likeness(16, 10.0, 1.0, 0.0), accepted, content="predictions")
    assert "top-1 agrees on 0.0% of the golden inputs" in fault
    assert limits["agreement"] >= 0.5


def test_a_larger_drop_that_was_accepted_lowers_the_floor():
    measured = Likeness(200, 10.0, 1.0, 0.85)
    assert golden_limits("int8", measured, LABELS, content="predictions")[1]
    assert not golden_limits("int8", measured, {"max_drop_points": 5.0}, content="predictions")[1]


@pytest.mark.parametrize(
    ("precision", "error", "tolerance", "fault"),
    [
        ("int8", 1.0, 2.0, False),
        ("int8", 9.0, 10.0, False),
        ("int8", 11.0, 10.0, True),
        ("fp16", 0.0, 0.1, False),
        ("fp16", 0.5, 2.0, False),
        ("fp16", 3.0, 2.5, True),
        ("fp16", np.nan, 2.5, True),
    ],
)
def test_the_tolerance_has_an_end(precision, error, tolerance, fault):
    limits, why = golden_limits(precision, Likeness(16, 10.0, error, 1.0), NONE, content="predictions")
    assert bool(why) == fault
    if not np.isnan(error):
        assert limits["tolerance"] == pytest.approx(tolerance)


@pytest.mark.parametrize(
    ("accepted", "psnr", "required", "fault"),
    [
        ({"least_psnr_db": 30.0}, 40.0, 34.0, False),
        ({"least_psnr_db": 30.0}, 28.0, 24.0, False),  # few golden images may be a little worse than the mean
        ({"least_psnr_db": 30.0}, 22.0, 24.0, True),
        ({"least_psnr_db": 12.0}, 15.0, 12.0, False),  # the user accepted it
        ({"max_drop_db": 0.1}, 21.0, 20.0, False),
        ({"max_drop_db": 0.1}, 15.0, 20.0, True),
    ],
)
def test_images(accepted, psnr, required, fault):
    limits, why = golden_limits("int8", Likeness(16, 255.0, 5.0, psnr), accepted, content="images")
    assert limits["psnr"] == pytest.approx(required)
    assert bool(why) == fault


def test_embeddings_agree_by_finding_their_own(tmp_path):
    manifest = write_embedder(tmp_path / "tiny.krl").manifest
    golden = {"embeddings": np.eye(4, dtype=np.float32)}
    swapped = {"embeddings": golden["embeddings"][[1, 0, 2, 3]]}
    assert likeness(manifest, golden, golden).alike == 1
    measured = likeness(manifest, swapped, golden)
    assert (measured.alike, measured.error, measured.count) == (0.5, 1.0, 4)
    limits, fault = golden_limits("fp16", measured, {"least_agreement": 0.99}, content=content_of(manifest))
    assert "50.0% of the embeddings are nearest to the golden one of their input, required: " in fault
    assert "top-1" not in fault
    assert limits["agreement"] >= 0.5
    broken = {"embeddings": np.full((4, 4), np.nan, np.float32)}
    _, alike, reason = compare(manifest, Variant("fp16", "", tolerance=9.0, agreement=0.5), broken, golden)
    assert alike == 0
    assert "the largest error nan is above the tolerance" in reason
    assert not makes_images(manifest)
