"""Decoded images in files of the user's cache folder: one file for all images of a split.

A file has the pixels of one image after another, so that it can be mapped into memory. Then follow a checksum of each
image, its number among the files that were read, and a footer. Its name is the hash of everything that the pixels
depend on. It gets that name when it is whole; until then it has another, which keeps other processes from writing it.
"""

from __future__ import annotations

import contextlib
import errno
import logging
import os
import shutil
import struct
import time
import zlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from weakref import WeakSet

import numpy as np
import numpy.typing as npt

from krl_runtime.files import cache_folder, sha256_bytes
from krl_runtime.images.formats import decoder_version
from krl_runtime.images.preprocessing import Preprocessing

__all__ = [
    "DecodedFile",
    "DecodedWriter",
    "checksum",
    "new_decoded_file",
    "open_decoded_file",
    "pixels_key",
    "wait_for_decoded_file",
]

_log = logging.getLogger("krl")

_SUFFIX = ".pixels"
_FORMAT = 1  # number of this format of files
_EACH = 12  # bytes for each image after the pixels: a checksum of 4 and a number of 8
_FOOTER = struct.Struct("<8sQQI")  # mark, images, files that were read, checksum of all after the pixels
_MARK = b"krlpix01"
_RESERVE = 2**30  # bytes of the disk that stay free: for checkpoints and logs of the training that follows
_UNFINISHED = ".tmp"
_ABANDONED = 60  # seconds without a write; a file that is being written is written to several times a second
_POLL = 0.2  # seconds between looks at a file that another process writes, which takes seconds to hours
_NOT_PIXELS = ("mean", "std")  # of the preprocessing: applied to the pixels later, by the network


@dataclass(frozen=True, eq=False)
class DecodedFile:
    """Decoded images that are on disk.

    Attributes:
        path: The file.
        rows: The images, ``[N, H, W, C]`` of uint8, mapped into memory.
        checksums: CRC-32 of each image, ``[N]`` of uint32.
        positions: Number of each image among the files that were read, ``[N]`` of int64; the others were not decodable.
    """

    path: Path
    rows: npt.NDArray[np.uint8]
    checksums: npt.NDArray[np.uint32]
    positions: npt.NDArray[np.int64]


_in_use: WeakSet[DecodedFile] = WeakSet()  # files of this process, which are not removed to make room


def pixels_key(hashes: Sequence[str], preprocessing: Preprocessing, margin: int) -> str:
    """Return the hash of everything that decoded pixels depend on.

    Args:
        hashes: SHA-256 of each file, in their order.
        preprocessing: From an image to ``uint8``; its mean and deviation do not matter.
        margin: Extra pixels on every side.
    """
    settings = {name: value for name, value in preprocessing.to_dict().items() if name not in _NOT_PIXELS}
    return sha256_bytes(f"{_FORMAT}:{decoder_version()}:{settings}:{margin}:{','.join(hashes)}".encode())


def checksum(row: npt.NDArray[np.uint8]) -> int:
    """Return the CRC-32 of one image, which must be C-contiguous."""
    return zlib.crc32(row.data)


def open_decoded_file(key: str, count: int, shape: tuple[int, int, int]) -> DecodedFile | None:
    """Return the decoded images of a key, or ``None`` where there are none; damaged ones are logged and removed.

    Args:
        key: As ``pixels_key`` returns it.
        count: Number of files that were read.
        shape: Height, width and channels of an image.
    """
    try:
        path = _folder() / (key + _SUFFIX)
        if not path.is_file():
            return None
        found = _open(path, count, shape)
        with contextlib.suppress(OSError):  # of another user
            os.utime(path)  # the files that were not used for the longest time are removed first
    except ValueError as error:
        _log.warning("the decoded images in %s are damaged (%s) and are made anew", path, error)
        with contextlib.suppress(OSError):
            path.unlink()
        return None
    except (OSError, RuntimeError) as error:
        _log.info("the decoded images that were kept cannot be used: %s", error)
        return None
    _in_use.add(found)
    return found


def _open(path: Path, count: int, shape: tuple[int, int, int]) -> DecodedFile:
    size = path.stat().st_size
    with path.open("rb") as file:
        file.seek(max(0, size - _FOOTER.size))
        footer = file.read()
        mark, kept, read, expected = _FOOTER.unpack(footer) if len(footer) == _FOOTER.size else (b"", 0, 0, 0)
        pixels = kept * int(np.prod(shape))
        if mark != _MARK or read != count or size != pixels + _EACH * kept + _FOOTER.size:
            raise ValueError("it is cut off or has other bytes at its end")
        file.seek(pixels)
        after = file.read(_EACH * kept)
    if zlib.crc32(after) != expected:
        raise ValueError("its checksums are not those that were written")
    checksums = np.frombuffer(after, "<u4", kept)
    positions = np.frombuffer(after, "<i8", kept, 4 * kept)
    rows = np.memmap(path, np.uint8, "r", shape=(kept, *shape)) if kept else np.empty((0, *shape), np.uint8)
    return DecodedFile(path, rows, checksums, positions)


