"""Random views of images.

A view depends on the seed, the image's index and the view's number alone: not on the batch it is in, nor on
the process that computes it. So a run that is resumed or spread over several processes sees the same views, and
a teacher's answers to them can be stored.
"""

from __future__ import annotations

import logging
import math
from dataclasses import astuple, dataclass, replace
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
import torch.nn.functional as F
from torch import Tensor

from krl_runtime.errors import UsageError
from krl_runtime.images.preprocessing import Preprocessing
from krl_train.config import AugmentConfig

from .colors import AutoAugment, ColorJitter
from .draws import Draws
from .mixing import cut_in, mix_in
from .rectangles import Erasing, ResizedCrop

__all__ = ["Augmentation"]

_log = logging.getLogger("krl")


@dataclass(frozen=True)
class Augmentation:
    """Random views: cut out, mirrored, turned, recolored, erased, in this order; then mixed.

    Attributes:
        preprocessing: Size of the views.
        margin: Extra pixels on every side of the images that are given; shifts and resized crops use them.
        padding: Black pixels put around the image before it is shifted.
        flip: Whether half of the views are mirrored.
        rotate: Largest angle in degrees.
        zoom: Largest magnification.
        mixup: Parameter of the Beta distribution of mixup's share; 0 is off.
        seed: Seed of all of it.
        enabled: Whether views differ from the center crop at all.
        cutmix: Parameter of the Beta distribution of CutMix's share; 0 is off.
        crop: Cuts a rectangle out and resizes it, in place of the shift.
        auto: Random operations on geometry and colors.
        jitter: Random colors.
        erasing: Erases a rectangle.
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
    cutmix: float = 0.0
    crop: ResizedCrop | None = None
    auto: AutoAugment | None = None
    jitter: ColorJitter | None = None
    erasing: Erasing | None = None

    @classmethod
    def resolve(cls, config: AugmentConfig, preprocessing: Preprocessing, *, flip: bool, seed: int) -> Augmentation:
        """Fill in what the configuration leaves open.

        Args:
            config: What the user asked for.
            preprocessing: Size of the views.
            flip: Whether mirrored images of this data keep their class.
            seed: Seed of the run.

        Raises:
            UsageError: The padding is as large as the image, or gray images have saturation or hue to change.
        """
        height, width = preprocessing.height, preprocessing.width
        side = min(height, width)
        margin = int((side / preprocessing.crop_fraction - side) / 2) if preprocessing.resize == "crop" else 0
        default = max(1, side // 8) if side <= 64 and not config.random_resized_crop else 0
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
            cutmix=config.cutmix,
            crop=ResizedCrop(config.crop_scale, config.crop_ratio) if config.random_resized_crop else None,
            auto=_auto_augment(config),
            jitter=_color_jitter(config, preprocessing),
            erasing=_erasing(config, preprocessing),
        )

    def describe(self) -> dict[str, Any]:
        """Return how views are made, by the options' names; nothing without augmentation."""
        if not self.enabled:
            return {}
        shift = self.padding + self.margin
        described: dict[str, Any] = {
            "flip": self.flip,
            "shift": shift,
            "rotate": self.rotate,
            "zoom": self.zoom,
            "mixup": self.mixup,
        }
        if self.crop is not None:
            described |= {"shift": 0, "random_resized_crop": True}
            described |= {"crop_scale": list(self.crop.scale), "crop_ratio": list(self.crop.ratio)}
        if self.auto is not None:
            described["auto_augment"] = self.auto.policy
            if self.auto.magnitude is not None:
                described |= {"ra_ops": self.auto.ops, "ra_magnitude": self.auto.magnitude}
        if self.jitter is not None:
            described["color_jitter"] = list(astuple(self.jitter))
        if self.erasing is not None:
            described |= {"erase": self.erasing.probability}
            described |= {"erase_scale": list(self.erasing.scale), "erase_ratio": list(self.erasing.ratio)}
        return described | ({"cutmix": self.cutmix} if self.cutmix else {})

    @property
    def mixes(self) -> bool:
        """Whether views of a batch are mixed, and so have two labels."""
        return self.mixup > 0 or self.cutmix > 0

    @property
    def by_image(self) -> bool:
        """Whether views are computed image by image, for which the CPU's threads are best and a GPU is not."""
        return self.enabled and (self.crop is not None or self.auto is not None or self.jitter is not None)

    def on(self, device: torch.device, pixels: Tensor, indices: npt.NDArray[np.int64], view: int) -> Tensor:
        """Return the views on a device, computed where that is quickest: everybody who calls this sees the same.

        Args:
            device: Where they are needed.
            pixels: As for a call, on the CPU.
            indices: As for a call.
            view: As for a call.
        """
        if self.by_image:
            return self(pixels, indices, view).to(device)
        return self(pixels.to(device), indices, view)

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
        draws = Draws(self.seed, indices, view)
        mirrored = draws.uniform(2) < 0.5 if self.flip else np.zeros(len(indices), bool)
        size = (self.preprocessing.height, self.preprocessing.width)
        views = self._shift(pixels, draws, mirrored) if self.crop is None else self.crop(pixels, draws, mirrored, size)
        if self.rotate != 0 or self.zoom != 1:
            views = self._turn(views, draws.uniform(3), draws.uniform(4))
            if self.auto is not None or self.jitter is not None:  # these take levels of 8 bits
                views = views.round().to(torch.uint8)
        for change in (self.auto, self.jitter, self.erasing):
            views = change(views, draws) if change is not None else views
        return views

    def mix(self, views: Tensor, epoch: int, step: int) -> tuple[Tensor, float]:
        """Mix each view with its neighbor in the batch, by mixup or CutMix; of both, each batch has one at random.

        One share for the whole batch, and for CutMix one rectangle; they depend on the seed, the epoch and the step
        alone, so that several processes draw the same.

        Args:
            views: ``[N, C, height, width]``.
            epoch: From 0.
            step: In the epoch, from 0.

        Returns:
            The mixed views in 0 to 255, after mixup float32; their partners are ``roll(1)`` of the batch. And the share
            of the view itself: 0.5 to 1 after mixup, that of its pixels, 0 to 1, after CutMix.
        """
        random = np.random.default_rng((self.seed, epoch, step))
        if self.cutmix and (not self.mixup or random.random() < 0.5):
            return cut_in(views, self.cutmix, random)
        return mix_in(views, self.mixup, random)

    def center(self, pixels: Tensor) -> Tensor:
        """Return the views that evaluation uses: the center crop, or the images themselves without a margin."""
        if self.margin == 0:
            return pixels
        return pixels[:, :, self.margin : -self.margin, self.margin : -self.margin]

    def _shift(self, pixels: Tensor, draws: Draws, mirrored: npt.NDArray[np.bool_]) -> Tensor:
        padded = F.pad(pixels, (self.padding,) * 4) if self.padding else pixels
        tops = draws.below(0, padded.shape[2] - self.preprocessing.height + 1)
        lefts = draws.below(1, padded.shape[3] - self.preprocessing.width + 1)
        cut = self._copied if pixels.device.type == "cpu" else self._gathered
        return cut(padded.permute(0, 2, 3, 1), tops, lefts, mirrored).permute(0, 3, 1, 2)

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


