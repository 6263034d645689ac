"""CKA over batches against its definition and against closed forms with whole Gram matrices; agreement of attention."""

from __future__ import annotations

from itertools import permutations

import numpy as np
import pytest
import torch

from krl_train.metrics.alignment import MinibatchCKA, attention_agreement, gram


def hsic_by_definition(first: np.ndarray, second: np.ndarray) -> float:
    """The U-statistic of HSIC (Song et al. 2012): the mean over all ordered quadruples of different samples."""
    k, other = first @ first.T, second @ second.T
    terms = [
        k[i, j] * (other[i, j] + other[q, r] - 2 * other[i, q]) for i, j, q, r in permutations(range(len(first)), 4)
    ]
    return float(np.mean(terms))


def cka_of_means(pairs: list[tuple[np.ndarray, np.ndarray]]) -> float:
    both, mine, theirs = (
        np.mean([hsic_by_definition(a, b) for a, b in chosen])
        for chosen in (pairs, [(a, a) for a, _ in pairs], [(b, b) for _, b in pairs])
    )
    return float(both / np.sqrt(mine * theirs))


def minibatch(pairs) -> torch.Tensor:
    measured = MinibatchCKA()
    for first, second in pairs:
        measured.update([gram(torch.from_numpy(first))], [gram(torch.from_numpy(second))])
    return measured.compute()


def related(count: int, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(seed)
    first = rng.normal(size=(count, 6)) + 20  # a mean that HSIC ignores
    return first, first @ rng.normal(size=(6, 9)) + 2 * rng.normal(size=(count, 9)) - 7


def test_batches_follow_the_definition():
    pairs = [related(7, seed) for seed in range(3)]
    assert float(minibatch(pairs)) == pytest.approx(cka_of_means(pairs), abs=1e-4)


def test_one_batch_is_the_closed_form_of_debiased_gram_matrices():
    first, second = related(40)

    def centered(rows: np.ndarray) -> np.ndarray:  # U-centering, Székely and Rizzo 2014
        k, n = rows @ rows.T, len(rows)
        np.fill_diagonal(k, 0)
        k = k - k.sum(0) / (n - 2) - k.sum(1)[:, None] / (n - 2) + k.sum() / ((n - 1) * (n - 2))
        np.fill_diagonal(k, 0)
        return k

    k, other = centered(first - first.mean(0)), centered(second - second.mean(0))
    expected = (k * other).sum() / np.sqrt((k * k).sum() * (other * other).sum())
    assert float(minibatch([(first, second)])) == pytest.approx(expected, abs=1e-5)


def test_small_batches_agree_with_the_gram_matrix_of_all_samples():
    first, second = related(4000)
    x, y = first - first.mean(0), second - second.mean(0)
    norms = np.linalg.norm(x.T @ x) * np.linalg.norm(y.T @ y)
    expected = np.linalg.norm(y.T @ x) ** 2 / norms  # Kornblith et al. 2019
    batches = [(first[start : start + 16], second[start : start + 16]) for start in range(0, 4000, 16)]
    assert float(minibatch(batches)) == pytest.approx(expected, abs=0.02)
    assert 0.3 < expected < 0.95  # neither alike nor unrelated, which other estimators would get right, too


def test_rotation_and_scale_are_the_same_and_noise_is_nothing():
    rng = np.random.default_rng(1)
    rows = rng.normal(size=(64, 12))
    rotation = np.linalg.qr(rng.normal(size=(12, 12)))[0]
    assert float(minibatch([(rows, 3 * rows @ rotation + 5)])) == pytest.approx(1, abs=1e-5)
    unrelated = [(rng.normal(size=(32, 12)), rng.normal(size=(32, 300))) for _ in range(40)]
    assert abs(float(minibatch(unrelated))) < 0.03  # the biased estimator gives about 0.5 here
    constant = [(rows, np.ones((64, 3)))]
    assert torch.isnan(minibatch(constant)).all()


def test_all_pairs_of_layers_are_measured():
    first, second = related(30)
    layers = [first, second, first[:, :2]]
    measured = MinibatchCKA()
    grams = [gram(torch.from_numpy(layer)) for layer in layers]
    measured.update(grams, grams[:2])
    expected = [[float(minibatch([(a, b)])) for b in layers[:2]] for a in layers]
    np.testing.assert_allclose(measured.compute().numpy(), expected, atol=1e-9)


def test_attention_is_where_and_not_how_much():
    first, second = np.zeros((2, 1, 3, 4, 4), np.float32)
    first[0, :, 1, 1] = 2, 0, 0
    second[0, :, 1, 1] = 0, 7e-6, 0  # another channel, and much smaller
    one, other = torch.from_numpy(first), torch.from_numpy(second)
    assert float(attention_agreement(one, other)) == pytest.approx(1, abs=1e-6)
    assert float(attention_agreement(one, other.roll(1, 3))) == pytest.approx(0, abs=1e-6)
    # Squares 4 and 1 at two places against one of them: cosine 4 / sqrt(16 + 1).
    one[0, 1, 3, 3] = 1
    assert float(attention_agreement(one, other)) == pytest.approx(4 / 17**0.5, rel=1e-5)
    # Averaged to 2 × 2, both places still differ: 1/4 of each square.
    small = torch.zeros(1, 5, 2, 2)
    small[0, 4, 0, 0] = 3
    assert float(attention_agreement(small, one)) == pytest.approx(4 / 17**0.5, rel=1e-5)
    assert float(attention_agreement(torch.zeros(1, 3, 4, 4), one)) == 0
