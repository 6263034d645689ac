"""The planner's view of FP16: each weighted operator with the nodes behind it, to keep in FP32 as one."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import onnx

from krl_deploy.config import Fp16Config
from krl_deploy.evaluation import Task
from krl_deploy.graph.edit import GraphEditor
from krl_deploy.graph.files import to_bytes
from krl_deploy.graph.operators import WEIGHTED
from krl_deploy.graph.placement import Ranges, weighted_depths, weighted_nodes
from krl_deploy.graph.session import open_cpu
from krl_deploy.graph.workload import multiply_accumulates
from krl_deploy.precision.emit_fp16 import round_to_fp16, to_fp16
from krl_runtime.errors import ModelError
from krl_runtime.files import sha256_bytes

from .make import PlanOptions, make_plan
from .record import MixedPrecisionPlan
from .subject import Emitted, Group

__all__ = ["FP16_PLAN_FILES", "plan_fp16"]

FP16_PLAN_FILES = ("plan.fp16.json", "sensitivity.fp16.png")
"""Contribution of the planner to a bundle."""


def plan_fp16(
    config: Fp16Config, bundle: Path, task: Task, model: onnx.ModelProto, ranges: Ranges
) -> MixedPrecisionPlan:
    """Plan which nodes stay in FP32; see ``make_plan``."""
    options = PlanOptions(
        bundle.with_name(f"{bundle.name}.fp16.plan.json"),
        config.resume,
        config.budget_seconds,
        {"max_drop": config.max_drop, "min_psnr": config.min_psnr},
    )
    return make_plan(_Fp16(model, ranges), task, options)


class _Fp16:
    """Nodes that can compute in FP16, in groups between two weighted operators."""

    precision = "fp16"
    kept = "nodes in FP32"
    files = FP16_PLAN_FILES

    def __init__(self, model: onnx.ModelProto, ranges: Ranges) -> None:
        self.model, self.ranges, self.fp32 = model, ranges, to_bytes(model)
        graph = GraphEditor(model)
        weighted = {item.node.name: item for item in weighted_nodes(graph)}
        ops = {node.name: node.op_type for node in graph.nodes}
        self.groups: Sequence[Group] = [
            Group(
                tuple(names),
                tuple(ops[name] for name in names),
                tuple(multiply_accumulates(graph, weighted[name]) if name in weighted else 0 for name in names),
            )
            for names in _between_weighted(graph, to_fp16(model, ranges).nodes)
        ]
        self.identity: Mapping[str, Any] = {
            "precision": self.precision,
            "graph_sha256": sha256_bytes(self.fp32),
            "ranges": {name: list(limits) for name, limits in sorted(ranges.items())},
        }

    def alone(self, group: Group) -> list[bytes]:
        """Return the model that rounds the constants and outputs of this group alone."""
        return [to_bytes(round_to_fp16(self.model, frozenset(group.layers)))]

    def emit(self, keep: Mapping[str, str]) -> Emitted:
        """Write the file, and the simulation that rounds every FP16 tensor."""
        try:
            converted = to_fp16(self.model, self.ranges, keep=keep)
        except ModelError as error:
            return Emitted({}, fault=str(error))
        files = {"fp16": to_bytes(converted.model)}
        files["fp16.rounded"] = to_bytes(round_to_fp16(self.model, converted.nodes))
        precisions = {
            name: {"fp16": "fp16" if name in converted.nodes else "fp32"}
            for group in self.groups
            for name in group.layers
        }
        return Emitted({name: open_cpu(data) for name, data in files.items()}, precisions)


def _between_weighted(graph: GraphEditor, nodes: frozenset[str]) -> list[list[str]]:
    """Return the names of nodes in groups, each behind the weighted operator that is deepest before it."""
    depths = weighted_depths(graph)
    owners: dict[str, str] = {}
    groups: dict[str, list[str]] = {}
    for node in graph.nodes:
        before = max((name for name in node.input if name in owners), key=lambda name: depths[name], default=None)
        owner = node.name if node.op_type in WEIGHTED or before is None else owners[before]
        owners |= dict.fromkeys(node.output, owner)
        if node.name in nodes:
            groups.setdefault(owner, []).append(node.name)
    return list(groups.values())