class DecodedWriter:
    """Writes decoded images. After an error of the operating system it keeps the reason, and writes no more."""

    def __init__(self, path: Path) -> None:
        """Begin a file, which must not be there."""
        self.failure: OSError | None = None
        self._file = path.open("xb")
        self._checksums: list[int] = []
        self._positions: list[int] = []

    def add(self, rows: npt.NDArray[np.uint8], checksums: Sequence[int], positions: Sequence[int]) -> None:
        """Write images.

        Args:
            rows: ``[N, H, W, C]`` of uint8.
            checksums: CRC-32 of each.
            positions: Number of each among the files that are read.
        """
        if self.failure is not None:
            return
        try:
            self._file.write(rows.data)
        except OSError as error:
            self.failure = error
        self._checksums += checksums
        self._positions += positions

    def finish(self, count: int) -> None:
        """Write what follows the pixels, and close the file.

        Args:
            count: Number of files that were read.

        Raises:
            OSError: It cannot be written, now or before.
        """
        if self.failure is not None:
            raise self.failure
        after = np.array(self._checksums, "<u4").tobytes() + np.array(self._positions, "<i8").tobytes()
        self._file.write(after + _FOOTER.pack(_MARK, len(self._positions), count, zlib.crc32(after)))
        self._file.close()

    def close(self) -> None:
        """Close the file, whole or not."""
        with contextlib.suppress(OSError):  # what is still buffered may not fit on the disk
            self._file.close()


@contextlib.contextmanager
def new_decoded_file(key: str, count: int, shape: tuple[int, int, int], limit: int) -> Iterator[DecodedWriter]:
    """Yield a writer for the decoded images of a key; the file is there if the block finishes the writer.

    A power failure may leave a file with other bytes, which its checksums show.

    Args:
        key: As ``pixels_key`` returns it.
        count: Number of files that are read.
        shape: Height, width and channels of an image.
        limit: Bytes that all files of decoded images may take together.

    Raises:
        FileExistsError: Another process writes the same file; see ``wait_for_decoded_file``.
        OSError: The limit or the disk has no room, the folder cannot be written, or a write failed; nothing is left.
    """
    try:
        folder = _folder()
        folder.mkdir(parents=True, exist_ok=True)
    except RuntimeError as error:  # no home folder
        raise OSError(errno.ENOENT, str(error)) from error
    _make_room(folder, count * (int(np.prod(shape)) + _EACH) + _FOOTER.size, limit)
    path = folder / (key + _UNFINISHED)
    writer = DecodedWriter(path)
    try:
        yield writer
        path.replace(folder / (key + _SUFFIX))
    except BaseException:
        writer.close()
        with contextlib.suppress(OSError):
            path.unlink()
        raise


def wait_for_decoded_file(key: str) -> None:
    """Wait as long as another process writes the file of a key: several begin at once in one training.

    Args:
        key: As ``pixels_key`` returns it.
    """
    logged = False
    while _is_written(key):
        if not logged:
            _log.info("another process decodes the same images; waiting for it")
            logged = True
        time.sleep(_POLL)


def _is_written(key: str) -> bool:
    try:
        return not _is_abandoned((_folder() / (key + _UNFINISHED)).stat())
    except (OSError, RuntimeError):  # none, or it cannot be seen
        return False


def _is_abandoned(status: os.stat_result) -> bool:
    return time.time() - status.st_mtime > _ABANDONED


def _folder() -> Path:
    return cache_folder() / "pixels"


def _make_room(folder: Path, size: int, limit: int) -> None:
    """Remove the files that were not used for the longest time, until there is room.

    Raises:
        OSError: There is not enough, even without them; then none is removed.
    """
    used, old = 0, []
    mine = {found.path.name for found in _in_use}
    for path in folder.iterdir():
        with contextlib.suppress(OSError):  # another process removes files, too
            status = path.stat()
            if path.suffix != _SUFFIX and _is_abandoned(status):
                path.unlink()
                continue
            used += status.st_size
            if path.suffix == _SUFFIX and path.name not in mine:
                old.append((status.st_mtime, status.st_size, path))
    removable = sum(bytes_ for _, bytes_, _ in old)
    free = shutil.disk_usage(folder).free - _RESERVE
    if size > limit - (used - removable):
        raise OSError(errno.ENOSPC, f"{_mib(size)} are needed, and --disk-cache-mb is {limit >> 20}")
    if size > free + removable:
        raise OSError(
            errno.ENOSPC, f"{_mib(size)} are needed, and {_mib(max(0, free + removable))} can be used", str(folder)
        )
    for _, bytes_, path in sorted(old, key=lambda item: item[0]):
        if used + size <= limit and size <= free:
            return
        try:
            path.unlink()
        except OSError as error:  # in use, where the system does not remove such files
            _log.debug("%s is kept: %s", path, error)
            continue
        _log.info("removed %s to make room for other decoded images", path)
        used, free = used - bytes_, free + bytes_
    if used + size > limit or size > free:
        raise OSError(errno.ENOSPC, f"{_mib(size)} are needed, and older files are in use", str(folder))


def _mib(size: int) -> str:
    return f"{-(-size // 2**20)} MiB"
