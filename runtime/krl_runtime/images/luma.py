"""Luma and chroma of BT.601, degradation and PSNR, for training, deployment and evaluation of restorers.

Luma is 16 to 235, and chroma 16 to 240 around 128: studio swing, as in MATLAB's ``rgb2ycbcr`` and in papers on
super-resolution. (The YCbCr of JPEG, which Pillow converts to, has full swing.) Only uint8 results are rounded.
"""

from __future__ import annotations

import io
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
from PIL import Image

from krl_runtime.errors import UsageError

from .resizing import resized

__all__ = [
    "chroma",
    "colored",
    "corrupt",
    "crop_border",
    "degrade",
    "luma",
    "mean_psnr",
    "psnr",
    "resize",
    "scored_planes",
    "to_rgb",
    "to_uint8",
]

_EQUAL = 200.0  # dB, beyond what float32 can tell apart; neither means nor JSON take infinity

_TO_Y: npt.NDArray[np.float32] = np.array([65.481, 128.553, 24.966], np.float32) / np.float32(255)
_TO_CHROMA: npt.NDArray[np.float32] = np.array(
    [[-37.797, -74.203, 112.0], [112.0, -93.786, -18.214]], np.float32
) / np.float32(255)
_TO_RGB = np.linalg.inv(np.vstack([_TO_Y, _TO_CHROMA]).astype(np.float64)).astype(np.float32)


def luma(rgb: npt.NDArray[np.uint8]) -> npt.NDArray[np.float32]:
    """Return the luma of an image.

    Args:
        rgb: uint8 ``[H, W, 3]``.

    Returns:
        float32 ``[H, W]``, 16 to 235, not rounded.

    Example:
        >>> luma(np.array([[[0, 0, 0], [255, 255, 255]]], np.uint8)).round(2).tolist()
        [[16.0, 235.0]]
    """
    weighted: npt.NDArray[np.float32] = rgb[..., 0] * _TO_Y[0]
    weighted += rgb[..., 1] * _TO_Y[1]
    weighted += rgb[..., 2] * _TO_Y[2]
    weighted += np.float32(16)
    return weighted


def chroma(rgb: npt.NDArray[np.uint8]) -> npt.NDArray[np.float32]:
    """Return the chroma of an image.

    Args:
        rgb: uint8 ``[H, W, 3]``.

    Returns:
        Cb and Cr, float32 ``[H, W, 2]``, 16 to 240, not rounded.

    Example:
        >>> chroma(np.array([[[0, 0, 255], [255, 0, 0]]], np.uint8)).round().tolist()
        [[[240.0, 110.0], [90.0, 240.0]]]
    """
    both: npt.NDArray[np.float32] = rgb.astype(np.float32) @ _TO_CHROMA.T + np.float32(128)
    return both


def to_rgb(luma: npt.NDArray[np.floating[Any]], chroma: npt.NDArray[np.floating[Any]]) -> npt.NDArray[np.uint8]:
    """Return the image that has this luma and this chroma.

    Args:
        luma: ``[H, W]``, 16 to 235; colors outside their range are clipped.
        chroma: Cb and Cr, ``[H, W, 2]``, 16 to 240.

    Returns:
        uint8 ``[H, W, 3]``, rounded and clipped.

    Example:
        >>> image = np.array([[[10, 200, 30], [255, 0, 128]]], np.uint8)
        >>> to_rgb(luma(image), chroma(image)).tolist()
        [[[10, 200, 30], [255, 0, 128]]]
    """
    both = np.empty((*luma.shape, 3), np.float32)
    both[..., 0] = luma
    both[..., 0] -= 16
    both[..., 1:] = chroma
    both[..., 1:] -= 128
    return to_uint8(both @ _TO_RGB.T)


