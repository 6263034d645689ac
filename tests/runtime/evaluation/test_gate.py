"""The gate of accuracy, by hand: nothing opens it but a measurement or the user."""

import math

import pytest

from krl_runtime.evaluation.gate import judge_embeddings, judge_images, judge_predictions
from krl_runtime.evaluation.predictions import ClassCounts

NAN = math.nan


@pytest.mark.parametrize(
    ("given", "passes"),
    [
        ({"count": 100, "agreement": 1.0, "drop": 0.0}, True),
        ({"count": 99, "agreement": 1.0, "drop": 0.0}, False),  # one image is worth more than the limit
        ({"count": 99, "agreement": 1.0, "drop": 0.0, "accept_unmeasured": True}, True),
        ({"count": 50, "agreement": 1.0, "drop": 0.0, "max_drop": 2.0}, True),  # the user's own statement
        ({"count": 50, "agreement": 1.0, "drop": 4.0, "max_drop": 2.0}, False),
        ({"count": 50, "agreement": 1.0, "drop": 0.0, "max_drop": 1.9}, False),  # finer than one image
        ({"count": 1, "agreement": 1.0, "drop": 0.0, "max_drop": 0.1}, False),
        ({"count": 1000, "agreement": 0.94, "drop": 0.0, "known": False}, False),  # FP32 guesses: the drop says nothing
        ({"count": 1000, "agreement": 0.95, "drop": 0.0, "known": False}, True),
        ({"count": 1000, "agreement": 0.91, "drop": 0.0, "known": False, "max_drop": 3.0}, True),
        ({"count": 1000, "agreement": 0.90, "drop": 0.0, "known": False, "max_drop": 3.0}, False),
        ({"count": 1000, "agreement": 1.0, "drop": None, "max_recall_drop": 50.0}, False),
        ({"count": 99, "agreement": 1.0, "drop": 0.6, "max_drop": 0.5, "accept_unmeasured": True}, False),
        ({"count": 1000, "agreement": 0.2, "drop": 1.0}, True),  # with labels agreement does not count
        ({"count": 1000, "agreement": 1.0, "drop": 1.1}, False),
        ({"count": 1000, "agreement": 1.0, "drop": 1.0000000001}, True),
        ({"count": 1000, "agreement": 1.0, "drop": NAN}, False),
        ({"count": 1000, "agreement": NAN, "drop": None}, False),
        ({"count": 1000, "agreement": 0.95, "drop": None}, True),
        ({"count": 1000, "agreement": 0.949, "drop": None}, False),
        ({"count": 1000, "agreement": 0.949, "drop": None, "accept_unmeasured": True}, False),
        ({"count": 1000, "agreement": 1.0, "drop": None, "max_drop": 100.0}, False),  # it cannot be checked
        ({"count": 0, "agreement": 1.0, "drop": None}, False),
        ({"count": 16, "agreement": 1.0, "drop": None, "snr_db": 39.9}, False),
        ({"count": 16, "agreement": 1.0, "drop": None, "snr_db": 40.0}, True),  # the logits say more than predictions
        ({"count": 16, "agreement": 0.9, "drop": None, "snr_db": 80.0}, False),
        ({"count": 16, "agreement": 1.0, "drop": None, "snr_db": NAN}, False),
    ],
)
def test_predictions(given, passes):
    verdict = judge_predictions("int8", **given)
    assert verdict.passes == passes
    assert bool(verdict.reason) != passes


def test_fp16_is_held_to_more_than_int8():
    measured = {"count": 1000, "agreement": 0.97, "drop": None}
    assert judge_predictions("int8", **measured).passes
    assert not judge_predictions("fp16", **measured).passes


def test_what_was_not_judged_is_recorded():
    few = judge_predictions("fp16", count=16, agreement=1.0, drop=None, accept_unmeasured=True)
    assert (few.passes, few.judged) == (True, False)
    enough = judge_predictions("fp16", count=160, agreement=1.0, drop=None, accept_unmeasured=True)
    assert (enough.passes, enough.judged) == (True, True)
    assert enough.limits == {"least_images": 100, "least_agreement": 0.99, "enough_snr_db": 40}


@pytest.mark.parametrize(
    ("precision", "given", "passes"),
    [
        ("int8", {"psnr": 10.0, "drop": 0.1}, True),  # with true images the PSNR to FP32's does not count
        ("int8", {"psnr": 60.0, "drop": 0.11}, False),
        ("int8", {"psnr": 60.0, "drop": 0.11, "max_drop": 0.2}, True),
        ("int8", {"psnr": 60.0, "drop": NAN}, False),
        ("int8", {"psnr": 30.0, "drop": None}, True),
        ("int8", {"psnr": 29.9, "drop": None}, False),
        ("fp16", {"psnr": 39.9, "drop": None}, False),
        ("fp16", {"psnr": 35.0, "drop": None, "min_psnr": 35.0}, True),
        ("fp16", {"psnr": NAN, "drop": None}, False),
    ],
)
def test_images(precision, given, passes):
    verdict = judge_images(precision, **given)
    assert verdict.passes == passes
    assert bool(verdict.reason) != passes


