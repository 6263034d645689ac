"""The result of a comparison: plain JSON types, a table and a plot."""

from __future__ import annotations

import io
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from krl_runtime.cli.tables import table

from .difference import Difference
from .measuring import Fault, Measured
from .sides import Side

__all__ = ["Comparison"]

_COLORS = {"": "tab:blue", "inherits": "tab:orange", "wrong": "tab:red"}
_ON = {"cpu": "", "openvino": " on OpenVINO", "tensorrt": " on TensorRT", "tensorrt-rtx": " on TensorRT-RTX"}
_LONGEST_NAME = 40  # characters; longer layer names would take the plot's width
_HIGHEST = 100.0  # dB in the plot: above it nothing is to be seen, and equal values have 200


@dataclass
class Comparison:
    """The differences between two networks.

    Attributes:
        bundle: The bundle.
        a: The reference.
        b: The other network.
        data: Name of the data.
        count: Number of inputs.
        limit: SNR in dB that a layer must have by itself.
        outputs: Differences of the outputs, by name.
        golden: Smallest SNR of the outputs of ``"a"`` and ``"b"`` to the golden ones, in dB.
        layers: Differences of the layers; empty if they were not compared.
        first: The first layer below the limit; ``None`` if there is none.
    """

    bundle: Path
    a: Side
    b: Side
    data: str
    count: int
    limit: float
    outputs: Mapping[str, Difference]
    golden: Mapping[str, float]
    layers: Sequence[Measured] = ()
    first: Fault | None = field(default=None)

    @property
    def wrong(self) -> list[str]:
        """Names of the layers that are below the limit by themselves, in the order of execution."""
        return [item.layer.name for item in self.layers if item.status(self.limit) == "wrong"]

    def to_dict(self) -> dict[str, Any]:
        """Return the comparison as plain JSON types."""
        found: dict[str, Any] = {
            "bundle": str(self.bundle),
            "a": {"file": self.a.name, "backend": self.a.backend},
            "b": {"file": self.b.name, "backend": self.b.backend},
            "images": {"data": self.data, "count": self.count},
            "outputs": {name: difference.to_dict() for name, difference in self.outputs.items()},
            "golden_snr_db": dict(self.golden),
        }
        if not self.layers:
            return found
        return {
            **found,
            "min_snr_db": self.limit,
            "layers": [self._layer(item) for item in self.layers],
            "wrong": self.wrong,
            "first": None if self.first is None else asdict(self.first),
        }

    def _layer(self, item: Measured) -> dict[str, Any]:
        layer = item.layer
        return {
            "name": layer.name,
            "operator": layer.op,
            "tensor": layer.ends[0],
            "precision": {"a": self.a.graph.precision(layer.name), "b": self.b.graph.precision(layer.name)},
            **item.total.to_dict(),
            "alone": item.alone.to_dict(),
            "status": item.status(self.limit),
        }

    def text(self) -> str:
        """Return the comparison for people."""
        rows = [(name, *_cells(difference)) for name, difference in self.outputs.items()]
        parts = [
            f"{_shown(self.a)} (a) and {_shown(self.b)} (b), {self.count} images of {self.data}",
            table(("output", "SNR dB", "cosine", "largest error"), rows),
            f"outputs of the golden file: a has {self.golden['a']:.1f} dB to them, b {self.golden['b']:.1f} dB",
        ]
        if not self.layers:
            return "\n".join(parts)
        header = ("layer", "operator", "a", "b", "SNR dB", "cosine", "largest error", "alone dB", "status")
        return "\n".join([*parts, "", table(header, [self._row(item) for item in self.layers]), "", self.verdict()])

    def _row(self, item: Measured) -> tuple[object, ...]:
        name = item.layer.name
        precisions = self.a.graph.precision(name), self.b.graph.precision(name)
        measured = (*_cells(item.total), f"{item.alone.snr_db:.1f}")
        return (name, item.layer.op, *precisions, *measured, item.status(self.limit))

    def verdict(self) -> str:
        """Return the finding in sentences."""
        weakest = min(self.layers, key=lambda item: item.alone.snr_db)
        lowest = f"{weakest.layer.name} has the lowest SNR by itself, {weakest.alone.snr_db:.1f} dB"
        if self.wrong:
            name = self.wrong[0]
            alone = next(item.alone.snr_db for item in self.layers if item.layer.name == name)
            inherits = sum(item.status(self.limit) == "inherits" for item in self.layers)
            further = f"; wrong by themselves are also {', '.join(self.wrong[1:])}" if self.wrong[1:] else ""
            return (
                f"first wrong layer: {name}. Alone, on a's values, it has {alone:.1f} dB, required: {self.limit:g}"
                f"{further}. {inherits} layers inherit the error. {self._farther()}"
            )
        if self.first is not None:
            return (
                f"no layer is wrong by itself: {lowest}, required: {self.limit:g}. The {self.first.snr_db:.1f} dB of "
                f"{self.first.layer} are the sum of the {self.first.length} layers from {self.first.since} on"
            )
        return f"no layer is wrong; {lowest}, required: {self.limit:g}"

    def _farther(self) -> str:
        """Return which network is farther from the golden outputs, in which the fault is."""
        farther = min(self.golden, key=lambda name: self.golden[name])
        side = self.a if farther == "a" else self.b
        return f"The outputs of {farther} ({_shown(side)}) are farther from the golden ones"

    def plot(self) -> bytes:
        """Return a PNG of the layers' SNR, from the first layer at the top."""
        from krl_runtime.errors import require

        require("matplotlib", extra="deploy", purpose="drawing the layers")
        from matplotlib.backends.backend_agg import FigureCanvasAgg
        from matplotlib.figure import Figure
        from matplotlib.patches import Patch

        figure = Figure(figsize=(8, 1.2 + 0.22 * len(self.layers)), layout="constrained")
        FigureCanvasAgg(figure)
        axes = figure.subplots()
        names = [item.layer.name for item in self.layers]
        positions = range(len(names))
        statuses = [item.status(self.limit) for item in self.layers]
        axes.barh(positions, [_drawn(item.total) for item in self.layers], color=[_COLORS[each] for each in statuses])
        alone = axes.plot([_drawn(item.alone) for item in self.layers], positions, "k.", label="alone, on a's values")
        line = axes.axvline(self.limit, color="gray", linestyle=":", label="required by itself")
        shown = [name if len(name) <= _LONGEST_NAME else f"…{name[-_LONGEST_NAME:]}" for name in names]
        axes.set_yticks(positions, shown, fontsize=7)
        axes.set_ylim(len(names) - 0.5, -0.5)
        axes.set_xlabel(f"SNR of {_shown(self.b)} to {_shown(self.a)}, dB")
        bars = [Patch(color=_COLORS[each], label=each or "in its place") for each in _COLORS if each in statuses]
        axes.legend(handles=[*bars, *alone, line], fontsize=7)
        target = io.BytesIO()
        figure.savefig(target, format="png", dpi=120, metadata={"Software": None})
        return target.getvalue()


def _shown(side: Side) -> str:
    return f"{side.name}{_ON[side.backend]}"


def _cells(difference: Difference) -> tuple[str, str, str]:
    return f"{difference.snr_db:.1f}", f"{difference.cosine:.6f}", f"{difference.largest:.3g}"


def _drawn(difference: Difference) -> float:
    return max(0.0, min(difference.snr_db, _HIGHEST))
