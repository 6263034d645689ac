"""Small images side by side in one large one, compared with each restored alone."""

from __future__ import annotations

import numpy as np
import pytest
from scipy.signal import convolve2d

from krl_compress.teachers.mosaic import Mosaic, radius_of

RNG = np.random.default_rng(1)
KERNEL = RNG.random((5, 5)) / 12.5  # an output pixel depends on two pixels to each side


def restore(image: np.ndarray) -> np.ndarray:
    """Smooth an image, and enlarge it twice by repetition."""
    smooth = np.stack([convolve2d(plane, KERNEL, mode="same") for plane in image.astype(np.float64)])
    return smooth.repeat(2, 1).repeat(2, 2).astype(np.float32)


def alone(image: np.ndarray) -> np.ndarray:
    """Smooth an image whose outermost pixels go on outside of it."""
    padded = np.pad(image, ((0, 0), (2, 2), (2, 2)), mode="edge").astype(np.float64)
    smooth = np.stack([convolve2d(plane, KERNEL, mode="valid") for plane in padded])
    return smooth.repeat(2, 1).repeat(2, 2).astype(np.float32)


def test_the_radius_is_that_of_the_kernel() -> None:
    assert radius_of(restore, 1, (20, 24), 2) == 2
    assert radius_of(restore, 3, (21, 9), 2) == 2


def test_a_network_that_is_not_local_depends_on_everything() -> None:
    whole = lambda image: (image.astype(np.float32) + image.astype(np.float64).mean() * 100).astype(np.float32)  # noqa: E731
    assert radius_of(whole, 1, (16, 20), 1) == 10
    assert Mosaic(whole, (16, 20), 1, 10).fits(4, 4) == 0


@pytest.mark.parametrize("count", [1, 5, 7])
def test_images_side_by_side_are_restored_as_alone(count: int) -> None:
    images = RNG.integers(0, 256, (count, 3, 6, 4), dtype=np.uint8)
    mosaic = Mosaic(restore, (23, 20), 2, 2)
    assert mosaic.fits(6, 4) == 2 * 2
    np.testing.assert_allclose(mosaic(images), np.stack([alone(image) for image in images]), rtol=1e-5)
