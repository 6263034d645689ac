"""From image files to their pixels: each file is hashed and decoded once, and both are remembered."""

from __future__ import annotations

import errno
import logging
from collections.abc import Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import IO, TypeAlias, cast

import numpy as np
import numpy.typing as npt
import torch

from krl_runtime.errors import DataError, ImageError
from krl_runtime.files import sha256_bytes
from krl_runtime.images.folders import ImageFile, OnBadImage, report_bad
from krl_runtime.images.formats import describe, translated
from krl_runtime.images.hashes import HashedFile, decodable, hash_files, remember_decodable
from krl_runtime.images.preprocessing import Preprocessing
from krl_runtime.processor import cpu_count
from krl_runtime.progress import progress_bar

from .decoded import (
    DecodedFile,
    DecodedWriter,
    checksum,
    new_decoded_file,
    open_decoded_file,
    pixels_key,
    wait_for_decoded_file,
)
from .rows import DecodedRows, MappedRows, MemoryRows, Rows, map_ahead

__all__ = ["ReadImages", "read_images"]

_log = logging.getLogger("krl")

_BLOCK = 16  # images that a thread decodes in turn: small ones take less time than handing them over
_AHEAD = 4  # blocks for each CPU that wait to be written: enough when the disk pauses, and bounded in memory
_WORTH_KEEPING = 16 * 2**20  # decoded bytes; images that fit in memory and take less are decoded in about a second

_Numbered: TypeAlias = "tuple[int, ImageFile]"


@dataclass(frozen=True)
class ReadImages:
    """Images that can be decoded.

    Attributes:
        rows: Their pixels.
        images: Their files.
        hashes: SHA-256 of each file.
        identity: Hash of the files, their labels, and how they are decoded.
    """

    rows: Rows
    images: tuple[ImageFile, ...]
    hashes: list[str]
    identity: str


@dataclass(frozen=True)
class _Block:
    """Some of the images, decoded: those that can be, by number the SHA-256 of their files, and the others' errors."""

    rows: npt.NDArray[np.uint8]
    hashes: dict[int, str]
    checksums: list[int]
    errors: list[ImageError]


@dataclass(frozen=True)
class _Reader:
    images: Sequence[ImageFile]
    preprocessing: Preprocessing
    margin: int
    on_bad: OnBadImage

    @property
    def shape(self) -> tuple[int, int, int]:
        """Height, width and channels of an image."""
        channels, height, width = self.preprocessing.shape
        return height + 2 * self.margin, width + 2 * self.margin, channels

    def decode(self, block: Sequence[_Numbered]) -> _Block:
        """Decode some images, each with its number."""
        rows, errors = np.empty((len(block), *self.shape), np.uint8), []
        hashes: dict[int, str] = {}
        for position, image in block:
            try:
                with translated(describe(image.path)), image.path.open("rb") as file:
                    source = HashedFile(file, str(image.path))
                    pixels = self.preprocessing.interleaved(cast("IO[bytes]", source), margin=self.margin)
            except ImageError as error:
                errors.append(error)
            else:
                rows[len(hashes)] = pixels
                hashes[position] = source.sha256()
        rows = rows[: len(hashes)]
        return _Block(rows, hashes, [checksum(row) for row in rows], errors)

    def decode_all(
        self,
        numbered: Sequence[_Numbered],
        memory: npt.NDArray[np.uint8] | None = None,
        writer: DecodedWriter | None = None,
    ) -> dict[int, str]:
        """Decode images, put them into memory and give them to a writer.

        Returns:
            For the number of each that can be decoded, the SHA-256 of the bytes that it was decoded from.

        Raises:
            DataError: One cannot be decoded, and bad images are refused.
        """
        kept: dict[int, str] = {}
        errors: list[ImageError] = []
        blocks = [numbered[start : start + _BLOCK] for start in range(0, len(numbered), _BLOCK)]
        description = "checking images" if memory is None and writer is None else "decoding images"
        with ThreadPoolExecutor(cpu_count()) as pool, progress_bar(description, len(numbered)) as advance:
            for block in map_ahead(pool, self.decode, blocks, _AHEAD * cpu_count()):
                if memory is not None:
                    memory[len(kept) : len(kept) + len(block.rows)] = block.rows
                if writer is not None:
                    writer.add(block.rows, block.checksums, list(block.hashes))
                kept |= block.hashes
                errors += block.errors
                for _ in range(len(block.rows) + len(block.errors)):
                    advance()
        report_bad(errors, self.on_bad)
        return kept

    def source(self, positions: Iterable[int]) -> DecodedRows:
        """Return images that are decoded each time."""
        return DecodedRows([self.images[index].path for index in positions], self.preprocessing, self.margin)


