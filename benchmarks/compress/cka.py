"""Where a teacher's knowledge arrives: CKA and attention of students with and without losses on features.

    python benchmarks/compress/cka.py --data mnist --data-root DATA --out cka

One teacher (resnet20) and, for each method and seed, a student (resnet8) on the same images and budget. At each stage
of both: linear CKA with the teacher's stage, and the cosine of the attention maps, on validation images; mean and
standard deviation over the seeds. Beside the table ``cka.png`` has the mean CKA of all layers, one heat map for each
method, and ``cka.json`` everything.
"""

from __future__ import annotations

import argparse
import json
import os
from pathlib import Path
from statistics import mean, stdev
from typing import Any

os.environ.setdefault("OMP_NUM_THREADS", "1")

import numpy as np
from matplotlib.figure import Figure

import krl_compress
import krl_train

TEACHER, STUDENT = "resnet20", "resnet8"
KD = ("ce:weight=0.1", "kd:weight=0.9,temperature=4")
METHODS: dict[str, tuple[str, ...]] = {
    "labels alone": ("ce",),
    "logits (kd)": KD,
    "kd and attention (at)": (*KD, "at:weight=1000"),
    "kd and hints (fitnet)": (*KD, "fitnet:weight=100"),
}
COMPARED = 1000  # validation images: the standard error of attention is then below 0.01


def measure(
    options: argparse.Namespace, teacher: Path, losses: tuple[str, ...], seed: int, out: Path
) -> dict[str, Any]:
    """Train a student, and compare it with the teacher."""
    shared = {"limit": options.limit, "val_limit": COMPARED, "data_root": options.data_root, "device": "cpu"}
    krl_compress.distill(
        teacher=str(teacher),
        student=STUDENT,
        loss=losses,
        seed=seed,
        epochs=options.epochs,
        data=options.data,
        out=out,
        overwrite=True,
        **shared,
    )
    explained = out.parent / "explained"
    found = krl_train.explain(
        run=out, teacher=teacher, out=explained, overwrite=True, compared_images=COMPARED, device="cpu"
    )
    return {"top1": krl_train.Run.open(out).record.metrics["top1"], **found.to_dict()["teacher"]}


def figure(results: dict[str, list[dict[str, Any]]]) -> Figure:
    """Draw the mean CKA of all layers, one heat map for each method."""
    drawn = Figure(figsize=(4 * len(results), 3.2), layout="constrained")
    for axes, (name, found) in zip(np.atleast_1d(drawn.subplots(1, len(results))), results.items(), strict=True):
        cka = found[0]["cka"]
        shown = axes.imshow(np.mean([each["cka"]["matrix"] for each in found], 0), vmin=0, vmax=1, cmap="inferno")
        axes.invert_yaxis()
        axes.set_title(name, fontsize=9)
        axes.set_xticks(range(len(cka["teacher_layers"])), cka["teacher_layers"], rotation=90, fontsize=7)
        axes.set_yticks(range(len(cka["student_layers"])), cka["student_layers"], fontsize=7)
    drawn.colorbar(shown, ax=drawn.axes, label="linear CKA")
    return drawn


def spread(values: list[float]) -> str:
    """Return mean and standard deviation for people."""
    return f"{mean(values):.3f} ± {stdev(values):.3f}" if len(values) > 1 else f"{values[0]:.3f}"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", default="mnist")
    parser.add_argument("--data-root", type=Path, default=Path("data"))
    parser.add_argument("--limit", type=int, default=2000)
    parser.add_argument("--epochs", type=int, default=15)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--out", type=Path, required=True)
    options = parser.parse_args()
    teacher = krl_train.fit(
        data=options.data,
        data_root=options.data_root,
        model=TEACHER,
        epochs=options.epochs,
        limit=options.limit,
        val_limit=COMPARED,
        device="cpu",
        out=options.out / "teacher",
        overwrite=True,
    )
    print(f"teacher {TEACHER}: top-1 {teacher.metrics['top1']:.4f}", flush=True)
    results: dict[str, list[dict[str, Any]]] = {}
    for name, losses in METHODS.items():
        for seed in range(options.seeds):
            results.setdefault(name, []).append(measure(options, teacher.run, losses, seed, options.out / "student"))
        found = results[name]
        print(f"\n{name} ({', '.join(losses)}): top-1 {spread([each['top1'] for each in found])}")
        for place, stage in enumerate(found[0]["stages"]):
            cka, attention = (spread([each["stages"][place][key] for each in found]) for key in ("cka", "attention"))
            print(f"  {stage['student']} and {stage['teacher']}: CKA {cka}, attention {attention}", flush=True)
    (options.out / "cka.json").write_text(json.dumps(results, indent=1))
    figure(results).savefig(options.out / "cka.png", dpi=110, metadata={"Software": None})


if __name__ == "__main__":
    main()
