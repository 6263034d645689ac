"""Retrieval against scikit-learn and pytorch-metric-learning, which share no code with it."""

import numpy as np
import pytest

from krl_runtime.evaluation import neighbors as neighbors_module
from krl_runtime.evaluation.retrieval import (
    RetrievalTally,
    agreement,
    mean_average_precision_at_r,
    neighbors,
    recall_at,
    unit_vectors,
)


def clustered(count=240, dimensions=16, classes=12, spread=0.9, seed=0):
    generator = np.random.default_rng(seed)
    labels = generator.integers(0, classes, count)
    centers = generator.standard_normal((classes, dimensions))
    vectors = centers[labels] + spread * 2 * generator.standard_normal((count, dimensions))
    return vectors.astype(np.float32), labels


@pytest.mark.parametrize("block", [1 << 24, 1000, 1], ids=["whole", "blocks", "rows"])
def test_neighbors_are_those_of_scikit_learn(monkeypatch, block):
    from sklearn.neighbors import NearestNeighbors

    monkeypatch.setattr(neighbors_module, "BLOCK", block)
    gallery, _ = clustered()
    queries, _ = clustered(50, seed=1)
    indices, similarities = neighbors(queries, gallery, 7)
    distances, expected = (
        NearestNeighbors(n_neighbors=7, metric="cosine", algorithm="brute").fit(gallery).kneighbors(queries)
    )
    assert indices.tolist() == expected.tolist()
    np.testing.assert_allclose(similarities, 1 - distances, atol=2e-6)


def test_no_vector_is_its_own_neighbor_and_the_lower_index_is_first_of_equal_ones():
    vectors = np.repeat(np.eye(3, dtype=np.float32), 3, axis=0)
    indices, similarities = neighbors(vectors, vectors, 4, exclude_self=True)
    assert indices.tolist() == [
        [1, 2, 3, 4],
        [0, 2, 3, 4],
        [0, 1, 3, 4],
        [4, 5, 0, 1],
        [3, 5, 0, 1],
        [3, 4, 0, 1],
        [7, 8, 0, 1],
        [6, 8, 0, 1],
        [6, 7, 0, 1],
    ]
    assert similarities[:, :2].min() == 1
    assert similarities[:, 2:].max() == 0
    assert neighbors(vectors, vectors, 100)[0].shape == (9, 9)
    assert neighbors(vectors, vectors, 100, exclude_self=True)[0].shape == (9, 8)
    assert neighbors(vectors[:1], vectors[:1], 5, exclude_self=True)[0].shape == (1, 0)


def test_equal_vectors_at_any_place_of_a_large_gallery_are_ordered_by_their_index():
    gallery, _ = clustered(5003, 96)
    gallery[[17, 1001, 2500, 5002]] = gallery[3] * np.array([[1], [3], [0.1], [7]], np.float32)
    assert neighbors(gallery[3:4], gallery, 5)[0].tolist() == [[3, 17, 1001, 2500, 5002]]


@pytest.mark.parametrize("spread", [0.5, 1.0, 2.0])
def test_recall_and_map_at_r_are_those_of_pytorch_metric_learning(spread):
    import torch
    from pytorch_metric_learning.distances import CosineSimilarity
    from pytorch_metric_learning.utils.accuracy_calculator import AccuracyCalculator
    from pytorch_metric_learning.utils.inference import CustomKNN

    vectors, labels = clustered(spread=spread)
    vectors, labels = np.append(vectors, vectors[:2] + 0.1, 0), np.append(labels, [50, 51])  # alone with it
    calculator = AccuracyCalculator(
        include=("precision_at_1", "mean_average_precision_at_r"), knn_func=CustomKNN(CosineSimilarity())
    )
    expected = calculator.get_accuracy(torch.from_numpy(vectors), torch.from_numpy(labels))
    hits, counted = recall_at(vectors, labels, 1)
    assert counted.sum() == 240
    assert not counted[240:].any()
    assert hits[counted].mean() == pytest.approx(expected["precision_at_1"])
    assert mean_average_precision_at_r(vectors, labels) == pytest.approx(expected["mean_average_precision_at_r"], 1e-5)


