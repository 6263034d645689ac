"""A generator of few images: from scratch, and from a generator of other classes, for as many steps.

MNIST without one digit is what the source is trained on; then 50 images of that digit are. FID is on the features of a
classifier of all digits, which is trained here, against the digit's validation images. Prints a table, and writes one
sheet of samples for each training.

    python benchmarks/train/generator_transfer.py --data-root DATA --out FOLDER
"""

from __future__ import annotations

import argparse
import json
import logging
import shutil
import statistics
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image

import krl_train
from krl_runtime.images.preprocessing import Preprocessing
from krl_train.config import DataConfig
from krl_train.data import open_source
from krl_train.run import Run

_CLASS_EPOCHS = 8  # of 2,000 images: the classifier then tells the digits apart, and its top-1 is printed
_EVALUATIONS = 4
_SOURCE_BATCH, _FEW_BATCH = 64, 25  # the latter makes two steps of 50 images


def main() -> None:
    arguments = _arguments()
    torch.set_num_threads(arguments.threads)
    logging.getLogger("krl").setLevel(logging.WARNING)
    out: Path = arguments.out
    out.mkdir(parents=True, exist_ok=True)
    every, others, few = _folders(arguments)
    loop: dict[str, Any] = {"device": "cpu", "precision": "fp32"}
    classifier = _once(out / "classifier", data=every, model="resnet8", epochs=_CLASS_EPOCHS, batch_size=32, **loop)
    scored = {"features": classifier.path, "score_samples": arguments.score_samples, "latent": 32}
    gan = {"task": "gan", "diffaugment": ("translation", "cutout"), **scored, **loop}
    # As in examples/05_mnist_generator.sh, but without R1: with it, so short a training makes one digit alone.
    own = {"lr": 4e-4, "r1": 0.0, "batch_size": _SOURCE_BATCH}
    epochs = max(1, round(arguments.source_steps * _SOURCE_BATCH / (9 * arguments.source_images)))
    whole = {"data": others, "model": arguments.model, "epochs": epochs, "evaluate_every": epochs}
    source = _once(out / "source", **whole, **own, **gan)
    print(f"classifier: top-1 {classifier.record.metrics['top1']:.3f}")
    print(f"source: {source.record.plan['steps']} steps, FID on its own digits {source.record.metrics['fid']:.1f}")
    ways: dict[str, dict[str, Any]] = {
        "scratch": {"model": arguments.model},
        "transfer": {"from_": source.path},
        "transfer, 1 layer frozen": {"from_": source.path, "freeze_discriminator": 1},
    }
    rows: dict[str, list[Run]] = {}
    for name, options in ways.items():
        rows[name] = [_train(out, name, seed, few, options, gan, arguments) for seed in range(arguments.seeds)]
    _show(rows)
    _sheet(rows, every / "train" / arguments.held_out, out / "samples.png")


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data-root", type=Path, required=True, help="folder with MNIST as torchvision has it")
    parser.add_argument("--out", type=Path, required=True, help="folder of the runs and the sheet of samples")
    parser.add_argument("--held-out", default="5 - five", help="the digit that the source does not see")
    parser.add_argument("--images", type=int, default=50, help="images of that digit")
    parser.add_argument("--source-images", type=int, default=200, help="images of each other digit")
    parser.add_argument("--val-images", type=int, default=200, help="validation images of each digit")
    parser.add_argument("--source-steps", type=int, default=1500)
    parser.add_argument("--steps", type=int, default=400, help="of each training on the few images")
    parser.add_argument("--seeds", type=int, default=2)
    parser.add_argument("--model", default="dcgan-16")
    parser.add_argument("--score-samples", type=int, default=400)
    parser.add_argument("--threads", type=int, default=1)
    return parser.parse_args()


