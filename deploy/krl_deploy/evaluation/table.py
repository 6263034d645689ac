"""The table that ``quantize`` and ``fp16`` print: one line for each variant of the model."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from krl_runtime.cli.tables import table

from . import Scored

__all__ = ["Row", "score_table"]


@dataclass(frozen=True)
class Row:
    """One variant of the model.

    Attributes:
        variant: Its name.
        file_bytes: Size of its ONNX file.
        score: Score on images.
        latency_ms: Median time of one call with one image; ``None`` if it was not measured.
    """

    variant: str
    file_bytes: int
    score: Scored
    latency_ms: float | None = None


def score_table(rows: Iterable[Row], remark: str = "") -> str:
    """Return the table, and a remark below it; the first row is the reference of the others."""
    rows = list(rows)
    reference = rows[0].score

    def cells(row: Row) -> tuple[object, ...]:
        latency = None if row.latency_ms is None else f"{row.latency_ms:.3f}"
        return row.variant, f"{row.file_bytes / 2**20:.2f}", *row.score.cells(reference), latency

    shown = table(("variant", "file MiB", *reference.HEADER, "CPU latency ms"), [cells(row) for row in rows])
    return f"{shown}\n{remark}" if remark else shown
