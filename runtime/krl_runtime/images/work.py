"""Bounds on the work of decoding an image, which hold before a decoder sees it.

Pixels are bounded, and so is all that a decoder does besides: scans, chunks, blocks, strips and tags. Each bound is
far above those of real files. Time then depends on pixels and bytes, not on how a file was made.
"""

from __future__ import annotations

import io
import re
import struct
from collections.abc import Callable, Iterator
from typing import Final

from krl_runtime.errors import ImageError

from .tags import ExcessError, check_directories

__all__ = ["MAX_PIXELS", "ImageSizeError", "MeteredFile", "check_pixels", "check_work"]

MAX_PIXELS: Final = 128 * 1024 * 1024
"""Images with more pixels than this are refused before they are decoded."""

_HEADER_READS: Final = (
    8192  # readings of a header: one to three a segment, chunk or block; real files have some hundred
)
_PIXEL_READS: Final = 65_536  # readings of pixels, and ...
_READS_PER_KIB: Final = 4  # ... as many more for each KiB; libpng writes chunks of 8 KiB, which take four readings
_MAX_SCANNED: Final = 10 * MAX_PIXELS  # scans times pixels of a JPEG: the usual 10 scans of the largest image
_MOST_SEGMENTS: Final = 4096  # of a JPEG: a profile takes up to 255, a depth map some hundreds

_MARKER = re.compile(rb"\xff[^\x00\xd0-\xd7\xff]")  # neither a byte of data, nor a restart, nor fill
_FRAMES: Final = frozenset({*range(0xC0, 0xD0)} - {0xC4, 0xC8, 0xCC})  # markers that begin a frame
_PROGRESSIVE: Final = (0xC2, 0xC6, 0xCA, 0xCE)  # those of progressive ones, as ISO 10918-1 numbers them
_START, _END, _SCAN, _SINGLE, _EXIF, _INDEX = 0xD8, 0xD9, 0xDA, 0x01, 0xE1, 0xE2  # other markers

_COMPRESSIONS: Final = (1, 2, 3, 4, 5, 7, 8, 32773, 32946)  # none, CCITT, LZW, JPEG, deflate, PackBits
_JPEG_COMPRESSION: Final = 7  # as TIFF numbers it
_MOST_SAMPLES: Final = 8  # bands of a TIFF; Pillow knows no mode with more than 6
_TIMES: Final = 2  # compressed bytes of strips over those of the file: they do not overlap, but some writers err


class ImageSizeError(ImageError):
    """An image has more pixels, or takes more work, than is accepted."""


class MeteredFile(io.BytesIO):
    """Encoded bytes that can be read a bounded number of times: Pillow's parsers read once for each small part."""

    def __init__(self, data: bytes, name: str) -> None:
        """Allow what a header needs.

        Args:
            data: The encoded image.
            name: Name of the image in messages.
        """
        super().__init__(data)
        self._name, self._kib, self._left = name, len(data) // 1024, _HEADER_READS

    def allow_pixels(self) -> None:
        """Allow what pixels need, from now on."""
        self._left = _PIXEL_READS + _READS_PER_KIB * self._kib

    def read(self, size: int | None = -1) -> bytes:
        """Read as a file does.

        Raises:
            ImageSizeError: Too often.
        """
        self._left -= 1
        if self._left < 0:
            raise ImageSizeError(f"{self._name} consists of more parts than its size justifies; save it again")
        return super().read(size)


def check_pixels(width: int, height: int, name: str) -> None:
    """Refuse an image with too many pixels.

    Raises:
        ImageSizeError: It has.
    """
    if width * height > MAX_PIXELS:
        raise ImageSizeError(f"{name} has {width}x{height} pixels; at most {MAX_PIXELS} are accepted")


def check_work(kind: str, data: bytes, name: str) -> None:
    """Refuse an image that would take more work than its pixels and bytes justify.

    Args:
        kind: Its format, by Pillow's name.
        data: The encoded image.
        name: Name of the image in messages.

    Raises:
        ImageSizeError: It has too many pixels or parts.
        ImageError: It is of a kind that only a slow or unsafe decoder reads.
        ValueError: It is damaged.
        struct.error: It is cut off.
    """
    check = _CHECKS.get(kind)
    if check is not None:
        check(data, name)


def _jpeg(data: bytes, name: str) -> None:
    exif = b""
    for code, start, end in _segments(data, name, 0, len(data)):
        if code == _EXIF and data.startswith(b"Exif\0\0", start):
            exif += data[start + 6 : end]  # Pillow joins them in the same way
        elif code == _INDEX and data.startswith(b"MPF\0", start):
            _check_tags(data[start + 4 : end], name)
        elif code == _SCAN:
            break
    _check_tags(exif, name)
    _check_scans(_scanned(data, name, 0, len(data)), name)