def _folders(arguments: argparse.Namespace) -> tuple[Path, Path, Path]:
    """Write the folder of all digits, that of all but one, and that of a few images of this one."""
    every, others, few = (arguments.out / name for name in ("every", "others", "few"))
    if few.exists():
        return every, others, few
    source = open_source(DataConfig(data="mnist", data_root=arguments.data_root))
    for split, count in (("train", arguments.source_images), ("val", arguments.val_images)):
        data = source.read(split, Preprocessing(28, 28, channels=1, mean=(0.5,), std=(0.5,)), limit=10 * count)
        pixels = data.pixels(np.arange(len(data))).numpy()
        for index, (image, label) in enumerate(zip(pixels, data.labels.tolist(), strict=True)):
            file = every / split / source.labels[label] / f"{index:05}.png"
            file.parent.mkdir(parents=True, exist_ok=True)
            Image.fromarray(image[0]).save(file)
    digit = arguments.held_out
    shutil.copytree(every, others, ignore=shutil.ignore_patterns(digit))
    for split, most in (("train", arguments.images), ("val", None)):
        (few / split / digit).mkdir(parents=True)
        for file in sorted((every / split / digit).iterdir())[:most]:
            shutil.copy(file, few / split / digit)
    return every, others, few


def _once(folder: Path, **options: Any) -> Run:
    """Train, unless the run is there."""
    if not (folder / "model.safetensors").is_file():
        krl_train.fit(out=folder, **options)
    return Run.open(folder)


def _train(
    out: Path,
    name: str,
    seed: int,
    few: Path,
    options: dict[str, Any],
    gan: dict[str, Any],
    arguments: argparse.Namespace,
) -> Run:
    steps = max(1, round(arguments.images / _FEW_BATCH))
    epochs = arguments.steps // steps
    own = {key: value for key, value in gan.items() if key != "latent" or "model" in options}
    folder = out / f"{name.replace(', ', '-').replace(' ', '-')}-{seed}"
    return _once(
        folder,
        data=few,
        seed=seed,
        epochs=epochs,
        evaluate_every=epochs // _EVALUATIONS,
        batch_size=_FEW_BATCH,
        **options,
        **own,
    )


def _show(rows: dict[str, list[Run]]) -> None:
    per_epoch = next(iter(rows.values()))[0].record.plan["steps_per_epoch"]
    first = [entry for entry in next(iter(rows.values()))[0].record.history if "val_fid" in entry]
    print("FID after steps | " + " | ".join(str(entry["epoch"] * per_epoch) for entry in first))
    for name, runs in rows.items():
        scores = [[entry["val_fid"] for entry in run.record.history if "val_fid" in entry] for run in runs]
        cells = [" / ".join(f"{value:.1f}" for value in each) for each in zip(*scores, strict=True)]
        mean = statistics.fmean(each[-1] for each in scores)
        print(f"{name} | " + " | ".join(cells) + f"   (mean at the end {mean:.1f})")
    for name in ("energy", "diversity"):
        found = {way: [round(run.record.metrics[name], 2) for run in runs] for way, runs in rows.items()}
        print(f"{name} at the end: {json.dumps(found)}")


def _sheet(rows: dict[str, list[Run]], real: Path, file: Path) -> None:
    """Write real images and the last samples of each training of the first seed, from left to right."""
    grids = [Image.open(sorted((runs[0].path / "samples").glob("*.png"))[-1]) for runs in rows.values()]
    side = grids[0].width // 8  # of one of 8 × 8 images
    sheet = Image.new("L", (4 * (grids[0].width + 8), grids[0].height), 128)
    for index, path in enumerate(sorted(real.iterdir())[:64]):
        sheet.paste(Image.open(path), (index % 8 * side, index // 8 * side))
    for index, grid in enumerate(grids, 1):
        sheet.paste(grid, (index * (grids[0].width + 8), 0))
    sheet.save(file)
    print(f"{file}: real, {', '.join(rows)}")


if __name__ == "__main__":
    main()
