"""The order in which an epoch shows the training images."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

__all__ = ["LABELED_SHARE", "epoch_order", "grouped_order"]

Indices = npt.NDArray[np.int64]

# Least share of labeled images in an epoch that has unlabeled ones as well, and so in each batch: FixMatch's seven
# unlabeled images for each labeled one (https://arxiv.org/abs/2001.07685). With fewer, most batches of a large
# unlabeled folder would have no label at all.
LABELED_SHARE = 1 / 8


def grouped_order(labels: Indices, random: np.random.Generator, size: int) -> Indices:
    """Return the indices of an epoch's images, ``[N]``, in groups of one class each, in random order.

    The last group of a class is filled up with other images of it; as many images of the last groups are left for other
    epochs.

    Args:
        labels: Class index of each image, ``[N]``.
        random: Draws the order.
        size: Number of images of a group. A class with fewer images has some of them twice.
    """
    groups = []
    for label in np.unique(labels):
        members = np.flatnonzero(labels == label)
        groups.append(_repeated(members, -(-len(members) // size) * size, random).reshape(-1, size))
    return random.permutation(np.concatenate(groups)).ravel()[: len(labels)]


def epoch_order(labels: Indices, random: np.random.Generator, *, balanced: bool = False) -> Indices:
    """Return the indices of an epoch's images, ``[N]``, in random order.

    Labeled and unlabeled images are spread evenly: each stretch of the epoch has its part of both. Where fewer than
    ``LABELED_SHARE`` of the images are labeled, they come several times, and some of the unlabeled ones not at all.

    Args:
        labels: Class index of each image, ``[N]``; -1 for unlabeled ones.
        random: Draws the order.
        balanced: Whether as many labeled images of each class are shown; those of rare classes then come several
            times, and some of the others not at all.
    """
    count = len(labels)
    labeled, unlabeled = np.flatnonzero(labels >= 0), np.flatnonzero(labels < 0)
    if not len(labeled) or not len(unlabeled):  # images without classes, as a generator's, are all alike
        return _balanced(labels, count, random) if balanced else random.permutation(count)
    wanted = max(len(labeled), round(LABELED_SHARE * count))
    shown = labeled[_balanced(labels[labeled], wanted, random)] if balanced else _repeated(labeled, wanted, random)
    return _spread(shown, _repeated(unlabeled, count - wanted, random), random)


def _balanced(labels: Indices, count: int, random: np.random.Generator) -> Indices:
    """Return ``count`` indices, as many of each label, in random order."""
    classes = random.permutation(np.unique(labels))  # the first ones get one image more, where N is no multiple
    chosen = [
        _repeated(np.flatnonzero(labels == label), count // len(classes) + (number < count % len(classes)), random)
        for number, label in enumerate(classes)
    ]
    return random.permutation(np.concatenate(chosen))


def _repeated(indices: Indices, count: int, random: np.random.Generator) -> Indices:
    """Return ``count`` of the indices in random order; none comes once more before all have come."""
    rounds = [random.permutation(indices) for _ in range(-(-count // len(indices)))]
    return np.concatenate(rounds)[:count] if rounds else indices[:0]


def _spread(first: Indices, second: Indices, random: np.random.Generator) -> Indices:
    """Merge two sequences: the k-th of n items is put at a random place between k / n and (k + 1) / n of the whole."""
    places = [(np.arange(len(items)) + random.random(len(items))) / len(items) for items in (first, second)]
    return np.concatenate([first, second])[np.concatenate(places).argsort(kind="stable")]
