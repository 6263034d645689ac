"""The same teacher as a run, as a bundle, as an ONNX file and as one's own module; and a restorer's ONNX file.

::

    python benchmarks/compress/teachers.py RUN --data ../shared/data --out teachers

``RUN`` is a classifier of krl, trained on CIFAR-10. Each form teaches the same student, with the same seed and options:
the students should differ by rounding alone. Then super-resolution: an ESPCN of another project teaches a smaller one,
beside the same student without a teacher. What is in ``--out`` already is not trained again.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
from pathlib import Path

from krl_runtime.cli.tables import table
from krl_train.run import WEIGHTS, Run

_MODULE = '''"""The teacher's network, as somebody would write it who does not use krl."""

import torch
from krl_train.run import Run


def network():
    return Run.open({run!r}).network().backbone
'''
_STUDENT = ["--student", "resnet8", "--limit", "4000", "--epochs", "5"]  # some minutes for each; not a best result


def main() -> None:
    """Train the students and print the tables."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("run", type=Path, help="the teacher's run, of CIFAR-10")
    parser.add_argument("--data", type=Path, required=True, help="folder of cifar10, sr and models")
    parser.add_argument("--out", type=Path, required=True, help="folder of the runs")
    options = parser.parse_args()
    out, data = options.out.resolve(), options.data.resolve()
    out.mkdir(parents=True, exist_ok=True)
    print(classifiers(options.run.resolve(), data, out))
    print()
    print(restorers(data, out))


def classifiers(run: Path, data: Path, out: Path) -> str:
    """Return the table of the four forms of one teacher."""
    bundle, module = out / "teacher.krl", out / "own_teacher.py"
    if not bundle.exists():
        _krl("krl_deploy", "export", run, "-o", bundle, "--data", data / "cifar10")
    module.write_text(_MODULE.format(run=str(run)), encoding="utf-8")
    where = Run.open(run).record.preprocessing
    numbers = ["--mean", *map(str, where.mean), "--std", *map(str, where.std)]
    forms: dict[str, list[object]] = {
        "run": [run],
        "bundle": [bundle],
        "ONNX file": [bundle / "model.fp32.onnx"],
        "own module": ["own_teacher:network", *numbers],
    }
    rows = []
    for name, teacher in forms.items():
        student = out / name.replace(" ", "-")
        if not (student / WEIGHTS).exists():
            given = ["--teacher", *teacher, "--data", data / "cifar10", *_STUDENT, "--out", student, "--overwrite"]
            _krl("krl_compress", "distill", *given, cwd=out)
        metrics = Run.open(student).record.metrics
        rows.append((name, f"{metrics['teacher']['top1']:.2%}", f"{metrics['top1']:.2%}", f"{metrics['loss']:.5f}"))
    return table(("teacher as", "teacher top-1", "student top-1", "student loss"), rows)


def restorers(data: Path, out: Path) -> str:
    """Return the table of a student of the ESPCN file and of one without a teacher."""
    common = ["--data", data / "sr" / "t91", "--val-data", data / "sr" / "set5", "--epochs", "60"]
    alone, taught = out / "espcn-8-alone", out / "espcn-8-taught"
    if not (alone / WEIGHTS).exists():
        task = ["--task", "restoration", "--scale", "3", "--model", "espcn-8"]
        _krl("krl_train", "fit", *task, *common, "--out", alone, "--overwrite")
    if not (taught / WEIGHTS).exists():
        teacher = data / "models" / "super_resolution_espcn_x3.onnx"
        given = ["--teacher", teacher, "--student", "espcn-8", *common, "--out", taught, "--overwrite"]
        _krl("krl_compress", "distill", *given)
    found = {name: Run.open(path).record.metrics for name, path in (("alone", alone), ("taught", taught))}
    teacher_psnr = found["taught"]["teacher"]["psnr"]
    rows = [("ESPCN file", f"{teacher_psnr:.3f}", "-")]
    rows += [(f"espcn-8 {name}", f"{each['psnr']:.3f}", f"{each['ssim']:.4f}") for name, each in found.items()]
    return table(("network", "PSNR on Set5 in dB", "SSIM"), rows)


def _krl(package: str, *arguments: object, cwd: Path | None = None) -> None:
    subprocess.run([sys.executable, "-m", package, *map(str, arguments)], check=True, cwd=cwd)


if __name__ == "__main__":
    main()
