"""From an image to the ``uint8`` tensor that a network takes, for training and for the device.

Decoding and resizing happen here, with Pillow's exact pixels. Scaling and normalization happen inside the network or
the exported graph, so that a caller cannot get them wrong.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, fields
from typing import TYPE_CHECKING, Any, NamedTuple, TypeAlias, TypeGuard

import numpy as np
from PIL import Image

from krl_runtime.errors import ImageError, UsageError

from . import jpeg
from .formats import IMAGE_SUFFIXES, ImageSource, check_image, describe, open_header, orientation, translated
from .modes import ChannelOrder, colors, convert, image_of
from .resizing import resized
from .work import MAX_PIXELS

if TYPE_CHECKING:
    import numpy.typing as npt

__all__ = ["IMAGE_SUFFIXES", "MAX_PIXELS", "ImageSource", "Preprocessing", "open_image"]

_INTERPOLATIONS = {
    "nearest": Image.Resampling.NEAREST,
    "bilinear": Image.Resampling.BILINEAR,
    "bicubic": Image.Resampling.BICUBIC,
    "lanczos": Image.Resampling.LANCZOS,
}
_RESIZES = ("crop", "stretch")

# A JPEG decoder scales by 2, 4 or 8 for less than it costs to decode in full, but not with the filter that was asked
# for. How many decoded pixels each output pixel has to have at least, for a mean difference (levels of 255) that no
# photograph of those measured exceeded: 0.54, 1.32 and 5.6 with the worst filter; small outputs are the worst case.
_LEAST_PIXELS = {0.6: 3.0, 1.5: 2.0, 6.0: 1.0}
_JPEG_SCALES = (8, 4, 2)  # all that libjpeg decodes at, by DCT of fewer coefficients; the smallest image first

# For each EXIF orientation but the upright one: whether the stored image lies on its side, whether its far end
# (right or lower, as it is stored) becomes the left side of the upright image, and the upper one; and how to turn it.
_ORIENTATIONS = {
    2: (False, True, False, Image.Transpose.FLIP_LEFT_RIGHT),
    3: (False, True, True, Image.Transpose.ROTATE_180),
    4: (False, False, True, Image.Transpose.FLIP_TOP_BOTTOM),
    5: (True, False, False, Image.Transpose.TRANSPOSE),
    6: (True, True, False, Image.Transpose.ROTATE_270),
    7: (True, True, True, Image.Transpose.TRANSVERSE),
    8: (True, False, True, Image.Transpose.ROTATE_90),
}


@dataclass(frozen=True)
class Preprocessing:
    """Preprocessing: from an image to a network's input, and the network's normalization.

    Attributes:
        height: Height of the network's input in pixels.
        width: Width of the network's input in pixels.
        channels: 1 (gray) or 3 (RGB).
        resize: ``"crop"`` keeps the proportions. It scales the image until it covers
            ``(height / crop_fraction, width / crop_fraction)``, and cuts the center out. ``"stretch"`` ignores
            proportions and cuts nothing.
        crop_fraction: Share of the scaled image's covering side that the center crop keeps, in (0, 1].
        interpolation: Pillow's filter: ``"nearest"``, ``"bilinear"``, ``"bicubic"`` or ``"lanczos"``
            (all but the first with antialiasing).
        mean: Per channel, in units of the range 0 to 1; subtracted inside the graph.
        std: Per channel, in units of the range 0 to 1; divided by inside the graph.
        decode_tolerance: Accepted mean difference from the exact pixels, in levels of 255: 0 (exact, the default), or
            from 0.6 on. Large JPEG images are then decoded at 1/2, 1/4 or 1/8 of their size. The decoded image
            keeps 3 pixels a side for each pixel of the output, 2 from 1.5 on, and 1 from 6 on. Training,
            evaluation and the device all use this value.

    Example:
        >>> preprocessing = Preprocessing(height=32, width=48)
        >>> preprocessing.shape, preprocessing.mode
        ((3, 32, 48), 'RGB')
        >>> preprocessing(np.zeros((100, 200, 3), np.uint8)).shape
        (3, 32, 48)
        >>> Preprocessing.from_dict(preprocessing.to_dict()) == preprocessing
        True
    """

    height: int
    width: int
    channels: int = 3
    resize: str = "crop"
    crop_fraction: float = 1.0
    interpolation: str = "bilinear"
    mean: tuple[float, ...] = (0.485, 0.456, 0.406)
    std: tuple[float, ...] = (0.229, 0.224, 0.225)
    decode_tolerance: float = 0.0

    def __post_init__(self) -> None:
        """Check every field.

        Raises:
            UsageError: A field is out of its range.
        """
        if self.channels not in (1, 3):
            raise UsageError(f"preprocessing: channels is {self.channels}; accepted: 1 (gray) or 3 (RGB)")
        if not (1 <= self.height <= 16384 and 1 <= self.width <= 16384):
            raise UsageError(f"preprocessing: size is {self.height}x{self.width}; accepted: 1 to 16384 a side")
        if self.resize not in _RESIZES:
            raise UsageError(f"preprocessing: resize is {self.resize!r}; accepted: {', '.join(_RESIZES)}")
        if self.interpolation not in _INTERPOLATIONS:
            accepted = ", ".join(_INTERPOLATIONS)
            raise UsageError(f"preprocessing: interpolation is {self.interpolation!r}; accepted: {accepted}")
        if not 0 < self.crop_fraction <= 1:
            raise UsageError(f"preprocessing: crop_fraction is {self.crop_fraction}; accepted: above 0, up to 1")
        for name in ("mean", "std"):
            values = tuple(float(value) for value in getattr(self, name))
            object.__setattr__(self, name, values)
            if len(values) != self.channels or not np.all(np.isfinite(values)):
                raise UsageError(
                    f"preprocessing: {name} has {len(values)} values {values}; accepted: one finite number "
                    f"for each of the {self.channels} channels"
                )
        if min(self.std) <= 0:
            raise UsageError(f"preprocessing: std is {self.std}; accepted: positive numbers")
        self._check_decode_tolerance()

    def _check_decode_tolerance(self) -> None:
        tolerance, least = float(self.decode_tolerance), min(_LEAST_PIXELS)
        if tolerance != 0 and not least <= tolerance <= 255:
            raise UsageError(f"preprocessing: decode_tolerance is {tolerance}; accepted: 0 (exact), or {least} to 255")
        if tolerance and self.interpolation == "nearest":
            raise UsageError(
                "preprocessing: decode_tolerance cannot be kept with interpolation nearest, which takes single "
                "pixels; accepted: 0, or another interpolation"
            )
        object.__setattr__(self, "decode_tolerance", tolerance)

    @property
    def shape(self) -> tuple[int, int, int]:
        """Shape of one input, ``(channels, height, width)``."""
        return (self.channels, self.height, self.width)

    @property
    def mode(self) -> str:
        """Pillow's name of the color mode, ``"L"`` or ``"RGB"``."""
        return "L" if self.channels == 1 else "RGB"

    def to_dict(self) -> dict[str, Any]:
        """Return plain JSON types. A ``decode_tolerance`` of 0 is left out, as in older manifests."""
        values = {key: list(value) if isinstance(value, tuple) else value for key, value in asdict(self).items()}
        if not self.decode_tolerance:
            del values["decode_tolerance"]
        return values

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> Preprocessing:
        """Build from plain JSON types.

        Raises:
            UsageError: A key is unknown or missing, or a value is out of range.
        """
        known = {field.name for field in fields(cls)}
        unknown = sorted(set(values) - known)
        if unknown:
            raise UsageError(f"preprocessing: unknown keys {unknown}; accepted: {sorted(known)}")
        plain: dict[str, Any] = {k: tuple(v) if isinstance(v, list) else v for k, v in values.items()}
        try:
            return cls(**plain)
        except (TypeError, ValueError) as error:
            raise UsageError(f"preprocessing: {error}") from error

    def __call__(
        self, source: ImageSource, *, margin: int = 0, channel_order: ChannelOrder = "rgb"
    ) -> npt.NDArray[np.uint8]:
        """Decode, turn upright, convert, resize and crop one image.

        Args:
            source: The image; see ``ImageSource``.
            margin: Extra pixels to keep on every side, beyond the center crop where the image has them
                (training crops at random from the larger result). Zero for everything but training.
            channel_order: Order of the colors, if the image is an array.

        Returns:
            A C-contiguous array ``[channels, height + 2 * margin, width + 2 * margin]`` of uint8.

        Raises:
            ImageError: The image is truncated, not an image, too large, or of a type that is not accepted.
        """
        size = self._padded_size(margin)
        if self._is_ready(source, *size):
            # Pillow would only copy it to and fro.
            return np.array(colors(source, channel_order).transpose(2, 0, 1), order="C")
        image = self._scaled(source, *size, channel_order)
        planes = bytearray().join([image.tobytes("raw", band) for band in self.mode])
        return np.frombuffer(planes, np.uint8).reshape(self.channels, *size)

    def interleaved(self, source: ImageSource, *, margin: int = 0) -> npt.NDArray[np.uint8]:
        """Return the same pixels as a call, with the channels last, which is how Pillow has them.

        Args:
            source: The image; see ``ImageSource``.
            margin: Extra pixels to keep on every side, as for a call.

        Returns:
            An array ``[height + 2 * margin, width + 2 * margin, channels]`` of uint8, which may be read-only.

        Raises:
            ImageError: The image is truncated, not an image, too large, or of a type that is not accepted.
        """
        size = self._padded_size(margin)
        if self._is_ready(source, *size):
            return np.array(source)
        image = self._scaled(source, *size)
        return np.frombuffer(image.tobytes("raw", self.mode), np.uint8).reshape(*size, self.channels)

    def _padded_size(self, margin: int) -> tuple[int, int]:
        """Return height and width of what is read with a margin."""
        return self.height + 2 * margin, self.width + 2 * margin

    def _scaled(self, source: ImageSource, height: int, width: int, order: ChannelOrder = "rgb") -> Image.Image:
        """Return the decoded part of an image that the output shows, in the output's size."""
        decoded = _open(source, self.mode, lambda w, h: self._jpeg_scale(w, h, height, width), order)
        image, box = decoded.image, self._box(*decoded.size, height, width)
        if image.size != (width, height) or box != (0, 0, *decoded.size):
            image = resized(image, (width, height), _INTERPOLATIONS[self.interpolation], decoded.scaled(box))
        return image

    def _is_ready(self, source: ImageSource, height: int, width: int) -> TypeGuard[npt.NDArray[np.uint8]]:
        """Return whether an image is an array of RGB of the output's size, and nothing is cut off."""
        if not isinstance(source, np.ndarray) or self.channels != 3:
            return False
        return (
            source.shape == (height, width, 3)
            and source.dtype == np.uint8
            and self._box(width, height, height, width) == (0, 0, width, height)
        )

    def _jpeg_scale(self, width: int, height: int, out_height: int, out_width: int) -> int:
        """Return the divisor for decoding a JPEG of this size: 1, 2, 4 or 8."""
        if not self.decode_tolerance:
            return 1
        left, upper, right, lower = self._box(width, height, out_height, out_width)
        pixels = min((right - left) / out_width, (lower - upper) / out_height)
        least = min(value for key, value in _LEAST_PIXELS.items() if key <= self.decode_tolerance)
        return next((scale for scale in _JPEG_SCALES if pixels / scale >= least), 1)

    def _box(self, width: int, height: int, out_height: int, out_width: int) -> _Box:
        """Return the part (left, upper, right, lower) of the source that the output shows."""
        if self.resize == "stretch":
            return (0, 0, width, height)
        # Source pixels for each output pixel, such that the scaled image just covers the side before the crop.
        cover = min(width * self.crop_fraction / self.width, height * self.crop_fraction / self.height)
        cover = min(cover, width / out_width, height / out_height)
        box_width, box_height = cover * out_width, cover * out_height
        # Rounding can make the box a little larger than the image.
        left, upper = max(0.0, (width - box_width) / 2), max(0.0, (height - box_height) / 2)
        return (left, upper, min(left + box_width, width), min(upper + box_height, height))


