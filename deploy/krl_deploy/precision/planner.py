"""The planner of mixed precision: find the layers that cost accuracy in INT8, and keep them in floating point.

The planner quantizes each layer alone, in both graphs. The error of the outputs on calibration data ranks the layers.
Then it tries plans that keep the worst 0, 1, 2, 3, 4, 6, 9, … layers in floating point. The first one with an accepted
accuracy drop is the plan.
"""

from __future__ import annotations

import json
import logging
import time
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from krl_deploy.config import QuantizeConfig
from krl_deploy.data.arrays import Inputs, length, rows
from krl_deploy.evaluation import Task
from krl_deploy.evaluation.comparison import outputs_of
from krl_deploy.graph.edit import GraphEditor
from krl_deploy.graph.files import to_bytes
from krl_deploy.graph.placement import weighted_nodes
from krl_deploy.graph.session import open_cpu
from krl_runtime.cli.tables import table
from krl_runtime.errors import CheckFailedError, require
from krl_runtime.progress import progress

from .plot import sensitivity_plot
from .variants import Emitter, Int8Graphs

__all__ = ["PLAN_FILES", "MixedPrecisionPlan", "make_plan"]

_log = logging.getLogger("krl")

_PLAN, _PLOT = "plan.json", "sensitivity.png"
PLAN_FILES = (_PLAN, _PLOT)
"""Contribution of the planner to a bundle."""

_SCHEMA_VERSION = 1  # of plan.json
_SAMPLE = 32  # images on which each layer is measured alone: layers x images runs, so the cost is bounded
_SHARE_OF_SENSITIVITY = 0.6  # of --budget-seconds; the rest is for trying plans on the evaluation images
_WORST = 10  # layers in the printed table; plan.json and the plot have all
_REASON = "kept in floating point by the plan"


@dataclass(frozen=True)
class Layer:
    """One weighted operator.

    Attributes:
        name: Name of its node.
        op: Its operator.
        sensitivity: Error of the outputs with only this layer in INT8, the larger one of both graphs: root mean square
            over the outputs' standard deviation. ``None`` if the time was up.
    """

    name: str
    op: str
    sensitivity: float | None


@dataclass(frozen=True)
class Attempt:
    """A plan that was tried.

    Attributes:
        kept: Number of layers in floating point, the most sensitive ones.
        drop: Larger accuracy drop of the two graphs, in the unit of the plan's evidence.
        agreement: Smallest share, 0 to 1, of the images with FP32's prediction; ``None`` if the model makes images.
        psnr_to_fp32: Smallest mean PSNR in dB to FP32's images; ``None`` for a classifier.
    """

    kept: int
    drop: float
    agreement: float | None = None
    psnr_to_fp32: float | None = None


@dataclass(frozen=True)
class MixedPrecisionPlan:
    """The first plan that passed, and its evidence.

    Attributes:
        layers: In the order of execution.
        attempts: In the order in which they were tried; the last one passed.
        keep: Names of the layers that stay in floating point, each with the reason.
        evidence: The data of the measurement, and its time.
    """

    layers: tuple[Layer, ...]
    attempts: tuple[Attempt, ...]
    keep: Mapping[str, str]
    evidence: Mapping[str, Any]

    def summary(self) -> dict[str, Any]:
        """Return the evidence of the plan for a bundle."""
        return {
            "file": _PLAN,
            "plot": _PLOT,
            "layers": len(self.layers),
            "layers_kept_float": list(self.keep),
            "attempts": [asdict(attempt) for attempt in self.attempts],
            **self.evidence,
        }

    def files(self, graphs: Int8Graphs) -> dict[str, bytes]:
        """Return the files that the bundle gets."""
        precisions = [_precisions(layer.name, graphs) for layer in self.layers]
        rows = [{**asdict(layer), **chosen} for layer, chosen in zip(self.layers, precisions, strict=True)]
        values = {"schema_version": _SCHEMA_VERSION, **self.summary(), "layers": rows}
        measured = [
            (layer.name, layer.sensitivity or 0.0, row["tensorrt"])
            for layer, row in zip(self.layers, precisions, strict=True)
        ]
        return {_PLAN: json.dumps(values, indent=1).encode() + b"\n", _PLOT: sensitivity_plot(measured)}


def _precisions(name: str, graphs: Int8Graphs) -> dict[str, str]:
    around = "fp32" if graphs.files["int8"] == graphs.simulated or name in graphs.fp32_around else "fp16"
    return {
        "tensorrt": around if name in graphs.tensorrt.kept_float else "int8",
        "cpu": "fp32" if name in graphs.cpu.kept_float else "int8",
    }


