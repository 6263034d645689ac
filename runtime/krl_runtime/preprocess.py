"""From a picture to the ``uint8`` tensor that a network takes: written once, used by training and by the device.

Decoding and resizing happen here, with Pillow's exact pixels; scaling and normalisation happen inside the
network or the exported graph, which therefore cannot be fed wrongly.
"""

from __future__ import annotations

import io
import os
from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any, TypeAlias

import numpy as np
from PIL import ExifTags, Image, UnidentifiedImageError

from .errors import ImageError, UsageError

if TYPE_CHECKING:
    import numpy.typing as npt

__all__ = ["IMAGE_SUFFIXES", "MAX_PIXELS", "ImageSource", "Preprocessing", "open_image"]

ImageSource: TypeAlias = str | os.PathLike[str] | bytes | bytearray | memoryview | IO[bytes] | Image.Image | np.ndarray
"""A path, encoded bytes, a binary file object, a Pillow image, or an array ``[H, W]`` or ``[H, W, C]`` of uint8."""

IMAGE_SUFFIXES = frozenset({".jpg", ".jpeg", ".png", ".bmp", ".webp", ".tif", ".tiff", ".gif", ".ppm", ".pgm"})
"""File name endings, in lower case, that are taken for pictures."""

MAX_PIXELS = 128 * 1024 * 1024
"""Pictures with more pixels than this are refused before they are decoded."""

_INTERPOLATIONS = {
    "nearest": Image.Resampling.NEAREST,
    "bilinear": Image.Resampling.BILINEAR,
    "bicubic": Image.Resampling.BICUBIC,
    "lanczos": Image.Resampling.LANCZOS,
}
_RESIZES = ("crop", "stretch")


@dataclass(frozen=True)
class Preprocessing:
    """How a picture becomes a network's input, and what the network does with it first.

    Attributes:
        height: Height of the network's input in pixels.
        width: Width of the network's input in pixels.
        channels: 1 (grey) or 3 (RGB).
        resize: ``"crop"`` scales the picture, keeping its proportions, until it covers
            ``(height / crop_fraction, width / crop_fraction)`` and cuts the centre out; ``"stretch"`` ignores
            proportions and cuts nothing.
        crop_fraction: Share of the scaled picture's covering side that the centre crop keeps, in (0, 1].
        interpolation: Pillow's filter: ``"nearest"``, ``"bilinear"``, ``"bicubic"`` or ``"lanczos"``
            (all but the first with antialiasing).
        mean: Per channel, in units of the range 0 to 1; subtracted inside the graph.
        std: Per channel, in units of the range 0 to 1; divided by inside the graph.
    """

    height: int
    width: int
    channels: int = 3
    resize: str = "crop"
    crop_fraction: float = 1.0
    interpolation: str = "bilinear"
    mean: tuple[float, ...] = (0.485, 0.456, 0.406)
    std: tuple[float, ...] = (0.229, 0.224, 0.225)

    def __post_init__(self) -> None:
        """Check every field.

        Raises:
            UsageError: A field is out of its range.
        """
        if self.channels not in (1, 3):
            raise UsageError(f"preprocessing: channels is {self.channels}; accepted: 1 (grey) or 3 (RGB)")
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

    @property
    def shape(self) -> tuple[int, int, int]:
        """Shape of one input, ``(channels, height, width)``."""
        return (self.channels, self.height, self.width)

    @property
    def mode(self) -> str:
        """Pillow's name of the colour mode, ``"L"`` or ``"RGB"``."""
        return "L" if self.channels == 1 else "RGB"

    def to_dict(self) -> dict[str, Any]:
        """Return plain JSON types."""
        return {key: list(value) if isinstance(value, tuple) else value for key, value in asdict(self).items()}

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

    def __call__(self, source: ImageSource, *, margin: int = 0) -> npt.NDArray[np.uint8]:
        """Decode, turn upright, convert, resize and crop one picture.

        Args:
            source: The picture; see ``ImageSource``.
            margin: Extra pixels to keep on every side, beyond the centre crop where the picture has them
                (training crops at random from the larger result). Zero for everything but training.

        Returns:
            A C-contiguous array ``[channels, height + 2 * margin, width + 2 * margin]`` of uint8.

        Raises:
            ImageError: The picture is truncated, not a picture, too large, or of a type that is not accepted.
        """
        image = open_image(source, mode=self.mode)
        height, width = self.height + 2 * margin, self.width + 2 * margin
        box = self._box(image.width, image.height, height, width)
        if image.size != (width, height) or box != (0, 0, image.width, image.height):
            image = image.resize((width, height), _INTERPOLATIONS[self.interpolation], box=box)
        pixels = np.asarray(image, dtype=np.uint8)
        if pixels.ndim == 2:
            return np.array(pixels[None], order="C")
        return np.ascontiguousarray(pixels.transpose(2, 0, 1))

    def _box(self, width: int, height: int, out_height: int, out_width: int) -> tuple[float, float, float, float]:
        """Return the part (left, upper, right, lower) of the source that the output shows."""
        if self.resize == "stretch":
            return (0, 0, width, height)
        # Source pixels for each output pixel, such that the scaled picture just covers the side before the crop.
        cover = min(width * self.crop_fraction / self.width, height * self.crop_fraction / self.height)
        cover = min(cover, width / out_width, height / out_height)
        box_width, box_height = cover * out_width, cover * out_height
        left, upper = (width - box_width) / 2, (height - box_height) / 2
        return (left, upper, min(left + box_width, width), min(upper + box_height, height))