def open_image(source: ImageSource, *, mode: str | None, channel_order: ChannelOrder = "rgb") -> Image.Image:
    """Decode one image, turn it by its EXIF orientation, and convert its colors.

    Transparency is dropped, as in torchvision's loader, unless ``mode`` keeps it. 16-bit gray is scaled to 8 bits. An
    animation gives its first frame. The format is one of ``formats.ACCEPTED``, whatever the name of the file.

    Args:
        source: The image; see ``ImageSource``.
        mode: ``"L"`` or ``"RGB"``; ``None`` for the image's own one of ``"L"``, ``"LA"``, ``"RGB"`` and ``"RGBA"``.
        channel_order: Order of the colors, if the image is an array.

    Returns:
        A fully decoded Pillow image in ``mode``.

    Raises:
        ImageError: The image is truncated, not an image, too large, or of a type that is not accepted.
    """
    return _open(source, mode, order=channel_order).image


_Box: TypeAlias = tuple[float, float, float, float]
"""Left, upper, right and lower side of a part of an image, in pixels."""


class _Decoded(NamedTuple):
    """An upright image, its full size, the divisor of its sides, and its origin.

    A scaled JPEG is padded to whole pixels on the right and below. Turning it may move the padding to the left and top.
    """

    image: Image.Image
    size: tuple[int, int]
    scale: int = 1
    begin: tuple[float, float] = (0, 0)

    def scaled(self, box: _Box) -> _Box:
        """Return the box in ``image`` of a part of the full image."""
        if self.scale == 1:
            return box
        left, upper, right, lower = (side / self.scale for side in box)
        return (left + self.begin[0], upper + self.begin[1], right + self.begin[0], lower + self.begin[1])


