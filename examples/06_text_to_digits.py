"""Generate colored digits from descriptions, including combinations that are not in the training data.

Usage: python examples/06_text_to_digits.py FOLDER [--data-root DIR] [--images N] [--epochs N] [--width W] [--each N]
           [--sentence-model DIR] [--more]

--data-root       folder of torchvision's MNIST; without it the small embedded digits are used
--images          number of training images for the generators (20,000)
--epochs          epochs of the text generator (12); the label generator gets half, the unconditional one a quarter
--width           width of the generators (16)
--each            number of images to measure for each combination (50)
--sentence-model  folder of a sentence-transformers model; trains one more generator, which takes its word vectors from
                  the model and accepts words that are in no description, such as "a crimson 7"
--more            also train with attributes and a graph as conditions, and with and without a guide

Each digit is painted in one of six colors and described in words. Twelve of the sixty combinations are held out.
Three generators are trained: with descriptions, with the digit's label, and without a condition. Two independent
classifiers judge whether a generated image shows the requested digit and color. They are trained on other images of
all combinations.
"""

from __future__ import annotations

import argparse
import csv
import json
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import numpy.typing as npt
import torch
from PIL import Image

from krl_runtime.cli.tables import table
from krl_runtime.conditions import encode
from krl_train.conditioning.generator_data import open_generator
from krl_train.config import DataConfig
from krl_train.data import open_source
from krl_train.models.generators import GeneratorNetwork
from krl_train.models.network import fit_images
from krl_train.models.sampling import generate_pixels, sample_latents
from krl_train.run import Run

DIGITS = ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine")
COLORS = {
    "red": (255, 40, 40),
    "green": (40, 220, 40),
    "blue": (60, 80, 255),
    "yellow": (250, 230, 30),
    "purple": (190, 50, 220),
    "white": (255, 255, 255),
}
TEMPLATES = ("a {color} {digit}", "{color} {digit}", "a {digit} in {color}", "the digit {digit}, painted {color}")
KINDS = (
    *("text", "words", "attributes", "graph", "labels", "none"),
    *("labels-short", "labels-guided", "text-short", "text-guided"),
)
OTHER_WORDS = {
    "red": ("crimson", "scarlet", "ruby"),
    "green": ("emerald", "lime"),
    "blue": ("azure", "navy"),
    "yellow": ("golden", "amber"),
    "purple": ("violet", "lilac"),
    "white": ("ivory", "pale"),
}
HELD_OUT = tuple((digit, (digit + shift) % 6) for digit in range(10) for shift in ((0, 3) if digit % 5 == 0 else (0,)))
"""Digit and color of the held-out combinations: 12 of 60, with each digit and each color among them."""

Pixels = npt.NDArray[np.uint8]


def paint(image: Pixels, color: int) -> Pixels:
    """Return a gray digit [28, 28] in a color, [28, 28, 3]."""
    tint = np.array(list(COLORS.values())[color])
    return np.round(image[..., None] / 255 * tint).astype(np.uint8)


def descriptions(digit: int, color: int) -> list[str]:
    """Return the descriptions of a combination."""
    return [template.format(digit=DIGITS[digit], color=list(COLORS)[color]) for template in TEMPLATES]


def digits(root: Path | None) -> dict[str, tuple[Pixels, npt.NDArray[np.int64]]]:
    """Return gray digits [N, 28, 28] and their classes: "train" and "val"."""
    source = open_source(DataConfig(data="mnist", data_root=root) if root else DataConfig(data="digits"))
    if root:
        return {name: (images[..., 0], classes) for name, (images, classes) in source.arrays.items()}
    enlarge = lambda item: np.asarray(Image.fromarray(item).resize((28, 28), Image.Resampling.BICUBIC))  # noqa: E731
    return {
        name: (np.stack([enlarge(item[..., 0]) for item in images]), classes)
        for name, (images, classes) in source.arrays.items()
    }