def test_recall_counts_by_hand():
    """Angles in degrees; the image without a label is no neighbor, so that the fourth finds the fifth."""
    angles = np.radians([0, 10, 40, 90, 100, 92])
    labels = np.array([0, 0, 1, 2, 2, -1])
    vectors = np.stack([np.cos(angles), np.sin(angles)], axis=1)
    hits, counted = recall_at(vectors, labels, 1)
    assert counted.tolist() == [True, True, False, True, True, False]
    assert hits[counted].all()
    labels[1], labels[2] = 1, 0
    assert recall_at(vectors, labels, 1)[0].tolist() == [False, False, False, True, True, False]
    assert recall_at(vectors, labels, 2)[0].tolist() == [True, False, True, True, True, False]


def test_nothing_is_counted_without_labels():
    vectors, _labels = clustered(20)
    assert not recall_at(vectors, np.full(20, -1), 1)[1].any()
    assert mean_average_precision_at_r(vectors, np.full(20, -1)) is None
    assert mean_average_precision_at_r(vectors, np.arange(20)) is None


def test_agreement_is_self_retrieval_and_equal_images_do_no_harm():
    vectors, _ = clustered(60)
    vectors[7] = vectors[8]
    assert agreement(vectors * 3, vectors).all()
    swapped = vectors.copy()
    swapped[[1, 2]] = swapped[[2, 1]]
    assert np.flatnonzero(~agreement(swapped, vectors)).tolist() == [1, 2]
    broken = vectors.copy()
    broken[3], broken[4, 0] = 0, np.nan
    assert np.flatnonzero(~agreement(broken, vectors)).tolist() == [3, 4]


def test_a_vector_without_a_direction_hits_nothing():
    vectors, labels = clustered(60, spread=0.01)
    assert recall_at(vectors, labels, 1)[0].all()
    vectors[5] = 0
    vectors[6] = np.inf
    hits, _ = recall_at(vectors, labels, 1)
    assert np.flatnonzero(~hits).tolist() == [5, 6]
    assert recall_at(np.zeros((6, 4)), np.zeros(6, int), 5)[0].sum() == 0


def test_a_tally_of_batches_gives_the_paired_drop():
    reference, labels = clustered(spread=0.6)
    outputs = reference + np.random.default_rng(5).standard_normal(reference.shape).astype(np.float32) * 1.2
    tally = RetrievalTally()
    for part in (slice(0, 100), slice(100, 101), slice(101, None)):
        tally.add(outputs[part], reference[part], labels[part])
    score = tally.score()
    mine, theirs = (recall_at(each, labels, 1)[0].astype(float) for each in (outputs, reference))
    assert score.recall_at_1 == pytest.approx(mine.mean())
    assert score.recall_at_5 == pytest.approx(recall_at(outputs, labels, 5)[0].mean())
    assert score.drop == pytest.approx(100 * (theirs - mine).mean())
    assert score.drop_error == pytest.approx(100 * (theirs - mine).std(ddof=1) / len(mine) ** 0.5)
    assert score.count == score.counted == 240
    assert 0 < score.drop < 50
    assert score.better_than_chance
    mine, theirs = unit_vectors(outputs).astype(float), unit_vectors(reference).astype(float)
    assert score.snr_db == pytest.approx(
        10 * np.log10(len(theirs) * theirs.var(axis=0).sum() / ((mine - theirs) ** 2).sum())
    )
    assert score.mean_cosine == pytest.approx((mine * theirs).sum(axis=1).mean())
    assert score.max_error == pytest.approx(np.abs(mine - theirs).max())
    assert len(score.cells(score)) == len(score.HEADER)


def test_a_tally_without_labels_has_agreement_alone():
    reference, _ = clustered()
    tally = RetrievalTally()
    tally.add(reference, reference, None)
    score = tally.score()
    assert (score.agreement, score.snr_db, score.max_error) == (1.0, 200.0, 0.0)
    assert score.recall_at_1 is score.drop is score.quality is None
    assert not score.better_than_chance
    assert score.cells(score)[:3] == (None, None, None)


def test_chance_is_what_shuffled_labels_have():
    vectors, labels = clustered(2000, classes=5)
    shuffled = np.random.default_rng(1).permutation(labels)
    tally = RetrievalTally()
    tally.add(vectors, vectors, shuffled)
    score = tally.score()
    assert score.recall_at_1 == pytest.approx(score.chance, abs=0.04)
    assert not score.better_than_chance