_Shrink: TypeAlias = Callable[[int, int], int]
"""From the width and height of an upright image to the divisor for a JPEG decoder: 1, 2, 4 or 8."""


def _open(
    source: ImageSource, mode: str | None, shrink: _Shrink | None = None, order: ChannelOrder = "rgb"
) -> _Decoded:
    """Decode as ``open_image`` does, at a smaller scale if ``shrink`` allows it."""
    name = describe(source)
    with translated(name):
        if isinstance(source, np.ndarray):
            return _finish(_from_array(source, name, order), mode, None)
        if isinstance(source, Image.Image):
            check_image(source, name)
            return _finish(source, mode, None)  # only an image that was opened here may be decoded otherwise
        return _finish(open_header(source), mode, shrink)


def _finish(image: Image.Image, mode: str | None, shrink: _Shrink | None) -> _Decoded:
    if image.format not in ("JPEG", "MPO"):
        image.load()  # EXIF data may stand behind the pixels; and Pillow turns a TIFF
    turned = orientation(image)
    sideways, *mirrored, method = _ORIENTATIONS.get(turned, (False, False, False, None))
    size, scale = (image.size[::-1] if sideways else image.size), 1
    if shrink is not None and image.format in ("JPEG", "MPO"):
        scale = shrink(*size)
        if scale > 1 and image.draft(None, (image.width // scale, image.height // scale)) is None:
            scale = 1
    if scale == 1:
        image = jpeg.load(image)
    else:
        image.load()
    info = image.info
    if method is not None:
        image = image.transpose(method)
        image.info = info
    begin = [(there - full / scale) * far for there, full, far in zip(image.size, size, mirrored, strict=True)]
    if (image.mode, mode) == ("RGBX", "RGB") and shrink is not None:
        return _Decoded(image, size, scale, (begin[0], begin[1]))  # converted when it is small
    return _Decoded(convert(image, mode), size, scale, (begin[0], begin[1]))


def _from_array(array: npt.NDArray[Any], name: str, order: ChannelOrder) -> Image.Image:
    channels = array.shape[2] if array.ndim == 3 else 1
    if array.dtype != np.uint8 or array.ndim not in (2, 3) or channels not in (1, 3, 4) or 0 in array.shape:
        raise ImageError(
            f"{name} has dtype {array.dtype} and shape {list(array.shape)}; accepted: uint8 of shape [H, W], "
            "[H, W, 1], [H, W, 3] (RGB) or [H, W, 4] (RGBA)"
        )
    return image_of(array, order)