def _auto_augment(config: AugmentConfig) -> AutoAugment | None:
    if config.auto_augment == "none":
        return None
    if config.auto_augment == "trivialaugment":
        return AutoAugment("trivialaugment", 1, None)
    return AutoAugment("randaugment", config.ra_ops, config.ra_magnitude)


def _color_jitter(config: AugmentConfig, preprocessing: Preprocessing) -> ColorJitter | None:
    """Return the jitter; one number is for whatever the images have."""
    given, gray = config.color_jitter, preprocessing.channels == 1
    if given is None:
        return None
    first, *others = given
    jitter = ColorJitter(*given, *[0.0] * (4 - len(given))) if others else ColorJitter(first, first, first, 0.0)
    if gray and others and (jitter.saturation or jitter.hue):
        raise UsageError(
            f"--color-jitter {' '.join(map(str, given))} changes saturation or hue, which gray images do not have; "
            "give one number, or 0 for both"
        )
    return replace(jitter, saturation=0.0) if gray else jitter


def _erasing(config: AugmentConfig, preprocessing: Preprocessing) -> Erasing | None:
    if config.erase == 0:
        return None
    fill = tuple(255 * value for value in preprocessing.mean)
    return Erasing(config.erase, config.erase_scale, config.erase_ratio, fill)
