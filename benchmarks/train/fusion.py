r"""Classifiers with several inputs against the image alone: colored digits with attributes, flowers with descriptors.

::

    python benchmarks/train/fusion.py digits --data-root DATA --out fusion
    python benchmarks/train/fusion.py flowers --data-root DATA --out fusion

``digits``: digits of MNIST in random colors, under noise, of which a band is covered. Two attributes know what the
image hides: whether the digit is even, and how much ink it had before (a number). So the attributes are made to help;
how much of that arrives is what is measured. A teacher with them then teaches a student that sees the image alone.
Beside it stand the same student without a teacher, and one taught by a teacher of the image alone.

``flowers``: photographs at 64 pixels with histograms of their colors, and with HOG and LBP as well. All that is in the
image; descriptors can only help a network that has too few images to find it.

Each training is a run in ``--out`` and is not repeated. Weights are those of the last epoch, so that none is chosen by
the images that are measured. The standard error is that of the mean over seeds.
"""

from __future__ import annotations

import argparse
import csv
import json
import statistics
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from PIL import Image
from torchvision.datasets import MNIST

import krl_compress
import krl_train
from krl_runtime.cli.tables import table
from krl_train.run import WEIGHTS, Run

ATTRIBUTES = ("parity", "ink")
STUDENT, TEACHER = "resnet8", "resnet20"
DIGITS: Mapping[str, Mapping[str, Any]] = {
    "image alone": {},
    "with attributes, late": {"attributes": ATTRIBUTES},
    "with attributes, gated": {"attributes": ATTRIBUTES, "input_fusion": "gated"},
}
FLOWERS: Mapping[str, Mapping[str, Any]] = {
    "image alone": {},
    "with color histograms, late": {"descriptors": ("color-histogram",)},
    "with color histograms, gated": {"descriptors": ("color-histogram",), "input_fusion": "gated"},
    "with HOG, LBP and color histograms, late": {"descriptors": ("hog", "lbp", "color-histogram")},
}
"""Options of each row of the tables."""


def write_digits(root: Path, folder: Path, *, train: int = 4000, val: int = 3000) -> Path:
    """Write colored digits and the list of them, and return the list."""
    path = folder / "digits.csv"
    if path.is_file():
        return path
    random, rows = np.random.default_rng(0), []
    for split, count in (("train", train), ("val", val)):
        data = MNIST(str(root), train=split == "train")
        (folder / split).mkdir(parents=True, exist_ok=True)
        for number in range(count):
            digit, label = data.data[number].numpy(), int(data.targets[number])
            file = f"{split}/{number:05}.png"
            Image.fromarray(colored(digit, random)).save(folder / file)
            parity = "odd" if label % 2 else "even"
            rows.append((file, label, split, parity, f"{digit.mean():.2f}"))
    with path.open("w", newline="", encoding="utf-8") as target:
        csv.writer(target).writerows([("image", "label", "split", *ATTRIBUTES), *rows])
    return path


def colored(digit: npt.NDArray[np.uint8], random: np.random.Generator) -> npt.NDArray[np.uint8]:
    """Return a digit ``[28, 28, 3]`` in a random color, under noise, with a band of a third of it covered."""
    color = random.uniform(0.4, 1.0, 3)
    image = digit[:, :, None] * color + random.normal(0, 90, (*digit.shape, 3))
    start = int(random.integers(0, 19))
    image[start : start + 9] = random.normal(128, 90, (9, digit.shape[1], 3))
    return np.clip(image, 0, 255).astype(np.uint8)


def write_flowers(root: Path, folder: Path) -> Path:
    """Write a folder of links to the photographs and their list, and return the list."""
    path = folder / "flowers.csv"
    if path.is_file():
        return path
    folder.mkdir(parents=True, exist_ok=True)
    rows = []
    for image in sorted((root / "flowers128" / "train").glob("*/*.jpg")):
        target = folder / image.parent.name / image.name
        target.parent.mkdir(exist_ok=True)
        target.write_bytes(image.read_bytes())
        rows.append((f"{image.parent.name}/{image.name}", image.parent.name))
    with path.open("w", newline="", encoding="utf-8") as file:
        csv.writer(file).writerows([("image", "label"), *rows])
    return path


