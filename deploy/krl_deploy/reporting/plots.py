"""Plots of plotly as plain JSON types. The page draws them; without scripts the tables below them say the same."""

from __future__ import annotations

import html
from collections.abc import Mapping, Sequence
from typing import Any

from .blocks import Plot

__all__ = ["COLORS", "bars", "heat_map", "label_of", "scatter"]

COLORS = ("#1f77b4", "#d1641b", "#2b8a3e", "#b5367a", "#7a5cc4", "#8a6d00", "#00838f", "#c62828")
"""Colors of models: each has a contrast of at least 3 to white and to the dark page, as WCAG asks of graphics."""

_SYMBOLS = {"fp32": "circle", "fp16": "square", "bf16": "cross", "int8": "diamond"}
_PLACES = ("bottom center", "top center")  # of neighboring labels, which would cover each other
_BAR = 18  # pixels of one bar with its name
_LONGEST = 34  # characters of a layer's name on an axis: a third of a phone's width at the axis's size
_CELLS_WITH_NUMBERS = 12  # classes up to which the numbers of a confusion matrix fit on a phone
_LARGEST_LABELED = 40  # classes up to which each name is on the axis


def label_of(text: str, longest: int | None = None) -> str:
    """Return text for plotly, which takes a part of HTML: its characters are escaped, and its beginning is cut."""
    shown = text if longest is None or len(text) <= longest else f"…{text[1 - longest :]}"
    return html.escape(shown)


def scatter(
    label: str, groups: Mapping[str, Sequence[Mapping[str, Any]]], x: str, y: str, *, more_is_better: bool
) -> Plot:
    """Return points of several models, and the line through those that no other one beats.

    Args:
        label: The plot in words.
        groups: By the name of the model, in the order of colors, its points, or none. Each has ``"x"``, ``"y"``,
            ``"error"``, ``"precision"``, ``"text"`` and ``"name"``.
        x: Title of the horizontal axis; less is better.
        y: Title of the vertical axis; the best is at the top.
        more_is_better: Whether its largest value is the best.
    """
    sign = 1 if more_is_better else -1
    traces: list[dict[str, Any]] = [_front([point for points in groups.values() for point in points], sign)]
    for index, (name, unsorted) in enumerate(groups.items()):
        if not unsorted:  # it keeps its color for the plots that it is in
            continue
        points = sorted(unsorted, key=lambda point: point["x"])
        errors = [100 * point["error"] if point["error"] else 0 for point in points]
        traces.append(
            {
                "type": "scatter",
                "mode": "markers+text",
                "name": label_of(name),
                "x": [point["x"] for point in points],
                "y": [point["y"] for point in points],
                "text": [label_of(point["name"]) for point in points],
                "textposition": [_PLACES[number % len(_PLACES)] for number in range(len(points))],
                "customdata": [label_of(point["text"]) for point in points],
                "hovertemplate": "%{customdata}<extra></extra>",
                "error_y": {"type": "data", "array": errors, "visible": any(errors), "thickness": 1, "width": 3},
                "marker": {
                    "size": 11,
                    "color": COLORS[index % len(COLORS)],
                    "symbol": [_SYMBOLS.get(point["precision"], "star") for point in points],
                },
                "cliponaxis": False,
            }
        )
    layout = {
        "xaxis": {"title": {"text": x}, "type": "log", "automargin": True, "minor": {"ticks": "outside"}},
        "yaxis": {"title": {"text": y}, "automargin": True, **({} if more_is_better else {"autorange": "reversed"})},
        "legend": {"orientation": "h", "y": -0.25},
        "margin": {"l": 10, "r": 20, "t": 10, "b": 10},
    }
    return Plot(label, traces, layout, 400, half=True)


def _front(points: Sequence[Mapping[str, Any]], sign: int) -> dict[str, Any]:
    """Return the line through the points that no other one beats in both directions, from left to right."""
    best, kept = float("-inf"), []
    for point in sorted(points, key=lambda item: (item["x"], -sign * item["y"])):
        if sign * point["y"] > best:
            best = sign * point["y"]
            kept.append(point)
    return {
        "type": "scatter",
        "mode": "lines",
        "name": "not beaten by another",
        "x": [point["x"] for point in kept],
        "y": [point["y"] for point in kept],
        "line": {"dash": "dot", "width": 1.5, "color": "#808080", "shape": "hv"},
        "hoverinfo": "skip",
    }


def bars(label: str, names: Sequence[str], series: Mapping[str, Sequence[float | None]], x: str, *, log: bool) -> Plot:
    """Return horizontal bars, the first one at the top.

    Args:
        label: The plot in words.
        names: Names of the bars.
        series: Values of the bars by the name of the series; ``None`` leaves a bar out.
        x: Title of the axis.
        log: Whether the axis is logarithmic.
    """
    traces = [
        {
            "type": "bar",
            "orientation": "h",
            "name": label_of(name),
            "y": [f"{index + 1}. {label_of(each, _LONGEST)}" for index, each in enumerate(names)],
            "x": list(values),
            "marker": {"color": COLORS[number % len(COLORS)]},
        }
        for number, (name, values) in enumerate(series.items())
    ]
    layout = {
        "xaxis": {"title": {"text": x}, "automargin": True, **({"type": "log"} if log else {})},
        "yaxis": {"autorange": "reversed", "automargin": True, "tickfont": {"size": 10}, "dtick": 1},
        "showlegend": len(series) > 1,
        "legend": {"orientation": "h", "y": 1, "yanchor": "bottom"},
        "margin": {"l": 10, "r": 20, "t": 30, "b": 10},
        "bargap": 0.25,
    }
    return Plot(label, traces, layout, 110 + _BAR * len(names) * max(1, len(series)))


def heat_map(label: str, labels: Sequence[str], counts: Sequence[Sequence[int]]) -> Plot:
    """Return a confusion matrix: rows are the true classes, and colors are shares of the row.

    Args:
        label: The plot in words.
        labels: Class names.
        counts: ``[true][predicted]``.
    """
    sums = [max(sum(row), 1) for row in counts]
    shares = [[count / total for count in row] for row, total in zip(counts, sums, strict=True)]
    names = [label_of(name, _LONGEST) for name in labels]
    numbers = len(labels) <= _CELLS_WITH_NUMBERS
    trace = {
        "type": "heatmap",
        "x": names,
        "y": names,
        "z": shares,
        "text": [list(row) for row in counts],
        "zmin": 0,
        "zmax": 1,
        "colorscale": [[0, "#f4f6f8"], [0.5, "#8fbce6"], [1, "#0b3d78"]],
        "hovertemplate": "true %{y}<br>predicted %{x}<br>%{text} images, %{z:.1%} of the class<extra></extra>",
        "showscale": False,
        "xgap": 1,
        "ygap": 1,
        **({"texttemplate": "%{text}", "textfont": {"size": 10}} if numbers else {}),
    }
    ticks = {"dtick": 1} if len(labels) <= _LARGEST_LABELED else {}
    layout = {
        "xaxis": {"title": {"text": "predicted"}, "automargin": True, "tickangle": -45, "type": "category", **ticks},
        "yaxis": {
            "title": {"text": "true"},
            "autorange": "reversed",
            "automargin": True,
            "type": "category",
            **ticks,
        },
        "margin": {"l": 10, "r": 10, "t": 10, "b": 10},
    }
    return Plot(label, [trace], layout, 460, half=True)
