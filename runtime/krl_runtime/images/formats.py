"""The formats of images that are read: the only list, for the runtime and for folders of training images.

Each has a decoder in C whose work is bounded by bytes and pixels. EPS starts Ghostscript, and others unpack a few bytes
to any number of pixels, so nothing else is opened, whatever the name of the file.
"""

from __future__ import annotations

import contextlib
import os
import re
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any, Final, TypeAlias

import numpy as np
import PIL
from PIL import Image, UnidentifiedImageError, features

from krl_runtime._version import __version__
from krl_runtime.errors import ImageError

from .modes import match_transparency
from .tags import ORIENTATION, exif_orientation
from .work import MAX_PIXELS, ImageSizeError, MeteredFile, check_pixels, check_work

if TYPE_CHECKING:
    from PIL import ImageFile

__all__ = [
    "ACCEPTED",
    "IMAGE_SUFFIXES",
    "MAX_BYTES",
    "ImageSource",
    "check_image",
    "decoder_version",
    "describe",
    "open_header",
    "orientation",
    "translated",
]

ImageSource: TypeAlias = str | os.PathLike[str] | bytes | bytearray | memoryview | IO[bytes] | Image.Image | np.ndarray
"""A path, encoded bytes, a binary file object, a Pillow image, or an array ``[H, W]`` or ``[H, W, C]`` of uint8."""

# By Pillow's name: the suffixes, and how the bytes begin.
_FORMATS: Final[dict[str, tuple[tuple[str, ...], re.Pattern[bytes]]]] = {
    "JPEG": ((".jpg", ".jpeg"), re.compile(rb"\xff\xd8\xff")),
    "PNG": ((".png",), re.compile(rb"\x89PNG\r\n\x1a\n")),
    "WEBP": ((".webp",), re.compile(rb"RIFF....WEBPVP8[ LX]", re.DOTALL)),
    "TIFF": ((".tif", ".tiff"), re.compile(rb"II[*+]\0|MM\0[*+]")),
    "BMP": ((".bmp",), re.compile(rb"BM")),
    "GIF": ((".gif",), re.compile(rb"GIF8[79]a")),
    "PPM": ((".ppm", ".pgm", ".pbm"), re.compile(rb"P[456][\s#]")),
}

ACCEPTED: Final = "JPEG, PNG, WebP, TIFF, BMP, GIF, and binary PPM, PGM or PBM"
"""The formats, for messages."""

IMAGE_SUFFIXES: Final = frozenset(suffix for suffixes, _ in _FORMATS.values() for suffix in suffixes)
"""File name endings, in lower case, that are taken for images. The content alone decides how a file is decoded."""

MAX_BYTES: Final = 2**30
"""Bytes of an encoded image: the largest image in 16 bits with four bands, not compressed."""

_BEGINNING: Final = 16  # bytes that tell the format
_BLOCK: Final = 2**20  # bytes that are read at once from a file object, which may give fewer
_SLOW: Final = ("BMP", "PPM")  # formats with decoders in Python, besides those in C
_XMP_ORIENTATION = re.compile(rb"tiff:Orientation(?:=\"|>)([1-8])")


@contextlib.contextmanager
def translated(name: str) -> Iterator[None]:
    """Turn whatever Pillow raises into an ``ImageError``.

    Args:
        name: Name of the image in messages.
    """
    try:
        yield
    except ImageError:
        raise
    except FileNotFoundError as error:
        raise ImageError(f"{name}: no such file") from error
    except IsADirectoryError as error:
        raise ImageError(f"{name} is a folder, not an image; give the image files in it") from error
    except PermissionError as error:
        raise ImageError(f"{name}: no permission to read it") from error
    except UnidentifiedImageError as error:
        raise ImageError(f"{name} is damaged or truncated: its header cannot be read") from error
    except (Image.DecompressionBombError, Image.DecompressionBombWarning) as error:  # the warning, where it is an error
        raise ImageSizeError(f"{name}: {error}; at most {MAX_PIXELS} pixels are accepted") from error
    except (OSError, SyntaxError, ValueError, EOFError, KeyError, IndexError, TypeError, OverflowError) as error:
        # Pillow's decoders raise any of these on damaged files.
        raise ImageError(f"{name} is damaged or truncated: {error}") from error
    except Exception as error:  # struct.error, zlib.error and other decoders' own types
        raise ImageError(f"{name} cannot be decoded: {type(error).__name__}: {error}") from error


@cache
def decoder_version() -> str:
    """Return the versions that decoded pixels depend on: of krl, Pillow and its libraries."""
    libraries = {name: features.version(name) for name in ("jpg", "libjpeg_turbo", "zlib", "webp", "libtiff")}
    return f"krl {__version__}, pillow {PIL.__version__}, {libraries}"


