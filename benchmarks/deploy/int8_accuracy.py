"""Accuracy drop of INT8 for a trained net: krl's two graphs beside quantize_static of ONNX Runtime, on the same images.

Give a bundle made by ``krl-deploy export`` from a net that has not seen the validation images, and its data. Every
row is calibrated on the same images and measured on the same others. The error of the logits tells methods apart
where top-1, which has a standard error of half a point on 2000 images, does not.
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
from krl_deploy.config import Equalize, Method
from krl_deploy.data.folders import choose, open_data, with_label_indices
from krl_deploy.evaluation.comparison import outputs_of
from krl_deploy.graph.edit import GraphEditor
from krl_deploy.graph.files import to_bytes
from krl_deploy.graph.placement import weighted_nodes
from krl_deploy.graph.session import open_cpu
from krl_deploy.precision.calibrate import measure_tensors
from krl_deploy.precision.variants import Emitter, Int8Graphs
from krl_runtime.bundle import Bundle
from krl_runtime.images.folders import decode

METHODS = ("minmax", "percentile", "entropy", "mse")
SWITCHES = {
    "": {},
    ", no bias correction": {"bias_correction": False},
    ", optimal scales": {"optimal_scales": True},
    ", equalized everywhere": {"equalizing": "all"},
    ", never equalized": {"equalizing": "none"},
}
DEFAULT = "mse"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.ArgumentDefaultsHelpFormatter)
    parser.add_argument("bundle", type=Path)
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--limit", type=int, default=512, help="images to calibrate on")
    parser.add_argument("--val-limit", type=int, default=2000, help="images to measure on")
    parser.add_argument(
        "--layers", action="store_true", help="what each layer costs that is alone in INT8, and no more"
    )
    parser.add_argument("--json", action="store_true", help="print one JSON object on standard output")
    arguments = parser.parse_args()
    bundle = Bundle.open(arguments.bundle)
    folder = open_data(arguments.data, on_bad="refuse")
    train = choose(folder, "train", arguments.limit, val_fraction=0.2)
    val = with_label_indices(
        choose(folder, "val", arguments.val_limit, val_fraction=0.2), folder, bundle.manifest.labels
    )
    (seen, _), (pixels, _) = (decode(part, bundle.manifest.preprocessing, on_bad="refuse") for part in (train, val))
    truth = np.array([image.label for image in val])
    fp32 = bundle.file("model.fp32.onnx").read_bytes()
    exact = outputs_of(open_cpu(fp32), pixels)
    rows = []
    for form, session in layers(fp32, seen) if arguments.layers else contenders(fp32, seen):
        rows.append({"form": form, **score(outputs_of(session, pixels), exact, truth)})
        if not arguments.json:
            print(line(rows[-1]), flush=True)
    if arguments.json:
        top1 = float((exact.argmax(1) == truth).mean())
        print(json.dumps({"machine": machine(), "images": len(pixels), "fp32_top1": top1, "rows": rows}, indent=2))


def contenders(fp32: bytes, seen: np.ndarray) -> Iterator[tuple[str, Any]]:
    """Yield names and sessions; each one is gone before the next one is made."""
    for method in METHODS:
        for name, options in SWITCHES.items():
            if name and method != DEFAULT:
                continue
            graphs = emit(fp32, seen, method, **options)
            for form in ("int8", "int8.cpu"):
                yield f"krl {form}, {method}{name}", graphs.sessions[form]
    for method in PEERS:
        yield f"quantize_static, {method}", open_cpu(quantize_static(fp32, seen, method))


def layers(fp32: bytes, seen: np.ndarray) -> Iterator[tuple[str, Any]]:
    """Yield names and sessions with one layer in INT8 and all others in FP32, calibrated as by default."""
    emitter = emitter_of(fp32, seen, DEFAULT, fp16=False)
    names = [item.node.name for item in weighted_nodes(GraphEditor(emitter.model))]
    for name in names:
        others = dict.fromkeys([other for other in names if other != name], "measured alone")
        for form, write in (("int8", emitter.tensorrt), ("int8.cpu", emitter.cpu)):
            written = write(others)
            if written.count:
                yield f"krl {form}, {name} alone", open_cpu(to_bytes(written.model))


def emit(fp32: bytes, seen: np.ndarray, method: Method, **options: Any) -> Int8Graphs:
    return emitter_of(fp32, seen, method, **options).emit()


def emitter_of(
    fp32: bytes,
    seen: np.ndarray,
    method: Method,
    *,
    equalizing: Equalize = "auto",
    bias_correction: bool = True,
    optimal_scales: bool = False,
    fp16: bool = True,
) -> Emitter:
    identity = Identity("", {}, "", len(seen), method, equalizing)
    calibration = measure_tensors(
        onnx.load_model_from_string(fp32), seen, identity, method=method, equalizing=equalizing
    )
    return Emitter(fp32, calibration, fp16=fp16, optimal_scales=optimal_scales, bias_correction=bias_correction)


def score(logits: np.ndarray, exact: np.ndarray, truth: np.ndarray) -> dict[str, float]:
    return {
        "drop_points": float((exact.argmax(1) == truth).mean() - (logits.argmax(1) == truth).mean()) * 100,
        "agreement": float((logits.argmax(1) == exact.argmax(1)).mean()),
        "sqnr_db": float(10 * np.log10(exact.var() / np.square(logits - exact).mean())),
    }


def line(row: dict[str, Any]) -> str:
    return (
        f"{row['form']:50} drop {row['drop_points']:6.2f} points  agreement {row['agreement']:7.2%}  "
        f"signal to noise of the logits {row['sqnr_db']:5.1f} dB"
    )


if __name__ == "__main__":
    main()
