"""A restorer's measurement: an image as it takes it, its degraded version, and the part that is scored."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Final

import numpy as np
import numpy.typing as npt

from .luma import corrupt, crop_border, degrade, luma, scored_planes, to_uint8
from .preprocessing import open_image

__all__ = ["DEGRADATIONS", "LARGEST_PSNR", "inputs_of", "read_planes", "scored"]

DEGRADATIONS: Final = ("bicubic", "noise", "jpeg")
"""Kinds of degradation that can be made of an image, so that the truth is known."""

LARGEST_PSNR: Final = 100.0
"""PSNR in dB that equal images count with: an infinite one would have no mean."""


def read_planes(source: Path, color: str) -> npt.NDArray[np.uint8]:
    """Return an image as a restorer takes it, uint8 ``[C, H, W]``.

    Args:
        source: The file.
        color: ``"rgb"``, ``"gray"``, or ``"y"``: luma of BT.601 in studio swing, rounded. The values of a gray image
            are not changed, as in the field's scripts.

    Raises:
        ImageError: It is not an image that can be read.
    """
    if color == "gray":
        return np.asarray(open_image(source, mode="L"))[None]
    image = open_image(source, mode=None)
    if color == "y" and image.mode in ("L", "LA"):
        return np.asarray(image.convert("L"))[None]
    rgb = np.asarray(image.convert("RGB"))
    return to_uint8(luma(rgb))[None] if color == "y" else np.ascontiguousarray(rgb.transpose(2, 0, 1))


def inputs_of(
    planes: npt.NDArray[np.uint8], scale: int, degradation: Any, number: int
) -> tuple[npt.NDArray[np.uint8], npt.NDArray[np.uint8]]:
    """Return the input of a restorer ``[C, h, w]``, and its truth ``[C, scale * h, scale * w]``.

    Args:
        planes: An image, uint8 ``[C, H, W]``.
        scale: Factor by which the image is made smaller.
        degradation: See ``krl_runtime.images.luma.corrupt``.
        number: Number of the image; it seeds the noise.

    Raises:
        UsageError: The image is too small for the scale, or the degradation is not known.
    """
    small, truth = degrade(_image(planes), scale)
    given = corrupt(small, degradation, (number,))
    return _planes(given), _planes(truth)


def scored(
    output: npt.NDArray[np.floating[Any]], truth: npt.NDArray[np.uint8], scale: int
) -> tuple[npt.NDArray[np.uint8], npt.NDArray[np.uint8]]:
    """Return the parts of a restored image and of its truth that are compared.

    The protocols are those of the papers: rounded luma without a border of ``scale`` pixels for super-resolution, and
    all channels for everything else.

    Args:
        output: ``[C, H, W]``, 0 to 255; rounded and clipped here.
        truth: uint8 of the same shape.
        scale: Factor by which the restorer enlarges images.

    Returns:
        Both as uint8 ``[h, w]`` or ``[h, w, 3]``. An image that has nothing but a border keeps it.
    """
    made, wanted = (scored_planes(_image(to_uint8(planes)), scale) for planes in (output, truth.astype(np.float32)))
    border = scale if scale > 1 else 0
    if 2 * border < min(wanted.shape[:2]):
        made, wanted = crop_border(made, border), crop_border(wanted, border)
    return made, wanted


def _image(planes: npt.NDArray[np.uint8]) -> npt.NDArray[np.uint8]:
    return np.asarray(planes[0] if len(planes) == 1 else planes.transpose(1, 2, 0))


def _planes(image: npt.NDArray[np.uint8]) -> npt.NDArray[np.uint8]:
    return image[None] if image.ndim == 2 else np.ascontiguousarray(image.transpose(2, 0, 1))