def top1(out: Path, make: Callable[[Path], object]) -> float:
    """Return the top-1 of a run in percent, which is made unless it is there."""
    if not (out / WEIGHTS).is_file():
        make(out)
    return 100 * float(Run.open(out).record.metrics["top1"])


def fit(name: str, seed: int, options: argparse.Namespace, data: Path, model: str, more: Mapping[str, Any]) -> float:
    """Train a classifier and return its top-1 in percent."""
    epochs = options.epochs or (12 if options.data == "digits" else 20)
    size = () if options.data == "digits" else (64,)

    def make(out: Path) -> None:
        krl_train.fit(
            data=str(data), model=model, epochs=epochs, seed=seed, keep="last", evaluate_every=epochs, out=out,
            overwrite=True, **({"size": size} if size else {}), **more,
        )  # fmt: skip

    return top1(options.out / options.data / f"{model}-{name.replace(' ', '-')}-{epochs}-{seed}", make)


def distill(teacher: Path, seed: int, options: argparse.Namespace) -> float:
    """Distill a student of the image alone and return its top-1 in percent."""
    epochs = options.epochs or 12

    def make(out: Path) -> None:
        krl_compress.distill(
            teacher=(str(teacher),), student=STUDENT, epochs=epochs, seed=seed, keep="last", evaluate_every=epochs,
            out=out, overwrite=True,
        )  # fmt: skip

    return top1(options.out / options.data / f"student-of-{teacher.name}-{seed}", make)


def digits(options: argparse.Namespace) -> dict[str, list[float]]:
    """Return the top-1 of each row for each seed."""
    data = write_digits(options.data_root, options.out / "digits")
    rows: dict[str, list[float]] = {}
    for seed in range(options.seeds):
        for name, more in DIGITS.items():
            rows.setdefault(f"{STUDENT}, {name}", []).append(fit(name, seed, options, data, STUDENT, more))
        for name in ("image alone", "with attributes, late"):
            fit(name, seed, options, data, TEACHER, DIGITS[name])
            epochs = options.epochs or 12
            teacher = options.out / "digits" / f"{TEACHER}-{name.replace(' ', '-')}-{epochs}-{seed}"
            rows.setdefault(f"{TEACHER}, {name}", []).append(100 * Run.open(teacher).record.metrics["top1"])
            key = f"{STUDENT}, image alone, taught by {TEACHER}, {name}"
            rows.setdefault(key, []).append(distill(teacher, seed, options))
    return rows


def flowers(options: argparse.Namespace) -> dict[str, list[float]]:
    """Return the top-1 of each row for each seed."""
    data = write_flowers(options.data_root, options.out / "flowers")
    model = "shufflenet_v2_x0_5"
    return {
        name: [fit(name, seed, options, data, model, more) for seed in range(options.seeds)]
        for name, more in FLOWERS.items()
    }


def cell(values: Sequence[float]) -> str:
    """Return the mean and its standard error."""
    error = f" ± {statistics.stdev(values) / len(values) ** 0.5:.1f}" if len(values) > 1 else ""
    return f"{statistics.mean(values):.1f}{error}"


def main() -> None:
    """Train, and print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data", choices=("digits", "flowers"))
    parser.add_argument("--data-root", type=Path, default=Path("../shared/data"), help="has MNIST/ and flowers128/")
    parser.add_argument("--out", type=Path, default=Path("fusion"))
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--epochs", type=int, help="12 for digits, 20 for flowers")
    parser.add_argument("--json", action="store_true", help="print each seed's figure as JSON")
    options = parser.parse_args()
    rows = digits(options) if options.data == "digits" else flowers(options)
    if options.json:
        print(json.dumps(rows, indent=1))
    else:
        print(table(("", "top-1 in %"), [(name, cell(values)) for name, values in rows.items()]))


if __name__ == "__main__":
    main()
