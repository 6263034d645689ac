"""A classifier, pruned: with and without its teacher, in FP32 and INT8, beside the whole network.

::

    python benchmarks/compress/pruning.py RUN --macs 0.4 --epochs 12 --out pruning [-- further options of prune]

Prints a table: operations, parameters, bytes, top-1 on the validation images of the run, the paired difference to the
whole network with its standard error, and the latency of the network on this machine: files are timed in turn in one
process, with one thread. Predictions are ONNX Runtime's, of the files that are deployed. What is in ``--out`` already
is not made again.
"""

from __future__ import annotations

import argparse
import statistics
import subprocess
import sys
from pathlib import Path

import numpy as np
import onnxruntime

from krl_runtime.cli.tables import table
from krl_runtime.device.timing import interleaved
from krl_train.data import load_split
from krl_train.run import WEIGHTS, Run

_ROUNDS = 40  # blocks of each file: the spread of their median is then below 2 %


def main() -> None:
    """Prune, train, deploy, and print the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("run", type=Path, help="the run of a classifier, trained on a folder of images")
    parser.add_argument("--macs", default="0.4", help="share of the operations that is kept")
    parser.add_argument("--epochs", default="12", help="passes over the images after pruning")
    parser.add_argument("--out", type=Path, required=True, help="folder of the runs and bundles")
    given = sys.argv[1:]
    split = given.index("--") if "--" in given else len(given)
    options, more = parser.parse_args(given[:split]), given[split + 1 :]
    out = options.out.resolve()
    out.mkdir(parents=True, exist_ok=True)
    taught, alone = out / "taught", out / "alone"
    both = ["--epochs", options.epochs, *more]
    if not (taught / WEIGHTS).exists():
        _krl("krl_compress", "prune", options.run, "--macs", options.macs, "--out", taught, *both, "--overwrite")
    start = taught / "steps" / "1" / "pruned"
    data = Run.open(taught).record.data["source"]
    if not (alone / WEIGHTS).exists():
        _krl("krl_train", "fit", "--from", start, "--data", data, "--out", alone, *both, "--overwrite")
    runs = {"whole": options.run, "pruned": start, "pruned, trained alone": alone, "pruned, distilled": taught}
    print(measured({name: Run.open(run) for name, run in runs.items()}, data, out))


def measured(runs: dict[str, Run], data: str, out: Path) -> str:
    """Return the table."""
    files: dict[str, Path] = {}
    for name, run in runs.items():
        bundle = out / f"{name.replace(', ', '-').replace(' ', '-')}.krl"
        if not bundle.exists():
            _krl("krl_deploy", "export", run.path, "-o", bundle, "--data", data)
        files[name] = bundle / "model.fp32.onnx"
        if name in ("whole", "pruned, distilled"):
            int8 = bundle / "model.int8.cpu.onnx"
            if not int8.exists():
                _krl("krl_deploy", "quantize", bundle, "--data", data)
            files[f"{name}, INT8"] = int8
    pixels, labels = load_split(runs["whole"].record, "val")
    right = {name: _predictions(file, pixels) == np.asarray(labels) for name, file in files.items()}
    milliseconds = _latencies(files, pixels[:1])
    rows = []
    for name, file in files.items():
        metrics = runs[name.removesuffix(", INT8")].record.metrics
        difference = right[name].astype(float) - right["whole"].astype(float)
        error = difference.std(ddof=1) / np.sqrt(len(difference))
        rows.append(
            (
                name,
                f"{metrics['macs'] / 1e6:.1f} M",
                f"{metrics['parameters']:,}",
                f"{file.stat().st_size / 1e3:.0f} KB",
                f"{100 * right[name].mean():.2f}",
                "-" if name == "whole" else f"{100 * difference.mean():+.2f} ± {100 * error:.2f}",
                f"{milliseconds[name]:.3f}",
                f"{milliseconds['whole'] / milliseconds[name]:.2f}",
            )
        )
    header = ("network", "MACs", "parameters", "file", "top-1 %", "difference", "ms", "times faster")
    return f"{len(labels)} validation images\n" + table(header, rows)


def _session(file: Path) -> onnxruntime.InferenceSession:
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    return onnxruntime.InferenceSession(file, options, providers=["CPUExecutionProvider"])


def _predictions(file: Path, pixels: np.ndarray) -> np.ndarray:
    session = _session(file)
    name = session.get_inputs()[0].name
    return np.concatenate([session.run(None, {name: part})[0].argmax(1) for part in np.array_split(pixels, 20)])


def _latencies(files: dict[str, Path], pixels: np.ndarray) -> dict[str, float]:
    sessions = {name: _session(file) for name, file in files.items()}
    calls = {
        name: (lambda session=session: session.run(None, {session.get_inputs()[0].name: pixels}))
        for name, session in sessions.items()
    }
    return {name: statistics.median(blocks) for name, blocks in interleaved(calls, rounds=_ROUNDS).items()}


def _krl(package: str, *arguments: object) -> None:
    subprocess.run([sys.executable, "-m", package, *map(str, arguments)], check=True)


if __name__ == "__main__":
    main()
