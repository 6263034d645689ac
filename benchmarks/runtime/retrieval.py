"""Search in an index: exact in NumPy, and with usearch's graph, of ten thousand vectors on.

The vectors are clustered, a hundred around each center, as those of a trained network are; uniform ones have no near
neighbors, and say nothing of a graph. Queries are further vectors of the clusters, searched one by one, both ways in
turn. Memory is what a new process needs more, after it opened the index and searched once.

    python benchmarks/runtime/retrieval.py --counts 10000 100000
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
from dataclasses import replace
from pathlib import Path
from statistics import median
from time import perf_counter
from typing import Any

os.environ.setdefault("OMP_NUM_THREADS", "1")

import numpy as np
from _common import machine, options

from krl_runtime.cli.tables import table
from krl_runtime.evaluation.neighbors import unit_vectors
from krl_runtime.retrieval import graph
from krl_runtime.retrieval.gallery import Index

NEIGHBORS, PER_CLUSTER, SPREAD = 10, 100, 0.7
MADE_BY = {"model": "", "bundle": "benchmark", "variant": "fp32", "backend": "none"}


def vectors(count: int, queries: int, size: int) -> tuple[np.ndarray, np.ndarray]:
    """Return clustered vectors ``[count, size]`` and queries ``[queries, size]`` of length 1."""
    generator = np.random.default_rng(0)
    centers = generator.standard_normal((max(1, count // PER_CLUSTER), size)).astype(np.float32)
    chosen = centers[generator.integers(0, len(centers), count + queries)]
    chosen += SPREAD * generator.standard_normal(chosen.shape).astype(np.float32)
    every = unit_vectors(chosen)
    return every[:count], every[count:]


def resident() -> float:
    """Return the resident memory of this process in MiB."""
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return pages * os.sysconf("SC_PAGE_SIZE") / 2**20


def opened(path: Path, exact: bool) -> Index:
    """Return an index, which searches exactly or with its graph."""
    index = Index.open(path)
    return replace(index, graph=None) if exact else index


def child(path: Path, exact: bool) -> None:
    """Print what a process needs to open an index and to search in it once."""
    graph._library()  # whose code is no part of either index
    before, begin = resident(), perf_counter()
    index = opened(path, exact)
    index.neighbors(index.vectors[:1].copy(), NEIGHBORS)
    print(json.dumps({"mib": resident() - before, "open_ms": (perf_counter() - begin) * 1e3}))


def memory(path: Path, exact: bool) -> dict[str, float]:
    """Return memory in MiB, and the time to open and to search once, of a new process."""
    command = [sys.executable, __file__, "--child", str(path), *(["--exact"] if exact else [])]
    found: dict[str, float] = json.loads(subprocess.run(command, check=True, capture_output=True, text=True).stdout)
    return found


def measure(count: int, queries: int, size: int, folder: Path) -> list[dict[str, Any]]:
    """Return the figures of exact search and of the graph."""
    gallery, asked = vectors(count, queries, size)
    names = tuple(f"{number}.png" for number in range(count))
    begin = perf_counter()
    made = graph.build_graph(gallery)
    seconds = perf_counter() - begin
    index = Index(gallery, names, ("",) * count, MADE_BY)
    files = {"exact": folder / "exact.index", "graph": folder / "graph.index"}
    limit, graph.LARGE = graph.LARGE, count  # the exact one is written without a graph
    index.save(files["exact"])
    replace(index, graph=made).save(files["graph"])
    graph.LARGE = limit
    found = {name: opened(file, name == "exact") for name, file in files.items()}
    times: dict[str, list[float]] = {name: [] for name in found}
    results: dict[str, list[Any]] = {name: [] for name in found}
    for query in asked[:, None]:
        for name, each in found.items():
            begin = perf_counter()
            indices, _ = each.neighbors(query, NEIGHBORS)
            times[name].append((perf_counter() - begin) * 1e3)
            results[name].append(indices[0].tolist())
    pairs = list(zip(results["graph"], results["exact"], strict=True))
    rows = []
    for name, file in files.items():
        exact = name == "exact"
        rows.append(
            {
                "vectors": count,
                "search": name,
                "ms": median(times[name]),
                "recall_at_1": 1.0 if exact else float(np.mean([one[0] == other[0] for one, other in pairs])),
                "recall_at_10": 1.0
                if exact
                else float(np.mean([len(set(one) & set(other)) / NEIGHBORS for one, other in pairs])),
                "build_s": 0.0 if exact else seconds,
                "file_mib": file.stat().st_size / 2**20,
                **memory(file, exact),
            }
        )
    return rows


def main() -> None:
    """Measure, and print a table."""
    parser = options(__doc__.partition("\n")[0], queries=200, size=128)
    parser.add_argument("--counts", type=int, nargs="+", default=[10_000, 100_000], metavar="N", help="vectors")
    parser.add_argument("--child", type=Path, help="of the measurement of memory")
    parser.add_argument("--exact", action="store_true", help="of the measurement of memory")
    arguments = parser.parse_args()
    if arguments.child is not None:
        child(arguments.child, arguments.exact)
        return
    graph.LARGE = 0  # a graph of few vectors as well
    rows: list[dict[str, Any]] = []
    for count in arguments.counts:
        with tempfile.TemporaryDirectory() as folder:
            os.environ["XDG_STATE_HOME"] = folder  # the graphs are entered in a registry that goes with them
            rows += measure(count, arguments.queries, arguments.size, Path(folder))
    if arguments.json:
        print(json.dumps({"machine": machine(), "rows": rows}))
        return
    header = (
        "vectors",
        "search",
        "ms a query",
        "recall@1",
        "recall@10",
        "build s",
        "file MiB",
        "memory MiB",
        "open ms",
    )
    cells = [
        (
            f"{row['vectors']:,}",
            row["search"],
            f"{row['ms']:.2f}",
            f"{row['recall_at_1']:.1%}",
            f"{row['recall_at_10']:.1%}",
            f"{row['build_s']:.1f}",
            f"{row['file_mib']:.1f}",
            f"{row['mib']:.0f}",
            f"{row['open_ms']:.0f}",
        )
        for row in rows
    ]
    print(machine())
    print(table(header, cells))


if __name__ == "__main__":
    main()
