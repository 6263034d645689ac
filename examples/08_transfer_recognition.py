"""Carry a recognizer from one labeling of images to another, of which few images are labeled.

The source is the ten digits. The target is how many holes the shape has: none, one or two. The network has learned
digits; three ways of using that are compared with a network that starts from nothing. The last one answers in both
labelings: it becomes one bundle with two outputs, which runs without torch.

Usage: python examples/08_transfer_recognition.py FOLDER [--shots N] [--epochs N]

    --shots     labeled images of each class of the target (default: 5)
    --epochs    passes over them (default: 100)
"""

from __future__ import annotations

import argparse
import json
import shlex
import shutil
import subprocess
import sys
import time
from pathlib import Path

import krl_runtime
from krl_runtime.cli.tables import table

HOLES = {"none": "12357", "one": "0469", "two": "8"}


def run(command: str) -> None:
    print(f"\n$ {command}", flush=True)
    done = subprocess.run(shlex.split(command), stdout=subprocess.PIPE, text=True)
    if done.returncode:
        sys.exit(done.stdout[-2000:])
    print("".join(done.stdout.splitlines(keepends=True)[:1]), end="", flush=True)


def relabel(digits: Path, holes: Path) -> None:
    """Write the images of the digits again, under the labels of the target; both splits stay what they are."""
    for split in ("train", "val"):
        for name, members in HOLES.items():
            folder = holes / split / name
            folder.mkdir(parents=True)
            for digit in members:
                for image in (digits / split / digit).iterdir():
                    shutil.copy(image, folder / f"{digit}-{image.name}")


def row(title: str, folder: Path) -> tuple[str, ...]:
    metrics = json.loads((folder / "run.json").read_text())["metrics"]
    error = 100 * metrics["top1_standard_error"]
    recalls = (f"{100 * metrics['recall'][name]:.1f}" for name in HOLES)
    source = f"{100 * metrics['source_top1']:.1f}" if "source_top1" in metrics else "-"
    return (title, f"{100 * metrics['top1']:.1f} ± {error:.1f}", *recalls, source)


def answer(bundle: Path, images: list[Path]) -> None:
    """Ask the bundle in this process, which has not imported torch."""
    with krl_runtime.load(bundle) as model:
        for image, result in zip(images, model(images), strict=True):
            digit = result.others["source"]
            print(f"{image.name}: {result.label} ({result.score:.0%}), digit {digit.label} ({digit.score:.0%})")
    print(f"torch is loaded here: {'torch' in sys.modules}")


def main(folder: Path, shots: int, epochs: int) -> None:
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    started = time.monotonic()
    digits, holes, source, bundle = folder / "digits", folder / "holes", folder / "source", folder / "both.krl"
    run(f"krl-train unpack --data digits --out {digits}")
    relabel(digits, holes)
    run(f"krl-train fit --data {digits} --model resnet8 --epochs 20 --keep last --out {source}")
    few = f"krl-train fit --data {holes} --shots {shots} --epochs {epochs} --keep last"
    # --keep last: the images that the accuracy is measured on do not choose the epoch
    run(f"{few} --model resnet8 --out {folder / 'scratch'}")
    run(f"{few} --from {source} --transfer linear --out {folder / 'linear'}")
    run(f"{few} --from {source} --out {folder / 'full'}")
    run(f"{few} --from {source} --source-data {digits} --out {folder / 'joint'}")
    rows = [
        row("from nothing", folder / "scratch"),
        row("last layer alone", folder / "linear"),
        row("all layers", folder / "full"),
        row("target and source at once", folder / "joint"),
    ]
    count, seconds = len(list(holes.glob("val/*/*"))), time.monotonic() - started
    print(f"\nHoles, learned from {shots} images of each class, on {count} others, after {seconds:.0f} s.")
    print("Accuracy and recall in %; the last column is the accuracy in digits of the same network.\n")
    print(table(("training", "accuracy", *(f"recall of {name}" for name in HOLES), "digits"), rows))

    run(f"krl-deploy export {folder / 'joint'} -o {bundle}")
    answer(bundle, [sorted((holes / "val" / name).iterdir())[0] for name in HOLES])


if __name__ == "__main__":
    parser = argparse.ArgumentParser(usage=__doc__)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--shots", type=int, default=5)
    parser.add_argument("--epochs", type=int, default=100)
    given = parser.parse_args()
    main(given.folder, given.shots, given.epochs)
