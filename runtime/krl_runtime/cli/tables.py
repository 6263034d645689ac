"""Plain-text tables."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence

__all__ = ["table"]


def table(header: Sequence[str], rows: Iterable[Sequence[object]]) -> str:
    """Return a plain-text table; columns whose every cell is a number are aligned to the right.

    Args:
        header: Column titles.
        rows: One sequence of cells for each row; ``None`` is shown as a dash, and a float is rounded to 4 digits.
    """
    cells = [[_shown(cell) for cell in row] for row in rows]
    widths = [max(len(line[i]) for line in [list(header), *cells]) for i in range(len(header))]
    numeric = [bool(cells) and all(_is_number(row[i]) for row in cells) for i in range(len(header))]

    def line(items: Sequence[str]) -> str:
        padded = (
            item.rjust(width) if right else item.ljust(width)
            for item, width, right in zip(items, widths, numeric, strict=True)
        )
        return "  ".join(padded).rstrip()

    return "\n".join([line(list(header)), "  ".join("-" * width for width in widths), *(line(row) for row in cells)])


def _shown(cell: object) -> str:
    if cell is None:
        return "-"
    if isinstance(cell, float) and math.isfinite(cell):
        return f"{cell:.0f}" if abs(cell) >= 1000 else f"{cell:.4g}"  # not 1.235e+03
    return str(cell)


def _is_number(cell: str) -> bool:
    return cell == "-" or cell[:1].isdigit() or (cell[:1] in "+-−<≤≥>" and cell[1:2].isdigit())
