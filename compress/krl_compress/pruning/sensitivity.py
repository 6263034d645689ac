"""How good a network still is when channels of one layer alone are removed, without training."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from torch import Tensor, nn

from krl_compress.config import Criterion
from krl_runtime.files import write_atomic
from krl_runtime.progress import progress_bar

from .criteria import lowest, scores
from .networks import PrunableNetwork, with_backbone
from .units import Unit, removed

__all__ = ["SENSITIVITY_FILES", "SHARES", "measure_sensitivity", "write_sensitivity"]

SHARES = (0.25, 0.5)
"""Shares of a unit's channels that are removed."""

SENSITIVITY_FILES = ("sensitivity.json", "sensitivity.png")
"""Names of the report and of its plot, beside the run."""


def measure_sensitivity(
    network: PrunableNetwork,
    units: Sequence[Unit],
    criterion: Criterion,
    slopes: Mapping[str, Tensor] | None,
    measure: Callable[[nn.Module], Mapping[str, Any]],
    metric: tuple[str, str],
) -> dict[str, Any]:
    """Measure a network with each unit pruned alone.

    Args:
        network: The network.
        units: What can be pruned.
        criterion: Which channels go.
        slopes: See ``scores``.
        measure: From a network to its metrics, as ``Job.measure``.
        metric: Name of the one that counts and its unit, as ``Job.metric``.

    Returns:
        ``metric``, ``unit``, ``images`` (their number), ``whole`` and its ``standard_error`` (``None`` where it is not
        known), and ``layers``: of each its ``layer``, ``channels`` and ``pruned``, from the share that was removed to
        the metric (0 to 1 where the unit is per cent; ``None`` where images are the same as the whole network's).
    """
    name, unit_of_measure = metric
    whole = measure(network)
    layers = []
    with progress_bar("sensitivity", len(units), 0) as advance:
        for unit in units:
            score = scores(network.backbone, unit, criterion, slopes)
            left = {}
            for share in SHARES if score is not None else ():
                gone = int(share * unit.channels / unit.parts) * unit.parts
                thin = removed(network.backbone, {unit: lowest(score, unit.parts, gone)})  # type: ignore[arg-type]
                left[f"{share:g}"] = measure(with_backbone(network, thin))[name]
            layers.append({"layer": unit.name, "channels": unit.channels, "pruned": left})
            advance()
    return {
        "metric": name,
        "unit": unit_of_measure,
        "images": whole["count"],
        "whole": whole[name],
        "standard_error": whole.get(f"{name}_standard_error"),
        "layers": layers,
    }


def write_sensitivity(found: Mapping[str, Any], folder: Path) -> None:
    """Write ``sensitivity.json`` and ``sensitivity.png`` into a run's folder."""
    from matplotlib.figure import Figure

    write_atomic(folder / SENSITIVITY_FILES[0], json.dumps(found, indent=1).encode() + b"\n")
    names, factor = [row["layer"] for row in found["layers"]], 100 if found["unit"] == "%" else 1
    figure = Figure(figsize=(max(6.0, 0.22 * len(names)), 4.5), layout="constrained")  # inches: room for each name
    axes = figure.add_subplot()
    for share in SHARES:
        values = [row["pruned"].get(f"{share:g}") for row in found["layers"]]
        axes.plot(
            names, [math.nan if value is None else factor * value for value in values], "o-", label=f"{share:.0%} less"
        )
    if found["whole"] is not None:
        axes.axhline(factor * found["whole"], color="gray", linestyle="--", label="whole")
    axes.tick_params(axis="x", labelrotation=90, labelsize=7)
    axes.set_ylabel(f"{found['metric']} on {found['images']} images, {found['unit']}")
    axes.set_title("one layer pruned, without training", fontsize="medium")
    axes.grid(alpha=0.3)
    axes.legend()
    figure.savefig(folder / SENSITIVITY_FILES[1], dpi=120)
