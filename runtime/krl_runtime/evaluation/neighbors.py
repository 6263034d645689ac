"""Nearest neighbors by the cosine: exact, in NumPy, and in blocks of bounded memory."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, Final, TypeAlias

import numpy as np
import numpy.typing as npt

from krl_runtime.progress import progress

__all__ = [
    "BLOCK",
    "TIE",
    "Vectors",
    "cosines",
    "directed",
    "nearest",
    "neighbor_blocks",
    "neighbors",
    "ranked",
    "unit_vectors",
]

Vectors: TypeAlias = "npt.NDArray[np.float32]"

BLOCK: Final = 1 << 24
"""Similarities that are held at a time: 64 MiB of float32, and as many queries as one product is fast with."""
TIE: Final = 1e-6
"""Similarities that are no further apart count as equal: a float32 product of 1024 dimensions is right to 2e-7."""
_DIGITS: Final = 7  # of a similarity: float32 has seven, and equal vectors at other places of a product stay equal


def unit_vectors(vectors: npt.NDArray[Any]) -> Vectors:
    """Return vectors of length 1.

    Args:
        vectors: ``[N, D]``.

    Returns:
        ``[N, D]`` float32. A vector without a direction, of zeros or with a value that is not finite, becomes zeros.

    Example:
        >>> unit_vectors(np.array([[3.0, 4.0], [0.0, 0.0]]))
        array([[0.6, 0.8],
               [0. , 0. ]], dtype=float32)
    """
    made = np.empty(vectors.shape, np.float32)
    step = max(1, BLOCK // (2 * max(1, vectors.shape[1])))
    for start in range(0, len(vectors), step):
        wide = vectors[start : start + step].astype(np.float64)
        lengths = np.sqrt(np.einsum("ij,ij->i", wide, wide))[:, None]
        known = np.isfinite(lengths) & (lengths > 0)
        made[start : start + step] = np.where(known, wide / np.where(known, lengths, 1.0), 0.0)
    return made


def directed(vectors: Vectors) -> npt.NDArray[np.bool_]:
    """Return which vectors have a direction, ``[N]``: ``unit_vectors`` made the others zeros."""
    return np.asarray(vectors.any(axis=1))


def cosines(one: Vectors, other: Vectors) -> npt.NDArray[np.float64]:
    """Return the dot product of each vector with its partner, ``[N]``: both are ``[N, D]``."""
    return np.asarray(np.einsum("ij,ij->i", one.astype(np.float64), other.astype(np.float64)))


def neighbor_blocks(
    queries: Vectors, gallery: Vectors, k: int, *, exclude_self: bool, description: str | None = None
) -> Iterator[tuple[slice, npt.NDArray[np.int64], Vectors]]:
    """Yield the neighbors of some queries at a time: which queries, and as ``nearest`` returns."""
    step = max(1, BLOCK // max(1, len(gallery)))
    starts = range(0, len(queries), step)
    for start in starts if description is None else progress(starts, description):
        block = slice(start, min(start + step, len(queries)))
        near = queries[block] @ gallery.T
        rows = np.arange(len(near))
        if exclude_self:
            near[rows, rows + start] = -np.inf
        least = np.partition(near, -k, axis=1)[:, -k]
        # Candidates within the rounding of the product are compared again, so that the order depends on no block.
        row, column = np.nonzero(near >= np.maximum(least - TIE, np.finfo(np.float32).min)[:, None])
        yield block, *_ordered(queries[block], gallery, row, column, k)


def _ordered(
    queries: Vectors, gallery: Vectors, row: npt.NDArray[np.int64], column: npt.NDArray[np.int64], k: int
) -> tuple[npt.NDArray[np.int64], Vectors]:
    """Return the ``k`` nearest of candidates, ``[N, k]``: pairs of a query, in rising order, and a vector."""
    step = max(1, BLOCK // (4 * queries.shape[1]))  # pairs whose vectors take 32 MiB each side in float64
    found = np.concatenate(
        [cosines(queries[row[at : at + step]], gallery[column[at : at + step]]) for at in range(0, len(row), step)]
    ).round(_DIGITS)
    order = np.lexsort((column, -found, row))
    chosen = order[np.searchsorted(row, np.arange(len(queries)))[:, None] + np.arange(k)]
    return column[chosen], found[chosen].astype(np.float32)


def ranked(
    queries: Vectors, gallery: Vectors, candidates: npt.NDArray[np.int64], k: int
) -> tuple[npt.NDArray[np.int64], Vectors]:
    """Return the nearest of some candidates, by the exact similarity.

    Args:
        queries: ``[N, D]`` float32 of length 1.
        gallery: ``[M, D]``, the same.
        candidates: Indices in the gallery, ``[N, C]`` with ``C`` at least ``k``.
        k: Number of neighbors, at least 1.

    Returns:
        As of ``nearest``.
    """
    row = np.repeat(np.arange(len(queries)), candidates.shape[1])
    return _ordered(queries, gallery, row, candidates.ravel(), k)


def nearest(
    queries: Vectors, gallery: Vectors, k: int, *, exclude_self: bool = False, description: str | None = None
) -> tuple[npt.NDArray[np.int64], Vectors]:
    """Return the nearest vectors of a gallery, by exact search.

    Args:
        queries: ``[N, D]`` float32 of length 1, as ``unit_vectors`` makes them.
        gallery: ``[M, D]``, the same.
        k: Number of neighbors, at least 1; with fewer in the gallery all of them.
        exclude_self: Whether the gallery is the queries, and no vector is its own neighbor.
        description: Text of a progress bar; ``None`` shows none.

    Returns:
        Their indices in the gallery ``[N, k]``, the nearest first and the lower index first of equal ones, and their
        similarities ``[N, k]`` float32, -1 to 1.
    """
    k = min(k, len(gallery) - exclude_self)
    shape = (len(queries), max(0, k))
    indices, similarities = np.zeros(shape, np.int64), np.zeros(shape, np.float32)
    if k > 0:
        for block, found, near in neighbor_blocks(
            queries, gallery, k, exclude_self=exclude_self, description=description
        ):
            indices[block], similarities[block] = found, near
    return indices, similarities


def neighbors(
    queries: npt.NDArray[Any], gallery: npt.NDArray[Any], k: int, *, exclude_self: bool = False
) -> tuple[npt.NDArray[np.int64], Vectors]:
    """Return the nearest vectors of a gallery by their cosine; see ``nearest``.

    Args:
        queries: ``[N, D]`` of any length.
        gallery: ``[M, D]`` of any length.
        k: As of ``nearest``.
        exclude_self: As of ``nearest``.

    Returns:
        As of ``nearest``.

    Example:
        >>> neighbors(np.eye(2), np.array([[0.0, 2.0], [1.0, 1.0]]), 1)[0].tolist()
        [[1], [0]]
    """
    return nearest(unit_vectors(queries), unit_vectors(gallery), k, exclude_self=exclude_self)
