"""How much accuracy a network has left when channels of one layer alone are removed, without training."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from torch import Tensor

from krl_compress.config import Criterion
from krl_runtime.files import write_atomic
from krl_runtime.progress import progress_bar
from krl_train.data import PixelSet
from krl_train.evaluation.evaluate import evaluate_run
from krl_train.metrics import quality_error, quality_name, quality_of
from krl_train.models import Network

from .criteria import lowest, scores
from .units import Unit, removed

__all__ = ["SENSITIVITY_FILES", "SHARES", "measure_sensitivity", "write_sensitivity"]

SHARES = (0.25, 0.5)
"""Shares of a unit's channels that are removed."""

SENSITIVITY_FILES = ("sensitivity.json", "sensitivity.png")
"""Names of the report and of its plot, beside the run."""


def measure_sensitivity(
    network: Network,
    units: Sequence[Unit],
    criterion: Criterion,
    slopes: Mapping[str, Tensor] | None,
    labels: Sequence[str],
    val: PixelSet,
    device: str,
) -> dict[str, Any]:
    """Measure a network with each unit pruned alone.

    Args:
        network: The network.
        units: What can be pruned.
        criterion: Which channels go.
        slopes: See ``scores``.
        labels: Class names.
        val: Validation images.
        device: ``"auto"``, ``"cpu"`` or ``"cuda"``.

    Returns:
        ``metric`` (``"top1"`` or ``"map"``), ``images``, ``whole`` and its ``standard_error``, and ``layers``: of each
        its ``layer``, ``channels`` and ``pruned``, from the share that was removed to the metric (0 to 1).
    """
    whole = evaluate_run(network, labels, val, device)
    network.cpu()
    layers = []
    with progress_bar("sensitivity", len(units), 0) as advance:
        for unit in units:
            score = scores(network.backbone, unit, criterion, slopes)
            left = {}
            for share in SHARES if score is not None else ():
                gone = int(share * unit.channels / unit.parts) * unit.parts
                thin = removed(network.backbone, {unit: lowest(score, unit.parts, gone)})  # type: ignore[arg-type]
                found = evaluate_run(Network(thin, network.preprocessing), labels, val, device)
                left[f"{share:g}"] = quality_of(found)
            layers.append({"layer": unit.name, "channels": unit.channels, "pruned": left})
            advance()
    return {
        "metric": quality_name(whole),
        "images": len(val),
        "whole": quality_of(whole),
        "standard_error": quality_error(whole),
        "layers": layers,
    }


def write_sensitivity(found: Mapping[str, Any], folder: Path) -> None:
    """Write ``sensitivity.json`` and ``sensitivity.png`` into a run's folder."""
    from matplotlib.figure import Figure

    write_atomic(folder / SENSITIVITY_FILES[0], json.dumps(found, indent=1).encode() + b"\n")
    names = [row["layer"] for row in found["layers"]]
    figure = Figure(figsize=(max(6.0, 0.22 * len(names)), 4.5), layout="constrained")  # inches: room for each name
    axes = figure.add_subplot()
    for share in SHARES:
        values = [row["pruned"].get(f"{share:g}") for row in found["layers"]]
        axes.plot(
            names, [math.nan if value is None else 100 * value for value in values], "o-", label=f"{share:.0%} less"
        )
    axes.axhline(100 * found["whole"], color="gray", linestyle="--", label="whole")
    axes.tick_params(axis="x", labelrotation=90, labelsize=7)
    axes.set_ylabel(f"{found['metric']} on validation images, %")
    axes.set_title("one layer pruned, without training", fontsize="medium")
    axes.grid(alpha=0.3)
    axes.legend()
    figure.savefig(folder / SENSITIVITY_FILES[1], dpi=120)
