"""The default distillation, and candidates for it, beside the same students without a teacher.

::

    python benchmarks/compress/suite.py --data ../shared/data --out suite --methods default kd dkd-ls --seeds 3

``--data`` has the folders ``cifar10`` (train/CLASS, val/CLASS), ``MNIST`` and ``flowers128/train``. Each teacher and
each student is a run in ``--out`` and is trained once, so that an interrupted suite goes on where it stopped. A student
without a teacher is trained by the same command with ``--loss ce``: images, views, budget and seeds are the same.

A method is ``default``, the name of a recipe, or NAME=OPTIONS as in ``"half=--alpha 0.5"``. The default was chosen on
the triples of ``CHOSEN_ON``; the others are reported untouched. The standard error of a gain is that of the mean over
the seeds, each of which compares two students that start alike.
"""

from __future__ import annotations

import argparse
import json
import shlex
import statistics
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from krl_runtime.cli.tables import table
from krl_train.run import Run

BASELINE = "baseline"


@dataclass(frozen=True)
class Triple:
    """Data, a teacher and a student.

    Attributes:
        data: What both see, as options.
        teacher: The teacher's network, and options of its training.
        student: The student's network.
        images: Options of the student's data and training.
    """

    data: str
    teacher: str
    student: str
    images: str = ""


_VAL = "--val-limit 2000"
TRIPLES = {
    "digits, few images": Triple("--data digits", "resnet20 --epochs 40", "resnet8", "--limit 100"),
    "mnist, weak teacher": Triple(
        "--data mnist --data-root {data}", f"dscnn-0.5 --limit 100 {_VAL}", "resnet8", f"--limit 1000 {_VAL}"
    ),
    "cifar10, strong teacher": Triple(
        "--data {data}/cifar10", "resnet20 --limit 16000 --epochs 20", "resnet8", "--limit 4000 --epochs 15"
    ),
    "cifar10, over-trained teacher": Triple(
        "--data {data}/cifar10", "resnet20 --limit 2000 --epochs 60 --no-augment --keep last", "resnet8", "--limit 2000"
    ),
    "flowers, 64 pixels": Triple(
        "--data {data}/flowers128/train --size 64", "resnet20 --epochs 20", "resnet8", "--epochs 15"
    ),
    "digits, another architecture": Triple("--data digits", "resnet20 --epochs 40", "dscnn-0.25", "--epochs 10"),
    "cifar10, another architecture": Triple(
        "--data {data}/cifar10", "resnet20 --limit 16000 --epochs 20", "dscnn-1", "--limit 4000 --epochs 15"
    ),
    "flowers, 128 pixels": Triple(
        "--data {data}/flowers128/train --size 128",
        "mobilenet_v3_small --epochs 30",
        "shufflenet_v2_x0_5",
        "--epochs 15",
    ),
}
CHOSEN_ON = tuple(TRIPLES)[:5]


def name_of(text: str) -> str:
    """Return a folder's name for a description."""
    return "".join(letter if letter.isalnum() else "-" for letter in text).replace("--", "-").strip("-")


def run(command: Sequence[str], out: Path) -> Run:
    """Train in a process of its own, unless that was done."""
    if not (out / "model.safetensors").is_file():
        print(f"… {out.name}", file=sys.stderr, flush=True)
        whole = [sys.executable, "-m", *command, "--out", str(out), "--device", "cpu", "--overwrite", "--quiet"]
        subprocess.run(whole, check=True, stdout=subprocess.DEVNULL)
    return Run.open(out)


def teacher_of(triple: Triple, data: Path, out: Path) -> Run:
    """Return the trained teacher, which triples share."""
    options = shlex.split(triple.data.format(data=data))
    model, *more = shlex.split(triple.teacher)
    folder = out / f"teacher-{name_of(triple.data.format(data='') + ' ' + triple.teacher)}"
    return run(["krl_train", "fit", "--model", model, *options, *more], folder)


def student_of(triple: Triple, teacher: Run, method: Sequence[str], seed: int, out: Path) -> float:
    """Return a student's top-1 in percent on the images that were held out."""
    command = ["krl_compress", "distill", "--teacher", str(teacher.path), "--student", triple.student]
    found = run([*command, *shlex.split(triple.images), *method, "--seed", str(seed)], out)
    return 100 * float(found.record.metrics["top1"])


def options_of(method: str) -> tuple[str, list[str]]:
    """Return the name and the options of a method."""
    name, equals, options = method.partition("=")
    if equals:
        return name, shlex.split(options)
    return name, [] if name == "default" else ["--recipe", name]


def main() -> None:
    """Train what is missing, and print a table and its values as JSON."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--out", type=Path, default=Path("suite"))
    parser.add_argument("--triples", nargs="+", choices=tuple(TRIPLES), default=tuple(TRIPLES))
    parser.add_argument("--methods", nargs="*", default=["default"])
    parser.add_argument("--seeds", type=int, default=3)
    arguments = parser.parse_args()
    methods = dict(options_of(method) for method in arguments.methods)
    rows, found = [], []
    for label in arguments.triples:
        triple = TRIPLES[label]
        teacher = teacher_of(triple, arguments.data.resolve(), arguments.out)
        tops: dict[str, list[float]] = {}
        for name, options in {BASELINE: ["--loss", "ce"], **methods}.items():
            folders = [arguments.out / f"{name_of(label)}-{name_of(name)}-{seed}" for seed in range(arguments.seeds)]
            tops[name] = [student_of(triple, teacher, options, seed, folder) for seed, folder in enumerate(folders)]
        taught = 100 * float(teacher.record.metrics["top1"])
        for name in methods:
            gains = [mine - base for mine, base in zip(tops[name], tops[BASELINE], strict=True)]
            error = statistics.stdev(gains) / len(gains) ** 0.5 if len(gains) > 1 else float("nan")
            means = [statistics.mean(values) for values in (tops[BASELINE], tops[name], gains)]
            rows.append((label, name, f"{taught:.1f}", *(f"{mean:.2f}" for mean in means), f"{error:.2f}"))
            found.append({"triple": label, "method": name, "teacher": taught, "gain": means[2], "error": error, **tops})
    print(table(("triple", "method", "teacher", "baseline", "student", "gain", "standard error"), rows))
    for name in methods:
        for part, labels in (("chosen on", CHOSEN_ON), ("untouched", tuple(TRIPLES)[len(CHOSEN_ON) :])):
            gains = [item["gain"] for item in found if item["method"] == name and item["triple"] in labels]
            if gains:
                print(f"{name}: mean gain on the triples {part}: {statistics.mean(gains):+.2f} points")
    print(json.dumps(found))


if __name__ == "__main__":
    main()