def make_data(out: Path, root: Path | None, count: int) -> None:
    """Write the generators' images with descriptions, and other images for the two classifiers."""
    random = np.random.default_rng(0)
    parts = digits(root)
    images, classes = parts["train"]
    half = min(count, len(images) // 2)
    seen = [[color for color in range(6) if (digit, color) not in HELD_OUT] for digit in range(10)]
    rows, attributes = [], []
    for split, chosen, labels in (("train", images[:half], classes[:half]), ("val", *parts["val"])):
        for index, (image, digit) in enumerate(zip(chosen, labels, strict=True)):
            color = int(random.choice(seen[digit]))
            name = f"{split}/{DIGITS[digit]}/{index:05d}.png"
            (out / "images" / name).parent.mkdir(parents=True, exist_ok=True)
            Image.fromarray(paint(image, color)).save(out / "images" / name)
            rows += [(name, text) for text in descriptions(digit, color)]
            attributes.append((name, DIGITS[digit], list(COLORS)[color]))
            entity = out / "entities" / split / f"{list(COLORS)[color]}-{DIGITS[digit]}" / f"{index:05d}.png"
            entity.parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(out / "images" / name, entity)
    facts = [(f"{c}-{d}", kind, value) for d in DIGITS for c in COLORS for kind, value in (("digit", d), ("color", c))]
    tables = {
        "descriptions": [("image", "text"), *rows],
        "attributes": [("image", "digit", "color"), *attributes],
        "facts": [("head", "relation", "tail"), *facts],
    }
    for table_name, lines in tables.items():
        with (out / f"{table_name}.csv").open("w", newline="") as file:
            csv.writer(file).writerows(lines)
    others = slice(half, half + 20000)
    for split, chosen, labels in (("train", images[others], classes[others]), ("val", *parts["val"])):
        for index, (image, digit) in enumerate(zip(chosen, labels, strict=True)):
            color = int(random.integers(6))
            for kind, label in (("digit", DIGITS[digit]), ("color", list(COLORS)[color])):
                file_name = out / f"judge-{kind}" / split / label / f"{index:05d}.png"
                file_name.parent.mkdir(parents=True, exist_ok=True)
                Image.fromarray(paint(image, color)).save(file_name)


def run(command: str) -> None:
    """Print a command and run it."""
    print(f"\n$ {command}", flush=True)
    done = subprocess.run(shlex.split(command))
    if done.returncode:
        sys.exit(done.returncode)


def train(folder: Path, epochs: int, width: int, sentence_model: Path | None, more: bool) -> None:
    """Train the generators and the two classifiers."""
    judge = "krl-train fit --model lenet5 --size 32 --flip none --optimizer adamw --lr 0.002"
    run(f"{judge} --data {folder / 'judge-digit'} --epochs 8 --out {folder / 'digit'}")
    run(f"{judge} --data {folder / 'judge-color'} --epochs 2 --out {folder / 'color'}")
    text = f"--condition text --condition-file {folder / 'descriptions.csv'}"
    trainings = [("text", epochs, text), ("labels", epochs // 2, "--condition labels"), ("none", epochs // 4, "")]
    if sentence_model is not None:
        others = [*(word for several in OTHER_WORDS.values() for word in several), *map(str, range(10))]
        (folder / "words.txt").write_text("\n".join(others))
        words = f"--sentence-model {sentence_model} --more-words {folder / 'words.txt'}"
        trainings.append(("words", epochs, f"{text} {words}"))
    if more:
        guide = f"krl-train fit --model dscnn-0.25 --data {folder / 'images'} --flip none --optimizer adamw --lr 0.003"
        run(f"{guide} --epochs 2 --out {folder / 'guide'}")
        attributes = f"--condition attributes --condition-file {folder / 'attributes.csv'}"
        trainings += [
            ("attributes", epochs // 2, attributes),
            ("graph", epochs // 2, f"--condition graph --condition-file {folder / 'facts.csv'}"),
        ]
        for name, condition in (("labels", "--condition labels"), ("text", text)):
            trainings.append((f"{name}-short", epochs // 6, condition))
            trainings.append((f"{name}-guided", epochs // 6, f"{condition} --guide {folder / 'guide'}"))
    for name, count, options in trainings:
        data = folder / ("entities" if name == "graph" else "images")
        run(
            f"krl-train fit --task gan --model dcgan-{width} --data {data} --flip none --batch-size 64 --r1 0 "
            f"--lr 0.0006 --adversarial hinge --ema 0.998 --epochs {max(1, count)} {options} --out {folder / name}"
        )


def generate(path: Path, digit: int, color: int, count: int) -> torch.Tensor:
    """Return images of a combination [count, 3, 28, 28], as far as its condition can express it."""
    generator = open_generator(path)[1]
    latents = sample_latents(count, generator.latent_size, seed=100 * digit + color)
    settings = generator.condition
    if settings is None:
        return generate_pixels(generator, latents)
    name, color_name = DIGITS[digit], list(COLORS)[color]
    asked = {
        "text": descriptions(digit, color),
        "labels": [name],
        "attributes": [f"digit={name},color={color_name}"],
        "graph": [f"{color_name}-{name}"],  # held-out combinations have facts, but no image
    }[settings["kind"]]
    tokens = torch.from_numpy(encode([asked[index % len(asked)] for index in range(count)], settings))
    return generate_pixels(generator, latents, tokens)


@torch.no_grad()
def sees(judge: Run, pixels: torch.Tensor, label: str) -> torch.Tensor:
    """Return for each image whether a classifier sees a class, bool [N]."""
    network = judge.network()
    return network(fit_images(pixels.float(), network.preprocessing)).argmax(1) == judge.record.labels.index(label)


def measure(generator: Path, folder: Path, each: int) -> dict[str, float]:
    """Return the agreement in percent with digit, color and both, over seen and over held-out combinations."""
    judges = {name: Run.open(folder / name) for name in ("digit", "color")}
    hits: dict[str, list[float]] = {}
    for digit in range(10):
        for color, color_name in enumerate(COLORS):
            pixels = generate(generator, digit, color, each)
            right = [sees(judges["digit"], pixels, DIGITS[digit]), sees(judges["color"], pixels, color_name)]
            kind = "held out" if (digit, color) in HELD_OUT else "seen"
            for name, each_right in (("digit", right[0]), ("color", right[1]), ("both", right[0] & right[1])):
                hits.setdefault(f"{name}, {kind}", []).append(float(each_right.double().mean()))
    return {name: round(100 * float(np.mean(values)), 1) for name, values in hits.items()}


def generate_texts(generator: GeneratorNetwork, texts: list[str]) -> torch.Tensor:
    """Return an image of each text [N, 3, 28, 28]."""
    assert generator.condition is not None
    tokens = torch.from_numpy(encode(texts, generator.condition))
    return generate_pixels(generator, sample_latents(len(texts), generator.latent_size, seed=1), tokens)


def measure_words(folder: Path, each: int) -> list[tuple[str, str, float]]:
    """Return each word that is in no description, its meaning, and the percentage of images that show it."""
    judges = {name: Run.open(folder / name) for name in ("digit", "color")}
    generator = open_generator(folder / "words")[1]
    asked = [("color", color, word, DIGITS) for color, several in OTHER_WORDS.items() for word in several]
    asked += [("digit", DIGITS[digit], str(digit), tuple(COLORS)) for digit in range(10)]
    rows = []
    for kind, meant, word, partners in asked:
        pairs = [(word, partner) if kind == "color" else (partner, word) for partner in partners]
        texts = [f"a {color} {digit}" for color, digit in pairs for _ in range(each)]
        pixels = generate_texts(generator, texts)
        rows.append((word, meant, round(100 * float(sees(judges[kind], pixels, meant).double().mean()), 1)))
    return rows


def draw_grid(folder: Path) -> None:
    """Write grid.png: a row for each color, a column for each digit; held-out combinations have a gray frame."""
    cells = np.zeros((6, 10, 32, 32, 3), np.uint8)
    for digit in range(10):
        for color in range(6):
            cells[color, digit] = 160 if (digit, color) in HELD_OUT else 0
            image = generate(folder / "text", digit, color, 1)[0].permute(1, 2, 0).numpy()
            cells[color, digit, 2:30, 2:30] = image
    save_cells(cells, folder / "grid.png")


def draw_words(folder: Path) -> None:
    """Write words.png: a row for each word for a color, a column for each figure."""
    generator = open_generator(folder / "words")[1]
    words = [word for several in OTHER_WORDS.values() for word in several]
    texts = [f"a {word} {digit}" for word in words for digit in range(10)]
    pixels = generate_texts(generator, texts)
    cells = np.zeros((len(words), 10, 32, 32, 3), np.uint8)
    cells[:, :, 2:30, 2:30] = pixels.permute(0, 2, 3, 1).reshape(len(words), 10, 28, 28, 3).numpy()
    save_cells(cells, folder / "words.png")


def save_cells(cells: Pixels, path: Path) -> None:
    """Save images [rows, columns, H, W, 3] as one, three times as large."""
    rows, columns, height, width, _ = cells.shape
    grid = cells.transpose(0, 2, 1, 3, 4).reshape(rows * height, columns * width, 3)
    Image.fromarray(grid).resize((3 * columns * width, 3 * rows * height), Image.Resampling.NEAREST).save(path)


def report(folder: Path, each: int) -> None:
    """Measure all generators, and print and write the table."""
    kinds = [name for name in KINDS if (folder / name).is_dir()]
    results = {name: measure(folder / name, folder, each) for name in kinds}
    (folder / "agreement.json").write_text(json.dumps(results, indent=1))
    columns = list(results["text"])
    chance = {"digit": 10.0, "color": 16.7, "both": 1.7}
    rows = [(name, *(values[column] for column in columns)) for name, values in results.items()]
    rows.append(("chance", *(chance[column.partition(",")[0]] for column in columns)))
    print("\nImages that show the requested digit and color, in percent:\n")
    print(table(("condition", *columns), rows))
    if "words" in kinds:
        print("\nImages that show the meaning of a word that is in no description, in percent:\n")
        print(table(("word", "meant", "agreement"), measure_words(folder, each)))
        draw_words(folder)
    draw_grid(folder)
    for name in ("digit", "color"):
        print(f"the {name} classifier on real images: {100 * Run.open(folder / name).record.metrics['top1']:.1f} %")


def main() -> None:
    """Make the data, train, measure."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--data-root", type=Path)
    for name, default in (("--images", 20000), ("--epochs", 12), ("--width", 16), ("--each", 50)):
        parser.add_argument(name, type=int, default=default)
    parser.add_argument("--sentence-model", type=Path)
    parser.add_argument("--more", action="store_true")
    arguments = parser.parse_args()
    shutil.rmtree(arguments.folder, ignore_errors=True)
    make_data(arguments.folder, arguments.data_root, arguments.images)
    train(arguments.folder, arguments.epochs, arguments.width, arguments.sentence_model, arguments.more)
    report(arguments.folder, arguments.each)


if __name__ == "__main__":
    main()
