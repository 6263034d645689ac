"""``krl-deploy export``: from a run to a bundle with its FP32 graph, for any task."""

from __future__ import annotations

import logging
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from krl_deploy.bundles.reference import check_target, make_reference
from krl_deploy.config import ExportConfig
from krl_deploy.graph.files import opset_of, to_bytes
from krl_runtime.errors import UsageError, require

from .classifier import plan_classifier
from .conversion import source_of
from .embedder import plan_embedder
from .generator import plan_generator
from .none_of_these import calibrate_refusal, check_refusal
from .parity import check_parity, torch_outputs, without_rounding
from .plan import ExportPlan
from .restorer import plan_restorer

if TYPE_CHECKING:
    from krl_train.run import Run

__all__ = ["export"]

_log = logging.getLogger("krl")

_PLANS: dict[str, Callable[[ExportConfig, Run], ExportPlan]] = {
    "classification": plan_classifier,
    "embedding": plan_embedder,
    "restoration": plan_restorer,
    "generation": plan_generator,
}


def export(config: ExportConfig) -> dict[str, Any]:
    """Export a run's network, check it against torch on real inputs, and write the bundle.

    Returns:
        Facts of the bundle and its measurements, as plain JSON types.

    Raises:
        CheckFailedError: ONNX Runtime's outputs differ from torch's by more than ``tolerance``; or those of a trained
            INT8 graph differ by more than rounding explains.
        RunError: The run cannot be used.
        ModelError: The network cannot be exported.
        DataError: There are no real inputs.
        UsageError: ``tile`` or ``none_of_these`` does not fit the network.
        BundleError: ``out`` exists, and ``overwrite`` is off.
    """
    require("torch", extra="train", purpose="exporting a run")
    from krl_train.models import count_parameters
    from krl_train.run import Run

    check_target(config.out, overwrite=config.overwrite)
    run = Run.open(config.run)
    record = run.record
    if config.tile is not None and record.task != "restoration":
        raise UsageError(
            f"--tile is for restorers; {config.run} is of the task {record.task}, whose images have one size"
        )
    check_refusal(config, run)
    plan = _PLANS[record.task](config, run)
    opset = opset_of(plan.model)
    if opset != config.opset:
        _log.warning("torch wrote opset %d instead of %d", opset, config.opset)
    data = to_bytes(plan.model)
    with without_rounding(plan.network):
        expected = torch_outputs(plan.network, plan.inputs)
        parity = check_parity(data, plan, expected, config.tolerance)
    refusal = calibrate_refusal(config, run, data)
    evidence = {
        "parity": parity,
        **plan.evidence,
        **({"none_of_these": refusal.evidence} if refusal else {}),
        "parameters": count_parameters(plan.network.get_submodule("backbone")),
        "macs": plan.macs,
        "file_bytes": len(data),
        "opset": opset,
    }
    labels = () if record.task == "embedding" else record.labels  # those of the data, which outputs do not have
    reference = make_reference(
        data,
        {name: array[: config.golden] for name, array in plan.inputs.items()},
        plan.apart(expected[: config.golden]),
        name=record.model.name,
        preprocessing=plan.preprocessing,
        source=source_of(run),
        task=record.task,
        labels=labels,
        settings={**plan.settings, **(refusal.settings if refusal else {})},
        brought=plan.trained,
    )
    bundle = reference.write(config.out, evidence, overwrite=config.overwrite)
    result = {"bundle": str(bundle.path), "task": record.task, "model": record.model.name}
    return {**result, "labels": len(labels), **evidence}
