"""Structural similarity, compared with torchmetrics."""

from __future__ import annotations

import numpy as np
import pytest

from krl_runtime.errors import UsageError
from krl_runtime.images.ssim import ssim


@pytest.mark.parametrize("shape", [(11, 11), (12, 40), (64, 33)])
def test_it_is_that_of_torchmetrics(shape: tuple[int, int]) -> None:
    torch = pytest.importorskip("torch")
    functional = pytest.importorskip("torchmetrics.functional.image")
    rng = np.random.default_rng(0)
    first = rng.integers(0, 256, shape, dtype=np.uint8)
    second = np.clip(first + rng.normal(0, 20, shape), 0, 255).astype(np.uint8)
    planes = [torch.from_numpy(plane.astype(np.float64))[None, None] for plane in (first, second)]
    _, everywhere = functional.structural_similarity_index_measure(
        *planes, gaussian_kernel=True, sigma=1.5, data_range=255.0, return_full_image=True
    )
    # torchmetrics mirrors the images at their edges; the window fits from the sixth pixel on.
    expected = float(everywhere[..., 5 : shape[0] - 5, 5 : shape[1] - 5].mean())
    assert ssim(first, second) == pytest.approx(expected, abs=1e-9)


def test_planes_that_are_too_small_or_unlike_are_refused() -> None:
    with pytest.raises(UsageError, match="at least 11 pixels a side"):
        ssim(np.zeros((10, 20), np.uint8), np.zeros((10, 20), np.uint8))
    with pytest.raises(UsageError, match="both need one shape"):
        ssim(np.zeros((20, 20), np.uint8), np.zeros((20, 21), np.uint8))
