"""How far generated images are from real ones: a figure that needs no network and no download.

The energy distance of two sets is 2 E|x - y| - E|x - x'| - E|y - y'|; it is 0 only for equal distributions. Divided by
2 E|x - y| it is the energy coefficient, 0 to 1 (Székely and Rizzo 2013, https://doi.org/10.1016/j.jspi.2013.03.018).
It is taken at each level of a Laplacian pyramid, as the sliced Wasserstein distance of Progressive GAN is
(https://arxiv.org/abs/1710.10196), so that fine detail counts as much as the large shapes; the mean is the figure.

Whole images are compared, not patches or pooled features: these take many copies of one image for a good set.
"""

from __future__ import annotations

import math
from collections.abc import Iterator

import torch
import torch.nn.functional as F
from torch import Tensor

from krl_runtime.errors import UsageError

__all__ = ["ImageSet", "diversity", "energy_images"]

_VALUES = 2**24  # in the images of a side: 64 MiB as float32, and seconds on one core; 2,000 images of 64 x 64 x 2
_SMALLEST = 4  # pixels: the shorter side of the coarsest level is at least this, Denton et al. 2015 stop at 8
_LEAST = 4  # real images: two halves of two, of which each has a distance within
_SPLITS = 20  # halvings of the real images, of which the largest figure is taken: about the 95th percentile
_SEED = 2  # of halvings and pairs; the latents that are measured have another


def energy_images(count: int, shape: tuple[int, ...]) -> int:
    """Return how many of ``count`` images of ``shape``, ``[C, H, W]``, are compared: as many as the memory bounds."""
    return min(count, max(_LEAST, _VALUES // math.prod(shape)))


class ImageSet:
    """Real images that generated ones are compared with.

    Args:
        pixels: ``[N, C, H, W]`` of uint8, 4 images or more.
        device: Where to compute.

    Attributes:
        pixels: As given, on the device.
        floor: The largest energy coefficient of two random halves of the images, of 20: a set of generated images that
            is no farther away is as good as real by this figure.

    Raises:
        UsageError: There are fewer than 4 images.
    """

    def __init__(self, pixels: Tensor, device: torch.device) -> None:
        if len(pixels) < _LEAST:
            raise UsageError(f"{len(pixels)} real images; a figure of generated images needs {_LEAST} or more")
        self.pixels = pixels.to(device)
        self._within: list[Tensor] = []
        halves = _halves(len(pixels)).to(device)
        found = []
        for (level,) in _levels(self.pixels):
            distances = torch.cdist(level, level)
            self._within.append(_mean_within(distances))
            found.append(_between_halves(distances, halves))
        self.floor = max(0.0, float(torch.stack(found).mean(0).max()))

    @torch.no_grad()
    def energy(self, fake: Tensor) -> float:
        """Return the energy coefficient of generated images, 0 (as the real ones) to 1 (nothing in common).

        Args:
            fake: ``[M, C, H, W]`` of uint8, of the real images' shape, 2 images or more.

        Raises:
            UsageError: The images have another shape, or there is only one.
        """
        if len(fake) < 2 or fake.shape[1:] != self.pixels.shape[1:]:
            raise UsageError(
                f"generated images {list(fake.shape)} and real ones {list(self.pixels.shape)}: accepted are two or "
                "more images of the same shape"
            )
        found = []
        levels = _levels(self.pixels, fake.to(self.pixels.device))
        for within, (real, made) in zip(self._within, levels, strict=True):
            own = _mean_within(torch.cdist(made, made))
            found.append(_coefficient(within, own, torch.cdist(real, made).mean()))
        return max(0.0, float(torch.stack(found).mean()))  # the unbiased estimate may be a little below 0


def diversity(first: Tensor, second: Tensor, real: Tensor) -> float | None:
    """Return the mean distance of pairs of generated images, as a share of that of random pairs of real ones.

    About 1 for real images, 0 where all are the same; ``None`` where the real ones are.

    Args:
        first: ``[N, C, H, W]``.
        second: One image for each of ``first``, of another latent and the same condition.
        real: ``[M, C, H, W]``, 2 images or more.
    """
    order = torch.randperm(len(real), generator=torch.Generator().manual_seed(_SEED)).to(real.device)
    apart = _paired(real[order], real[order.roll(1)])
    return _paired(first, second) / apart if apart else None


def _paired(first: Tensor, second: Tensor) -> float:
    return float((first.float() - second.float()).flatten(1).norm(dim=1).mean())


def _levels(*sets: Tensor) -> Iterator[tuple[Tensor, ...]]:
    """Yield the levels of the Laplacian pyramids of sets of images, from the finest, each ``[N, D]`` of float32."""
    low = [pixels.float() / 255 - 0.5 for pixels in sets]
    while min(low[0].shape[2:]) >= 2 * _SMALLEST:
        # Partial windows at an odd side are means of what is there.
        coarse = [F.avg_pool2d(images, 2, ceil_mode=True) for images in low]
        yield tuple(
            (images - F.interpolate(smaller, size=images.shape[2:], mode="bilinear")).flatten(1)
            for images, smaller in zip(low, coarse, strict=True)
        )
        low = coarse
    yield tuple(images.flatten(1) for images in low)


def _mean_within(distances: Tensor) -> Tensor:
    """Return the mean distance of two different ones of a set from the distances of all."""
    count = len(distances)
    return (distances.sum() - distances.trace()) / (count * (count - 1))


def _coefficient(first: Tensor, second: Tensor, across: Tensor) -> Tensor:
    """Return 1 - (E|x - x'| + E|y - y'|) / (2 E|x - y|); 0 where all images are the same."""
    return torch.where(across > 0, 1 - (first + second) / (2 * across.clamp(min=1e-12)), 0.0)


def _halves(count: int) -> Tensor:
    """Return random halvings, ``[20, N]`` of bool."""
    chooser = torch.Generator().manual_seed(_SEED)
    orders = torch.stack([torch.randperm(count, generator=chooser) for _ in range(_SPLITS)])
    return orders < count // 2


def _between_halves(distances: Tensor, halves: Tensor) -> Tensor:
    """Return the coefficient of the two halves of each halving, ``[20]``."""
    sides = [halves.float(), (~halves).float()]
    sizes = [side.sum(1) for side in sides]
    totals = [side @ distances for side in sides]
    off = distances.diagonal()  # of a set's own: 0 but for rounding
    within = [
        ((total * side).sum(1) - side @ off) / (size * (size - 1))
        for total, side, size in zip(totals, sides, sizes, strict=True)
    ]
    across = (totals[0] * sides[1]).sum(1) / (sizes[0] * sizes[1])
    return _coefficient(within[0], within[1], across)
