"""Speed of INT8 on ONNX Runtime's CPU provider: krl's two graphs and quantize_static's, over FP32, at batch 1.

The nets have random weights, which changes nothing about the speed. All graphs run in turn in one process.
"""

from __future__ import annotations

import argparse
import json
from statistics import median

import onnx
from _peers import interleaved, machine, open_bundle, photographs, quantize_static, ratios

from krl_deploy.calibration.record import Identity
from krl_deploy.graph.session import count_convolutions, optimized_graph
from krl_deploy.precision.calibrate import measure_tensors
from krl_deploy.precision.variants import Emitter
from krl_runtime.backends.onnxruntime import open_session


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.ArgumentDefaultsHelpFormatter)
    parser.add_argument("--models", nargs="+", default=["resnet18", "resnet50", "mobilenet_v3_small"], metavar="NAME")
    parser.add_argument("--rounds", type=int, default=15, metavar="N", help="blocks of calls of each form")
    parser.add_argument("--threads", type=int, default=1, metavar="N", help="threads of each session")
    parser.add_argument("--json", action="store_true", help="print one JSON object on standard output")
    arguments = parser.parse_args()
    results = {}
    for model in arguments.models:
        results[model] = measure(model, arguments.rounds, arguments.threads)
        if not arguments.json:
            print(f"{model}\n" + "\n".join(lines(results[model])), flush=True)
    if arguments.json:
        print(json.dumps({"machine": machine(), "models": results}, indent=2))


def measure(model: str, rounds: int, threads: int) -> dict[str, dict[str, float]]:
    fp32 = open_bundle(model).read("model.fp32.onnx")
    pixels = photographs(32, 224)
    identity = Identity("", {}, "", len(pixels), "minmax", "auto")
    calibration = measure_tensors(onnx.load_model_from_string(fp32), pixels, identity)
    graphs = Emitter(fp32, calibration, fp16=False, optimal_scales=False, bias_correction=True).emit()
    files = {
        "fp32": fp32,
        "krl int8.cpu (U8S8)": graphs.files["int8.cpu"],
        "TensorRT's graph, FP32 around": graphs.files["int8"],
        "quantize_static (U8S8)": quantize_static(fp32, pixels, "MinMax"),
    }
    sessions = {name: open_session(data, cuda=False, threads=threads) for name, data in files.items()}
    feed = {"pixels": pixels[:1]}
    blocks = interleaved(
        {name: lambda run=session.run: run(None, feed) for name, session in sessions.items()},
        rounds=rounds,
        block_seconds=0.1,
    )
    faster = ratios(blocks, "fp32")
    return {
        name: {"ms": median(blocks[name]), "speedup": faster[name], **count_convolutions(optimized_graph(data))}
        for name, data in files.items()
    }


def lines(rows: dict[str, dict[str, float]]) -> list[str]:
    return [
        f"  {name:30} {row['ms']:8.2f} ms  {row['speedup']:5.2f} times FP32's speed  "
        f"{row['float_convolutions']:3} convolutions in float"
        for name, row in rows.items()
    ]


if __name__ == "__main__":
    main()
