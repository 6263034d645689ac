"""Restorers: images, their degraded versions, and PSNR in dB."""

from __future__ import annotations

from collections.abc import Iterator
from functools import cached_property
from typing import Any

import numpy as np
import numpy.typing as npt

from krl_deploy.calibration.lint import check_images
from krl_deploy.data.folders import choose_disjoint, choose_two
from krl_runtime.bundle import Bundle
from krl_runtime.errors import DataError, ImageError, KrlError, UsageError
from krl_runtime.images.folders import ImageFile, identity, report_bad
from krl_runtime.images.labeled import open_data
from krl_runtime.images.luma import psnr
from krl_runtime.images.pairs import DEGRADATIONS, LARGEST_PSNR, inputs_of, read_planes, scored
from krl_runtime.images.sides import Sides, padded
from krl_runtime.progress import progress

from .images import ImageTask
from .task import Batch, CalibrationData, EvaluationOptions

__all__ = ["Restoration", "patch_of"]

_LARGEST = 1024  # pixels a side of the evaluated part of an image: bounds the memory of activations
_MOST_PLANNED = 64  # whole images to plan on: a PSNR has thousands of pixels, and each attempt runs over all of them
_PATCHES = 8  # parts of one image at most, so that a few large images do not make up the calibration


class Restoration(ImageTask):
    """High-resolution images of a folder: patches to calibrate on, whole ones to measure on.

    The protocols are those of the papers: rounded luma without a border of ``scale`` pixels for super-resolution, and
    all channels for everything else.
    """

    def __init__(self, bundle: Bundle, options: EvaluationOptions) -> None:
        self.bundle = bundle
        settings = bundle.manifest.settings
        self.scale: int = settings["scale"]
        self.color: str = settings["color"]
        self.sides = Sides.of(settings)
        self.degradation: Any = settings.get("degradation") or {}
        known = self.degradation.get("kind") in DEGRADATIONS
        super().__init__(options, true=known and options.data is not None)
        self.train: list[ImageFile] = []
        self.planned: list[ImageFile] = []
        self.val: list[ImageFile] = []
        self.name = "golden inputs"
        if options.data is not None:
            folder = open_data(options.data, on_bad=options.on_bad_image)
            if options.planning:
                planning = min(options.planning, _MOST_PLANNED)
                self.train, self.planned, self.val = choose_disjoint(
                    folder, options.limit, planning, options.val_limit, val_fraction=options.val_fraction
                )
            else:
                self.train, self.val, same = choose_two(
                    folder, options.limit, options.val_limit, val_fraction=options.val_fraction
                )
                self.doubts = (same,) if same else ()
            self.name = folder.root.name

    @cached_property
    def calibration_data(self) -> CalibrationData:
        """Random patches of the images, as large as the golden inputs; see ``Task.calibration_data``."""
        if self.options.data is None:
            raise UsageError("a restorer is calibrated on images; give --data FOLDER")
        spec, limit = self.bundle.manifest.preprocessing, self.options.limit
        rng = np.random.default_rng(0)
        each = min(_PATCHES, -(-limit // len(self.train)))
        patches = [
            patch_of(given, spec.height, spec.width, rng)
            for given, _ in self._pairs(self.train, "decoding images")
            for _ in range(each)
        ]
        pixels = np.stack(patches[:limit])
        check_images(pixels)
        return CalibrationData(pixels, identity(pixels, []), "patches of images")

    def batches(self) -> Iterator[Batch]:
        """Yield one image at a time, and its truth ``[C, H, W]`` if it is known; see ``Task.batches``."""
        if not self.val:
            yield self.bundle.golden()[self.bundle.manifest.inputs[0].name], None
            return
        yield from self._whole(self.val, "measuring PSNR")

    def planning_batches(self) -> Iterator[Batch]:
        """Yield one image of the training split at a time; see ``Task.planning_batches``."""
        if not self.planned:
            raise UsageError("--mixed-precision plans on images of its own; give --data FOLDER")
        yield from self._whole(self.planned, "decoding images to plan on")

    def _whole(self, images: list[ImageFile], description: str) -> Iterator[Batch]:
        """Yield images as large as the graph takes them, each with its truth if it is known."""
        sides = [side if isinstance(side, int) else None for side in self.bundle.manifest.inputs[0].shape[2:]]
        for given, truth in self._pairs(images, description):
            height, width = (min(most or _LARGEST, side) for most, side in zip(sides, given.shape[1:], strict=True))
            part = truth if truth is None else truth[:, : height * self.scale, : width * self.scale]
            # An image that the graph does not take is padded, as on the device.
            fitting = [side or self.sides.fit(size) for side, size in zip(sides, (height, width), strict=True)]
            filled = padded(given[:, :height, :width], *fitting)
            yield np.ascontiguousarray(filled[None]), part

    def _pairs(
        self, images: list[ImageFile], description: str
    ) -> Iterator[tuple[npt.NDArray[np.uint8], npt.NDArray[np.uint8] | None]]:
        """Yield the inputs of the network ``[C, h, w]``, each with its truth."""
        bad: list[KrlError] = []
        count = 0
        for number, image in enumerate(progress(images, description)):
            try:
                planes = read_planes(image.path, self.color)
                pair = inputs_of(planes, self.scale, self.degradation, number) if self.true else (planes, None)
            except (ImageError, UsageError) as error:
                bad.append(ImageError(f"{image.path}: {error}"))
                report_bad(bad[-1:], self.options.on_bad_image)
                continue
            count += 1
            yield pair
        if not count:
            raise DataError("no image is left: none of the files can be decoded")

    def quality(self, output: npt.NDArray[np.float32], truth: npt.NDArray[Any]) -> float:
        """Return the PSNR in dB of ``[C, H, W]``, in color or of the luma, without the border and the padding."""
        made, wanted = scored(output[:, : truth.shape[1], : truth.shape[2]], truth, self.scale)
        return min(psnr(made, wanted), LARGEST_PSNR)


def patch_of(planes: npt.NDArray[np.uint8], height: int, width: int, rng: np.random.Generator) -> npt.NDArray[np.uint8]:
    """Return a random part of an image. An image that is too small is mirrored at its edges."""
    missing = [max(0, side - given) for side, given in zip((height, width), planes.shape[1:], strict=True)]
    if any(missing):
        planes = np.pad(planes, ((0, 0), (0, missing[0]), (0, missing[1])), mode="symmetric")
    top = int(rng.integers(planes.shape[1] - height + 1))
    left = int(rng.integers(planes.shape[2] - width + 1))
    return planes[:, top : top + height, left : left + width]
