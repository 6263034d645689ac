"""The planner's view of INT8: layers to keep in FP16 or FP32, alone or with those that TensorRT couples them with."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import Any

import onnx

from krl_deploy.config import QuantizeConfig
from krl_deploy.evaluation import Task
from krl_deploy.graph.coupling import coupled
from krl_deploy.graph.edit import GraphEditor
from krl_deploy.graph.files import to_bytes
from krl_deploy.graph.placement import weighted_nodes
from krl_deploy.graph.workload import multiply_accumulates
from krl_deploy.precision.emit_tensorrt import Quantized
from krl_deploy.precision.variants import Emitter, Int8Graphs
from krl_deploy.rules.run import findings_of
from krl_deploy.rules.targets import parse_target

from .make import PlanOptions, make_plan
from .record import MixedPrecisionPlan
from .subject import Emitted, Group

__all__ = ["PLAN_FILES", "plan_int8"]

PLAN_FILES = ("plan.json", "sensitivity.png")
"""Contribution of the planner to a bundle."""

_TARGETS = ("tensorrt-10.3", "tensorrt-10.16", "tensorrt-11.3", "tensorrt-11.4")
"""The oldest and the newest TensorRT, and those whose bugs make an error of what is a warning elsewhere."""

_OTHERS = "measured without it"


def plan_int8(config: QuantizeConfig, bundle: Path, task: Task, emitter: Emitter) -> MixedPrecisionPlan:
    """Plan which layers stay in floating point; see ``make_plan``."""
    options = PlanOptions(
        bundle.with_name(f"{bundle.name}.plan.json"),
        config.resume,
        config.budget_seconds,
        {"max_drop": config.max_drop, "min_psnr": config.min_psnr},
    )
    return make_plan(_Int8(config, emitter), task, options, task.calibration_data.inputs)


class _Int8:
    """Weighted operators, in groups of one precision."""

    precision = "int8"
    kept = "layers in float"
    files = PLAN_FILES

    def __init__(self, config: QuantizeConfig, emitter: Emitter) -> None:
        self.emitter, self.fp32 = emitter, emitter.fp32
        graph = GraphEditor(emitter.model)
        weighted = {item.node.name: item for item in weighted_nodes(graph)}
        self.names = list(weighted)
        self.never = [set(emitter.tensorrt().kept_float), set(emitter.cpu().kept_float)]
        counts = {"TensorRT": len(weighted) - len(self.never[0]), "a CPU": len(weighted) - len(self.never[1])}
        self.had = {name: count > 0 for name, count in counts.items()}
        able = [
            [name for name in names if not all(name in each for each in self.never)]
            for names in coupled(graph, list(weighted.values()))
        ]
        self.groups: Sequence[Group] = [
            Group(
                tuple(names),
                tuple(weighted[name].node.op_type for name in names),
                tuple(multiply_accumulates(graph, weighted[name]) for name in names),
            )
            for names in able
            if names
        ]
        self.identity: Mapping[str, Any] = {
            "precision": self.precision,
            "calibration": asdict(emitter.calibration.identity),
            "float_precision": config.float_precision,
            "optimal_scales": config.optimal_scales,
            "bias_correction": config.bias_correction,
        }

    def alone(self, group: Group) -> list[bytes]:
        """Return both graphs with this group alone in INT8, as far as they have it in INT8 at all."""
        others = {name: _OTHERS for name in self.names if name not in group.layers}
        writers: list[Callable[..., Quantized]] = [self.emitter.tensorrt, partial(self.emitter.cpu, alone=True)]
        return [
            to_bytes(write(others).model)
            for write, never in zip(writers, self.never, strict=True)
            if not never.issuperset(group.layers)
        ]

    def emit(self, keep: Mapping[str, str]) -> Emitted:
        """Write both graphs. An error of the rules of Q/DQ pairs is a fault, and so are files without INT8."""
        graphs = self.emitter.emit(keep)
        sessions = {name: session for name, session in graphs.sessions.items() if name != "fp32"}
        precisions = {name: _precisions(name, graphs) for group in self.groups for name in group.layers}
        return Emitted(sessions, precisions, _fault(graphs, self.had))


def _fault(graphs: Int8Graphs, had: Mapping[str, bool]) -> str | None:
    """Return why graphs are no plan. ``had`` says which graph has INT8 if nothing is kept."""
    emptied = [name for name, graph in (("TensorRT", graphs.tensorrt), ("a CPU", graphs.cpu)) if not graph.count]
    if len(emptied) == 2 or any(had[name] for name in emptied):
        return f"nothing is left in INT8 for {' and '.join(emptied)}"
    model = onnx.load_model_from_string(graphs.files["int8"])
    for target in _TARGETS:
        for finding in findings_of(model, parse_target(target)):
            if finding.severity == "error" and finding.rule.startswith("qdq/"):
                return f"{finding.rule} at {finding.node} for {target}: {finding.why}"
    return None


def _precisions(name: str, graphs: Int8Graphs) -> dict[str, str]:
    around = "fp32" if graphs.files["int8"] == graphs.simulated or name in graphs.fp32_around else "fp16"
    return {
        "tensorrt": around if name in graphs.tensorrt.kept_float else "int8",
        "cpu": "fp32" if name in graphs.cpu.kept_float else "int8",
    }
