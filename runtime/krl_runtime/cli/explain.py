"""``krl-runtime explain``: where a classifier looks, by hiding parts of images."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

from krl_runtime.device.explanation import check_out, write_explanation
from krl_runtime.device.occlusion import Occlusion, explain
from krl_runtime.errors import DataError, ImageError
from krl_runtime.files import atomic_folder
from krl_runtime.images.folders import report_bad
from krl_runtime.pipelines.classifier import Classifier
from krl_runtime.progress import progress

from .arguments import (
    PROG,
    add_command,
    add_model_options,
    add_on_bad_image,
    bundle_and_images,
    load_model,
    positive,
    where,
)
from .commandline import next_command, print_json
from .samples import samples_of
from .tables import table

__all__ = ["add_explain"]


def add_explain(commands: Any) -> None:
    """Add the command ``explain``."""
    parser = add_command(commands, "explain", _explain, "show where a classifier looks, by hiding parts of images")
    parser.add_argument(
        "paths", nargs="+", type=Path, metavar="NAME.krl|FILE", help="the bundle, and images, folders or lists"
    )
    parser.add_argument("-b", "--bundle", type=Path, metavar="NAME.krl", help="the bundle, if not among these")
    parser.add_argument("-o", "--out", type=Path, required=True, metavar="FOLDER", help="folder to make, for PNG files")
    parser.add_argument("--patch", type=positive, metavar="N", help="side of what is hidden, in pixels of the input")
    parser.add_argument("--stride", type=positive, metavar="N", help="pixels between places (default: half of it)")
    parser.add_argument(
        "--input", action="append", default=[], metavar="NAME=VALUE", help="what is beside all images; may be repeated"
    )
    add_on_bad_image(parser, "the work stops")
    parser.add_argument("--overwrite", action="store_true", help="replace the explanation that is there")
    add_model_options(parser)


def _explain(arguments: argparse.Namespace) -> None:
    arguments.bundle, paths = bundle_and_images(arguments.bundle, arguments.paths)
    check_out(arguments.out, overwrite=arguments.overwrite)
    with load_model(arguments, Classifier) as model, atomic_folder(arguments.out, replace=True) as folder:
        samples = samples_of(model.inputs, paths, arguments.input, arguments.on_bad_image)
        images: list[dict[str, Any]] = []
        bad: list[dict[str, str]] = []
        for file, sample in progress(list(samples.items()), "hiding parts of images"):
            try:
                found = explain(model, sample, patch=arguments.patch, stride=arguments.stride)
            except ImageError as error:
                bad.append({"file": str(file), "cause": str(error)})
                report_bad([error], arguments.on_bad_image)
                continue
            images.append(_written(found, file, folder, len(images)))
        if not images:
            raise DataError("no image is left: none of the files can be decoded")
        result = {**where(model), "task": "classification", "images": images, "skipped": bad}
        write_explanation(folder, result)
    if arguments.json:
        print_json({**result, "out": str(arguments.out)})
        return
    rows = [
        (item["file"], item["prediction"], f"{item['probability']:.1%}", f"{item['largest_drop']:.1%}", item["sheet"])
        for item in images
    ]
    print(table(("file", "prediction", "score", "largest drop", "map"), rows))
    next_command(f"{PROG} bench {arguments.bundle}")


def _written(found: Occlusion, file: Path, folder: Path, number: int) -> dict[str, Any]:
    """Write the map of an image, and return what ``explain.json`` says of it."""
    sheet = f"{number:04d}.png"
    found.overlay.save(folder / sheet)
    return {
        "file": str(file),
        "sheet": sheet,
        "prediction": found.prediction.label,
        "probability": found.prediction.score,
        "patch": found.patch,
        "largest_drop": float(found.drops.max()),
        "drops": found.drops.round(6).tolist(),
    }