def make_plan(config: QuantizeConfig, task: Task, emitter: Emitter) -> MixedPrecisionPlan:
    """Measure the layers and return the first plan that passes.

    Args:
        config: The options.
        task: Gives calibration data, to rank the layers with a sample, and evaluation data, to measure plans on.
        emitter: Writes the model's INT8 graphs.

    Raises:
        CheckFailedError: No plan passes, or none in time. The message has the plans that were tried.
        MissingExtraError: matplotlib is missing.
    """
    require("matplotlib", extra="deploy", purpose="the plot of the planner")
    start = time.monotonic()
    budget = config.budget_seconds or float("inf")
    inputs = task.calibration_data.inputs
    sample = rows(inputs, slice(None, None, -(-length(inputs) // _SAMPLE)))
    layers = _sensitivities(emitter, sample, start + _SHARE_OF_SENSITIVITY * budget)
    ranked = sorted(layers, key=lambda layer: -1.0 if layer.sensitivity is None else layer.sensitivity, reverse=True)
    judge = _Judge(emitter, task)
    attempts = _search(judge, ranked, start + budget)
    if attempts[-1].drop > judge.accepted:
        in_time = "" if attempts[-1].kept == _steps(len(layers))[-1] else f" within --budget-seconds {budget:g}"
        raise CheckFailedError(
            f"no plan with a layer in INT8 has a drop of {judge.accepted:g} {judge.measure} or less{in_time}; the "
            f"bundle is unchanged\n{_tables(attempts, ranked)}"
        )
    evidence = {
        "drop": judge.measure,
        "max_drop": judge.accepted,
        "ranked_on": length(sample),
        "tried_on": judge.count,
        "seconds": time.monotonic() - start,
    }
    keep = {layer.name: _REASON for layer in ranked[: attempts[-1].kept]}
    return MixedPrecisionPlan(tuple(layers), tuple(attempts), keep, evidence)


def _search(judge: _Judge, ranked: Sequence[Layer], deadline: float) -> list[Attempt]:
    """Try plans, at least one, until the drop of one is accepted or the time is up."""
    attempts: list[Attempt] = []
    for kept in _steps(len(ranked)):
        if attempts and time.monotonic() > deadline:
            break
        attempts.append(judge.attempt({layer.name: _REASON for layer in ranked[:kept]}))
        _log.info("%d of %d layers in floating point: drop %.2f", kept, len(ranked), attempts[-1].drop)
        if attempts[-1].drop <= judge.accepted:
            break
    return attempts


def _tables(attempts: Sequence[Attempt], ranked: Sequence[Layer]) -> str:
    tried = [(each.kept, f"{each.drop:.2f}", _alike(each)) for each in attempts]
    return (
        table(("layers in float", "drop", "agreement"), tried)
        + f"\nmost sensitive of {len(ranked)} layers:\n"
        + table(("layer", "operator", "error alone"), [_cells(layer) for layer in ranked[:_WORST]])
    )


def _alike(attempt: Attempt) -> str | None:
    if attempt.psnr_to_fp32 is not None:
        return f"{attempt.psnr_to_fp32:.1f} dB"
    return None if attempt.agreement is None else f"{attempt.agreement:.2%}"


def _cells(layer: Layer) -> tuple[object, ...]:
    return layer.name, layer.op, None if layer.sensitivity is None else f"{layer.sensitivity:.2%}"


def _steps(count: int) -> list[int]:
    """Return how many layers to keep in floating point, one attempt after the other; at least one is INT8."""
    steps, kept = [], 0
    while kept < count:
        steps.append(kept)
        kept = max(kept + 1, kept * 3 // 2)
    return steps


def _sensitivities(emitter: Emitter, sample: Inputs, deadline: float) -> list[Layer]:
    nodes = {item.node.name: item.node.op_type for item in weighted_nodes(GraphEditor(emitter.model))}
    writers = [emitter.tensorrt, emitter.cpu]
    unable = [set(write(None).kept_float) for write in writers]
    names = [name for name in nodes if not all(name in some for some in unable)]
    reference = outputs_of(open_cpu(emitter.fp32), sample)
    found: list[Layer] = []
    for name in progress(names, "measuring layers"):
        if found and time.monotonic() > deadline:
            found.append(Layer(name, nodes[name], None))
            continue
        others = {other: _REASON for other in nodes if other != name}
        errors = [
            _relative_error(outputs_of(open_cpu(to_bytes(write(others).model)), sample), reference)
            for write, never in zip(writers, unable, strict=True)
            if name not in never
        ]
        found.append(Layer(name, nodes[name], max(errors)))
    unmeasured = sum(layer.sensitivity is None for layer in found)
    if unmeasured:
        _log.warning("the time was up after %d of %d layers; the others rank last", len(found) - unmeasured, len(found))
    return found


def _relative_error(outputs: npt.NDArray[np.float32], reference: npt.NDArray[np.float32]) -> float:
    return float(np.sqrt(np.square(outputs - reference).mean()) / max(float(reference.std()), 1e-12))


class _Judge:
    """Accuracy drops of plans on the same inputs; FP32 runs over them once."""

    def __init__(self, emitter: Emitter, task: Task) -> None:
        self.emitter, self.task = emitter, task
        self.batches = list(task.batches())
        self.count = sum(length(inputs) for inputs, _ in self.batches)
        session = open_cpu(emitter.fp32)
        self.reference = [outputs_of(session, inputs) for inputs, _ in self.batches]
        itself = self._score(self.reference)
        drop = task.accuracy_drop({"fp32": itself, "same": itself})
        self.measure, self.accepted, self.itself = drop.unit, drop.accepted, itself

    def attempt(self, keep: Mapping[str, str]) -> Attempt:
        sessions = self.emitter.emit(keep).sessions
        scores = [
            self._score([outputs_of(sessions[name], inputs) for inputs, _ in self.batches])
            for name in ("int8", "int8.cpu")
        ]
        drop = self.task.accuracy_drop({"fp32": self.itself, "int8": scores[0], "int8.cpu": scores[1]})
        alike = {
            key: min(getattr(score, key) for score in scores)
            for key in ("agreement", "psnr_to_fp32")
            if hasattr(self.itself, key)
        }
        return Attempt(len(keep), drop.value, **alike)

    def _score(self, outputs: Iterable[npt.NDArray[np.float32]]) -> Any:
        tally = self.task.tally()
        for (_, truth), made, reference in zip(self.batches, outputs, self.reference, strict=True):
            tally.add(made, reference, truth)
        return tally.score()
