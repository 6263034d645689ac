"""Where the pixels of images come from: memory, a file that is mapped into it, or image files that are decoded."""

from __future__ import annotations

import logging
from collections import deque
from collections.abc import Callable, Generator, Iterable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Protocol, TypeVar

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from krl_runtime.images.preprocessing import Preprocessing
from krl_runtime.processor import cpu_count

from .decoded import DecodedFile, checksum

__all__ = ["DecodedRows", "JoinedRows", "MappedRows", "MemoryRows", "Rows", "map_ahead"]

_log = logging.getLogger("krl")

_Item = TypeVar("_Item")
_Result = TypeVar("_Result")


def map_ahead(
    pool: ThreadPoolExecutor, function: Callable[[_Item], _Result], items: Iterable[_Item], ahead: int
) -> Generator[_Result, None, None]:
    """Yield ``function(item)`` in order, computed by a pool which is never more than ``ahead`` items ahead."""
    waiting: deque[Future[_Result]] = deque()
    try:
        for item in items:
            waiting.append(pool.submit(function, item))
            if len(waiting) > ahead:
                yield waiting.popleft().result()
        while waiting:
            yield waiting.popleft().result()
    finally:
        for future in waiting:
            future.cancel()


class Rows(Protocol):
    """Images of one size."""

    shape: tuple[int, int, int]
    """Height, width and channels."""

    def take(self, indices: npt.NDArray[np.int64], out: Tensor) -> None:
        """Put images into ``out``, ``[len(indices), H, W, C]`` of uint8, on the CPU."""
        ...


class MemoryRows:
    """Images in memory, ``[N, H, W, C]`` of uint8."""

    def __init__(self, rows: npt.NDArray[np.uint8]) -> None:
        self.shape = rows.shape[1:]
        self._rows = torch.from_numpy(rows)

    def take(self, indices: npt.NDArray[np.int64], out: Tensor) -> None:
        """Put images into ``out``; see ``Rows``."""
        torch.index_select(self._rows, 0, torch.from_numpy(indices), out=out)


class DecodedRows:
    """Images that are decoded each time."""

    def __init__(self, files: Sequence[Path], preprocessing: Preprocessing, margin: int) -> None:
        self.shape = (preprocessing.height + 2 * margin, preprocessing.width + 2 * margin, preprocessing.channels)
        self._files, self._preprocessing, self._margin = files, preprocessing, margin
        self._pool = ThreadPoolExecutor(cpu_count())

    def decode(self, index: int) -> npt.NDArray[np.uint8]:
        """Return one image, ``[H, W, C]``."""
        return self._preprocessing.interleaved(self._files[index], margin=self._margin)

    def take(self, indices: npt.NDArray[np.int64], out: Tensor) -> None:
        """Put images into ``out``; see ``Rows``."""
        rows = out.numpy()

        def put(position: int) -> None:
            rows[position] = self.decode(int(indices[position]))

        list(self._pool.map(put, range(len(indices))))


class MappedRows:
    """Images in a file that is mapped into memory, each checked the first time; a damaged one is decoded anew."""

    def __init__(self, file: DecodedFile, source: DecodedRows) -> None:
        self.shape = source.shape
        self._file, self._source = file, source
        self._checked = np.zeros(len(file.rows), bool)
        self._pool = ThreadPoolExecutor(cpu_count())
        self._logged = False

    def take(self, indices: npt.NDArray[np.int64], out: Tensor) -> None:
        """Put images into ``out``; see ``Rows``."""
        rows = out.numpy()

        def put(positions: npt.NDArray[np.int64]) -> None:
            for position in positions:
                self._put(int(indices[position]), rows[position])

        list(self._pool.map(put, np.array_split(np.arange(len(indices)), cpu_count())))

    def _put(self, index: int, out: npt.NDArray[np.uint8]) -> None:
        out[...] = self._file.rows[index]
        if self._checked[index]:
            return
        if checksum(out) == self._file.checksums[index]:
            self._checked[index] = True
        else:
            out[...] = self._source.decode(index)
            self._repair(index, out)

    def _repair(self, index: int, row: npt.NDArray[np.uint8]) -> None:
        """Write an image that was decoded anew; one that cannot be written is decoded each time."""
        if not self._logged:
            self._logged = True
            _log.warning("images in %s are damaged and are decoded anew", self._file.path)
        if checksum(row) != self._file.checksums[index]:
            return  # the image file was changed since it was hashed
        try:
            with self._file.path.open("r+b") as file:
                file.seek(index * row.nbytes)
                file.write(row.data)
        except OSError as error:
            _log.debug("%s cannot be repaired: %s", self._file.path, error)


class JoinedRows:
    """Images of one kind, and then those of another."""

    def __init__(self, first: Rows, count: int, second: Rows) -> None:
        self.shape = first.shape
        self._first, self._count, self._second = first, count, second

    def take(self, indices: npt.NDArray[np.int64], out: Tensor) -> None:
        """Put images into ``out``; see ``Rows``."""
        inside = indices < self._count
        for rows, chosen, start in ((self._first, inside, 0), (self._second, ~inside, self._count)):
            part = torch.empty(int(chosen.sum()), *self.shape, dtype=torch.uint8)
            rows.take(indices[chosen] - start, part)
            out[torch.from_numpy(chosen)] = part
