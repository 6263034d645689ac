"""Random views of images, whole batches at a time.

A view depends on the seed, the image's index and the view's number alone: not on the batch it is in, nor on
the process that computes it. So a run that is resumed or spread over several processes sees the same views, and
a teacher's answers to them can be stored.
"""

from __future__ import annotations

import logging
import math
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
import torch.nn.functional as F
from torch import Tensor

from krl_runtime.errors import UsageError
from krl_runtime.images.preprocessing import Preprocessing
from krl_train.config import AugmentConfig

__all__ = ["Augmentation"]

_log = logging.getLogger("krl")


def _uniform(seed: int, indices: npt.NDArray[np.int64], view: int, draw: int) -> npt.NDArray[np.float64]:
    """Return numbers in [0, 1), one for each index, by the splitmix64 hash of all arguments."""
    with np.errstate(over="ignore"):
        x = indices.astype(np.uint64)
        for value in (seed, view, draw):
            x = x + np.uint64((value * 0x9E3779B97F4A7C15 + 0x9E3779B97F4A7C15) % 2**64)
            x = (x ^ (x >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
            x = (x ^ (x >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
            x = x ^ (x >> np.uint64(31))
    return (x >> np.uint64(11)).astype(np.float64) * 2.0**-53


@dataclass(frozen=True)
class Augmentation:
    """Random shift, mirroring, rotation and zoom.

    Attributes:
        preprocessing: Size of the views.
        margin: Extra pixels on every side of the images that are given; shifts use them.
        padding: Black pixels put around the image before it is shifted.
        flip: Whether half of the views are mirrored.
        rotate: Largest angle in degrees.
        zoom: Largest magnification.
        mixup: Parameter of the Beta distribution of mixup's share; 0 is off.
        seed: Seed of all of it.
        enabled: Whether views differ from the center crop at all.
    """

    preprocessing: Preprocessing
    margin: int
    padding: int
    flip: bool
    rotate: float
    zoom: float
    mixup: float
    seed: int
    enabled: bool = True

    @classmethod
    def resolve(cls, config: AugmentConfig, preprocessing: Preprocessing, *, flip: bool, seed: int) -> Augmentation:
        """Fill in what the configuration leaves open.

        Args:
            config: What the user asked for.
            preprocessing: Size of the views.
            flip: Whether mirrored images of this data keep their class.
            seed: Seed of the run.

        Raises:
            UsageError: The padding is as large as the image.
        """
        height, width = preprocessing.height, preprocessing.width
        side = min(height, width)
        margin = int((side / preprocessing.crop_fraction - side) / 2) if preprocessing.resize == "crop" else 0
        default = max(1, side // 8) if side <= 64 else 0
        padding = default if config.crop_padding is None else config.crop_padding
        if padding >= side:
            raise UsageError(f"--crop-padding is {padding}; accepted: below the side of the input, {side}")
        if config.augment and config.flip == "auto" and not flip:
            _log.info("images are not mirrored, as the names of the classes are of digits, letters or sides (--flip)")
        return cls(
            preprocessing=preprocessing,
            margin=margin if config.augment else 0,
            padding=padding,
            flip=flip if config.flip == "auto" else config.flip == "horizontal",
            rotate=config.rotate,
            zoom=config.zoom,
            mixup=config.mixup if config.augment else 0.0,
            seed=seed,
            enabled=config.augment,
        )

    def describe(self) -> dict[str, Any]:
        """Return how views are made, by the options' names; nothing without augmentation."""
        if not self.enabled:
            return {}
        shift = self.padding + self.margin
        return {"flip": self.flip, "shift": shift, "rotate": self.rotate, "zoom": self.zoom, "mixup": self.mixup}

    def __call__(self, pixels: Tensor, indices: npt.NDArray[np.int64], view: int) -> Tensor:
        """Return the views.

        Args:
            pixels: ``[N, C, height + 2 * margin, width + 2 * margin]`` of uint8.
            indices: The images' indices in the data set, ``[N]``.
            view: Number of the view, for instance the epoch.

        Returns:
            ``[N, C, height, width]``: uint8, or float32 in 0 to 255 after rotation or zoom.
        """
        if not self.enabled:
            return self.center(pixels)
        height, width = self.preprocessing.height, self.preprocessing.width
        draws = [_uniform(self.seed, indices, view, draw) for draw in range(5)]
        padded = F.pad(pixels, (self.padding,) * 4) if self.padding else pixels
        tops = (draws[0] * (padded.shape[2] - height + 1)).astype(np.int64)
        lefts = (draws[1] * (padded.shape[3] - width + 1)).astype(np.int64)
        mirrored = draws[2] < 0.5 if self.flip else np.zeros(len(indices), bool)
        cut = self._copied if pixels.device.type == "cpu" else self._gathered
        views = cut(padded.permute(0, 2, 3, 1), tops, lefts, mirrored).permute(0, 3, 1, 2)
        if self.rotate == 0 and self.zoom == 1:
            return views
        return self._turn(views, draws[3], draws[4])

    def mix(self, views: Tensor, epoch: int, step: int) -> tuple[Tensor, float]:
        """Mix each view with its neighbor in the batch (mixup, https://arxiv.org/abs/1710.09412).

        One share for the whole batch, the larger part from the view itself; both depend on the seed, the epoch and
        the step alone, so that several processes draw the same.

        Args:
            views: ``[N, C, height, width]``.
            epoch: From 0.
            step: In the epoch, from 0.

        Returns:
            The mixed views, float32 in 0 to 255; their partners are ``roll(1)`` of the batch. And the share.
        """
        share = float(np.random.default_rng((self.seed, epoch, step)).beta(self.mixup, self.mixup))
        share = max(share, 1 - share)
        mixed = views.float()
        return share * mixed + (1 - share) * mixed.roll(1, 0), share

    def center(self, pixels: Tensor) -> Tensor:
        """Return the views that evaluation uses: the center crop, or the images themselves without a margin."""
        if self.margin == 0:
            return pixels
        return pixels[:, :, self.margin : -self.margin, self.margin : -self.margin]

    def _copied(
        self,
        images: Tensor,
        tops: npt.NDArray[np.int64],
        lefts: npt.NDArray[np.int64],
        mirrored: npt.NDArray[np.bool_],
    ) -> Tensor:
        """Return windows ``[N, height, width, C]`` of images ``[N, H, W, C]``, one copy for each: fast on a CPU."""
        height, width = self.preprocessing.height, self.preprocessing.width
        views = images.new_empty(len(images), height, width, images.shape[3])
        places = zip(images, views, tops.tolist(), lefts.tolist(), mirrored.tolist(), strict=True)
        for image, view, top, left, mirror in places:
            window = image[top : top + height, left : left + width]
            view.copy_(window.flip(1) if mirror else window)
        return views

    def _gathered(
        self,
        images: Tensor,
        tops: npt.NDArray[np.int64],
        lefts: npt.NDArray[np.int64],
        mirrored: npt.NDArray[np.bool_],
    ) -> Tensor:
        """Return the same windows, all at once: fast on a GPU, where each copy would be a launch of its own."""
        rows = torch.from_numpy(tops)[:, None] + torch.arange(self.preprocessing.height)
        columns = torch.from_numpy(lefts)[:, None] + torch.arange(self.preprocessing.width)
        columns = torch.where(torch.from_numpy(mirrored)[:, None], columns.flip(1), columns)
        rows, columns = rows.to(images.device), columns.to(images.device)
        batch = torch.arange(len(images), device=images.device)[:, None, None]
        return images[batch, rows[:, :, None], columns[:, None, :]]

    def _turn(self, views: Tensor, angle_draw: npt.NDArray[np.float64], zoom_draw: npt.NDArray[np.float64]) -> Tensor:
        angle = (2 * angle_draw - 1) * math.radians(self.rotate)
        scale = 1 / (1 + zoom_draw * (self.zoom - 1))
        ratio = views.shape[2] / views.shape[3]
        cosine, sine, zero = np.cos(angle) * scale, np.sin(angle) * scale, np.zeros_like(angle)
        # Sampling positions are in units of half the side, so that a turn on an oblong image needs its ratio.
        matrices = np.stack([np.stack([cosine, -sine * ratio, zero], 1), np.stack([sine / ratio, cosine, zero], 1)], 1)
        theta = torch.from_numpy(matrices).to(views.device, torch.float32)
        grid = F.affine_grid(theta, list(views.shape), align_corners=False)
        return F.grid_sample(views.float(), grid, mode="bilinear", padding_mode="reflection", align_corners=False)
