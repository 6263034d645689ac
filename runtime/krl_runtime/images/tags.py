"""Directories of tags, in TIFF files and in EXIF data: their bounds, and the orientation.

Pillow and libtiff read a tag's values from wherever the tag says, so a small file with many tags that point to the
same bytes takes any amount of memory. Here the directories are looked at before that.
"""

from __future__ import annotations

import struct
from typing import Final, NamedTuple

import numpy as np

__all__ = ["ORIENTATION", "Directory", "ExcessError", "Tag", "check_directories", "exif_orientation", "read_directory"]

ORIENTATION: Final = 274  # as EXIF and TIFF number it
_SUB_DIRECTORIES: Final = (34665, 34853, 40965)  # EXIF, GPS, interoperability: all that Pillow follows
_MOST_TAGS: Final = 4096  # of a directory; EXIF defines fewer than 500
_MOST_VALUES: Final = 65_536  # numbers of one tag, such as strips of an image; texts and profiles are bytes
_TIMES: Final = 2  # values of tags over the file: they do not overlap, but some writers list a maker's note twice
_SIZES: Final = {1: 1, 2: 1, 3: 2, 4: 4, 5: 8, 6: 1, 7: 1, 8: 2, 9: 4, 10: 8, 11: 4, 12: 8, 13: 4, 16: 8, 17: 8, 18: 8}
_BYTES: Final = (1, 2, 6, 7)  # types of one byte: texts and data
_WHOLE: Final = {1: "u1", 3: "u2", 4: "u4", 13: "u4", 16: "u8"}


class ExcessError(ValueError):
    """A directory has more tags or values than an image needs."""


class Tag(NamedTuple):
    """One tag: its type, the number of its values, and where they begin."""

    kind: int
    values: int
    start: int


class Directory(NamedTuple):
    """One directory of tags.

    Attributes:
        data: The bytes that it stands in.
        order: ``"<"`` or ``">"``.
        tags: Its tags by number.
    """

    data: bytes
    order: str
    tags: dict[int, Tag]

    def numbers(self, number: int, default: tuple[int, ...] = ()) -> list[int]:
        """Return the values of a tag of whole numbers.

        Raises:
            ValueError: Its values are not whole numbers, or not in the file.
        """
        tag = self.tags.get(number)
        if tag is None:
            return list(default)
        size = _SIZES.get(tag.kind, 0) * tag.values
        if tag.kind not in _WHOLE or tag.start + size > len(self.data):
            raise ValueError(f"tag {number} has values of type {tag.kind}, or they are not in the file")
        found = np.frombuffer(self.data, self.order + _WHOLE[tag.kind], tag.values, tag.start)
        return [int(value) for value in found]

    def number(self, number: int, default: int) -> int:
        """Return the first value of a tag of whole numbers; see ``numbers``."""
        return (self.numbers(number) or [default])[0]


def read_directory(data: bytes, start: int | None = None) -> Directory:
    """Return a directory of TIFF or EXIF data.

    Args:
        data: A file, from its byte order on.
        start: Where the directory begins; left out: the first one.

    Raises:
        ValueError: It is not one, is cut off, or has a tag twice.
        ExcessError: It has more tags or values than an image needs.
    """
    order = {b"II": "<", b"MM": ">"}.get(data[:2])
    if order is None:
        raise ValueError("its tags have no byte order")
    try:
        big = struct.unpack_from(order + "H", data, 2)[0] == 43  # BigTIFF, whose positions have 64 bits
        if start is None:
            start = struct.unpack_from(order + ("Q" if big else "L"), data, 8 if big else 4)[0]
        (count,) = struct.unpack_from(order + ("Q" if big else "H"), data, start)
        if count > _MOST_TAGS:
            raise ExcessError(f"it has {count} tags; at most {_MOST_TAGS} are accepted")
        tags: dict[int, Tag] = {}
        entry, width = (order + "HHQ", 8) if big else (order + "HHL", 4)
        for index in range(count):
            begin = start + (8 if big else 2) + index * (12 + 8 * big)
            number, kind, values = struct.unpack_from(entry, data, begin)
            begin += 4 + width
            if _SIZES.get(kind, 0) * values > width:
                (begin,) = struct.unpack_from(order + ("Q" if big else "L"), data, begin)
            if number in tags:
                raise ValueError(f"tag {number} is there twice")
            if kind not in _BYTES and values > _MOST_VALUES:
                raise ExcessError(f"tag {number} has {values} values; at most {_MOST_VALUES} are accepted")
            tags[number] = Tag(kind, values, begin)
    except (struct.error, OverflowError) as error:
        raise ValueError(f"its directory of tags is cut off: {error}") from error
    return Directory(data, order, tags)


def check_directories(data: bytes) -> Directory:
    """Return the first directory, after checking those that Pillow reads with it.

    Raises:
        ValueError: One of them cannot be read.
        ExcessError: One has too many tags, or their values together take more bytes than the file has.
    """
    first = read_directory(data)
    found, total = [first], 0
    for directory in found:  # which grows meanwhile
        for number in _SUB_DIRECTORIES:
            if number in directory.tags and len(found) <= len(_SUB_DIRECTORIES):
                found.append(read_directory(data, directory.number(number, 0)))
        for tag in directory.tags.values():
            total += min(_SIZES.get(tag.kind, 0) * tag.values, max(0, len(data) - tag.start))
    if total > _TIMES * len(data):
        raise ExcessError(f"its tags claim {total} bytes of {len(data)}")
    return first


def exif_orientation(exif: bytes) -> int | None:
    """Return the orientation, 1 to 8, that EXIF data have; ``None`` where they have none or are damaged."""
    try:
        found = read_directory(exif.removeprefix(b"Exif\0\0")).number(ORIENTATION, 0)
    except ValueError:
        return None
    return found if found in range(1, 9) else None
