"""Scores of classifiers, against scikit-learn and by hand."""

import numpy as np
import pytest
from sklearn.metrics import accuracy_score, recall_score

from krl_runtime.evaluation.predictions import ClassCounts, PredictionTally, better_than_chance


def logits_of(predictions, classes):
    return np.eye(classes, dtype=np.float32)[predictions]


@pytest.mark.parametrize(("seed", "classes", "batch"), [(0, 2, 7), (1, 5, 50), (2, 30, 64)])
def test_against_scikit_learn(seed, classes, batch):
    rng = np.random.default_rng(seed)
    truth, reference, made = rng.integers(0, classes, (3, 200))
    tally = PredictionTally()
    for start in range(0, 200, batch):
        part = slice(start, start + batch)
        tally.add(logits_of(made[part], classes), logits_of(reference[part], classes), truth[part])
    score = tally.score()
    assert score.top1 == pytest.approx(accuracy_score(truth, made))
    assert score.agreement == pytest.approx((made == reference).mean())
    found = {item.index: item for item in score.classes}
    assert sorted(found) == sorted(set(truth.tolist()))
    recalls = recall_score(truth, made, average=None, labels=sorted(found))
    before = recall_score(truth, reference, average=None, labels=sorted(found))
    assert [found[index].recall for index in sorted(found)] == pytest.approx(recalls)
    assert [found[index].drop for index in sorted(found)] == pytest.approx(100 * (before - recalls))
    paired = (reference == truth).astype(float) - (made == truth)
    assert score.drop_error == pytest.approx(100 * paired.std(ddof=1) / np.sqrt(200))
    assert score.drop == pytest.approx(100 * paired.mean())


def test_the_noise_of_logits():
    """Logits of 3, 4 and 8 are -2, -1 and 3 around their mean; errors of 0.5, 0.5 and -1 are so already: 14 over 1.5.

    An error that all logits share changes no prediction.
    """
    tally = PredictionTally()
    tally.add(np.float32([[1003.5, 1004.5, 1007]]), np.float32([[3, 4, 8]]), None)
    assert tally.score().snr_db == pytest.approx(10 * np.log10(14 / 1.5))
    tally = PredictionTally()
    tally.add(np.float32([[3.5], [4]]), np.float32([[3], [4]]), None)  # one class has no mean to leave out
    score = tally.score()
    assert score.snr_db == pytest.approx(10 * np.log10(25 / 0.25))
    assert (score.top1, score.drop, score.classes, score.max_error) == (None, None, (), 0.5)


@pytest.mark.parametrize(
    ("recalls", "clear"), [((0.9, 0.9), True), ((1.0, 0.0), False), ((0.6, 0.5), False), ((0.2, 0.15, 0.1), False)]
)
def test_better_than_chance(recalls, clear):
    """A constant prediction has a recall of 1 in one class and 0 in the others."""
    counts = [ClassCounts(index, 100, round(100 * recall), 0, 0) for index, recall in enumerate(recalls)]
    assert better_than_chance(counts) == clear


@pytest.mark.parametrize("right", [(1, 1), (1, 1, 0), (2, 2)])
def test_a_few_right_ones_are_chance(right):
    count = max(right)
    assert not better_than_chance([ClassCounts(index, count, each, 0, 0) for index, each in enumerate(right)])


def test_a_single_logit_predicts_by_its_sign():
    tally = PredictionTally()
    tally.add(np.float32([[2], [-1], [3]]), np.float32([[1], [1], [-1]]), np.array([1, 1, 0]))
    score = tally.score()
    assert (score.agreement, score.top1) == (pytest.approx(1 / 3), pytest.approx(1 / 3))
    assert [(item.index, item.count, item.right, item.lost) for item in score.classes] == [(0, 1, 0, 1), (1, 2, 1, 1)]


def test_one_class_alone_says_nothing():
    assert not better_than_chance([ClassCounts(0, 1000, 1000, 0, 0)])


def test_a_multi_label_prediction_is_every_label():
    """Two of the four images keep their labels: one gains a second label, and one without any has another best."""
    reference = np.float32([[2, -1, -1], [2, 1, -1], [2, -1, -1], [-1, -2, -3]])
    made = np.float32([[3, -1, -2], [1, 2, -1], [2, 1, -1], [-2, -1, -3]])
    tally = PredictionTally("sigmoid-logits")
    tally.add(made, reference, None)
    assert tally.score().agreement == 0.5, "the second image has the same labels, and another best one of them"
    scores = PredictionTally("sigmoid")
    scores.add(1 / (1 + np.exp(-made)), 1 / (1 + np.exp(-reference)), None)
    assert scores.score().agreement == 0.5
    same = PredictionTally("sigmoid-logits")
    same.add(reference + np.float32([[0.5, 0.5, 0.5]]), reference, None)
    assert same.score().agreement == 1
    # Without a softmax an error that all logits share changes the scores: signal of 31, noise of 12 quarters.
    assert same.score().snr_db == pytest.approx(10 * np.log10(np.square(reference).sum() / 3))


@pytest.mark.parametrize("kind", ["sigmoid", "probabilities"])
def test_saturated_scores_do_not_hide_the_noise(kind):
    """Scores of 1e-5 and 1e-2 differ little, and their logits by 6.9."""
    tally = PredictionTally(kind)
    tally.add(np.float64([[0.99, 0.01]]), np.float64([[0.99999, 0.00001]]), None)
    assert tally.score().snr_db < 10