def open_image(source: ImageSource, *, mode: str) -> Image.Image:
    """Decode one picture, turn it as its EXIF orientation says, and convert its colours.

    Transparency is dropped, as torchvision's loader does; 16-bit grey is scaled to 8 bits; of an animation the
    first frame is taken.

    Args:
        source: The picture; see ``ImageSource``.
        mode: ``"L"`` or ``"RGB"``.

    Returns:
        A fully decoded Pillow image in ``mode``.

    Raises:
        ImageError: The picture is truncated, not a picture, too large, or of a type that is not accepted.
    """
    name = _describe(source)
    try:
        return _decode(source, mode, name)
    except ImageError:
        raise
    except FileNotFoundError as error:
        raise ImageError(f"{name}: no such file") from error
    except IsADirectoryError as error:
        raise ImageError(f"{name} is a folder, not a picture; give the picture files in it") from error
    except PermissionError as error:
        raise ImageError(f"{name}: no permission to read it") from error
    except UnidentifiedImageError as error:
        raise ImageError(f"{name} is not a picture that Pillow can read (JPEG, PNG, WebP, BMP, TIFF, GIF …)") from error
    except (Image.DecompressionBombError, Image.DecompressionBombWarning) as error:  # the warning, where it is an error
        raise ImageError(f"{name}: {error}; at most {MAX_PIXELS} pixels are accepted") from error
    except (OSError, SyntaxError, ValueError, EOFError, KeyError, IndexError, TypeError, OverflowError) as error:
        # Pillow's decoders raise any of these on damaged files.
        raise ImageError(f"{name} is damaged or truncated: {error}") from error
    except Exception as error:  # struct.error, zlib.error and other decoders' own types
        raise ImageError(f"{name} cannot be decoded: {type(error).__name__}: {error}") from error


def _describe(source: object) -> str:
    if isinstance(source, str | os.PathLike):
        return f"picture {os.fspath(source)!s}"
    if isinstance(source, bytes | bytearray | memoryview):
        return f"picture of {len(source)} bytes"
    return f"picture given as {type(source).__name__}"


def _decode(source: ImageSource, mode: str, name: str) -> Image.Image:
    if isinstance(source, np.ndarray):
        return _finish(_from_array(source, name), mode, name)
    if isinstance(source, Image.Image):
        return _finish(source, mode, name)
    if isinstance(source, bytes | bytearray | memoryview):
        return _finish(Image.open(io.BytesIO(source)), mode, name)
    if isinstance(source, str | os.PathLike):
        with Path(source).open("rb") as file:
            return _finish(Image.open(file), mode, name)
    if hasattr(source, "read"):
        return _finish(Image.open(source), mode, name)
    raise ImageError(
        f"{name}; accepted: a path, bytes, a binary file object, a Pillow image, or a uint8 array of shape "
        "[H, W] or [H, W, C]"
    )


def _finish(image: Image.Image, mode: str, name: str) -> Image.Image:
    if image.width * image.height > MAX_PIXELS:
        raise ImageError(f"{name} has {image.width}x{image.height} pixels; at most {MAX_PIXELS} are accepted")
    image.load()
    if image.getexif().get(ExifTags.Base.Orientation, 1) != 1:
        from PIL import ImageOps

        image = ImageOps.exif_transpose(image)
    return _convert(image, mode)


def _from_array(array: npt.NDArray[Any], name: str) -> Image.Image:
    channels = array.shape[2] if array.ndim == 3 else 1
    if array.dtype != np.uint8 or array.ndim not in (2, 3) or channels not in (1, 3, 4) or 0 in array.shape:
        raise ImageError(
            f"{name} has dtype {array.dtype} and shape {list(array.shape)}; accepted: uint8 of shape [H, W], "
            "[H, W, 1], [H, W, 3] (RGB) or [H, W, 4] (RGBA)"
        )
    return Image.fromarray(array[:, :, 0] if array.ndim == 3 and channels == 1 else array)


def _convert(image: Image.Image, mode: str) -> Image.Image:
    if image.mode == mode:
        return image
    if image.mode.startswith("I;16") or image.mode == "I":
        # Pillow clips these to 255 instead of scaling them.
        levels = np.clip(np.asarray(image, dtype=np.int64), 0, 65535)
        image = Image.fromarray((levels >> 8).astype(np.uint8))
    if image.mode == "P" and "transparency" in image.info:
        image = image.convert("RGBA")  # Pillow asks for this step
    return image.convert(mode)
