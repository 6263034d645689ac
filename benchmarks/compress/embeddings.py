r"""Embeddings on flowers and on held-back classes of MNIST: teacher, small student with and without it, and INT8.

::

    python benchmarks/compress/embeddings.py mnist --data-root DATA --out embeddings
    python benchmarks/compress/embeddings.py flowers --data-root DATA --out embeddings

``mnist``: trained on the digits 0 to 6, measured on the test images of 7, 8 and 9, of which no network has seen any.
``flowers``: measured on the fifth of the photographs that is held out, of the same five classes. Each image is looked
for among all other measured ones, recall@1 is the share whose nearest one is of the same class. The teacher is trained
once, students for each seed; all share the images that are measured. Weights are those of the last epoch, so that no
epoch is chosen by these images. INT8 is the bundle as this machine's CPU runs it (krl-runtime evaluate).
"""

from __future__ import annotations

import argparse
import statistics
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import krl_compress
import krl_deploy
import krl_runtime
import krl_train
from krl_runtime.cli.tables import table
from krl_runtime.errors import CheckFailedError
from krl_train.run import WEIGHTS, Run

SETTINGS: Mapping[str, Mapping[str, Any]] = {
    "mnist": {
        "data": {"data": "mnist", "limit": 14000, "val_limit": 3000},
        "fit": {"held_out_classes": ("7 - seven", "8 - eight", "9 - nine"), "embedding_loss": "supcon"},
        "teacher": {"model": "wrn-16-2", "epochs": 5},
        "student": {"student": "dscnn-0.5", "epochs": 8},
    },
    "flowers": {
        "data": {},
        "fit": {"size": (64,), "embedding_loss": "proxy-anchor"},
        "teacher": {"model": "resnet18", "epochs": 10},
        "student": {"student": "shufflenet_v2_x0_5", "epochs": 20},
    },
}
"""Of each data set what is trained on, and the networks: the student has a tenth of the teacher's weights or fewer."""


def train(name: str, options: argparse.Namespace) -> list[dict[str, Any]]:
    """Return what was measured of the teacher, the students and their bundles; what is there is not made again."""
    chosen, out = SETTINGS[name], options.out / name
    data = {"data": options.data_root / "flowers128" / "train", "data_root": options.data_root, **chosen["data"]}
    common = {**data, "keep": "last", "embedding_dim": 64}
    if not (out / "teacher" / WEIGHTS).is_file():
        krl_train.fit(
            task="embedding", out=out / "teacher", overwrite=True,
            **common, **chosen["fit"], **chosen["teacher"],
        )  # fmt: skip
    rows = [_row("teacher", Run.open(out / "teacher").record.metrics)]
    for seed in range(options.seeds):
        student = out / f"student-{seed}"
        if not (student / WEIGHTS).is_file():
            krl_compress.distill(
                teacher=(str(out / "teacher"),), baseline=True, seed=seed, out=student, overwrite=True,
                **common, **chosen["student"],
            )  # fmt: skip
        metrics = Run.open(student).record.metrics
        rows += [_row("student alone", metrics["baseline"]), _row("student", metrics)]
        rows += _deployed(student)
    return rows


def _row(name: str, metrics: Mapping[str, Any]) -> dict[str, Any]:
    return {"name": name, **{key: metrics[key] for key in ("recall_at_1", "map_at_r", "parameters", "count")}}


def _deployed(student: Path) -> list[dict[str, Any]]:
    """Return the figures of the bundle's variants, on the images that the run was measured on."""
    bundle = student.with_suffix(".krl")
    folder = student.parent / "images"
    if not folder.is_dir():
        write_images(student, folder)
    if not bundle.is_dir():
        krl_deploy.export(run=student, out=bundle)
        try:
            krl_deploy.quantize(bundle=bundle, data=folder, val_limit=3000)
        except CheckFailedError as error:  # FP32 is shown alone
            print(error)
    found = krl_runtime.evaluate(krl_runtime.Bundle.open(bundle), folder, split="val", backends=["cpu"], keep=False)
    return [{"name": f"{row.variant} bundle", **row.metrics, "bytes": row.size_bytes} for row in found.rows]


def write_images(student: Path, folder: Path) -> None:
    """Write the images that a run was trained and measured on as a folder, ``train/CLASS`` and ``val/CLASS``."""
    from PIL import Image

    from krl_train.data import load_split

    record = Run.open(student).record
    for split, limit in (("train", 1000), ("val", record.data["val"]["count"])):
        pixels, labels = load_split(record, split, limit)
        for number, (image, label) in enumerate(zip(pixels, labels, strict=True)):
            file = folder / split / record.labels[label] / f"{number:05}.png"
            file.parent.mkdir(parents=True, exist_ok=True)
            Image.fromarray(image[0] if len(image) == 1 else image.transpose(1, 2, 0)).save(file)


def show(rows: Sequence[Mapping[str, Any]]) -> str:
    """Return a table: the mean and its standard error over the seeds, in percent."""
    shown = []
    for name in dict.fromkeys(row["name"] for row in rows):
        own = [row for row in rows if row["name"] == name]
        size = own[0].get("parameters") or own[0].get("bytes")
        shown.append((name, f"{size:,}", cell([100 * row["recall_at_1"] for row in own]), len(own)))
    return table(("", "parameters, or bytes", "recall@1 in %", "trainings"), shown)


def cell(values: Sequence[float]) -> str:
    """Return the mean and its standard error."""
    error = f" ± {statistics.stdev(values) / len(values) ** 0.5:.2f}" if len(values) > 1 else ""
    return f"{statistics.mean(values):.2f}{error}"


def main() -> None:
    """Train, deploy, measure, and print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data", choices=list(SETTINGS))
    parser.add_argument("--data-root", type=Path, default=Path("../shared/data"), help="has MNIST/ and flowers128/")
    parser.add_argument("--out", type=Path, default=Path("embeddings"))
    parser.add_argument("--seeds", type=int, default=3)
    options = parser.parse_args()
    print(show(train(options.data, options)))


if __name__ == "__main__":
    main()
