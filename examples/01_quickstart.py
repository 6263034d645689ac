"""Distill, export, convert and run a classifier of the embedded digits. Each step is a command that is printed first.

Usage: python examples/01_quickstart.py FOLDER [--rtx]

With --rtx it also builds engines of TensorRT-RTX, which needs no GPU.
"""

from __future__ import annotations

import json
import shlex
import shutil
import subprocess
import sys
import time
from pathlib import Path

from krl_runtime.cli.tables import table


def run(command: str, *, show: bool = True) -> str:
    print(f"\n$ {command}", flush=True)
    done = subprocess.run(shlex.split(command), stdout=subprocess.PIPE, text=True)
    if show and done.stdout:
        print(done.stdout, end="", flush=True)
    if done.returncode:
        sys.exit(done.returncode)
    return done.stdout


def latency(bundle: Path, variant: str) -> float:
    output = run(f"krl-runtime bench {bundle} --variant {variant} --threads 1 --backend cpu --json", show=False)
    p50 = float(json.loads(output)["stages_ms"]["inference"]["p50"])
    print(f"{p50:.3f} ms (median of one image, one thread)")
    return p50


def row(title: str, run_folder: Path, bundle: Path, variant: str) -> tuple[object, ...]:
    metrics = json.loads((run_folder / "run.json").read_text())["metrics"]
    manifest = json.loads((bundle / "manifest.json").read_text())
    entry = manifest["variants"][variant]
    file = entry["cpu_file"] or entry["file"]
    top1 = manifest["evidence"]["int8"]["scores"]["int8.cpu"]["top1"] if variant == "int8" else metrics["top1"]
    return (
        title,
        f"{metrics['parameters']:,}",
        f"{metrics['macs']:,}",
        f"{manifest['files'][file]['size'] / 1024:.0f}",
        f"{100 * top1:.2f}",
        f"{latency(bundle, variant):.3f}",
    )


def build_rtx(bundle: Path) -> None:
    for precision in ("fp16", "int8"):
        run(f"krl-deploy build-engine {bundle} --target rtx --precision {precision}")
    run(f"krl-deploy inspect-engine {bundle}")
    print(
        "\nThese engines are for desktop RTX GPUs of compute capability 8.6 and later, on Linux and Windows.\n"
        f"They were built without a GPU and have not been run. Copy {bundle} to such a machine, install krl\n"
        "there with the extra rtx, and run:\n"
        "krl-runtime selftest student.krl && krl-runtime bench student.krl --backend tensorrt-rtx"
    )


def main(folder: Path, *, rtx: bool) -> None:
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    started = time.monotonic()
    digits, teacher, student = folder / "digits", folder / "teacher", folder / "student"
    bundle, teacher_bundle, baseline_bundle = (folder / f"{name}.krl" for name in ("student", "teacher", "baseline"))

    run(f"krl-train unpack --data digits --out {digits}")
    run(f"krl-train fit --data digits --model resnet20 --epochs 40 --out {teacher}")
    run(f"krl-compress distill --teacher {teacher} --student dscnn-0.25 --epochs 15 --baseline --out {student}")
    run(f"krl-deploy export {student} -o {bundle}")
    run(f"krl-deploy fp16 {bundle} --data {digits}")
    run(f"krl-deploy quantize {bundle} --data {digits}")
    if rtx:
        build_rtx(bundle)
    run(f"krl-runtime selftest {bundle}")
    images = [next((digits / "val" / str(digit)).iterdir()) for digit in range(10)]
    run(f"krl-runtime classify {bundle} {' '.join(map(str, images))}")
    run(f"krl-deploy export {teacher} -o {teacher_bundle}")
    run(f"krl-deploy export {student / 'baseline'} -o {baseline_bundle}")

    rows = [
        row("teacher", teacher, teacher_bundle, "fp32"),
        row("student without teacher", student / "baseline", baseline_bundle, "fp32"),
        row("distilled student, FP32", student, bundle, "fp32"),
        row("distilled student, INT8", student, bundle, "int8"),
    ]
    count, seconds = len(list(digits.glob("val/*/*"))), time.monotonic() - started
    print(f"\nOn {count} images that training did not use, after {seconds:.0f} s:\n")
    print(table(("", "parameters", "MACs", "file KiB", "top-1 %", "CPU ms"), rows))


if __name__ == "__main__":
    words = [word for word in sys.argv[1:] if word != "--rtx"]
    if len(words) != 1:
        sys.exit(__doc__)
    main(Path(words[0]), rtx="--rtx" in sys.argv)
