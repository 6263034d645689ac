"""The figure without a network: by hand, by brute force, and in the order of planted images."""

from __future__ import annotations

from itertools import combinations, product

import numpy as np
import pytest
import torch
from PIL import Image, ImageFilter
from sklearn.datasets import load_digits

from krl_runtime.errors import UsageError
from krl_train.metrics.energy import ImageSet, diversity, energy_images

CPU = torch.device("cpu")


def images(*levels: list[float]) -> torch.Tensor:
    """Return flat images of 4 x 4 pixels, which have no pyramid."""
    return torch.tensor(levels, dtype=torch.uint8)[:, :, None, None].expand(-1, -1, 4, 4).clone()


def test_the_energy_of_flat_images_by_hand() -> None:
    # Distances in levels; their unit does not matter. Across: 100, 200, 50, 150; within 50 and 50 and 100 and 100.
    real = ImageSet(images([0], [50], [0], [50]), CPU)
    fake = images([100], [200])
    within = (50 * 4 + 0 * 2) / 6  # of the six pairs of four images
    across = (100 + 200 + 50 + 150) / 4
    assert real.energy(fake) == pytest.approx(1 - (within + 100) / (2 * across), abs=1e-6)
    assert ImageSet(images([7], [7], [7], [7]), CPU).energy(images([7], [7])) == 0


def brute(real: list[np.ndarray], fake: list[np.ndarray]) -> float:
    within = [np.mean([np.linalg.norm(x - y) for x, y in combinations(each, 2)]) for each in (real, fake)]
    return float(1 - sum(within) / (2 * np.mean([np.linalg.norm(x - y) for x, y in product(real, fake)])))


def pyramid(image: np.ndarray) -> list[np.ndarray]:
    """Return the two levels of an image of 8 x 8 pixels, with Pillow's own means and bilinear enlargement."""
    whole = Image.fromarray(image.astype(np.float32), "F")
    coarse = whole.resize((4, 4), Image.Resampling.BOX)
    return [image - np.asarray(coarse.resize((8, 8), Image.Resampling.BILINEAR)), np.asarray(coarse)]


def test_the_energy_by_brute_force_on_pyramids_of_pillow() -> None:
    random = np.random.default_rng(0)
    real, fake = random.integers(0, 256, (9, 8, 8), np.uint8), random.integers(0, 90, (7, 8, 8), np.uint8)
    levels = [[pyramid(image.astype(np.float64)) for image in each] for each in (real, fake)]
    expected = np.mean([brute([x[i] for x in levels[0]], [y[i] for y in levels[1]]) for i in range(2)])
    mine = ImageSet(torch.from_numpy(real)[:, None], CPU).energy(torch.from_numpy(fake)[:, None])
    assert mine == pytest.approx(expected, rel=1e-4)


def planted(seed: int) -> dict[str, np.ndarray]:
    """Return sets of digits of 16 x 16 pixels, from good to worthless, made by Pillow and NumPy."""
    random = np.random.default_rng(seed)
    digits = np.round(load_digits().images[random.permutation(1797)] * (255 / 16)).astype(np.uint8)
    large = [Image.fromarray(digit).resize((16, 16), Image.Resampling.BICUBIC) for digit in digits[:800]]
    reference, rest = large[:400], large[400:]
    whole = np.stack([np.asarray(image) for image in rest])
    return {
        "reference": np.stack([np.asarray(image) for image in reference]),
        "real": whole,
        "blurred": np.stack([np.asarray(image.filter(ImageFilter.GaussianBlur(0.7))) for image in rest]),
        "noise": random.integers(0, 256, whole.shape, np.uint8),
        "collapsed": np.repeat(whole[seed : seed + 1], len(whole), 0),
    }


@pytest.mark.parametrize("seed", [0, 1, 2])
@pytest.mark.parametrize("channels", [1, 3])
def test_planted_images_are_put_in_order(seed: int, channels: int) -> None:
    sets = {name: torch.from_numpy(each)[:, None].repeat(1, channels, 1, 1) for name, each in planted(seed).items()}
    real = ImageSet(sets.pop("reference"), CPU)
    energies = {name: real.energy(each) for name, each in sets.items()}
    assert list(energies) == sorted(energies, key=lambda name: energies[name])
    assert energies["real"] <= real.floor < energies["blurred"]
    assert energies["blurred"] < 0.5 * energies["noise"]
    assert energies["noise"] < 0.8 * energies["collapsed"]


def test_more_noise_is_worse() -> None:
    sets, random = planted(0), np.random.default_rng(3)
    real = ImageSet(torch.from_numpy(sets["reference"])[:, None], CPU)
    noisy = [np.clip(sets["real"] + random.normal(0, level, sets["real"].shape), 0, 255) for level in (0, 20, 40, 80)]
    found = [real.energy(torch.from_numpy(each.astype(np.uint8))[:, None]) for each in noisy]
    assert found == sorted(found)
    assert found[2] > real.floor


def test_diversity_is_the_distance_of_pairs_as_a_share() -> None:
    real = torch.from_numpy(planted(0)["real"])[:, None]
    assert diversity(real, real.roll(1, 0), real) == pytest.approx(1, abs=0.1)
    assert diversity(real, real, real) == 0
    assert diversity(real // 4, real.roll(1, 0) // 4, real) == pytest.approx(0.25, abs=0.03)
    assert diversity(real, real, torch.zeros_like(real)) is None


def test_sets_that_do_not_compare_are_refused_and_large_images_are_fewer() -> None:
    with pytest.raises(UsageError, match="3 real images; a figure of generated images needs 4 or more"):
        ImageSet(images([1], [2], [3]), CPU)
    real = ImageSet(images([1], [2], [3], [4]), CPU)
    for fake in (images([1]), images([1, 2], [3, 4])):
        with pytest.raises(UsageError, match="accepted are two or more images of the same shape"):
            real.energy(fake)
    assert energy_images(2000, (1, 28, 28)) == 2000
    assert energy_images(2000, (3, 128, 128)) == 341
