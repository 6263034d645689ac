"""Two networks side by side on the same inputs: linear CKA of all layers, and attention at matched stages."""

from __future__ import annotations

import csv
import io
import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from krl_runtime.errors import DataError, require
from krl_train.metrics.alignment import LEAST_BATCH, MinibatchCKA, attention_agreement, gram
from krl_train.models.features import FeatureMap, by_resolution, channels_first, reading, stage_outputs
from krl_train.models.layers import list_layers
from krl_train.models.network import Network

__all__ = ["Comparison", "compare", "heat_map", "rows_of_csv"]

_LONGEST = 30  # letters of a layer's name in the figure
_DIGITS = 4  # of CKA and agreement: their standard errors over some hundred images are larger


@dataclass(frozen=True)
class Comparison:
    """The likeness of two networks.

    Attributes:
        student_layers: Names of the student's layers, from the input on.
        teacher_layers: The same of the teacher.
        cka: ``[student_layers, teacher_layers]``; ``None`` for a layer that gives the same for all inputs.
        stages: For each pair of feature maps of one resolution ``student`` and ``teacher`` (names), ``resolution`` (the
            share of the input's), ``cka``, ``attention`` (mean cosine of the attention maps, 0 to 1) and
            ``attention_standard_error``. Empty for networks without such maps, as generators.
    """

    student_layers: list[str]
    teacher_layers: list[str]
    cka: list[list[float | None]]
    stages: list[dict[str, Any]]


class _Side:
    """One of the two networks, whose layers are read while it runs."""

    def __init__(self, network: nn.Module) -> None:
        self.network = network
        backbone = network.backbone
        assert isinstance(backbone, nn.Module)  # noqa: S101  for the type checker
        self.backbone = backbone
        self.layers: list[str] = []
        self.taps: dict[float, FeatureMap] = {}
        if isinstance(network, Network):
            self.taps = by_resolution(stage_outputs(network), network.preprocessing.height)

    def open(self, inputs: Sequence[Tensor], taps: Sequence[FeatureMap]) -> None:
        """List the layers, those that end a stage among them."""
        found = list_layers(self.backbone, lambda: self.network(*inputs))
        self.layers = found
        self._taps = {tap.name: tap for tap in taps}

    def run(self, inputs: Sequence[Tensor]) -> tuple[list[Tensor], list[Tensor], list[Tensor]]:
        """Return the Gram matrices of all layers, those of the stages, and the maps of the stages."""
        with reading(self._modules(self.layers), reduce=gram) as grams, reading(self._modules(self._taps)) as maps:
            self.network(*inputs)
        shown = [channels_first(maps[name], tap) for name, tap in self._taps.items()]
        return [grams[name] for name in self.layers], [gram(each) for each in shown], shown

    def _modules(self, names: Iterable[str]) -> dict[str, nn.Module]:
        return {name: self.backbone.get_submodule(name) for name in names}


@torch.no_grad()
def compare(
    student: nn.Module, teacher: nn.Module, batches: Iterable[tuple[Sequence[Tensor], Sequence[Tensor]]]
) -> Comparison:
    """Compare two networks on the same inputs.

    Args:
        student: A network with a ``backbone``, in eval mode.
        teacher: Another one.
        batches: The inputs of the student and those of the teacher, of the same images or latents, where each computes.
            Batches of fewer than four are left out.

    Raises:
        DataError: No batch has four inputs.
    """
    mine, theirs = _Side(student), _Side(teacher)
    shared = [resolution for resolution in mine.taps if resolution in theirs.taps]
    layers, stages = MinibatchCKA(), [MinibatchCKA() for _ in shared]
    attention: list[list[Tensor]] = [[] for _ in shared]
    for first, second in batches:
        if len(first[0]) < LEAST_BATCH:
            continue
        if not layers.batches:
            mine.open(first, [mine.taps[each] for each in shared])
            theirs.open(second, [theirs.taps[each] for each in shared])
        grams, stage_grams, maps = mine.run(first)
        other_grams, other_stage_grams, other_maps = theirs.run(second)
        layers.update(grams, other_grams)
        for index, stage in enumerate(stages):
            stage.update([stage_grams[index]], [other_stage_grams[index]])
            attention[index].append(attention_agreement(maps[index], other_maps[index]).cpu())
    if not layers.batches:
        raise DataError(f"layers cannot be compared on fewer than {LEAST_BATCH} images; give more")
    found = [
        {
            "student": mine.taps[share].name,
            "teacher": theirs.taps[share].name,
            "resolution": share,
            "cka": _number(float(stage.compute())),
            **_mean(torch.cat(agreement)),
        }
        for share, stage, agreement in zip(shared, stages, attention, strict=True)
    ]
    matrix = [[_number(value) for value in row] for row in layers.compute().tolist()]
    return Comparison(mine.layers, theirs.layers, matrix, found)


def _mean(values: Tensor) -> dict[str, float | None]:
    error = float(values.std()) / math.sqrt(len(values))
    return {"attention": _number(float(values.mean())), "attention_standard_error": _number(error)}


def _number(value: float) -> float | None:
    return None if math.isnan(value) else round(value, _DIGITS)


def rows_of_csv(found: Comparison) -> bytes:
    """Return the CKA of all layers as CSV: a row for each layer of the student, a column for each of the teacher."""
    target = io.StringIO()
    writer = csv.writer(target, lineterminator="\n")
    writer.writerow(["student", *found.teacher_layers])
    for name, row in zip(found.student_layers, found.cka, strict=True):
        writer.writerow([name, *("" if value is None else value for value in row)])
    return target.getvalue().encode()


def heat_map(found: Comparison) -> bytes:
    """Return a PNG of the CKA of all layers: the student's upwards, the teacher's to the right, light where alike."""
    require("matplotlib", extra="explain", purpose="the figure of CKA")
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    rows, columns = len(found.student_layers), len(found.teacher_layers)
    figure = Figure(figsize=(2.5 + 0.22 * columns, 2 + 0.22 * rows), layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.subplots()
    values = [[math.nan if value is None else value for value in row] for row in found.cka]
    shown = axes.imshow(values, cmap="inferno", vmin=0, vmax=1, origin="lower", aspect="auto")
    for names, ticks, label, turned in (
        (found.teacher_layers, axes.set_xticks, axes.set_xlabel, 90),
        (found.student_layers, axes.set_yticks, axes.set_ylabel, 0),
    ):
        short = [name if len(name) <= _LONGEST else f"…{name[-_LONGEST:]}" for name in names]
        ticks(range(len(names)), short, rotation=turned, fontsize=7)
        label("layer of the teacher" if turned else "layer of the student")
    figure.colorbar(shown, label="linear CKA")
    target = io.BytesIO()
    figure.savefig(target, format="png", dpi=120, metadata={"Software": None})
    return target.getvalue()