def read_images(
    images: Sequence[ImageFile],
    preprocessing: Preprocessing,
    *,
    margin: int,
    on_bad: OnBadImage,
    memory_limit: int,
    disk_limit: int,
) -> ReadImages:
    """Read image files: into memory where they fit, else into a file of decoded images, else in each epoch.

    Args:
        images: What to read.
        preprocessing: From an image to ``uint8``.
        margin: Extra pixels on every side.
        on_bad: What to do with files that cannot be decoded.
        memory_limit: Bytes of decoded images that may be kept in memory.
        disk_limit: Bytes that all files of decoded images may take.

    Raises:
        DataError: No image can be decoded, or one cannot and ``on_bad`` is ``"refuse"``.
    """
    reader = _Reader(images, preprocessing, margin, on_bad)
    hashes = hash_files([image.path for image in images], accept_unreadable=True)
    key = pixels_key(hashes, preprocessing, margin)
    size = len(images) * int(np.prod(reader.shape))
    fits = size <= memory_limit
    rows, kept = _rows(reader, hashes, key, 0 if fits and size < _WORTH_KEEPING else disk_limit, fits=fits)
    if not kept:
        raise DataError("no image is left: none of the files can be decoded")
    used, chosen = [images[index] for index in kept], list(kept.values())
    labels = (image.label if image.present is None else sorted(image.present) for image in used)
    labeled = ",".join(f"{label}:{digest}" for label, digest in zip(labels, chosen, strict=True))
    identity = sha256_bytes(f"{pixels_key(chosen, preprocessing, margin)}:{labeled}".encode())
    return ReadImages(rows, tuple(used), chosen, identity)


def _rows(
    reader: _Reader, hashes: Sequence[str], key: str, disk_limit: int, *, fits: bool
) -> tuple[Rows, dict[int, str]]:
    """Return pixels, and for the number of each image that can be decoded the SHA-256 of its file."""
    found = _open(reader, key) if disk_limit else None
    if found is not None:
        kept = {index: hashes[index] for index in found.positions.tolist()}
        mapped = MappedRows(found, reader.source(kept))
        return (_loaded(mapped, len(kept)) if fits else mapped), kept
    memory = np.empty((len(reader.images), *reader.shape), np.uint8) if fits else None
    try:
        kept = _decode(reader, hashes, key, disk_limit, memory)
    except FileExistsError:  # another process was quicker to begin the file
        return _rows(reader, hashes, key, disk_limit, fits=fits)
    if memory is not None:
        return MemoryRows(memory[: len(kept)]), kept
    found = open_decoded_file(key, len(reader.images), reader.shape) if disk_limit else None
    source = reader.source(kept)
    return (source if found is None else MappedRows(found, source)), kept


def _open(reader: _Reader, key: str) -> DecodedFile | None:
    """Return decoded images that are on disk; files that could not be decoded are tried again, for their errors."""
    wait_for_decoded_file(key)
    found = open_decoded_file(key, len(reader.images), reader.shape)
    if found is None:
        return None
    known = set(found.positions.tolist())
    others = [(index, image) for index, image in enumerate(reader.images) if index not in known]
    return None if others and reader.decode_all(others) else found


def _loaded(rows: Rows, count: int) -> MemoryRows:
    """Read images into memory."""
    memory = np.empty((count, *rows.shape), np.uint8)
    rows.take(np.arange(count), torch.from_numpy(memory))
    return MemoryRows(memory)


def _decode(
    reader: _Reader, hashes: Sequence[str], key: str, disk_limit: int, memory: npt.NDArray[np.uint8] | None
) -> dict[int, str]:
    """Decode all images, into memory and to disk as far as there is room.

    Returns:
        For the number of each that can be decoded, the SHA-256 of its file: of the bytes that were decoded.

    Raises:
        FileExistsError: Another process writes the decoded images to disk.
    """
    numbered = list(enumerate(reader.images))
    kept: dict[int, str] | None = None
    if disk_limit:
        try:
            with new_decoded_file(key, len(numbered), reader.shape, disk_limit) as writer:
                kept = reader.decode_all(numbered, memory, writer)
                _check_unchanged(reader.images, hashes, kept)
                writer.finish(len(numbered))
        except FileExistsError:
            raise
        except OSError as error:
            instead = "decoded in each epoch" if memory is None else "decoded again at the next start"
            _log.log(
                logging.WARNING if memory is None else logging.INFO,
                "decoded images are not kept on disk, and are %s: %s",
                *(instead, error.strerror or error),
            )
    if kept is None and memory is not None:
        kept = reader.decode_all(numbered, memory)
    if kept is None:  # they are decoded in each epoch: those that were decoded before need no check
        known = decodable(hashes)
        checked = reader.decode_all([item for item in numbered if hashes[item[0]] not in known])
        kept = checked | {index: digest for index, digest in enumerate(hashes) if digest in known}
        remember_decodable(checked.values())
    else:
        remember_decodable(kept.values())
    return dict(sorted(kept.items()))


def _check_unchanged(images: Sequence[ImageFile], hashes: Sequence[str], decoded: Mapping[int, str]) -> None:
    """Check that files were decoded from the bytes that the name of a file of decoded images stands for.

    Raises:
        OSError: One was changed after it was hashed.
    """
    for index, digest in decoded.items():
        if digest != hashes[index]:
            raise OSError(errno.EIO, f"image {images[index].path} was changed while it was read")