def _segments(data: bytes, name: str, begin: int, end: int) -> Iterator[tuple[int, int, int]]:
    """Yield marker, begin and end of the content of each segment of a JPEG that lies in a part of the bytes."""
    position = begin
    for _ in range(_MOST_SEGMENTS):
        found = _MARKER.search(data, position, end)
        if found is None or data[found.end() - 1] == _END or found.end() + 2 > end:
            return
        position, code = found.end(), data[found.end() - 1]
        if code not in (_START, _SINGLE):
            content = position + 2
            position += max(2, int.from_bytes(data[position:content], "big"))
            yield code, content, position
    raise ImageSizeError(f"{name} is a JPEG of more than {_MOST_SEGMENTS} segments; save it again")


def _scanned(data: bytes, name: str, begin: int, end: int) -> int:
    """Return scans times pixels of a JPEG that lies in a part of the bytes; 0 for one that has a single scan."""
    frame = bands = pixels = scans = 0
    for code, content, _ in _segments(data, name, begin, end):
        if code in _FRAMES:
            height, width, bands = struct.unpack_from(">HHB", data, content + 1)
            frame, pixels = code, max(pixels, height * width)
        elif code == _SCAN:
            scans += 1
            if frame not in _PROGRESSIVE and scans == 1 and data[content] >= bands:
                return 0  # libjpeg takes no further scan then
    return scans * pixels


def _check_tags(exif: bytes, name: str) -> None:
    """Refuse tags that unpack to more than they are; damaged ones are ignored when they are read."""
    try:
        check_directories(exif)
    except ExcessError as error:
        raise ImageSizeError(f"{name}: {error}") from error
    except ValueError:
        return


def _check_scans(work: int, name: str) -> None:
    if work > _MAX_SCANNED:
        raise ImageSizeError(
            f"{name} is a JPEG whose scans times pixels are {work}; at most {_MAX_SCANNED} are accepted; save it with "
            "fewer scans"
        )


def _webp(data: bytes, name: str) -> None:
    """Check the canvas: the decoder allocates it when it is made."""
    chunk = data[12:16]
    if chunk == b"VP8X":
        width, height = (1 + int.from_bytes(data[start : start + 3], "little") for start in (24, 27))
    elif chunk == b"VP8L":
        (bits,) = struct.unpack_from("<L", data, 21)
        width, height = 1 + (bits & 0x3FFF), 1 + (bits >> 14 & 0x3FFF)
    else:
        width, height = (side & 0x3FFF for side in struct.unpack_from("<HH", data, 26))
    check_pixels(width, height, name)


def _tiff(data: bytes, name: str) -> None:
    try:
        tags = check_directories(data)
    except ExcessError as error:
        raise ImageSizeError(f"{name}: {error}") from error
    width, height = tags.number(256, 0), tags.number(257, 0)
    check_pixels(width, height, name)
    compression = tags.number(259, 1)
    if compression not in _COMPRESSIONS:
        raise ImageError(
            f"{name} is a TIFF of compression {compression}; accepted: none, CCITT, LZW, deflate, PackBits and JPEG; "
            "save it as PNG"
        )
    tiled = not tags.tags.keys().isdisjoint((322, 323, 324))
    if tiled:
        across, down = tags.number(322, 0), tags.number(323, 0)
    else:
        across, down = width, min(height, tags.number(278, height))
    if not across or not down:
        raise ValueError("its strips or tiles are empty")
    covered = -(-width // across) * across, -(-height // down) * down
    starts, sizes = tags.numbers(324 if tiled else 273), tags.numbers(325 if tiled else 279)
    samples, claimed = tags.number(277, 1), sum(min(size, len(data)) for size in sizes)
    if covered[0] * covered[1] > MAX_PIXELS or samples > _MOST_SAMPLES or claimed > _TIMES * len(data):
        raise ImageSizeError(
            f"{name} is a TIFF whose strips or tiles have {covered[0]}x{covered[1]} pixels of {samples} bands in "
            f"{claimed} bytes; accepted: {MAX_PIXELS} pixels, {_MOST_SAMPLES} bands, and the bytes of the file"
        )
    if compression == _JPEG_COMPRESSION:
        parts = zip(starts, sizes, strict=False)
        _check_scans(sum(_scanned(data, name, start, start + size) for start, size in parts), name)


_CHECKS: Final[dict[str, Callable[[bytes, str], None]]] = {"JPEG": _jpeg, "TIFF": _tiff, "WEBP": _webp}
"""Formats whose headers alone make a decoder work; the others are bounded by pixels and by ``MeteredFile``."""
