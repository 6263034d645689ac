"""The table that ``quantize`` and ``half`` print: one line for each form of the model."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from krl_runtime.commandline import table

from .verify import Score

__all__ = ["Row", "score_table"]


@dataclass(frozen=True)
class Row:
    """One form of the model.

    Attributes:
        form: Its name.
        file_bytes: Size of its ONNX file.
        score: What was measured on pictures.
        latency_ms: Median time of one call with one picture; ``None`` where it was not measured.
    """

    form: str
    file_bytes: int
    score: Score
    latency_ms: float | None = None


def score_table(rows: Iterable[Row]) -> str:
    """Return the table; the first row is the reference of the others."""
    rows = list(rows)
    reference = rows[0].score.top1

    def cells(row: Row) -> tuple[object, ...]:
        top1 = row.score.top1
        return (
            row.form,
            f"{row.file_bytes / 2**20:.2f}",
            None if top1 is None else f"{top1:.2%}",
            None if top1 is None or reference is None else f"{(reference - top1) * 100:.2f}",
            f"{row.score.agreement:.2%}",
            f"{row.score.max_error:.4g}",
            None if row.latency_ms is None else f"{row.latency_ms:.3f}",
        )

    header = ("variant", "file MiB", "top-1", "drop in points", "agreement", "largest logit error", "CPU latency ms")
    return table(header, [cells(row) for row in rows])