def colored(
    plane: npt.NDArray[np.floating[Any]],
    image: npt.NDArray[np.uint8],
    box: tuple[float, float, float, float] | None = None,
) -> npt.NDArray[np.uint8]:
    """Return a restored luma in color, with the chroma of the image that it was made from, resized bicubically.

    Args:
        plane: Luma, ``[H, W]``, 16 to 235.
        image: uint8 ``[h, w, 3]``.
        box: The part of the image that the luma is of; see ``resize``.

    Returns:
        uint8 ``[H, W, 3]``.
    """
    colors = chroma(image)
    height, width = plane.shape
    planes = [resize(colors[..., index], height, width, box) for index in range(2)]
    return to_rgb(plane, np.stack(planes, axis=-1))


def to_uint8(values: npt.NDArray[np.floating[Any]]) -> npt.NDArray[np.uint8]:
    """Return values of 0 to 255 as pixels, rounded half to even and clipped. NaN becomes 0.

    Example:
        >>> to_uint8(np.array([-3.0, 0.5, 1.5, 300.0, np.nan])).tolist()
        [0, 0, 2, 255, 0]
    """
    rounded = np.rint(values)
    np.clip(np.nan_to_num(rounded, copy=False, posinf=255, neginf=0), 0, 255, out=rounded)
    pixels: npt.NDArray[np.uint8] = rounded.astype(np.uint8)
    return pixels


def resize(
    plane: npt.NDArray[np.float32], height: int, width: int, box: tuple[float, float, float, float] | None = None
) -> npt.NDArray[np.float32]:
    """Resize one plane of floats with Pillow's bicubic filter, which smooths an image that becomes smaller.

    Args:
        plane: float32 ``[H, W]``.
        height: New height in pixels.
        width: New width.
        box: Left, upper, right and lower side of the part to resize; left out: all of it. The filter also reads pixels
            around it.

    Returns:
        float32 ``[height, width]``, neither rounded nor clipped.
    """
    image = Image.fromarray(np.ascontiguousarray(plane, dtype=np.float32))
    return np.asarray(resized(image, (width, height), Image.Resampling.BICUBIC, box))


