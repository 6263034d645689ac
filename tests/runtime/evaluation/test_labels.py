from __future__ import annotations

import numpy as np
import pytest
from sklearn.metrics import average_precision_score, f1_score, precision_score, recall_score

from krl_runtime.evaluation.average_precision import average_precision, mean_average_precision, resampled
from krl_runtime.evaluation.gate import judge_predictions
from krl_runtime.evaluation.labels import LabelScore, LabelTally, measure_labels, tally_of
from krl_runtime.evaluation.predictions import PredictionTally

NAMES = ("a", "b", "c", "never")


def drawn(count: int = 60, seed: int = 0, digits: int = 3) -> tuple[np.ndarray, np.ndarray]:
    """Return logits that are right more often than not, rounded so that some are equal, and labels."""
    rng = np.random.default_rng(seed)
    truth = rng.random((count, 4)) < (0.5, 0.2, 0.1, 0.0)
    logits = rng.normal(size=(count, 4)) + 1.5 * truth - 0.7
    return logits.round(digits).astype(np.float32), truth.astype(np.int64)


@pytest.mark.parametrize("digits", [0, 1, 3])
def test_average_precision_is_that_of_the_literature(digits: int):
    logits, truth = drawn(digits=digits)
    for label in range(3):
        expected = average_precision_score(truth[:, label], logits[:, label])
        assert average_precision(logits[:, label], truth[:, label] > 0)[0] == pytest.approx(expected)
    macro = average_precision_score(truth[:, :3], logits[:, :3], average="macro")
    assert mean_average_precision(logits, truth)[0] == pytest.approx(macro), "the label that no image has is left out"
    assert np.isnan(mean_average_precision(logits, np.zeros_like(truth))).all()


def test_weights_count_images_several_times():
    logits, truth = drawn(digits=1)
    weights = np.random.default_rng(1).exponential(size=(3, len(truth)))
    for row, found in zip(weights, average_precision(logits[:, 0], truth[:, 0] > 0, weights), strict=True):
        assert found == pytest.approx(average_precision_score(truth[:, 0], logits[:, 0], sample_weight=row))


def test_the_quality_of_a_model_and_of_each_label():
    logits, truth = drawn()
    found = measure_labels("sigmoid-logits", logits, truth, NAMES)
    made = logits > 0
    assert found["map"] == pytest.approx(average_precision_score(truth[:, :3], logits[:, :3]), abs=1e-6)
    assert found["f1_macro"] == pytest.approx(f1_score(truth[:, :3], made[:, :3], average="macro"), abs=1e-6)
    assert found["f1_micro"] == pytest.approx(f1_score(truth, made, average="micro"), abs=1e-6)
    assert found["exact_match"] == pytest.approx((made == truth).all(1).mean(), abs=1e-6)
    assert found["labels_without_images"] == ["never"]
    for index, name in enumerate(NAMES[:3]):
        each = found["labels"][name]
        assert each["images"] == truth[:, index].sum()
        assert each["precision"] == pytest.approx(precision_score(truth[:, index], made[:, index]), abs=1e-6)
        assert each["recall"] == pytest.approx(recall_score(truth[:, index], made[:, index]), abs=1e-6)
    assert found["labels"]["never"]["average_precision"] is None
    scores = 1 / (1 + np.exp(-logits.astype(np.float64)))
    assert measure_labels("sigmoid", scores, truth, NAMES) == found, "the scores say the same as their logits"


def test_the_standard_error_is_that_of_new_images():
    """The spread of mAP over sets of 200 images, each drawn anew, against the error that one of them states."""
    values, errors = [], []
    for seed in range(60):
        logits, truth = drawn(200, seed)
        found = measure_labels("sigmoid-logits", logits[:, :3], truth[:, :3], NAMES[:3])
        values.append(found["map"])
        errors.append(found["map_standard_error"])
    assert np.mean(errors) == pytest.approx(np.std(values), rel=0.35)  # of 60 sets, and 100 resamples of each


