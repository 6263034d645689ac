"""An index of embedded images in memory: search, adding to it, and its file."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import numpy as np

from krl_runtime.bundle import Bundle
from krl_runtime.errors import UsageError
from krl_runtime.evaluation.neighbors import nearest, ranked, unit_vectors
from krl_runtime.pipelines.embedder import Embedder, Embedding

from .files import IndexContent, check_identity, model_identity, read_index, write_index
from .graph import build_graph, open_graph, search_graph

if TYPE_CHECKING:
    import numpy.typing as npt

__all__ = ["NONE", "Index", "Neighbor", "SearchResult"]

NONE: Final = "none of these"
"""The result of a query that no item of the index is near enough to."""

_CANDIDATES: Final = 4  # of the graph, for each neighbor: those that it misses are mostly replaced by the next ones


@dataclass(frozen=True)
class Neighbor:
    """An item of an index beside a query.

    Attributes:
        name: Its name: the path of its file, relative to the indexed folder.
        label: Its label; empty without one.
        similarity: Cosine of both embeddings, -1 to 1.
    """

    name: str
    label: str
    similarity: float


@dataclass(frozen=True)
class SearchResult:
    """The neighbors of one query.

    Attributes:
        neighbors: The nearest items, the nearest first; of equal ones the first in the index.
        known: Whether the nearest one is near enough; always true for an index without a least similarity.
    """

    neighbors: tuple[Neighbor, ...]
    known: bool

    @property
    def label(self) -> str:
        """Label of the nearest item; empty if it has none."""
        return self.neighbors[0].label

    @property
    def majority(self) -> str:
        """Most frequent label of the neighbors; of equally frequent ones that of the nearest item."""
        counts = Counter(item.label for item in self.neighbors)
        return max((item.label for item in self.neighbors), key=counts.__getitem__)  # the first of equal ones

    @property
    def similarity(self) -> float:
        """Similarity of the nearest item, -1 to 1."""
        return self.neighbors[0].similarity

    @property
    def prediction(self) -> str:
        """The result for people: the nearest item's label, or its name without one, or ``"none of these"``."""
        return (self.label or self.neighbors[0].name) if self.known else NONE

    def to_dict(self) -> dict[str, Any]:
        """Return plain JSON types."""
        return {
            "label": self.label,
            "majority": self.majority,
            "known": self.known,
            "similarity": self.similarity,
            "neighbors": [dict(item.__dict__) for item in self.neighbors],
        }

    def __str__(self) -> str:
        """Return the prediction and its similarity in one line."""
        return f"{self.prediction} {self.similarity:.3f}"


