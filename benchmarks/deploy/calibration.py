"""Time and peak memory of calibration on many 224×224 images, beside quantize_static of ONNX Runtime.

Each measurement has a process of its own, one after the other.
"""

from __future__ import annotations

import argparse
import json
import resource
import subprocess
import sys
import time

import numpy as np
import onnx
from _peers import PEERS, machine, open_bundle, photographs, quantize_static

from krl_deploy.calibration.record import Identity
from krl_deploy.precision.calibrate import measure_tensors
from krl_deploy.precision.variants import Emitter

OURS = ("minmax", "percentile", "entropy", "mse")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.ArgumentDefaultsHelpFormatter)
    parser.add_argument("--models", nargs="+", default=["mobilenet_v3_small", "resnet50"], metavar="NAME")
    parser.add_argument("--images", type=int, default=500, metavar="N", help="for krl's methods")
    parser.add_argument("--peer-images", type=int, default=48, metavar="N", help="for quantize_static's histograms")
    parser.add_argument("--methods", nargs="+", default=[*OURS, *PEERS], metavar="NAME")
    parser.add_argument("--json", action="store_true", help="print one JSON object on standard output")
    parser.add_argument("--one", nargs=3, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.one:
        model, method, count = arguments.one
        print(json.dumps(measure(model, method, int(count))))
        return
    rows = []
    for model in arguments.models:
        open_bundle(model)  # made once, with torch, in a process of its own
        for method in arguments.methods:
            # The peers' histogram methods keep every activation: 500 images need more memory than there is.
            count = arguments.peer_images if method in ("Percentile", "Entropy") else arguments.images
            command = [sys.executable, __file__, "--one", model, method, str(count)]
            done = subprocess.run(command, check=True, capture_output=True, text=True)
            rows.append({"model": model, "method": method, "images": count, **json.loads(done.stdout.splitlines()[-1])})
            if not arguments.json:
                print(line(rows[-1]), flush=True)
    if arguments.json:
        print(json.dumps({"machine": machine(), "rows": rows}, indent=2))


def line(row: dict) -> str:
    who = "krl" if row["method"] in OURS else "quantize_static"
    each = row["seconds"] / row["images"] * 1e3
    return (
        f"{row['model']:20} {who:16} {row['method']:11} {row['images']:4} images {row['seconds']:7.1f} s "
        f"({each:6.1f} ms each)  peak {row['peak_mb']:6.0f} MB, {row['above_start_mb']:6.0f} MB above the start"
    )


def measure(model: str, method: str, count: int) -> dict[str, float]:
    """Quantize once, from images in memory to INT8 files; the images count for the memory of both."""
    pixels = photographs(count, 224)
    file = open_bundle(model).read("model.fp32.onnx")
    before, start = peak(), time.perf_counter()
    if method in OURS:
        ours(file, pixels, method)
    else:
        quantize_static(file, pixels, method)
    return {"seconds": time.perf_counter() - start, "peak_mb": peak(), "above_start_mb": peak() - before}


def peak() -> float:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


def ours(file: bytes, pixels: np.ndarray, method: str) -> None:
    """Do what krl-deploy quantize does between decoding and measuring: both graphs, not one."""
    identity = Identity("", {}, "", len(pixels), method, "auto")
    calibration = measure_tensors(onnx.load_model_from_string(file), pixels, identity, method=method)
    Emitter(file, calibration, fp16=True, optimal_scales=False, bias_correction=True).emit()


if __name__ == "__main__":
    main()
