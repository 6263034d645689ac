"""Images from a generator: the same latents for the same seed, as a device would give them, and in grids."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from krl_runtime.images.preprocessing import Preprocessing

__all__ = ["ImageGenerator", "generate_pixels", "image_grid", "sample_grid", "sample_latents", "spread_tokens"]

_BATCH = 250  # images in a run of the generator: bounded memory
_COLUMNS = 8  # of a grid of samples


class ImageGenerator(Protocol):
    """A generator of images: of a run, or of a bundle."""

    latent_size: int
    condition: Mapping[str, Any] | None
    preprocessing: Preprocessing

    @property
    def device(self) -> torch.device:
        """Where latents and conditions are expected."""

    def __call__(self, latent: Tensor, condition: Tensor | None = None, /) -> Tensor:
        """Map latents ``[N, Z]`` and tokens ``[N, L]`` to images ``[N, C, H, W]`` in 0 to 255, not clipped."""
        ...


def sample_latents(count: int, size: int, seed: int) -> Tensor:
    """Return ``[count, size]`` of float32 from the standard normal distribution, the same for the same seed."""
    return torch.from_numpy(np.random.default_rng(seed).standard_normal((count, size), dtype=np.float32))


@torch.no_grad()
def generate_pixels(generator: ImageGenerator, latents: Tensor, tokens: Tensor | None = None) -> Tensor:
    """Generate images as a device would give them.

    Args:
        generator: In eval mode.
        latents: ``[N, Z]``, on the CPU.
        tokens: ``[N, L]`` of int64, for a generator with a condition.

    Returns:
        ``[N, C, H, W]`` of uint8, on the CPU.
    """
    device = generator.device
    parts = []
    for start in range(0, len(latents), _BATCH):
        condition = None if tokens is None else tokens[start : start + _BATCH].to(device)
        images = generator(latents[start : start + _BATCH].to(device), condition)
        parts.append(images.clamp(0, 255).round().to(torch.uint8).cpu())
    return torch.cat(parts)


def sample_grid(generator: ImageGenerator, tokens: Tensor | None, rows: int = _COLUMNS) -> npt.NDArray[np.uint8]:
    """Return a grid of eight images a row, ``[rows H, 8 W, C]``, of the same latents each time.

    Args:
        generator: In eval mode.
        tokens: Conditions of the training images ``[M, L]``; each row has another one. ``None`` without.
        rows: Number of rows.
    """
    latents = sample_latents(rows * _COLUMNS, generator.latent_size, seed=0)
    return image_grid(generate_pixels(generator, latents, None if tokens is None else spread_tokens(tokens, rows)))


def image_grid(pixels: Tensor, columns: int = _COLUMNS) -> npt.NDArray[np.uint8]:
    """Lay images ``[N, C, H, W]`` of uint8 out in rows ``[rows H, columns W, C]``; a row that is not full is left."""
    rows = len(pixels) // columns
    channels, height, width = pixels.shape[1:]
    cells = pixels[: rows * columns].reshape(rows, columns, channels, height, width)
    return cells.permute(0, 3, 1, 4, 2).reshape(rows * height, columns * width, channels).numpy()


def spread_tokens(tokens: Tensor, rows: int) -> Tensor:
    """Choose conditions for a grid from ``[M, L]``: eight times each of different ones, ``[8 rows, L]``."""
    different = torch.unique(tokens, dim=0)
    chosen = different[torch.linspace(0, len(different) - 1, rows).round().long()]
    repeated: Tensor = chosen.repeat_interleave(_COLUMNS, 0)
    return repeated
