"""Drop of INT8 for a restorer in dB: krl's two graphs beside quantize_static of ONNX Runtime, in one run.

Give a bundle made by ``krl-deploy import --task restoration`` or ``export``, and a folder of ``train/`` (T91, say) and
``val/`` (Set5). Every row is calibrated on the same patches and measured on the same whole images: PSNR of luma, the
border cut off.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from _peers import PEERS, machine, quantize_static

from krl_deploy.calibration.record import Identity
from krl_deploy.config import QuantizeConfig
from krl_deploy.evaluation import EvaluationOptions, Task, task_of
from krl_deploy.evaluation.comparison import compare
from krl_deploy.graph.edit import GraphEditor
from krl_deploy.graph.placement import weighted_nodes
from krl_deploy.graph.session import open_cpu
from krl_deploy.precision.calibrate import measure_tensors
from krl_deploy.precision.planner import make_plan
from krl_deploy.precision.variants import Emitter
from krl_runtime.bundle import Bundle

METHODS = ("mse", "percentile", "minmax")
SWITCHES: dict[str, dict[str, Any]] = {
    "": {},
    ", optimal scales": {"optimal_scales": True},
    ", equalized everywhere": {"equalizing": "all"},
    ", both": {"equalizing": "all", "optimal_scales": True},
    ", no bias correction": {"bias_correction": False},
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.ArgumentDefaultsHelpFormatter)
    parser.add_argument("bundle", type=Path)
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--limit", type=int, default=256, help="patches to calibrate on")
    parser.add_argument("--json", action="store_true", help="print one JSON object on standard output")
    arguments = parser.parse_args()
    bundle = Bundle.open(arguments.bundle)
    task = task_of(bundle, EvaluationOptions(arguments.data, 1000, 0.2, "refuse", arguments.limit))
    fp32 = bundle.file("model.fp32.onnx").read_bytes()
    seen = np.asarray(task.calibration_data.inputs)
    batches = list(task.batches())
    reference = open_cpu(fp32)
    rows: list[dict[str, Any]] = []
    for form, session in [*contenders(fp32, seen), *planned(bundle, task, fp32, seen)]:
        count, scores = compare({"fp32": reference, "form": session}, batches, task.tally)
        before, after = scores["fp32"].psnr, scores["form"].psnr
        rows.append(
            {"form": form, "psnr": after, "drop_db": before - after, "psnr_to_fp32": scores["form"].psnr_to_fp32}
        )
        if not arguments.json:
            if len(rows) == 1:
                print(f"fp32: {before:.3f} dB on {count} images; calibrated on {len(seen)} patches")
            print(f"{form:66} {after:7.3f} dB  drop {before - after:7.3f} dB", flush=True)
    if arguments.json:
        print(json.dumps({"machine": machine(), "patches": len(seen), "rows": rows}, indent=2))


def contenders(fp32: bytes, seen: np.ndarray) -> Iterator[tuple[str, Any]]:
    """Yield names and sessions; the last rows of krl keep one layer each in floating point."""
    for method in METHODS:
        for name, options in SWITCHES.items():
            if name and method != METHODS[0]:
                continue
            emitter = emit(fp32, seen, method, **options)
            graphs = emitter.emit()
            for form in ("int8", "int8.cpu"):
                yield f"krl {form}, {method}{name}", graphs.sessions[form]
    for method in PEERS:
        yield f"quantize_static, {method}", open_cpu(quantize_static(fp32, seen, method))
        convolutions = quantize_static(fp32, seen, method, ["Conv", "ConvTranspose"])
        yield f"quantize_static, {method}, convolutions alone", open_cpu(convolutions)
    emitter = emit(fp32, seen, METHODS[0])
    for item in weighted_nodes(GraphEditor(emitter.model)):
        others = {
            other.node.name: "measured alone"
            for other in weighted_nodes(GraphEditor(emitter.model))
            if other.node.name != item.node.name
        }
        yield f"krl int8, {item.node.name} alone in INT8", emitter.emit(others).sessions["int8"]


def planned(bundle: Bundle, task: Task, fp32: bytes, seen: np.ndarray) -> Iterator[tuple[str, Any]]:
    """Yield what ``krl-deploy quantize --equalize all --mixed-precision`` makes: a drop of 0.1 dB at most."""
    emitter = emit(fp32, seen, METHODS[0], equalizing="all")
    plan = make_plan(QuantizeConfig(bundle.path, mixed_precision=True), task, emitter)
    graphs = emitter.emit(plan.keep)
    for form in ("int8", "int8.cpu"):
        kept = f"{len(plan.keep)} of {len(plan.layers)} layers in float"
        yield f"krl {form}, equalized everywhere, plan: {kept}", graphs.sessions[form]


def emit(
    fp32: bytes,
    seen: np.ndarray,
    method: Any,
    *,
    equalizing: Any = "auto",
    bias_correction: bool = True,
    optimal_scales: bool = False,
) -> Emitter:
    identity = Identity("", {}, "", len(seen), method, equalizing)
    model = onnx.load_model_from_string(fp32)
    calibration = measure_tensors(model, seen, identity, method=method, equalizing=equalizing)
    return Emitter(fp32, calibration, fp16=False, optimal_scales=optimal_scales, bias_correction=bias_correction)


if __name__ == "__main__":
    main()