@pytest.mark.parametrize(
    ("classes", "lost", "gained", "count", "passes"),
    [
        (2, 6, 0, 6, False),  # a rare class that is gone: the chance of 6 of 6 is 1.6 %, accepted 2.5 %
        (2, 5, 0, 5, True),  # 3.1 %
        (10, 8, 0, 40, False),  # 0.4 %, accepted 0.5 %
        (10, 7, 0, 40, True),
        (10, 12, 2, 50, True),  # 0.65 %
        (10, 13, 2, 50, False),  # 0.37 %
        (10, 13, 2, 500, True),  # 2.2 points are no matter
        (1000, 13, 0, 50, True),
        (1000, 15, 0, 50, False),
    ],
)
def test_the_recall_of_a_class(classes, lost, gained, count, passes):
    others = [ClassCounts(index, 50, 45, 1, 1) for index in range(1, classes)]
    bad = ClassCounts(0, count, count - lost, lost, gained)
    measured = {"count": 5000, "agreement": 0.99, "drop": 0.3}
    verdict = judge_predictions("int8", **measured, classes=[*others, bad], labels=["cat", "dog"])
    assert verdict.passes == passes
    assert verdict.limits["max_recall_drop_points"] == 10
    assert passes or "the recall of class cat drops by" in verdict.reason


def test_a_limit_of_recall_that_the_user_gave_is_taken_at_its_word():
    measured = {"count": 5000, "agreement": 0.99, "drop": 0.3, "classes": [ClassCounts(7, 50, 48, 2, 0)]}
    assert judge_predictions("int8", **measured).passes
    strict = judge_predictions("int8", **measured, max_recall_drop=3.0)
    assert strict.reason == "the recall of class 7 drops by 4.0 points to 96.0% of 50 images, accepted: 3 points"
    assert judge_predictions("int8", **measured, max_recall_drop=4.0).passes


def test_who_accepts_a_large_drop_accepts_it_in_a_class():
    measured = {"count": 5000, "agreement": 0.9, "drop": 8.0, "classes": [ClassCounts(7, 50, 30, 12, 0)]}
    assert judge_predictions("int8", **measured, max_drop=8.0).passes  # 24 points
    assert "accepted: 23.7 points" in judge_predictions("int8", **{**measured, "drop": 7.9}, max_drop=7.9).reason


def test_doubts_are_faults_that_only_the_user_can_lift():
    measured = {"count": 5000, "agreement": 1.0, "drop": None, "doubts": ["the images are X-rays"]}
    assert judge_predictions("int8", **measured).reason == "the images are X-rays"
    accepted = judge_predictions("int8", **measured, accept_unmeasured=True)
    assert (accepted.passes, accepted.judged, accepted.doubts) == (True, False, ("the images are X-rays",))


def test_doubts_of_images():
    measured = {"psnr": 60.0, "drop": 0.0, "doubts": ["they were calibrated on"]}
    assert judge_images("int8", **measured).reason == "they were calibrated on"
    accepted = judge_images("int8", **measured, accept_unmeasured=True)
    assert (accepted.passes, accepted.judged) == (True, False)


@pytest.mark.parametrize(
    ("given", "reason"),
    [
        ({"drop": 0.9}, ""),
        ({"drop": 0.9, "agreement": 0.2}, ""),  # labels judge it
        ({"drop": 1.1}, "the accuracy drop is 1.10 points of recall@1, accepted: 1"),
        ({"drop": float("nan")}, "the accuracy drop is nan points of recall@1, accepted: 1"),
        ({"drop": 4.0, "max_drop": 5.0}, ""),
        ({"drop": 0.0, "known": False, "agreement": 0.9}, "where FP32 is not better than chance, 90.0% of the images"),
        ({"drop": None, "agreement": 0.96}, ""),
        ({"drop": None, "agreement": 0.94}, "without labels 94.0% of the images are nearest to their own embedding"),
        ({"drop": None, "agreement": float("nan")}, "without labels nan%"),
        ({"drop": None, "max_drop": 1.0}, "no labels that two of them share, so that --max-drop cannot be checked"),
        ({"drop": 0.0, "count": 30}, "30 images are too few to judge by, required: 100, or embeddings with an SNR"),
        ({"drop": 0.0, "count": 30, "snr_db": 45.0}, ""),
        ({"drop": 0.0, "count": 30, "accept_unmeasured": True}, ""),
        ({"drop": 0.0, "doubts": ["they are noise"]}, "they are noise"),
    ],
)
def test_embeddings(given, reason):
    verdict = judge_embeddings("int8", **{"count": 500, "agreement": 1.0, **given})
    assert reason in verdict.reason
    assert verdict.passes == (not reason)
    assert verdict.judged == ("doubts" not in given and (given.get("count") is None or "snr_db" in given))
