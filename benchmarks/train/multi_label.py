"""Images with several labels, from a list to INT8: teacher, student alone, distilled student, its bundle in INT8.

::

    python benchmarks/train/multi_label.py FOLDER

Each image shows two or three of the embedded digits 0 to 4 in colors; its labels are the digits and the colors in it.
The digits of the training images are not in the validation images. FOLDER gets the images, LIST.csv, runs and a bundle;
what is there already is not made again. ``--loss`` measures other terms beside the default ones, as
``--loss "bce logistic:weight=0.3"``.
"""

from __future__ import annotations

import argparse
import csv
import logging
from pathlib import Path
from statistics import fmean, stdev
from typing import Any

import numpy as np
import numpy.typing as npt
from PIL import Image
from sklearn.datasets import load_digits

import krl_compress
import krl_deploy
import krl_train
from krl_runtime.cli.tables import table

SIDE = 32
COLORS = {"red": (255, 60, 50), "green": (60, 210, 70), "blue": (80, 110, 255), "yellow": (240, 220, 60)}
CELL = 16  # pixels: the digits lie in a grid of four cells, shifted by up to two pixels, so that none hides another
CLASSES = 5  # digits, from 0: all ten need ten times as many images
TEACHER, STUDENT = "resnet8", "lenet5"  # 19 times as many multiply-accumulates

Pixels = npt.NDArray[np.uint8]


def main() -> None:
    """Make the data, train, export and print a table."""
    options = _options()
    logging.basicConfig(level=logging.WARNING)
    data = options.folder / "LIST.csv"
    if not data.is_file():
        write_images(options.folder, {"train": options.train, "val": options.val})
    # AdamW: with SGD at the default rate the digits need several times as many steps to be seen at all.
    common: dict[str, Any] = {"data": str(data), "size": SIDE, "optimizer": "adamw", "lr": 0.003, "batch_size": 32}
    teacher = options.folder / "teacher"
    if not (teacher / "model.safetensors").is_file():
        krl_train.fit(model=TEACHER, epochs=options.teacher_epochs, out=teacher, overwrite=True, **common)
    methods: dict[str, tuple[str, ...]] = {"default": (), **{text: tuple(text.split()) for text in options.loss}}
    found: dict[str, list[dict[str, Any]]] = {name: [] for name in ("alone", *methods)}
    for seed in range(options.seeds):
        for number, (name, loss) in enumerate(methods.items()):
            out = options.folder / f"student-{seed}-{number}"
            extra: dict[str, Any] = {"loss": loss} if loss else {}
            made = krl_compress.distill(
                teacher=teacher,
                student=STUDENT,
                epochs=options.epochs,
                seed=seed,
                baseline=not number,
                out=out,
                resume=True,
                **extra,
                **common,
            )
            found[name].append(dict(made.student))
            if not number:
                found["alone"].append(dict(made.baseline or {}))
    measured = dict(krl_train.evaluate(run=teacher).to_dict())
    rows = [_row(f"teacher {TEACHER}", [measured]), *(_row(f"{STUDENT}, {name}", each) for name, each in found.items())]
    print(table(("", "parameters", "mAP in %", "F1 macro", "exact match in %"), rows))
    bundle = krl_deploy.export(run=options.folder / "student-0-0", out=options.folder / "s.krl", overwrite=True).bundle
    print(krl_deploy.quantize(bundle=bundle, data=data, val_limit=options.val).text)


def write_images(folder: Path, counts: dict[str, int]) -> None:
    """Write images and the list of them, with a column ``labels`` and a column ``split``."""
    digits = load_digits(n_class=CLASSES)
    rng = np.random.default_rng(0)
    held_out = rng.random(len(digits.target)) < 0.3
    (folder / "images").mkdir(parents=True, exist_ok=True)
    with (folder / "LIST.csv").open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file)
        writer.writerow(["image", "labels", "split"])
        for split, count in counts.items():
            chosen = np.flatnonzero(held_out if split == "val" else ~held_out)
            for number in range(count):
                image, labels = _draw(digits.images, digits.target, chosen, rng)
                name = f"images/{split}-{number:05d}.png"
                Image.fromarray(image).save(folder / name)
                writer.writerow([name, "|".join(labels), split])


def _draw(images: Any, targets: Any, chosen: Any, rng: np.random.Generator) -> tuple[Pixels, list[str]]:
    """Return an image ``[32, 32, 3]`` with two or three digits, and its labels."""
    canvas = rng.normal(30, 6, (SIDE, SIDE, 3))
    labels = set()
    for cell in rng.permutation(4)[: rng.integers(2, 4)]:
        index = rng.choice(chosen)
        color = rng.choice(list(COLORS))
        side = int(rng.integers(14, 17))
        digit = Image.fromarray(np.uint8(images[index] / 16 * 255)).resize((side, side), Image.Resampling.BILINEAR)
        top, left = (part * CELL + int(rng.integers(0, CELL - side + 1)) for part in divmod(int(cell), 2))
        share = np.asarray(digit)[:, :, None] / 255 * rng.uniform(0.8, 1.0)
        place = canvas[top : top + side, left : left + side]
        place[:] = share * np.array(COLORS[color]) + (1 - share) * place
        labels |= {str(targets[index]), str(color)}
    return np.uint8(np.clip(canvas, 0, 255)), sorted(labels)


def _row(name: str, metrics: list[dict[str, Any]]) -> tuple[object, ...]:
    """Return the means over seeds, with the standard deviation of mAP over them, or its standard error of one run."""
    values = [100 * each["map"] for each in metrics]
    error = stdev(values) if len(values) > 1 else 100 * metrics[0]["map_standard_error"]
    mean = {key: fmean(each[key] for each in metrics) for key in ("f1_macro", "exact_match")}
    cells = (f"{fmean(values):.2f} ± {error:.2f}", f"{mean['f1_macro']:.3f}", f"{100 * mean['exact_match']:.1f}")
    return name, metrics[0].get("parameters"), *cells


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--train", type=int, default=2000, help="training images")
    parser.add_argument("--val", type=int, default=1000, help="validation images")
    parser.add_argument("--teacher-epochs", type=int, default=12)
    parser.add_argument("--epochs", type=int, default=15, help="of the students")
    parser.add_argument("--seeds", type=int, default=2, help="students of each kind")
    parser.add_argument("--loss", action="append", default=[], help="further losses, several divided by spaces")
    return parser.parse_args()


if __name__ == "__main__":
    main()
