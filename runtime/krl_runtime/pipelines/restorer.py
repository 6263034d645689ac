"""Images in, better or larger images out: of any size, in bounded memory."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, overload

import numpy as np

from krl_runtime.backends.base import RunningBackend
from krl_runtime.bundle import Bundle
from krl_runtime.errors import BackendError, BundleError, ImageError, ModelError
from krl_runtime.images import luma
from krl_runtime.images.modes import color_profile, colors
from krl_runtime.images.preprocessing import open_image
from krl_runtime.images.sides import LONGEST_SIDE, Sides, padded

from .base import Pipeline
from .raster import Raster

if TYPE_CHECKING:
    import numpy.typing as npt
    from PIL import Image

    from krl_runtime.images.modes import ChannelOrder
    from krl_runtime.images.preprocessing import ImageSource

__all__ = ["MAX_RESTORED", "Restorer", "longest_part"]

MAX_RESTORED = 512 * 1024 * 1024
"""Restored images with more pixels than this are refused before any work is done."""

_MAX_SCALE = 16  # enlargement; networks go up to 8, and a manifest must not ask for any amount of memory
_MARGIN = 4  # pixels around a part whose chroma is resized: more than the radius of the bicubic filter
_STRIDE = 16  # parts begin at its multiples, so that networks which halve an image up to four times are aligned
_SIDES = (256, 512)  # smallest and largest side of a part
_TIMES_OVERLAP = 16  # tile side over overlap: a quarter more pixels are computed than in one piece
_COLORS = {"y": 1, "gray": 1, "rgb": 3}
_GRAY = np.array([0.299, 0.587, 0.114], np.float32)


@dataclass(frozen=True)
class _Span:
    """A part of one side of an image: the input of the network, and the kept part of it, in pixels of the input."""

    begin: int
    end: int
    keep: int
    until: int


class Restorer(Pipeline):
    """Restores images. ``krl_runtime.load`` makes it. Several threads may call it at once.

    Large images are cut into parts, so that activations take no more memory than those of one part. The parts overlap
    by the receptive field of an output pixel, so that there are no seams. A network that is not local runs on the whole
    image.

    A luma network (``color`` "y") restores luma, BT.601 in studio swing; chroma is resized bicubically. A gray network
    restores each color by itself. Gray images stay gray; alpha is resized bicubically.

    Attributes:
        scale: Factor from the sides of an image to those of the restored one.
        color: Channels of the network: ``"y"``, ``"gray"`` or ``"rgb"``.
        overlap: Radius of an output pixel's receptive field, in input pixels; ``None`` if the network is not local.
        sides: Heights and widths that the network takes. Other images are padded by their last row and column, and the
            result is cropped.
    """

    def __init__(self, bundle: Bundle, backend: RunningBackend, *, channel_order: ChannelOrder = "rgb") -> None:
        super().__init__(bundle, backend, channel_order=channel_order)
        settings = bundle.manifest.settings
        self.scale: int = settings["scale"]
        self.color: str = settings["color"]
        self.overlap: int | None = settings["overlap"]
        self.sides = Sides.of(settings)
        self._input, self._output = bundle.manifest.inputs[0], bundle.manifest.outputs[0].name

    @staticmethod
    def check(bundle: Bundle) -> None:
        """Check that a bundle's tensors, preprocessing and settings fit each other and this pipeline.

        Raises:
            BundleError: They do not.
        """
        manifest, settings = bundle.manifest, bundle.manifest.settings
        scale, color, overlap = (settings.get(name) for name in ("scale", "color", "overlap"))
        good = (
            _whole(scale, 1, _MAX_SCALE) and color in tuple(_COLORS) and (overlap is None or _whole(overlap, 0, 4096))
        )
        if not good or "overlap" not in settings:
            raise BundleError(
                f"bundle {bundle.path} is no restorer: its settings have scale {scale!r}, color {color!r} and "
                f"overlap {overlap!r}; accepted: 1 to {_MAX_SCALE}, {', '.join(_COLORS)}, and pixels or null; "
                "export it again"
            )
        channels = _COLORS[str(color)]
        inputs = [(spec.dtype, len(spec.shape), spec.shape[1:2]) for spec in manifest.inputs]
        outputs = [(spec.dtype, len(spec.shape), spec.shape[1:2]) for spec in manifest.outputs[:1]]
        expected = [("uint8", 4, (channels,))], [("float32", 4, (channels,))]
        if (inputs, outputs) != expected or manifest.preprocessing.channels != channels:
            raise BundleError(
                f"bundle {bundle.path} is no restorer: it has inputs {inputs}, outputs {outputs} and "
                f"{manifest.preprocessing.channels} channels; accepted for color {color}: pixels and restored pixels "
                f"of {expected}; export it again"
            )
        _check_sides(bundle, overlap)
        _check_sizes(bundle, scale, overlap)

    @overload
    def __call__(self, source: list[Any] | tuple[Any, ...]) -> list[Raster]: ...
    @overload
    def __call__(self, source: ImageSource) -> Raster: ...
    def __call__(self, source: Any) -> Raster | list[Raster]:
        """Restore one image or several.

        Args:
            source: An image of any size: a path, encoded bytes, a binary file object, a Pillow image, or an array of
                uint8 ``[H, W]`` or ``[H, W, C]`` (RGB or RGBA, unless ``load`` was given another ``channel_order``).
                For several images a list or tuple of those.

        Returns:
            An image ``scale`` times as wide and high, with the channels of the given one, its transparency, and its
            color profile if that is one for gray or RGB as the result is; a list of images, in order, for several.

        Raises:
            ImageError: An image is truncated, not an image, too large, or of a type that is not accepted.
            ModelError: An output is not a finite number.
            BackendError: The device failed, or the model is closed.
        """
        if not isinstance(source, list | tuple):
            return self._restored(source)
        return [self._restored(item) for item in source]

    def restore_planes(self, pixels: npt.NDArray[np.uint8]) -> npt.NDArray[np.float32]:
        """Restore the channels of the network; large images in parts.

        Args:
            pixels: uint8 ``[channels, H, W]``: luma of 16 to 235 for color "y", else 0 to 255.

        Returns:
            float32 ``[channels, scale * H, scale * W]``, neither rounded nor clipped.

        Raises:
            ModelError: An output is not a finite number.
            BackendError: The device failed, or the model is closed.
        """
        channels, height, width = pixels.shape
        whole = np.empty((channels, height * self.scale, width * self.scale), np.float32)
        for rows, columns, part in self._parts(pixels):
            whole[:, self._scaled(rows), self._scaled(columns)] = part
        return whole

    def _restored(self, source: ImageSource) -> Raster:
        """Open an image and restore it; a failure of the backend names it and its size."""
        opened = open_image(source, mode=None, channel_order=self.channel_order)
        try:
            return self._restore(opened)
        except BackendError as error:
            name = str(source) if isinstance(source, str | Path) else "an image"
            raise BackendError(f"{name}, of {opened.width}x{opened.height} pixels: {error}") from error

    def _restore(self, opened: Image.Image) -> Raster:
        """Restore an image in mode L, LA, RGB or RGBA."""
        image = np.asarray(opened)
        image = image.reshape(*image.shape[:2], -1)
        height, width, bands = image.shape
        if height * width * self.scale**2 > MAX_RESTORED:
            raise ImageError(
                f"an image of {width}x{height} pixels would have more than {MAX_RESTORED} when it is {self.scale} "
                "times as large; make it smaller first, or restore parts of it"
            )
        given = colors(image, "rgb")
        whole = np.empty((height * self.scale, width * self.scale, bands), np.uint8)
        made = colors(whole, self.channel_order)
        if self.color == "gray":
            for band in range(given.shape[2]):
                for rows, columns, part in self._parts(given[None, :, :, band]):
                    made[self._scaled(rows), self._scaled(columns), band] = luma.to_uint8(part[0])
        else:
            for rows, columns, part in self._parts(self._network_input(given)):
                here = made[self._scaled(rows), self._scaled(columns)]
                here[...] = self._colored(part, given, rows, columns)
        if bands > given.shape[2]:
            self._resize_band(image[..., -1], whole[..., -1])
        return Raster(whole, color_profile(opened), self.channel_order)

    def _network_input(self, image: npt.NDArray[np.uint8]) -> npt.NDArray[np.uint8]:
        """Return uint8 ``[channels, H, W]``: luma, or red, green and blue, of an image ``[H, W, 1 or 3]``."""
        if self.color == "rgb":
            return np.asarray(np.broadcast_to(image, (*image.shape[:2], 3)).transpose(2, 0, 1))
        values = np.empty(image.shape[:2], np.uint8)
        for top in range(0, len(image), _SIDES[0]):  # a strip at a time: floats take four times the memory
            strip = image[top : top + _SIDES[0]]
            values[top : top + _SIDES[0]] = luma.to_uint8(luma.luma(np.broadcast_to(strip, (*strip.shape[:2], 3))))
        return values[None]

    def _colored(
        self, part: npt.NDArray[np.float32], image: npt.NDArray[np.uint8], rows: slice, columns: slice
    ) -> npt.NDArray[np.uint8]:
        """Return the network's output as pixels ``[H, W, 1 or 3]``, with the chroma of the image if it needs it."""
        gray = image.shape[2] == 1
        if self.color == "rgb":
            made = part.transpose(1, 2, 0)
            return luma.to_uint8((made @ _GRAY)[..., None] if gray else made)
        if gray:
            return luma.to_uint8((part[0] - 16) * np.float32(255 / 219))[..., None]
        top, left = max(0, rows.start - _MARGIN), max(0, columns.start - _MARGIN)
        box = (columns.start - left, rows.start - top, columns.stop - left, rows.stop - top)
        return luma.colored(part[0], image[top : rows.stop + _MARGIN, left : columns.stop + _MARGIN], box)

    def _resize_band(self, band: npt.NDArray[np.uint8], target: npt.NDArray[np.uint8]) -> None:
        """Write a band, resized bicubically, a strip at a time."""
        for top in range(0, len(band), _SIDES[0]):
            bottom, first = min(len(band), top + _SIDES[0]), max(0, top - _MARGIN)
            strip = band[first : bottom + _MARGIN].astype(np.float32)
            rows = slice(top * self.scale, bottom * self.scale)
            box = (0, top - first, band.shape[1], bottom - first)
            target[rows] = luma.to_uint8(luma.resize(strip, rows.stop - rows.start, target.shape[1], box))

    def _parts(self, pixels: npt.NDArray[np.uint8]) -> Iterator[tuple[slice, slice, npt.NDArray[np.float32]]]:
        """Yield rows and columns of the input, which together cover it once, and what they become ``[C, H, W]``."""
        height, width = self._sides()
        for rows in self._spans(pixels.shape[1], height):
            for columns in self._spans(pixels.shape[2], width):
                part = pixels[:, rows.begin : rows.end, columns.begin : columns.end]
                made = self._run(padded(part, self._fit(part.shape[1], height), self._fit(part.shape[2], width)))
                kept = made[
                    :,
                    (rows.keep - rows.begin) * self.scale : (rows.until - rows.begin) * self.scale,
                    (columns.keep - columns.begin) * self.scale : (columns.until - columns.begin) * self.scale,
                ]
                yield slice(rows.keep, rows.until), slice(columns.keep, columns.until), kept

    def _fit(self, length: int, side: tuple[int, int | None]) -> int:
        """Return the length that a part is padded to, of the smallest and largest one that can be run."""
        return side[0] if side[0] == side[1] else max(side[0], self.sides.fit(length))

    def _sides(self) -> tuple[tuple[int, int | None], tuple[int, int | None]]:
        """Return the smallest and largest height and width of a part; the graph may fix them, the backend bound them.

        No bound is ``None``. A network that is local never needs more than ``longest_part``.
        """
        multiple = self.sides.multiple
        bounds = self.backend.image_sizes
        sides: list[tuple[int, int | None]] = []
        for axis, size in enumerate(self._input.shape[2:]):
            if isinstance(size, int):
                sides.append((size, size))
            else:
                low, high = (1, None) if bounds is None else bounds[axis]
                sides.append((self.sides.fit(low), None if high is None else high // multiple * multiple))
        return sides[0], sides[1]

    def _spans(self, length: int, side: tuple[int, int | None]) -> Iterator[_Span]:
        """Cut one side of an image into parts.

        Args:
            length: Number of pixels.
            side: Smallest and largest part that can be run; smaller ones are padded.

        Raises:
            BackendError: The network is not local, and takes only images that are smaller.
        """
        shortest, longest = side
        if shortest == longest and self.overlap is not None:
            yield from self._equal_spans(length, shortest)
            return
        if self.overlap is None:
            if longest is not None and length > longest:
                raise BackendError(
                    f"an image with a side of {length} pixels does not fit the engine, which takes at most {longest}, "
                    "and this network needs the whole image; build an engine for larger ones with: krl-deploy "
                    "build-engine --height MIN,OPT,MAX --width MIN,OPT,MAX, or --tile N"
                )
            yield _Span(0, length, 0, length)
            return
        overlap, most = _aligned(self.overlap), longest_part(self.overlap)
        most = most if longest is None else min(most, longest)
        step = (most - 2 * overlap) // _STRIDE * _STRIDE
        if step < _STRIDE:
            yield from self._equal_spans(length, most)
            return
        if length <= step + overlap:
            yield _Span(0, length, 0, length)
            return
        for keep in range(0, length, step):
            until = min(length, keep + step)
            end = min(length, until + overlap)
            # The last part may be too small for the backend: it begins earlier then.
            begin = min(keep - overlap, (length - shortest) // _STRIDE * _STRIDE)
            yield _Span(max(0, begin, end - most), end, keep, until)

    def _equal_spans(self, length: int, side: int) -> Iterator[_Span]:
        """Cut into parts of one size: those at the ends are moved inwards, and keep only their own pixels."""
        overlap, keep = self.overlap or 0, 0
        step = side - 2 * overlap
        if step < 1 and length > side:
            raise BackendError(
                f"parts of at most {side} pixels a side are too small for this network, whose receptive field has a "
                f"radius of {overlap}; build an engine for larger ones with: krl-deploy build-engine --height "
                "MIN,OPT,MAX --width MIN,OPT,MAX, or --tile N"
            )
        while keep < length:
            begin = max(0, min(keep - overlap, length - side))
            until = length if begin + side >= length else (keep + step if keep else side - overlap)
            yield _Span(begin, min(begin + side, length), keep, until)
            keep = until

    def _run(self, pixels: npt.NDArray[np.uint8]) -> npt.NDArray[np.float32]:
        """Run the network on one part ``[C, H, W]``."""
        made = self.backend.run({self._input.name: np.ascontiguousarray(pixels[None])})[self._output][0]
        if not np.isfinite(made).all():
            raise ModelError(
                f"{self._where()} gave numbers that are not finite, so there is no image; load another "
                f"variant, and run krl-runtime selftest {self.bundle.path}"
            )
        expected = (len(pixels), pixels.shape[1] * self.scale, pixels.shape[2] * self.scale)
        if made.shape != expected:
            raise ModelError(
                f"{self._where()} made {list(made.shape)} of {list(pixels.shape)} pixels; with scale {self.scale} it "
                f"should be {list(expected)}; export the bundle again"
            )
        values: npt.NDArray[np.float32] = made.astype(np.float32, copy=False)
        return values

    def _scaled(self, side: slice) -> slice:
        return slice(side.start * self.scale, side.stop * self.scale)

    def __repr__(self) -> str:
        """Return name, scale, color, backend and variant."""
        return f"Restorer({self.bundle.manifest.name!r}, scale {self.scale}, color {self.color}, {self._where()})"


def longest_part(overlap: int) -> int:
    """Return the largest side of the parts that a local network is given, if its graph takes any size.

    Args:
        overlap: See ``Restorer``.

    Example:
        >>> longest_part(7), longest_part(40)
        (288, 608)
    """
    aligned = _aligned(overlap)
    return int(np.clip(_TIMES_OVERLAP * aligned, *_SIDES)) + 2 * aligned


def _aligned(overlap: int) -> int:
    return -(-overlap // _STRIDE) * _STRIDE


def _whole(value: object, low: int, high: int) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and low <= value <= high


def _check_sides(bundle: Bundle, overlap: Any) -> None:
    """Check the settings of ``Sides``: whole numbers, and parts that begin at multiples are aligned."""
    sides = Sides.of(bundle.manifest.settings)
    whole = _whole(sides.smallest, 1, LONGEST_SIDE) and _whole(sides.multiple, 1, LONGEST_SIDE)
    if not whole or (overlap is not None and _STRIDE % sides.multiple):
        raise BundleError(
            f"bundle {bundle.path} is no restorer: its settings have smallest_side {sides.smallest!r} and multiple "
            f"{sides.multiple!r}; accepted: 1 to {LONGEST_SIDE}, and with an overlap a multiple that divides "
            f"{_STRIDE}; export it again"
        )


def _check_sizes(bundle: Bundle, scale: Any, overlap: Any) -> None:
    """Check batch, height and width of a restorer's tensors: any, or fixed ones that fit scale and overlap."""
    taken, made = bundle.manifest.inputs[0].shape, bundle.manifest.outputs[0].shape
    fixed = [(a, b) for a, b in zip(taken[2:], made[2:], strict=True) if isinstance(a, int) or isinstance(b, int)]
    fits = all(isinstance(a, int) and b == a * scale and a > 2 * (overlap or 0) for a, b in fixed)
    if taken[0] not in (1, "batch") or not fits or (fixed and overlap is None):
        raise BundleError(
            f"bundle {bundle.path} is no restorer: its graph makes {list(made)} of {list(taken)} with scale {scale} "
            f"and overlap {overlap}; accepted: a batch of 1 or any number, and sides of any length or fixed ones of "
            "more than twice the overlap; export it again"
        )