def test_a_perfect_score_has_an_error():
    _, truth = drawn()
    found = measure_labels("sigmoid-logits", 8.0 * truth - 4, truth, NAMES)
    assert (found["map"], found["exact_match"]) == (1, 1)
    assert found["map_standard_error"] == pytest.approx(1 / 62, abs=1e-6)


def scored(made: np.ndarray, reference: np.ndarray, truth: np.ndarray | None) -> LabelScore:
    tally = tally_of("sigmoid-logits")
    assert isinstance(tally, LabelTally)
    for start in (0, 25):
        part = slice(start, 25 if start == 0 else None)
        tally.add(made[part], reference[part], None if truth is None else truth[part])
    return tally.score()


def test_the_drop_of_a_variant_is_that_of_map():
    reference, truth = drawn()
    made = reference + np.random.default_rng(5).normal(0, 0.5, reference.shape).astype(np.float32)
    score = scored(made, reference, truth)
    both = [average_precision_score(truth[:, :3], each[:, :3]) for each in (reference, made)]
    assert score.map == pytest.approx(both[1])
    assert score.drop == pytest.approx(100 * (both[0] - both[1]))
    weights = resampled(len(truth))
    drops = [
        average_precision_score(truth[:, :3], reference[:, :3], sample_weight=row)
        - average_precision_score(truth[:, :3], made[:, :3], sample_weight=row)
        for row in weights
    ]
    assert score.drop_error == pytest.approx(100 * np.std(drops))
    assert score.map_error is not None
    assert score.drop_error < 100 * score.map_error, "the same images: most of the error is common to both"
    assert [item.index for item in score.classes] == [0, 1, 2]
    lost = int(((reference > 0) & (made <= 0) & (truth > 0)).sum())
    assert sum(item.lost for item in score.classes) == lost
    assert scored(reference, reference, truth).drop == 0
    assert score.to_dict().keys() >= {"map", "map_error", "drop", "drop_error", "agreement"}
    assert "top1" not in score.to_dict()
    assert len(score.cells(score)) == len(LabelScore.HEADER)


@pytest.mark.parametrize("truth", [None, np.full(60, -1), np.full(60, 1), np.full((60, 4), -1), np.zeros((60, 4))])
def test_without_labels_there_is_agreement_alone(truth: np.ndarray | None):
    """Classes, one for each image, are no labels of a multi-label model: nothing is judged by its best label."""
    reference, _ = drawn()
    score = scored(reference, reference, truth)
    assert (score.drop, score.map, score.classes, score.better_than_chance) == (None, None, (), False)
    assert score.agreement == 1


def test_an_image_whose_labels_are_not_known_leaves_the_set_unlabeled():
    reference, truth = drawn()
    truth[3] = -1
    assert scored(reference, reference, truth).drop is None


def test_better_than_chance_is_not_a_matter_of_the_best_label():
    rng = np.random.default_rng(0)
    truth = (rng.random((200, 3)) < 0.9).astype(np.int64)  # nearly all images have nearly all labels
    noise = rng.normal(3, 1, (200, 3)).astype(np.float32)
    assert not scored(noise, noise, truth).better_than_chance, "every label on every image is right nine times in ten"
    known = (noise + 2 * truth).astype(np.float32)
    assert scored(known, known, truth).better_than_chance


def test_the_gate_names_the_metric_and_the_label():
    reference, truth = drawn(400)
    score = scored(np.where(np.arange(4) == 1, -5, reference).astype(np.float32), reference, truth)
    verdict = judge_predictions(
        "int8",
        count=400,
        agreement=score.agreement,
        drop=score.drop,
        classes=score.classes,
        labels=NAMES,
        metric=score.METRIC_NAME,
    )
    assert "points of mAP, accepted: 1" in verdict.reason
    assert "the recall of label b drops by" in verdict.reason


def test_a_tally_follows_the_kind():
    assert type(tally_of("logits")) is PredictionTally
    assert type(tally_of("sigmoid")) is LabelTally
