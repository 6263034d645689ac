"""The plot of what a precision costs layer by layer."""

from __future__ import annotations

import io
from collections.abc import Sequence

__all__ = ["sensitivity_plot"]

_COLORS = {"int8": "tab:blue", "fp16": "tab:orange", "fp32": "tab:red"}
_LONGEST_NAME = 40  # characters; longer layer names would take the plot's width
_LARGEST = 10.0  # times the outputs' deviation: destroyed outputs would hide all other bars


def sensitivity_plot(layers: Sequence[tuple[str, float, str]], precision: str) -> bytes:
    """Return a PNG of horizontal bars, one for each group of layers, from the first one at the top.

    Args:
        layers: Name, error of the outputs relative to their standard deviation, and precision (``"int8"``, ``"fp16"``
            or ``"fp32"``) of each group.
        precision: The lower precision, in which each group alone has this error.
    """
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure
    from matplotlib.patches import Patch

    figure = Figure(figsize=(8, 1.2 + 0.22 * len(layers)), layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.subplots()
    names = [name if len(name) <= _LONGEST_NAME else f"…{name[-_LONGEST_NAME:]}" for name, _, _ in layers]
    positions = range(len(layers))
    axes.barh(
        positions,
        [100 * min(error, _LARGEST) for _, error, _ in layers],
        color=[_COLORS[kind] for _, _, kind in layers],
    )
    axes.set_yticks(positions, names, fontsize=7)
    axes.invert_yaxis()
    axes.set_ylim(len(layers) - 0.5, -0.5)
    axes.set_xlabel(f"error of the outputs with this alone in {precision.upper()}, % of their standard deviation")
    used = {kind for _, _, kind in layers}
    axes.legend(handles=[Patch(color=color, label=kind) for kind, color in _COLORS.items() if kind in used])
    target = io.BytesIO()
    figure.savefig(target, format="png", dpi=120, metadata={"Software": None})
    return target.getvalue()
