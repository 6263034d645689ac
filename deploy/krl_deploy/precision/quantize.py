"""``krl-deploy quantize``: from a bundle and real images to an INT8 variant, measured before it is kept."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from typing import Any

import numpy.typing as npt
import onnx

from krl_deploy.calibration.record import Calibration
from krl_deploy.config import QuantizeConfig
from krl_deploy.evaluation import EvaluationOptions, Task, task_of
from krl_deploy.evaluation.comparison import compare, interleaved_latency, machine, outputs_of
from krl_deploy.evaluation.enforce import enforce, limits_of
from krl_deploy.evaluation.table import Row, score_table
from krl_deploy.graph.contrib import check_standard
from krl_deploy.graph.files import read_model
from krl_deploy.graph.precisions import count_precisions
from krl_deploy.graph.session import count_convolutions, open_cpu, optimized_graph
from krl_runtime.backends.onnxruntime import computes_fp16_pairs
from krl_runtime.bundle import Bundle, Variant, names
from krl_runtime.bundle.golden import golden_arrays
from krl_runtime.cli.tables import table
from krl_runtime.errors import CheckFailedError
from krl_runtime.evaluation.gate import Verdict

from .calibrate import calibrate
from .planner.int8 import PLAN_FILES, plan_int8
from .planner.make import PLANNING_LIMIT
from .planner.record import MixedPrecisionPlan
from .variants import Emitter, Int8Graphs

__all__ = ["quantize"]

_log = logging.getLogger("krl")

_FILES = {"int8": names.INT8, "int8.fp32": names.INT8_FP32, "int8.cpu": names.INT8_CPU}
_FIELDS = {"int8": "file", "int8.fp32": "fp32_file", "int8.cpu": "cpu_file"}
_NAMES = {
    "fp32": "fp32",
    "int8": "int8 (TensorRT, GPU)",
    "int8.fp32": "int8 (OpenVINO)",
    "int8.cpu": "int8 (CPU)",
}
_WORTHWHILE = 1.1  # times FP32's speed: INT8 has to be clearly faster to be the default on a CPU; chosen, not measured
_ADVICE = (
    "--mixed-precision keeps the layers with the largest drop in floating point; another --method or a higher --limit "
    "may also help."
)
_RECALIBRATE = "--recalibrate measures new ranges in place of those that came with the model."
_MEASURED = (
    "int8: TensorRT's graph with FP32 tensors, rounded to FP16 wherever the file has FP16; int8.fp32 and int8.cpu: the "
    "files on ONNX Runtime's CPU provider; golden inputs: all files"
)


@dataclass(frozen=True)
class _Measured:
    """Results of measuring accuracy and latency."""

    count: int
    scores: Mapping[str, Any]
    verdict: Verdict
    latency: Mapping[str, float]
    convolutions: Mapping[str, int]
    precisions: Mapping[str, Mapping[str, int]]

    @property
    def speedup(self) -> float:
        return self.latency["fp32"] / self.latency["int8.cpu"]

    def rows(self, graphs: Int8Graphs) -> list[Row]:
        return [
            Row(_NAMES[name], len(data), self.scores[name], self.latency.get(name))
            for name, data in graphs.files.items()
        ]


def quantize(config: QuantizeConfig) -> tuple[dict[str, Any], str]:
    """Calibrate, write both INT8 graphs, measure them against FP32, and add them to the bundle if they pass.

    Classifiers and restorers are calibrated on images; generators on random latents, as in real use.

    Returns:
        The measurements as plain JSON types, and as a table.

    Raises:
        CheckFailedError: The accuracy drop of INT8 is too large, or ``reuse_calibration`` found another calibration.
        DataError: The images cannot be used, or are not real.
        ModelError: The model cannot be quantized.
        BundleError: The bundle is damaged, or has no golden inputs.
    """
    bundle = Bundle.open(config.bundle)
    golden = golden_arrays(bundle)
    task = task_of(bundle, _options(config))
    path = bundle.file(bundle.reference.file)
    model = read_model(path)
    check_standard(model, "INT8")
    calibration = calibrate(config, bundle, model, task)
    emitter = Emitter(
        path.read_bytes(),
        calibration,
        fp16=config.float_precision == "fp16",
        optimal_scales=config.optimal_scales,
        bias_correction=config.bias_correction,
        image=not task.predicts,
    )
    plan = plan_int8(config, bundle.path, task, emitter) if config.mixed_precision else None
    graphs = emitter.emit(plan.keep if plan else None)
    measured = _measure(bundle, task, graphs, golden)
    shown = score_table(measured.rows(graphs), task.remark(measured.count, measured.scores))
    shown += f"\n{_precision_table(measured.precisions)}"
    advice = f"{_RECALIBRATE} {_ADVICE}" if calibration.keeps_given else _ADVICE
    enforce(measured.verdict, "INT8", measured.count, shown, advice)
    variant = _variant(bundle, graphs, golden, measured.verdict, kept=calibration.keeps_given)
    evidence = _evidence(config, task, calibration, graphs, measured, plan)
    default = _default(measured)
    files = {_FILES[name]: data for name, data in graphs.files.items() if name != "fp32"}
    files = {**files, names.CALIBRATION: calibration.to_bytes(), **(plan.files() if plan else {})}
    bundle.update(
        files,
        remove=tuple(name for name in (names.INT8_FP32, *PLAN_FILES) if name not in files),
        variants={**bundle.manifest.variants, "int8": variant},
        default_variants={**bundle.manifest.default_variants, "cpu": default},
        calibration=names.CALIBRATION,
        evidence={**bundle.manifest.evidence, "int8": evidence},
    )
    return {
        "bundle": str(bundle.path),
        "default_on_cpu": default,
        **evidence,
    }, f"{shown}\n{plan.table()}" if plan else shown


def _options(config: QuantizeConfig) -> EvaluationOptions:
    return replace(EvaluationOptions.of(config), planning=PLANNING_LIMIT if config.mixed_precision else 0)


def _measure(bundle: Bundle, task: Task, graphs: Int8Graphs, golden: Mapping[str, npt.NDArray[Any]]) -> _Measured:
    if not graphs.tensorrt.count:
        reasons = "; ".join(sorted(set(graphs.tensorrt.kept_float.values())))
        if not graphs.cpu.count:
            raise CheckFailedError(f"no operator is in INT8, so that there is no variant to keep: {reasons}")
        _log.warning("INT8 is for CPUs alone: TensorRT's graph has nothing in INT8, no operator suits it: %s", reasons)
    convolutions = count_convolutions(optimized_graph(graphs.files["int8.cpu"]))
    if convolutions["float_convolutions"]:
        _log.warning(
            "%d of %d convolutions stay in floating point on ONNX Runtime's CPU provider",
            convolutions["float_convolutions"],
            sum(convolutions.values()),
        )
    count, scores = compare(graphs.sessions, task.batches(), task.tally)
    timed = {name: graphs.sessions[name] for name in ("fp32", "int8.cpu")}
    first = {spec.name: golden[spec.name][:1] for spec in bundle.manifest.inputs}
    latency = interleaved_latency(timed, first)
    verdict = task.verdict("int8", count, scores)
    models = {name: onnx.load_model_from_string(data) for name, data in graphs.files.items()}
    precisions = {name: count_precisions(model) for name, model in models.items() if name != "fp32"}
    return _Measured(count, scores, verdict, latency, convolutions, precisions)


def _precision_table(precisions: Mapping[str, Mapping[str, int]]) -> str:
    """Return a table of how many operators compute in which type."""
    types = sorted({kind for counts in precisions.values() for kind in counts}, reverse=True)
    rows = [(_NAMES[name], *(counts.get(kind, 0) for kind in types)) for name, counts in precisions.items()]
    return table(("operators", *types), rows)


def _default(measured: _Measured) -> str:
    """Return the variant that a CPU should run: INT8, which has passed the gate, if it is clearly faster."""
    if measured.speedup >= _WORTHWHILE:
        return "int8"
    _log.info("fp32 stays the default on a CPU: INT8 runs at %.2f times its speed here", measured.speedup)
    return "fp32"


def _variant(
    bundle: Bundle, graphs: Int8Graphs, golden: Mapping[str, npt.NDArray[Any]], verdict: Verdict, *, kept: bool
) -> Variant:
    """Return the variant with the limits that the self-test holds it to; ``kept``: it has ranges that it came with."""
    inputs = {spec.name: golden[spec.name] for spec in bundle.manifest.inputs}
    made = [name for name in graphs.files if name != "fp32"]
    sessions = [graphs.sessions[name] for name in made]
    if "int8.fp32" not in made or computes_fp16_pairs():
        sessions.append(open_cpu(graphs.files["int8"]))
    outputs = [outputs_of(session, inputs) for session in sessions]
    advice = {"advice": _RECALIBRATE} if kept else {}
    limits = limits_of("int8", bundle.manifest, outputs, golden, verdict, **advice)
    chosen: dict[str, Any] = {_FIELDS[name]: _FILES[name] for name in made}
    return Variant("int8", **chosen, **limits)


def _evidence(
    config: QuantizeConfig,
    task: Task,
    calibration: Calibration,
    graphs: Int8Graphs,
    measured: _Measured,
    plan: MixedPrecisionPlan | None,
) -> dict[str, Any]:
    return {
        "calibration": asdict(calibration.identity),
        "recalibrated": calibration.recalibrated,
        "bias_correction": config.bias_correction,
        "optimal_scales": config.optimal_scales,
        "equalized_activations": len(calibration.factors),
        "float_precision": "fp16" if "int8.fp32" in graphs.files else "fp32",
        "kept_fp32": dict(graphs.fp32_around),
        "images": {"data": task.name, "count": measured.count},
        "scores": {name: score.to_dict() for name, score in measured.scores.items()},
        "measured": _MEASURED,
        **task.evidence(measured.scores, measured.verdict),
        "latency_ms": dict(measured.latency),
        "latency_batch": 1,
        "speedup": measured.speedup,
        "machine": machine(),
        "cpu_convolutions": dict(measured.convolutions),
        "operators": {name: dict(counts) for name, counts in measured.precisions.items()},
        "kept_float": {"tensorrt": graphs.tensorrt.kept_float, "cpu": graphs.cpu.kept_float},
        "file_bytes": {name: len(data) for name, data in graphs.files.items()},
        **({"plan": plan.summary()} if plan else {}),
    }