def degrade(image: npt.NDArray[np.uint8], scale: int) -> tuple[npt.NDArray[np.uint8], npt.NDArray[np.uint8]]:
    """Make an image smaller as papers do: crop it to whole multiples, then resize it bicubically with antialiasing.

    Pillow's ``BICUBIC`` has the kernel of MATLAB's ``imresize`` (a = -0.5, widened by the scale); both round to uint8.

    Args:
        image: uint8 ``[H, W]`` or ``[H, W, 3]``.
        scale: Divisor of both sides; 1 leaves the image unchanged.

    Returns:
        The small image, and its ground truth: the cropped part of the given image.

    Raises:
        UsageError: A side has fewer pixels than ``scale``, or ``scale`` is less than 1.

    Example:
        >>> small, truth = degrade(np.zeros((9, 11, 3), np.uint8), 4)
        >>> small.shape, truth.shape
        ((2, 2, 3), (8, 8, 3))
    """
    height, width = image.shape[:2]
    if scale < 1 or min(height, width) < scale:
        raise UsageError(
            f"an image of {width}x{height} pixels cannot be made {scale} times smaller; accepted: a scale from 1 to "
            "the shorter side"
        )
    truth = image[: height - height % scale, : width - width % scale]
    if scale == 1:
        return truth, truth
    size = (truth.shape[1] // scale, truth.shape[0] // scale)
    small = resized(Image.fromarray(np.ascontiguousarray(truth)), size, Image.Resampling.BICUBIC)
    return np.asarray(small), truth


def corrupt(image: npt.NDArray[np.uint8], degradation: Mapping[str, Any], seed: Sequence[int]) -> npt.NDArray[np.uint8]:
    """Apply a restorer's ``degradation`` to an image, without the scaling that ``degrade`` does.

    Args:
        image: uint8 ``[H, W]`` or ``[H, W, 3]``.
        degradation: ``{"kind": "bicubic"}`` or ``{"kind": "none"}`` leaves the image unchanged.
            ``{"kind": "noise", "sigma": S}`` adds Gaussian noise of S levels of 255.
            ``{"kind": "jpeg", "quality": Q}`` encodes the image as JPEG with Pillow and decodes it again.
        seed: Whole numbers from 0, which alone determine the noise.

    Returns:
        uint8 of the same shape, rounded and clipped.

    Raises:
        UsageError: The kind is not known.

    Example:
        >>> gray = np.full((2, 2), 128, np.uint8)
        >>> corrupt(gray, {"kind": "none"}, [0]).tolist()
        [[128, 128], [128, 128]]
        >>> noisy = [corrupt(gray, {"kind": "noise", "sigma": 25}, [seed]) for seed in (0, 0, 1)]
        >>> bool((noisy[0] == noisy[1]).all()), bool((noisy[0] == noisy[2]).all())
        (True, False)
    """
    kind = degradation.get("kind")
    if kind in ("bicubic", "none"):
        return image
    if kind == "noise":
        noise = np.random.default_rng(tuple(seed)).standard_normal(image.shape, np.float32)
        return to_uint8(image + np.float32(degradation["sigma"]) * noise)
    if kind == "jpeg":
        written = io.BytesIO()
        Image.fromarray(np.ascontiguousarray(image)).save(written, "JPEG", quality=int(degradation["quality"]))
        return np.asarray(Image.open(written))
    raise UsageError(f"degradation kind is {kind!r}; accepted: bicubic, none, noise, jpeg")


def scored_planes(image: npt.NDArray[np.uint8], scale: int) -> npt.NDArray[np.uint8]:
    """Return the part of an image that PSNR and SSIM of a restorer are computed on.

    Args:
        image: uint8 ``[H, W]`` or ``[H, W, 3]``.
        scale: Factor by which the restorer enlarges images.

    Returns:
        uint8 ``[H, W]`` for super-resolution (a scale above 1): luma, rounded, as in papers, or the single plane as it
        is. For every other task the image itself, with all of its colors.

    Example:
        >>> white = np.full((1, 1, 3), 255, np.uint8)
        >>> scored_planes(white, 2).tolist(), scored_planes(white, 1).tolist()
        ([[235]], [[[255, 255, 255]]])
    """
    return image if image.ndim == 2 or scale == 1 else to_uint8(luma(image))


def crop_border(image: npt.NDArray[Any], border: int) -> npt.NDArray[Any]:
    """Return ``[H, W, …]`` without ``border`` pixels on each side, as in the evaluation of super-resolution.

    Raises:
        UsageError: Nothing would be left.

    Example:
        >>> crop_border(np.zeros((10, 12, 3)), 4).shape
        (2, 4, 3)
    """
    height, width = image.shape[:2]
    if border < 0 or 2 * border >= min(height, width):
        raise UsageError(f"{border} pixels cannot be cut off each side of an image of {width}x{height} pixels")
    return image[border : height - border, border : width - border]


def psnr(a: npt.NDArray[Any], b: npt.NDArray[Any], peak: float = 255.0) -> float:
    """Return the peak signal-to-noise ratio in dB: ``10 log10(peak² / mean((a - b)²))``; infinite if both are equal.

    Args:
        a: Numbers of any shape.
        b: The same shape.
        peak: The largest value that a pixel can have.

    Raises:
        UsageError: The shapes differ.

    Example:
        >>> black, gray = np.zeros((4, 4)), np.full((4, 4), 25.5)
        >>> round(psnr(black, gray), 6)
        20.0
        >>> psnr(gray, gray)
        inf
    """
    if a.shape != b.shape:
        raise UsageError(f"the PSNR of {list(a.shape)} and {list(b.shape)} values is undefined; both need one shape")
    error = float(np.mean(np.square(a.astype(np.float64) - b.astype(np.float64))))
    return float("inf") if error == 0 else float(10 * np.log10(peak * peak / error))


def mean_psnr(images: npt.NDArray[Any], others: npt.NDArray[Any]) -> float:
    """Return the mean over images of their PSNR in dB, each clipped to 0 to 255 and 200 dB at most.

    Args:
        images: ``[N, ...]``, 0 to 255.
        others: The same shape.
    """
    pairs = zip(np.clip(images, 0, 255), np.clip(others, 0, 255), strict=True)
    return float(np.mean([min(psnr(one, other), _EQUAL) for one, other in pairs]))
