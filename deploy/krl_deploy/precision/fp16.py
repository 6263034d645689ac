"""``krl-deploy fp16``: convert a bundle's model to FP16, and measure the variant before it is kept."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from typing import Any

import onnx

from krl_deploy.calibration.collect import collect
from krl_deploy.config import Fp16Config
from krl_deploy.data.arrays import Inputs
from krl_deploy.evaluation import EvaluationOptions, task_of
from krl_deploy.evaluation.comparison import compare, machine, outputs_of
from krl_deploy.evaluation.enforce import enforce, limits_of
from krl_deploy.evaluation.table import Row, score_table
from krl_deploy.graph.files import read_model, to_bytes
from krl_deploy.graph.placement import Ranges
from krl_deploy.graph.session import open_cpu
from krl_runtime.bundle import Bundle, Variant, names
from krl_runtime.bundle.golden import golden_arrays
from krl_runtime.errors import CheckFailedError, ModelError

from .emit_fp16 import Fp16Graph, float_tensors, round_to_fp16, to_fp16

__all__ = ["fp16"]

_log = logging.getLogger("krl")

_MEASURED = (
    "fp16: the file on ONNX Runtime's CPU provider, which computes it in FP32; fp16.rounded: every FP16 tensor rounded "
    "to FP16 as a device stores it"
)


def fp16(config: Fp16Config) -> tuple[dict[str, Any], str]:
    """Convert the model to FP16, look for overflow on real inputs, measure, and add the variant to the bundle.

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
    task = task_of(bundle, EvaluationOptions.of(config))
    batches = list(task.batches())
    path = bundle.file(manifest.variants["fp32"].file)
    model = read_model(path)
    converted = to_fp16(model, _extremes(model, [inputs, *(batch for batch, _ in batches)]))
    if converted.kept:
        reasons = "; ".join(sorted(set(converted.kept.values()))[:5])
        _log.warning("%d nodes stay in FP32: %s", len(converted.kept), reasons)
    files = {"fp32": path.read_bytes(), "fp16": to_bytes(converted.model)}
    rounded = to_bytes(round_to_fp16(model, converted.nodes))
    sessions = {name: open_cpu(data) for name, data in [*files.items(), ("fp16.rounded", rounded)]}
    try:
        count, scores = compare(sessions, batches, task.tally)
        outputs = [outputs_of(sessions[name], inputs) for name in ("fp16", "fp16.rounded")]
    except ModelError as failure:
        raise CheckFailedError(f"in FP16 {failure}; the bundle is unchanged; give more images with --data") from failure
    rows = [Row(name, len(files[name.partition(".")[0]]), score) for name, score in scores.items()]
    shown = score_table(rows, task.remark(count, scores))
    verdict = task.verdict("fp16", count, scores)
    enforce(verdict, "FP16", count, shown)
    variant = Variant("fp16", names.FP16, **limits_of("fp16", manifest, outputs, golden, verdict))
    measured_on = {"data": task.name, "count": count}
    evidence = {
        "images": measured_on,
        **_evidence(converted, scores, files),
        **task.evidence(scores, verdict),
    }
    bundle.update(
        {names.FP16: files["fp16"]},
        variants={**manifest.variants, "fp16": variant},
        evidence={**manifest.evidence, "fp16": evidence},
    )
    return {"bundle": str(bundle.path), **evidence}, shown


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
