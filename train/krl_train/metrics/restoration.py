"""PSNR and SSIM by the protocols of papers: on luma for super-resolution, RGB beside it; for all else in RGB."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn

from krl_runtime.errors import DataError, UsageError
from krl_runtime.images.luma import colored, crop_border, degrade, psnr, resize, scored_planes, to_uint8
from krl_runtime.images.ssim import ssim
from krl_train.data.truths import Truths
from krl_train.worker import Worker

__all__ = ["enlarge", "evaluate_restorer", "restore_image", "score"]

_COLUMNS = ("psnr", "ssim", "input_psnr", "input_ssim", "rgb_psnr", "rgb_input_psnr")
_MAX_PSNR = 100.0  # dB: equal images would have an infinite PSNR, and no mean


def score(restored: npt.NDArray[np.uint8], truth: npt.NDArray[np.uint8], scale: int) -> dict[str, float]:
    """Score one image: uint8, for super-resolution on luma and without a border of ``scale`` pixels, else in color.

    Args:
        restored: uint8 ``[H, W]`` (luma or gray as it is) or ``[H, W, 3]``, RGB.
        truth: The same shape.
        scale: By how much the restorer enlarges images; 1 for everything but super-resolution.

    Returns:
        ``"psnr"`` in dB, at most 100 (equal images), over all channels, and ``"ssim"``, their mean.

    Raises:
        UsageError: Too little is left to score.
    """
    first, second = (_inner(scored_planes(item, scale), scale) for item in (restored, truth))
    planes = [(first, second)] if first.ndim == 2 else [(first[..., index], second[..., index]) for index in range(3)]
    return {"psnr": min(psnr(first, second), _MAX_PSNR), "ssim": float(np.mean([ssim(*pair) for pair in planes]))}


def _inner(image: npt.NDArray[np.uint8], scale: int) -> npt.NDArray[np.uint8]:
    return crop_border(image, scale) if scale > 1 else image


def enlarge(image: npt.NDArray[np.uint8], scale: int) -> npt.NDArray[np.uint8]:
    """Return an image enlarged bicubically, uint8 ``[scale * H, scale * W]`` or with 3 channels."""
    if scale == 1:
        return image
    height, width = image.shape[0] * scale, image.shape[1] * scale
    planes = image[..., None] if image.ndim == 2 else image
    large = np.stack([to_uint8(resize(plane.astype(np.float32), height, width)) for plane in np.moveaxis(planes, 2, 0)])
    return large[0] if image.ndim == 2 else np.moveaxis(large, 0, 2)


@torch.no_grad()
def restore_image(network: nn.Module, image: npt.NDArray[np.uint8], device: torch.device) -> npt.NDArray[np.uint8]:
    """Restore one whole image.

    Args:
        network: Maps pixels ``[1, C, H, W]`` to ``[1, C, scale * H, scale * W]``; in eval mode.
        image: uint8 ``[H, W]`` or ``[H, W, 3]``.
        device: Where the network is.

    Returns:
        uint8 ``[scale * H, scale * W]`` or with 3 channels, rounded and clipped.
    """
    planes = image[None] if image.ndim == 2 else np.moveaxis(image, 2, 0)
    pixels: Tensor = torch.from_numpy(np.array(planes, order="C"))[None].to(device)
    restored = network(pixels)[0].float().cpu().numpy()
    return to_uint8(restored[0] if image.ndim == 2 else np.moveaxis(restored, 0, 2))


def evaluate_restorer(
    network: nn.Module, truths: Truths, scale: int, degradation: Mapping[str, Any], worker: Worker
) -> dict[str, Any]:
    """Measure a restorer on whole images in float32.

    Args:
        network: A ``RestorerNetwork`` on ``worker.device``; it is in eval mode afterwards.
        truths: The images; each is made worse, restored and compared.
        scale: By how much the truth is larger than the input.
        degradation: See ``krl_runtime.images.luma.corrupt``; noise follows from each image's number.
        worker: Where; each process takes every ``world``-th image, and all get the same answer.

    Returns:
        ``count``, means over the images of ``psnr`` (dB) and ``ssim``, on what ``score`` says, and of ``input_psnr``
        and ``input_ssim`` (the input itself, enlarged bicubically), ``gain`` (dB of psnr over input_psnr) and
        ``images`` (name and values of each). For super-resolution of images in color also ``rgb_psnr`` and
        ``rgb_input_psnr`` in dB, over all channels.

    Raises:
        DataError: An image is too small to be scored.
    """
    network.eval()
    rows = np.zeros((len(truths), len(_COLUMNS)))
    for index in range(worker.rank, len(truths), worker.world):
        try:
            given, truth = truths.pair(index, scale, degradation)
            output = restore_image(network, given, worker.device)
            restored, plain = score(output, truth, scale), score(enlarge(given, scale), truth, scale)
            in_color = _color_scores(truths, index, given, output, scale)
        except UsageError as error:
            raise DataError(f"validation image {truths.names[index]}: {error}; leave it out") from error
        rows[index] = [restored["psnr"], restored["ssim"], plain["psnr"], plain["ssim"], *in_color]
    return _result(_shared(rows, worker), truths.names)


def _color_scores(
    truths: Truths, index: int, given: npt.NDArray[np.uint8], output: npt.NDArray[np.uint8], scale: int
) -> tuple[float, float]:
    """Return the PSNR in RGB of an enlargement and of a bicubic one; NaN where there is no color or it is scored so.

    To a luma the device adds the bicubically enlarged chroma, and so does this.
    """
    if scale == 1 or (output.ndim == 2 and truths.colors is None):
        return math.nan, math.nan
    colors = truths.images[index] if truths.colors is None else truths.colors[index]
    if (colors == colors[..., :1]).all():  # gray, whatever it is stored as
        return math.nan, math.nan
    small, truth = degrade(colors, scale)
    restored = colored(output.astype(np.float32), small) if output.ndim == 2 else output
    plain = enlarge(given if output.ndim == 3 else small, scale)
    found = [min(psnr(_inner(item, scale), _inner(truth, scale)), _MAX_PSNR) for item in (restored, plain)]
    return found[0], found[1]


def _shared(rows: npt.NDArray[np.float64], worker: Worker) -> npt.NDArray[np.float64]:
    """Add up the rows of all processes; each row is of one process and 0 elsewhere."""
    if worker.world == 1:
        return rows
    total = torch.from_numpy(rows).to(worker.device)
    torch.distributed.all_reduce(total)
    return np.asarray(total.cpu())


def _result(rows: npt.NDArray[np.float64], names: Sequence[str]) -> dict[str, Any]:
    def named(row: npt.NDArray[np.float64]) -> dict[str, float]:
        return {name: round(float(value), 4) for name, value in zip(_COLUMNS, row, strict=True) if not np.isnan(value)}

    known = ~np.isnan(rows)
    sums, counts = np.where(known, rows, 0).sum(0), known.sum(0)
    means = named(np.where(counts > 0, sums / np.maximum(counts, 1), math.nan))
    images = [{"name": name, **named(row)} for name, row in zip(names, rows, strict=True)]
    return {"count": len(names), **means, "gain": round(means["psnr"] - means["input_psnr"], 4), "images": images}
