"""``krl-deploy fp16``: convert a bundle's model to FP16, and measure the variant before it is kept."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx

from krl_deploy.calibration.collect import collect
from krl_deploy.config import Fp16Config
from krl_deploy.data.arrays import Inputs
from krl_deploy.evaluation import Batch, EvaluationOptions, Task, task_of
from krl_deploy.evaluation.comparison import compare, machine, outputs_of
from krl_deploy.evaluation.enforce import enforce, limits_of
from krl_deploy.evaluation.table import Row, score_table
from krl_deploy.graph.contrib import check_standard
from krl_deploy.graph.files import read_model, to_bytes
from krl_deploy.graph.placement import Ranges
from krl_deploy.graph.session import open_cpu
from krl_runtime.bundle import Bundle, Variant, names
from krl_runtime.bundle.golden import golden_arrays
from krl_runtime.errors import CheckFailedError, ModelError
from krl_runtime.evaluation.gate import Verdict

from .emit_fp16 import Fp16Graph, float_tensors, round_to_fp16, to_fp16
from .planner.fp16 import FP16_PLAN_FILES, plan_fp16
from .planner.make import PLANNING_LIMIT

__all__ = ["fp16"]

_log = logging.getLogger("krl")

_ADVICE = "--mixed-precision keeps the nodes with the largest error in FP32."
_RANGE_IMAGES = 128  # to see how far values reach: half of FP16's range is left free for those of other images
_MEASURED = (
    "fp16: the file on ONNX Runtime's CPU provider, which computes it in FP32; fp16.rounded: every FP16 tensor rounded "
    "to FP16 as a device stores it"
)


@dataclass(frozen=True)
class _Measured:
    """A converted model, measured. Without a verdict its outputs are not finite, as ``failure`` says."""

    converted: Fp16Graph
    files: Mapping[str, bytes]
    count: int = 0
    scores: Mapping[str, Any] = field(default_factory=dict)
    outputs: Sequence[npt.NDArray[np.float32]] = ()
    verdict: Verdict | None = None
    failure: str = ""

    def asks_for_a_plan(self, *, accept_unmeasured: bool) -> bool:
        """Return whether it fails for another reason than too few images."""
        if self.verdict is None:
            return True
        return not self.verdict.passes and (self.verdict.judged or accept_unmeasured)


def fp16(config: Fp16Config) -> tuple[dict[str, Any], str]:
    """Convert the model to FP16, look for overflow on inputs that are not judged on, measure, and add the variant.

    Returns:
        The measurements as plain JSON types, and as a table.

    Raises:
        CheckFailedError: FP16 does not pass the gate, or gives numbers that are not finite where FP32 does not.
        DataError: The images cannot be used.
        ModelError: No node of the model can compute in FP16.
        BundleError: The bundle is damaged, or has no golden inputs.
    """
    bundle = Bundle.open(config.bundle)
    manifest = bundle.manifest
    golden = golden_arrays(bundle)
    inputs = {spec.name: golden[spec.name] for spec in manifest.inputs}
    task = task_of(bundle, _options(config))
    batches = list(task.batches())
    path = bundle.file(bundle.reference.file)
    model = read_model(path)
    check_standard(model, "FP16")
    with_data = config.data is not None or manifest.task == "generation"
    seen = [inputs, task.calibration_data.inputs] if with_data else [inputs]
    ranges = _extremes(model, seen)
    measure = partial(_measure, task, batches, model, path.read_bytes(), ranges, inputs)
    measured, plan = measure({}), None
    if config.mixed_precision and measured.asks_for_a_plan(accept_unmeasured=config.accept_unmeasured):
        plan = plan_fp16(config, bundle.path, task, model, ranges)
        measured = measure(plan.keep)
    converted, files, scores, count = measured.converted, measured.files, measured.scores, measured.count
    if converted.kept:
        reasons = "; ".join(sorted(set(converted.kept.values()))[:5])
        _log.warning("%d nodes stay in FP32: %s", len(converted.kept), reasons)
    if measured.verdict is None:
        raise CheckFailedError(f"in FP16 {measured.failure}; the bundle is unchanged; give more images with --data")
    rows = [Row(name, len(files[name.partition(".")[0]]), score) for name, score in scores.items()]
    shown = score_table(rows, task.remark(count, scores))
    enforce(measured.verdict, "FP16", count, shown, "" if plan else _ADVICE)
    limits = limits_of("fp16", manifest, measured.outputs, golden, measured.verdict)
    variant = Variant("fp16", names.FP16, **limits)
    measured_on = {"data": task.name, "count": count}
    evidence = {
        "images": measured_on,
        **_evidence(converted, scores, files),
        **task.evidence(scores, measured.verdict),
        **({"plan": plan.summary()} if plan else {}),
    }
    bundle.update(
        {names.FP16: files["fp16"], **(plan.files() if plan else {})},
        remove=() if plan else FP16_PLAN_FILES,
        variants={**manifest.variants, "fp16": variant},
        evidence={**manifest.evidence, "fp16": evidence},
    )
    return {"bundle": str(bundle.path), **evidence}, f"{shown}\n{plan.table()}" if plan else shown


def _measure(
    task: Task,
    batches: Sequence[Batch],
    model: onnx.ModelProto,
    fp32: bytes,
    ranges: Ranges,
    golden: Inputs,
    keep: Mapping[str, str],
) -> _Measured:
    """Convert a model and measure it: the file, and the simulation that rounds every FP16 tensor."""
    converted = to_fp16(model, ranges, keep=keep)
    files = {"fp32": fp32, "fp16": to_bytes(converted.model)}
    rounded = to_bytes(round_to_fp16(model, converted.nodes))
    sessions = {name: open_cpu(data) for name, data in [*files.items(), ("fp16.rounded", rounded)]}
    try:
        count, scores = compare(sessions, batches, task.tally)
        outputs = [outputs_of(sessions[name], golden) for name in ("fp16", "fp16.rounded")]
    except ModelError as failure:
        return _Measured(converted, files, failure=str(failure))
    return _Measured(converted, files, count, scores, outputs, task.verdict("fp16", count, scores))


def _options(config: Fp16Config) -> EvaluationOptions:
    planning = PLANNING_LIMIT if config.mixed_precision else 0
    return replace(EvaluationOptions.of(config), limit=_RANGE_IMAGES, planning=planning)


def _evidence(converted: Fp16Graph, scores: Mapping[str, Any], files: Mapping[str, bytes]) -> dict[str, Any]:
    return {
        "scores": {name: score.to_dict() for name, score in scores.items()},
        "measured": _MEASURED,
        "fp16_operators": len(converted.nodes),
        "kept_fp32": dict(converted.kept),
        "file_bytes": {name: len(data) for name, data in files.items()},
        "machine": machine(),
    }


def _extremes(model: onnx.ModelProto, samples: Sequence[Inputs]) -> Ranges:
    """Return the smallest and largest value of every float tensor over inputs that may differ in size."""
    found: dict[str, tuple[float, float]] = {}
    tensors = float_tensors(model)
    for inputs in samples:
        for name, (low, high) in collect(model, tensors, inputs).items():
            before = found.get(name, (low, high))
            found[name] = (min(low, before[0]), max(high, before[1]))
    return found
