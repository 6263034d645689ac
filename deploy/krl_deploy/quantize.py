"""``krl-deploy quantize``: from a bundle and real pictures to an INT8 variant, measured before it is kept."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy.typing as npt

from krl_runtime.bundle import Bundle, Variant
from krl_runtime.errors import CheckFailedError
from krl_runtime.pictures import Picture

from .calibrate import calibrate
from .calibration.record import Calibration
from .config import QuantizeConfig
from .data import choose, open_data, with_label_indices
from .forms import Emitter, Forms
from .graph.files import read_model
from .planner import PLAN_FILES, Plan, make_plan
from .report import Row, score_table
from .verify import (
    Score,
    against_golden,
    compare,
    count_convolutions,
    decoded,
    interleaved_latency,
    machine,
    open_cpu,
    optimised_graph,
)

__all__ = ["quantize"]

_log = logging.getLogger("krl")

_CALIBRATION = "calibration.json"
_FILES = {"int8": "model.int8.onnx", "int8.cpu": "model.int8.cpu.onnx"}
_WORTHWHILE = 1.1
_SLACK = "twice the largest logit error on the golden inputs, and their agreement less two of them"
_MEASURED = (
    "int8: TensorRT's form with FP32 tensors, rounded to FP16 wherever the file has FP16; int8.cpu: the file on ONNX "
    "Runtime's CPU provider; golden inputs: both files"
)


@dataclass(frozen=True)
class _Measured:
    """What pictures and clock say; ``drop`` is in percentage points of top-1, ``None`` without labels."""

    count: int
    scores: Mapping[str, Score]
    drop: float | None
    latency: Mapping[str, float]
    convolutions: Mapping[str, int]

    @property
    def speedup(self) -> float:
        return self.latency["fp32"] / self.latency["int8.cpu"]

    def rows(self, forms: Forms) -> list[Row]:
        names = {"fp32": "fp32", "int8": "int8 (TensorRT, GPU)", "int8.cpu": "int8 (CPU)"}
        return [
            Row(names[name], len(forms.files[name]), self.scores[name], self.latency.get(name)) for name in forms.files
        ]


def quantize(config: QuantizeConfig) -> tuple[dict[str, Any], str]:
    """Calibrate, write both INT8 forms, measure them against FP32, and add them to the bundle if they pass.

    Returns:
        What was measured as plain JSON types, and the same as a table.

    Raises:
        CheckFailedError: INT8 loses more than ``max_drop``, or ``reuse_calibration`` found another calibration.
        DataError: The pictures cannot be used, or are not real ones.
        ModelError: The model cannot be quantised.
        BundleError: The bundle is damaged, or has no golden inputs.
    """
    bundle = Bundle.open(config.bundle)
    golden = bundle.golden()
    folder = open_data(config.data, on_bad=config.on_bad_image)
    path = bundle.file(bundle.manifest.variants["fp32"].file)
    train: Sequence[Picture] = choose(folder, "train", config.limit, val_fraction=config.val_fraction)
    val = choose(folder, "val", config.val_limit, val_fraction=config.val_fraction)
    labelled = with_label_indices([*train, *val], folder, bundle.manifest.labels)
    train, pictures = labelled[: len(train)], labelled[len(train) :]
    calibration = calibrate(config, bundle, read_model(path), train)
    emitter = Emitter(
        path.read_bytes(),
        calibration,
        half=config.around == "fp16",
        optimal_scales=config.optimal_scales,
        bias_correction=config.bias_correction,
    )
    plan = make_plan(config, bundle, emitter, train, pictures) if config.plan else None
    forms = emitter.emit(plan.keep if plan else None)
    measured = _measure(config, bundle, forms, pictures, golden)
    shown = score_table(measured.rows(forms))
    _check_drop(config, measured, shown)
    evidence = _evidence(config, folder.root.name, calibration, forms, measured, plan)
    default = _default(config, measured)
    files = {**{file: forms.files[name] for name, file in _FILES.items()}, _CALIBRATION: calibration.to_bytes()}
    bundle.update(
        {**files, **(plan.files(forms) if plan else {})},
        remove=() if plan else PLAN_FILES,
        variants={**bundle.manifest.variants, "int8": _variant(bundle, forms, golden)},
        default_variants={**bundle.manifest.default_variants, "cpu": default},
        calibration=_CALIBRATION,
        evidence={**bundle.manifest.evidence, "int8": evidence},
    )
    return {"bundle": str(bundle.path), "default_on_cpu": default, **evidence}, shown


def _measure(
    config: QuantizeConfig,
    bundle: Bundle,
    forms: Forms,
    pictures: Sequence[Picture],
    golden: Mapping[str, npt.NDArray[Any]],
) -> _Measured:
    manifest = bundle.manifest
    if not forms.tensorrt.count:
        reasons = "; ".join(sorted(set(forms.tensorrt.kept_float.values())))
        _log.warning("TensorRT's form has nothing in INT8, no operator is wide enough: %s", reasons)
    convolutions = count_convolutions(optimised_graph(forms.files["int8.cpu"]))
    if convolutions["float_convolutions"]:
        _log.warning(
            "%d of %d convolutions stay in floating point on ONNX Runtime's CPU provider",
            convolutions["float_convolutions"],
            sum(convolutions.values()),
        )
    count, scores = compare(forms.sessions, decoded(pictures, manifest.preprocessing, on_bad=config.on_bad_image))
    timed = {name: forms.sessions[name] for name in ("fp32", "int8.cpu")}
    latency = interleaved_latency(timed, golden[manifest.inputs[0].name][:1])
    top1 = [score.top1 for score in scores.values() if score.top1 is not None]
    drop = round((top1[0] - min(top1[1:])) * 100, 9) if top1 else None  # 1 of 100 pictures is 1 point, not 1.00…09
    return _Measured(count, scores, drop, latency, convolutions)


def _check_drop(config: QuantizeConfig, measured: _Measured, shown: str) -> None:
    if measured.drop is None:
        _log.warning("the pictures have no labels of the model: --max-drop was not checked, only agreement measured")
    elif measured.drop > config.max_drop:
        raise CheckFailedError(
            f"INT8 loses {measured.drop:.2f} points of top-1 on {measured.count} pictures, accepted are "
            f"{config.max_drop:g}; the bundle is unchanged. --plan finds the layers that cost most and keeps them in "
            f"floating point; another --method or a higher --limit may help as well\n{shown}"
        )


def _default(config: QuantizeConfig, measured: _Measured) -> str:
    """Return the variant that a CPU should run: INT8 where it is clearly faster and no less right."""
    apart = (1 - min(score.agreement for score in measured.scores.values())) * 100
    loss = apart if measured.drop is None else measured.drop
    if loss <= config.max_drop and measured.speedup >= _WORTHWHILE:
        return "int8"
    _log.info(
        "fp32 stays the default on a CPU: INT8 runs at %.2f times its speed here, and loses %.2f points at most",
        measured.speedup,
        loss,
    )
    return "fp32"


def _variant(bundle: Bundle, forms: Forms, golden: Mapping[str, npt.NDArray[Any]]) -> Variant:
    """Return the variant, with what a self-test may ask of it: what was measured here, and the stated slack."""
    pixels, expected = (golden[spec[0].name] for spec in (bundle.manifest.inputs, bundle.manifest.outputs))
    sessions = [forms.sessions["int8"], open_cpu(forms.files["int8"]), forms.sessions["int8.cpu"]]
    error, agreement = against_golden(sessions, pixels, expected)
    return Variant("int8", _FILES["int8"], _FILES["int8.cpu"], 2 * error, max(0.0, agreement - 2 / len(expected)))


def _evidence(
    config: QuantizeConfig,
    data: str,
    calibration: Calibration,
    forms: Forms,
    measured: _Measured,
    plan: Plan | None,
) -> dict[str, Any]:
    return {
        "calibration": asdict(calibration.identity),
        "bias_correction": config.bias_correction,
        "optimal_scales": config.optimal_scales,
        "equalised_activations": len(calibration.factors),
        "around": "fp32" if forms.files["int8"] == forms.simulated else "fp16",
        "kept_fp32": dict(forms.fp32_around),
        "pictures": {"data": data, "count": measured.count},
        "scores": {name: asdict(score) for name, score in measured.scores.items()},
        "measured": _MEASURED,
        "drop_points": measured.drop,
        "latency_ms": dict(measured.latency),
        "latency_batch": 1,
        "speedup": measured.speedup,
        "machine": machine(),
        "cpu_convolutions": dict(measured.convolutions),
        "kept_float": {"tensorrt": forms.tensorrt.kept_float, "cpu": forms.cpu.kept_float},
        "file_bytes": {name: len(data) for name, data in forms.files.items()},
        "selftest_slack": _SLACK,
        **({"plan": plan.summary()} if plan else {}),
    }
