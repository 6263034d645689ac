"""The gate of a float model that was read from a quantized file, by hand: few images decide only what is plain."""

import numpy as np
import pytest

from krl_runtime.evaluation.float_model import judge_float_images, judge_float_predictions
from krl_runtime.evaluation.images import ImageScore
from krl_runtime.evaluation.predictions import PredictionScore, PredictionTally

CLASSES = 10


def scores(count: int, float_right: int, file_right: int, *, common: int | None = None):
    """Scores of the file and of its float model, of which each predicts so many images right, ``common`` of them both.

    A wrong prediction is the next class.
    """
    common = min(float_right, file_right) if common is None else common
    truth = np.arange(count) % CLASSES
    right = {
        "float": np.arange(count) < float_right,
        "file": (np.arange(count) < common)
        | ((np.arange(count) >= float_right) & (np.arange(count) < float_right + file_right - common)),
    }
    outputs = {
        name: np.eye(CLASSES, dtype=np.float32)[(truth + np.where(each, 0, 1 + (name == "file"))) % CLASSES]
        for name, each in right.items()
    }
    found = {}
    for name, values in outputs.items():
        tally = PredictionTally()
        tally.add(values, outputs["float"], truth)
        found[name] = tally.score()
    return found["file"], found["float"], count


@pytest.mark.parametrize(
    ("float_right", "file_right", "common", "options", "passes"),
    [
        (100, 20, 20, {}, True),  # the file's own ranges are poor: no evidence against its float model
        (100, 5, 5, {}, True),  # also if it is no better than chance
        (100, 100, 100, {}, True),
        (0, 100, 0, {}, False),
        (10, 100, 10, {}, False),
        (90, 100, 90, {}, False),  # ten that the file predicts right, and none the other way
        (83, 88, 80, {}, True),  # eight lost and three gained: chance
        (99, 100, 99, {}, True),  # within a point
        (90, 100, 90, {"max_drop": 10.0}, True),  # the user accepts it
        (10, 100, 10, {"accept_unmeasured": True}, False),  # it is measured
    ],
)
def test_labels(float_right, file_right, common, options, passes):
    verdict = judge_float_predictions(*scores(100, float_right, file_right, common=common), **options)
    assert verdict.passes == passes, verdict
    assert verdict.judged


def test_more_images_show_what_few_do_not():
    few, more = (scores(100 * times, 83 * times, 88 * times, common=80 * times) for times in (1, 5))
    assert judge_float_predictions(*few).passes  # eight lost and three gained
    assert not judge_float_predictions(*more).passes  # forty and fifteen


@pytest.mark.parametrize("count", [8, 16, 64])
def test_few_images(count):
    wrong = judge_float_predictions(*scores(count, 0, count))
    assert not wrong.passes
    assert "the float model of the quantized file is worse than the file" in wrong.reason
    poor = judge_float_predictions(*scores(count, count, count // 4))
    assert poor.passes
    assert poor.doubts == (
        f"{count} images are too few to judge by, required: 100; one is worth {100 / count:.2g} points",
    )


def test_five_of_eight_are_no_chance_and_four_are():
    # 2^-5 is below 5 %, and 2^-4 above.
    assert not judge_float_predictions(*scores(8, 3, 8)).passes
    assert judge_float_predictions(*scores(8, 4, 8)).passes


@pytest.mark.parametrize(
    ("count", "agreeing", "accept", "passes", "doubts"),
    [
        (16, 2, False, True, 2),  # too few to say
        (99, 10, False, True, 2),
        (100, 10, False, False, 1),
        (100, 10, True, True, 1),
        (100, 45, False, True, 0),  # half, as far as chance goes
        (2000, 700, False, False, 1),
        (2000, 1100, False, True, 0),
    ],
)
@pytest.mark.parametrize("labels", [False, True])
def test_without_truth_agreement_counts(count, agreeing, accept, passes, doubts, labels):
    score = PredictionScore(None, None, None, agreeing / count, 3.0, 1.0)
    reference = PredictionScore(None, None, None, 1.0, 200.0, 0.0)
    if labels:  # of another kind of image: neither is better than chance on them
        score, reference = (
            PredictionScore(0.1, 0.0, 0.4, item.agreement, item.snr_db, item.max_error) for item in (score, reference)
        )
    verdict = judge_float_predictions(score, reference, count, accept_unmeasured=accept)
    assert (verdict.passes, len(verdict.doubts)) == (passes, doubts), verdict


@pytest.mark.parametrize(
    ("drop", "error", "count", "options", "passes"),
    [
        (2.0, 0.5, 14, {}, True),  # the file is the worse one
        (-2.0, 0.5, 14, {}, False),
        (-2.0, 0.7, 14, {}, True),  # within three standard errors of the limit
        (-0.1, 0.0, 14, {}, True),
        (-2.0, 0.0, 1, {}, True),  # one image has no error
        (-2.0, 0.5, 14, {"max_drop": 0.6}, True),
        (-2.0, 0.5, 14, {"accept_unmeasured": True}, False),
    ],
)
def test_images(drop, error, count, options, passes):
    verdict = judge_float_images(ImageScore(30.0, drop, error, 35.0, 30.0, 9.0), count, **options)
    assert verdict.passes == passes
    assert verdict.judged == (count > 1)


@pytest.mark.parametrize(("psnr", "accept", "passes"), [(20.0, False, True), (19.9, False, False), (5.0, True, True)])
def test_images_without_truth(psnr, accept, passes):
    verdict = judge_float_images(ImageScore(None, None, None, psnr, 10.0, 90.0), 14, accept_unmeasured=accept)
    assert verdict.passes == passes
    assert verdict.judged == (psnr >= 20)
