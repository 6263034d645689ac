"""Approximate search in many vectors with usearch's HNSW graph. Below ``LARGE`` vectors search is exact.

usearch follows what a graph says without checks: a changed one overwrites memory. So a graph is like an engine. It is
used if this user built it on this machine, as the registry of engines says, and else search is exact.
"""

from __future__ import annotations

import logging
from importlib import import_module, metadata
from importlib.util import find_spec
from typing import TYPE_CHECKING, Any, Final

import numpy as np

from krl_runtime.backends.tensorrt.registry import BuiltEngine, find_engine, register_engine
from krl_runtime.errors import BackendError, MissingExtraError, require
from krl_runtime.files import sha256_bytes
from krl_runtime.processor import cpu_count
from krl_runtime.progress import progress

if TYPE_CHECKING:
    import numpy.typing as npt

__all__ = ["LARGE", "build_graph", "open_graph", "search_graph"]

_log = logging.getLogger("krl")

LARGE: Final = 100_000
"""Vectors above which a graph is built: exact search of so many takes some 10 ms for a query on one core, which is no
more than the network that embedded it. See ``benchmarks/runtime/retrieval.py``."""

_NAME: Final = "usearch"
"""Of the library, in the registry."""

_CONNECTIVITY: Final = 16  # neighbors of a node; usearch's own default
_EXPANSION_ADD: Final = 128  # candidates while the graph is built; usearch's own default
_EXPANSION: Final = 128  # candidates of a search: measured, see ``benchmarks/runtime/retrieval.py``
_TYPE: Final = "f16"  # of the graph's copy of the vectors, whose candidates are compared again in full
_AT_ONCE: Final = 5_000  # vectors between two steps of the progress bar


def _library() -> Any:
    """Return usearch; ``None``, with the reason in the log, where it is not installed."""
    # A process that imports usearch 2.26 and then ONNX Runtime 1.32 crashes (Linux, x86-64); the other order works.
    if find_spec("onnxruntime"):
        import_module("onnxruntime")
    try:
        return require("usearch.index", extra="index", purpose=f"fast search of more than {LARGE} images")
    except MissingExtraError as error:
        _log.warning("search is exact, and slower: %s", error)
        return None


def build_graph(vectors: npt.NDArray[np.float32], known: bytes | None = None) -> bytes | None:
    """Return the graph of vectors.

    Args:
        vectors: ``[N, D]`` of length 1.
        known: A graph of the first of them, which is extended.

    Returns:
        Its bytes; ``None`` for so few that search is exact, and where usearch is not installed, which is logged.
    """
    if len(vectors) <= LARGE or (library := _library()) is None:
        return None
    graph = None if known is None or not _built_here(known) else library.Index.restore(known)
    if graph is None:
        graph = library.Index(
            ndim=vectors.shape[1],
            metric="ip",
            dtype=_TYPE,
            connectivity=_CONNECTIVITY,
            expansion_add=_EXPANSION_ADD,
        )
    for start in progress(range(len(graph), len(vectors), _AT_ONCE), "building the graph"):
        end = min(start + _AT_ONCE, len(vectors))
        graph.add(np.arange(start, end), vectors[start:end], threads=cpu_count())
    data = bytes(graph.save(None))
    try:
        register_engine(BuiltEngine(sha256_bytes(data), _NAME, metadata.version(_NAME)))
    except BackendError as error:
        _log.warning("the graph is written, and search here is exact all the same: %s", error)
    return data


def _built_here(data: bytes) -> bool:
    """Return whether this user built a graph on this machine."""
    found = find_engine(sha256_bytes(data))
    return found is not None and found.library == _NAME


def open_graph(data: bytes, count: int, size: int) -> Any:
    """Return a graph to search in; ``None``, with the reason in the log, if it cannot be used.

    Args:
        data: Its bytes, which have to be those of a graph that was built here.
        count: Number of vectors that it has to have.
        size: Their dimensions.
    """
    if not _built_here(data):
        _log.warning(
            "search is exact, and slower: the graph of the index was not built by this user on this machine; build it "
            "here with: krl-runtime index NAME.krl"
        )
        return None
    if (library := _library()) is None:
        return None
    try:
        graph = library.Index.restore(data)
    except Exception as error:  # the library raises types of its own
        _log.warning("search is exact, and slower: the graph of the index cannot be read (%s)", error)
        return None
    if graph is None or len(graph) != count or graph.ndim != size:
        _log.warning("search is exact, and slower: the graph of the index is of other vectors; make the index again")
        return None
    graph.expansion_search = _EXPANSION
    return graph


def search_graph(graph: Any, queries: npt.NDArray[np.float32], count: int) -> npt.NDArray[np.int64] | None:
    """Return candidates for the neighbors of queries ``[N, D]``: indices ``[N, count]``.

    Returns ``None`` if the graph gives fewer than were asked for.
    """
    found = graph.search(queries, count, threads=min(cpu_count(), len(queries)))
    # The result for one query has another type, which holds as many keys as were found.
    if min(getattr(found, "counts", [len(found.keys)])) < count:
        return None
    return np.asarray(found.keys, np.int64).reshape(len(queries), count)
