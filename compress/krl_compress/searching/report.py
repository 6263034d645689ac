"""The result of a search: a table, a plot, and which students are best at their price."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path

from krl_runtime.cli.tables import table

from .budgets import Budget, show_amount
from .state import Point, State

__all__ = ["PLOT", "TABLE", "pareto", "show", "write_report"]

PLOT, TABLE = "search.png", "search.md"
"""Names of the plot and of the table in the search's folder."""

_HEADER = ("student", "precision", "epochs", "quality", "latency", "size", "MACs", "parameters", "")


def pareto(points: Iterable[Point]) -> set[tuple[str, str]]:
    """Return student and precision of the points that no other one beats: none as fast or faster is better.

    Args:
        points: Students of the same number of epochs.
    """
    found: set[tuple[str, str]] = set()
    best = float("-inf")
    for point in sorted(points, key=lambda point: (_latency(point), -point.quality)):
        if point.quality > best:
            best = point.quality
            found.add((point.trial.student, point.precision))
    return found


def _latency(point: Point) -> float:
    return point.cost.macs if point.cost.latency is None else point.cost.latency


def _rows(state: State) -> list[tuple[str, ...]]:
    points = sorted(state.points(), key=lambda point: (-point.trial.epochs, -point.quality))
    front = pareto(points)
    chosen = (state.result.get("student"), state.result.get("precision"))
    rows: list[tuple[str, ...]] = []
    for point in points:
        cost, name = point.cost, (point.trial.student, point.precision)
        error = point.trial.errors.get(point.precision)
        latency = "-" if cost.latency is None else show_amount("latency", cost.latency)
        rows.append(
            (
                *name,
                str(point.trial.epochs),
                f"{point.quality:.4f}" + (f" ± {error:.4f}" if error is not None else ""),
                latency + (" (predicted)" if cost.predicted else ""),
                show_amount("size", cost.size),
                show_amount("macs", cost.macs),
                str(cost.parameters),
                "chosen" if name == chosen else "best at its price" if name in front else "",
            )
        )
    return rows


def show(state: State) -> str:
    """Return the students as a table for people."""
    return table(_HEADER, _rows(state))


def write_report(state: State, budgets: Sequence[Budget], folder: Path) -> None:
    """Write the table and the plot."""
    from krl_runtime.files import write_atomic

    lines = [f"| {' | '.join(_HEADER)} |", "|" + "---|" * len(_HEADER)]
    lines += [f"| {' | '.join(row)} |" for row in _rows(state)]
    asked = ", ".join(map(str, budgets))
    note = f"Budget: {asked}. Each student as trained longest; ± is one standard error on the validation images."
    write_atomic(folder / TABLE, "\n".join([*lines, "", note, ""]).encode())
    _plot(state, budgets, folder / PLOT)


def _plot(state: State, budgets: Sequence[Budget], path: Path) -> None:
    """Draw quality against latency: a mark for each student and precision, and the line of the best at their price."""
    from matplotlib.figure import Figure

    points = list(state.points())
    measured = all(point.cost.latency is not None for point in points)
    figure = Figure(figsize=(7.5, 5), layout="constrained")
    axes = figure.add_subplot()
    marks = {"fp32": "o", "fp16": "s", "int8": "^"}
    epochs = sorted({point.trial.epochs for point in points})
    for index, number in enumerate(epochs):
        for precision, mark in marks.items():
            chosen = [point for point in points if (point.trial.epochs, point.precision) == (number, precision)]
            if chosen:
                axes.scatter(
                    [_latency(point) for point in chosen],
                    [point.quality for point in chosen],
                    marker=mark,
                    color=f"C{index}",
                    label=f"{precision}, {number} epochs",
                )
    front = pareto(points)
    line = sorted(
        (_latency(point), point.quality) for point in points if (point.trial.student, point.precision) in front
    )
    axes.plot(
        [x for x, _ in line], [y for _, y in line], color="gray", linewidth=1, zorder=0, label="best at its price"
    )
    for point in points:
        if (point.trial.student, point.precision) in front:
            axes.annotate(
                point.trial.student,
                (_latency(point), point.quality),
                fontsize=7,
                xytext=(4, 4),
                textcoords="offset points",
            )
    for budget in budgets:
        if budget.quantity == ("latency" if measured else "macs"):
            axes.axvline(budget.most, color="black", linestyle="--", linewidth=1, label=f"budget: {budget}")
    axes.set_xlabel("latency of the network, ms" if measured else "multiply-accumulate operations")
    axes.set_ylabel(state.result.get("metric", "quality"))
    axes.grid(alpha=0.3)
    axes.legend(fontsize=8)
    figure.savefig(path, dpi=120)