@dataclass(frozen=True, eq=False)
class Index:
    """Embedded images to search in. ``krl_runtime.index`` and ``Index.open`` make it; several threads may search.

    Attributes:
        vectors: ``[N, D]`` float32 of length 1.
        names: Name of each item.
        labels: Label of each item; empty text without one.
        made_by: The model that embedded them: ``model`` (its identity), ``bundle``, ``variant`` and ``backend``.
        least_similarity: Similarity that the nearest item of a known image has at least; ``None`` if all are known.
        calibration: How that was chosen and measured.
        path: Its file; ``None`` before it is saved.
    """

    vectors: npt.NDArray[np.float32] = field(repr=False)
    names: tuple[str, ...] = field(repr=False)
    labels: tuple[str, ...] = field(repr=False)
    made_by: Mapping[str, str]
    least_similarity: float | None = None
    calibration: Mapping[str, Any] = field(default_factory=dict, repr=False)
    path: Path | None = None
    graph: bytes | None = field(default=None, repr=False)

    @classmethod
    def of(
        cls,
        model: Embedder,
        vectors: npt.NDArray[np.float32] | Sequence[Embedding],
        names: Sequence[str],
        labels: Sequence[str] | None = None,
    ) -> Index:
        """Make an index of embeddings.

        Args:
            model: What embedded them.
            vectors: ``[N, D]``, or embeddings; at least one.
            names: Name of each, all different.
            labels: Label of each, empty text without one; ``None`` for none at all.

        Raises:
            UsageError: The arguments do not fit each other.
        """
        made_by = {
            "model": model_identity(model.bundle),
            "bundle": model.bundle.manifest.name,
            "variant": str(model.backend.variant),
            "backend": str(model.backend.name),
        }
        empty = cls(np.zeros((0, model.size), np.float32), (), (), made_by)
        return empty.add(vectors, names, labels)

    @classmethod
    def open(cls, path: str | Path, model: Embedder | Bundle | None = None) -> Index:
        """Read the file of an index.

        Args:
            path: The file, by custom ``NAME.krl.index``.
            model: The model whose embeddings are searched; an index of another one is refused.

        Raises:
            DataError: The file is missing, damaged, or of another version.
            BundleError: It was made with another model.
        """
        file = Path(path)
        content = read_index(file)
        facts = content.facts
        if model is not None:
            check_identity(facts, model.bundle if isinstance(model, Embedder) else model, file)
        return cls(
            content.vectors,
            content.names,
            content.labels,
            {name: str(facts[name]) for name in ("model", "bundle", "variant", "backend")},
            facts["least_similarity"],
            facts["calibration"],
            file,
            content.graph,
        )

    def save(self, path: str | Path) -> Index:
        """Write the index to a file, and return it with that file. Many items get a graph for fast search.

        Raises:
            DataError: It cannot be written.
        """
        graph = self.graph if self.graph is not None else build_graph(self.vectors)
        facts = {**self.made_by, "least_similarity": self.least_similarity, "calibration": dict(self.calibration)}
        write_index(Path(path), IndexContent(self.vectors, self.names, self.labels, facts, graph))
        return replace(self, path=Path(path), graph=graph)

    def add(
        self,
        vectors: npt.NDArray[np.float32] | Sequence[Embedding],
        names: Sequence[str],
        labels: Sequence[str] | None = None,
        *,
        overwrite: bool = False,
    ) -> Index:
        """Return an index with further items; this one stays as it is.

        Args:
            vectors: ``[M, D]``, or embeddings.
            names: Name of each.
            labels: Label of each; ``None`` for none at all.
            overwrite: Whether items replace those of the same name.

        Raises:
            UsageError: A name is given twice, or is in the index already; or the arguments do not fit each other.
        """
        found = _array(vectors, self.vectors.shape[1])
        given = ("",) * len(found) if labels is None else tuple(labels)
        if not len(found) == len(names) == len(given):
            raise UsageError(
                f"{len(found)} vectors, {len(names)} names and {len(given)} labels were given; give as many"
            )
        if not len(found) + len(self.names):
            raise UsageError("no vector was given; an index has at least one")
        twice = next((name for name, count in Counter(names).items() if count > 1 or "\0" in name or not name), None)
        if twice is not None:
            raise UsageError(f"the name {twice!r} is given twice, empty, or no file's; accepted: each name once")
        there = sorted(set(names) & set(self.names))
        if there and not overwrite:
            more = f" and {len(there) - 1} more" if len(there) > 1 else ""
            raise UsageError(
                f"{there[0]}{more} of the given names are in the index already; give other images, or --overwrite to "
                "replace them"
            )
        keep = [number for number, name in enumerate(self.names) if name not in set(there)] if there else None
        kept = self if keep is None else self._only(keep)
        every = np.concatenate([kept.vectors, found])
        graph = None if keep is not None or self.graph is None else build_graph(every, self.graph)
        return replace(
            kept,
            vectors=every,
            names=(*kept.names, *names),
            labels=(*kept.labels, *given),
            path=None,
            graph=graph,
        )

    def _only(self, keep: Sequence[int]) -> Index:
        """Return the index with some items alone, and without its graph."""
        names, labels = (tuple(each[number] for number in keep) for each in (self.names, self.labels))
        return replace(self, vectors=self.vectors[list(keep)], names=names, labels=labels, graph=None)

    def search(
        self,
        queries: npt.NDArray[np.float32] | Sequence[Embedding] | Embedding,
        top_k: int = 5,
        *,
        least_similarity: float | None = None,
    ) -> list[SearchResult]:
        """Return the nearest items of queries.

        Args:
            queries: ``[N, D]`` of any length above 0, embeddings, or one embedding.
            top_k: Number of neighbors, 1 or more; all items if it is larger than their number.
            least_similarity: Similarity below which a query is none of these; ``None`` for that of the index.

        Raises:
            UsageError: ``top_k`` is less than 1, or the queries are of another size or have no direction.
        """
        if top_k < 1:
            raise UsageError(f"top_k is {top_k}; accepted: 1 or more")
        vectors = _array([queries] if isinstance(queries, Embedding) else queries, self.vectors.shape[1])
        indices, similarities = self.neighbors(vectors, top_k)
        least = self.least_similarity if least_similarity is None else least_similarity
        return [
            SearchResult(
                tuple(
                    Neighbor(self.names[index], self.labels[index], float(near))
                    for index, near in zip(row, nears, strict=True)
                ),
                least is None or bool(nears[0] >= least),
            )
            for row, nears in zip(indices.tolist(), similarities.tolist(), strict=True)
        ]

    def neighbors(
        self, vectors: npt.NDArray[np.float32], count: int
    ) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.float32]]:
        """Return positions and similarities of the nearest items, ``[N, count]`` each.

        Args:
            vectors: ``[N, D]`` float32 of length 1.
            count: Number of neighbors; with fewer items all of them.
        """
        wanted = _CANDIDATES * count
        if self._graph is not None and wanted < len(self.names) and len(vectors):
            candidates = search_graph(self._graph, vectors, wanted)
            if candidates is not None:
                return ranked(vectors, self.vectors, candidates, count)
        return nearest(vectors, self.vectors, count)

    @cached_property
    def _graph(self) -> Any:
        """The graph to search in; ``None`` for exact search."""
        return None if self.graph is None else open_graph(self.graph, *self.vectors.shape)

    def __len__(self) -> int:
        """Return the number of items."""
        return len(self.names)

    def to_dict(self) -> dict[str, Any]:
        """Return plain JSON types, without the items."""
        return {
            "index": None if self.path is None else str(self.path),
            "count": len(self),
            "size": self.vectors.shape[1],
            "labels": len(set(self.labels) - {""}),
            "made_by": dict(self.made_by),
            "least_similarity": self.least_similarity,
            "calibration": dict(self.calibration),
            "search": "exact" if self.graph is None else "graph",
        }


def _array(vectors: npt.NDArray[np.float32] | Sequence[Embedding], size: int) -> npt.NDArray[np.float32]:
    """Return vectors ``[N, size]`` of length 1.

    Raises:
        UsageError: They are of another size, or have no direction.
    """
    rows = vectors if isinstance(vectors, np.ndarray) else [item.vector for item in vectors]
    array = np.asarray(rows, np.float32) if len(rows) else np.zeros((0, size), np.float32)
    if array.ndim != 2 or array.shape[1] != size:
        raise UsageError(f"the vectors have shape {list(array.shape)}; accepted: [number, {size}]")
    found = unit_vectors(array)
    if not found.any(axis=1).all():
        raise UsageError("a vector is zero or has numbers that are not finite; accepted: vectors with a direction")
    return found