def describe(source: object) -> str:
    """Return the name of an image in messages."""
    if isinstance(source, str | os.PathLike):
        return f"image {os.fspath(source)!s}"
    if isinstance(source, bytes | bytearray | memoryview):
        return f"image of {len(source)} bytes"
    if hasattr(source, "read") and isinstance(name := getattr(source, "name", None), str) and name:
        return f"image {name}"
    return f"image given as {type(source).__name__}"


def open_header(source: ImageSource) -> ImageFile.ImageFile:
    """Open an encoded image and check all that bounds the work of decoding it, without decoding it.

    Args:
        source: A path, encoded bytes or a binary file object.

    Returns:
        The image, of which the size and the mode are known. Of a TIFF that lies on its side they may be those of the
        upright one, as Pillow has it.

    Raises:
        ImageSizeError: It has more pixels, bytes or parts than are accepted.
        ImageError: It is of another format, damaged, or cannot be read.
    """
    name = describe(source)
    with translated(name):
        data = _read(source, name)
        kind = _format(data)
        if kind is None:
            raise ImageError(f"{name} is not an image of an accepted format: {ACCEPTED}; save it as PNG")
        check_work(kind, data, name)
        file = MeteredFile(data, name)
        image = Image.open(file, formats=(kind,))
        check_pixels(*image.size, name)
        if kind in _SLOW and image.tile[0][0] != "raw":
            raise ImageError(
                f"{name} is a {kind} that is run-length coded, or has other levels than 255 and 65535; save it as PNG"
            )
        if kind == "PNG":
            match_transparency(image)
        file.allow_pixels()
        return image


def check_image(image: Image.Image, name: str) -> None:
    """Refuse a Pillow image that is not decoded yet and of a format that is not accepted, or too large.

    Raises:
        ImageSizeError: It has too many pixels.
        ImageError: Decoding it is not safe.
    """
    from PIL import ImageFile

    lazy = isinstance(image, ImageFile.StubImageFile) or (isinstance(image, ImageFile.ImageFile) and bool(image.tile))
    if lazy and image.format not in (*_FORMATS, "MPO"):
        raise ImageError(f"{name} is of format {image.format} and not decoded; accepted: {ACCEPTED}; save it as PNG")
    check_pixels(*image.size, name)


def orientation(image: Image.Image) -> int:
    """Return the orientation, 1 to 8, of an image that is decoded, or of a JPEG that is not.

    Pillow itself turns a TIFF upright where it decodes it, and forgets the orientation then.
    """
    exif, info = image.info.get("exif"), image.info
    if exif is None and "Raw profile type exif" in info:  # ImageMagick's way to have EXIF in a PNG
        with contextlib.suppress(ValueError):
            exif = bytes.fromhex("".join(str(info["Raw profile type exif"]).split("\n")[3:]))
    if isinstance(exif, bytes):
        found = exif_orientation(exif)
    else:
        found = image.getexif().get(ORIENTATION) if hasattr(image, "tag_v2") else None
    if found is None:
        xmp = info.get("XML:com.adobe.xmp") or info.get("xmp") or b""
        match = _XMP_ORIENTATION.search(xmp.encode() if isinstance(xmp, str) else xmp)
        found = int(match[1]) if match else 1
    return found if found in range(1, 9) else 1


def _format(data: bytes) -> str | None:
    return next((kind for kind, (_, begins) in _FORMATS.items() if begins.match(data)), None)


def _read(source: Any, name: str) -> bytes:
    """Return the bytes of an encoded image; of a file with another content no more than its beginning is read."""
    if isinstance(source, bytes | bytearray | memoryview):
        data = bytes(source)
    elif isinstance(source, str | os.PathLike):
        with Path(source).open("rb") as file:
            return _read(file, name)
    elif hasattr(source, "read"):
        with contextlib.suppress(AttributeError, OSError):  # a stream that cannot go back is read from where it is
            source.seek(0)
        data = _at_most(source, _BEGINNING)
        if _format(data) is not None:
            data += _at_most(source, MAX_BYTES + 1 - len(data))
    else:
        raise ImageError(
            f"{name}; accepted: a path, bytes, a binary file object, a Pillow image, or a uint8 array of shape "
            "[H, W] or [H, W, C]"
        )
    if len(data) > MAX_BYTES:
        raise ImageSizeError(f"{name} has more than {MAX_BYTES} bytes, which is the most that is accepted")
    return data


def _at_most(file: IO[bytes], size: int) -> bytes:
    """Read up to so many bytes, in blocks: a file object may give fewer than it is asked for."""
    blocks, left = [], size
    while left > 0 and (block := file.read(min(left, _BLOCK))):
        blocks.append(bytes(block[:left]))
        left -= len(blocks[-1])
    return b"".join(blocks)
