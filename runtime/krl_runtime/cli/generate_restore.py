"""``krl-runtime generate`` and ``krl-runtime restore``: the commands that write images."""

from __future__ import annotations

import argparse
import unicodedata
from collections import Counter
from collections.abc import Sequence
from itertools import chain, count
from pathlib import Path, PurePath
from typing import Any

from krl_runtime.errors import DataError, ImageError, UsageError
from krl_runtime.images.folders import report_bad
from krl_runtime.pipelines.generator import Generator
from krl_runtime.pipelines.raster import Raster, grid
from krl_runtime.pipelines.restorer import Restorer
from krl_runtime.progress import progress

from .arguments import (
    PROG,
    add_bundle,
    add_command,
    add_model_options,
    add_on_bad_image,
    bundle_and_images,
    expand,
    load_model,
    natural,
    positive,
    where,
)
from .commandline import next_command, print_json
from .tables import table

__all__ = ["add_generate", "add_restore"]

_GRID = "grid.png"


def add_generate(commands: Any) -> None:
    """Add the command ``generate``."""
    parser = add_command(commands, "generate", _generate, "make images, and a grid of all of them")
    add_bundle(parser)
    parser.add_argument("-o", "--out", type=Path, required=True, metavar="FOLDER", help="folder for the PNG files")
    parser.add_argument("-n", "--count", type=positive, default=16, metavar="N", help="images (default: 16)")
    parser.add_argument("--seed", type=natural, default=0, metavar="N", help="gives the latents (default: 0)")
    parser.add_argument(
        "--condition",
        action="append",
        metavar="TEXT",
        help="what to show, as 'a white rose' or kind=rose,color=white; given several times, each gets --count "
        "images of the same latents, and a row of the grid",
    )
    parser.add_argument("--overwrite", action="store_true", help="replace images that are there")
    add_model_options(parser)


def add_restore(commands: Any) -> None:
    """Add the command ``restore``."""
    parser = add_command(commands, "restore", _restore, "restore images: enlarge them, or take noise out")
    parser.add_argument(
        "paths", nargs="+", type=Path, metavar="NAME.krl|FILE", help="the bundle, and images or folders of images"
    )
    parser.add_argument("-b", "--bundle", type=Path, metavar="NAME.krl", help="the bundle, if not among these")
    parser.add_argument("-o", "--out", type=Path, required=True, metavar="FOLDER", help="folder for the PNG files")
    add_on_bad_image(parser, "the work stops")
    parser.add_argument("--overwrite", action="store_true", help="replace images that are there")
    add_model_options(parser)


def _generate(arguments: argparse.Namespace) -> None:
    conditions: list[str | None] = arguments.condition or [None]
    total = len(conditions) * arguments.count
    names = [f"{number:0{max(4, len(str(total - 1)))}d}.png" for number in range(total)]
    files = _targets(arguments, [*names, _GRID])
    images: list[Raster] = []
    with load_model(arguments, Generator) as model:
        for condition in progress(conditions, "generating"):
            images += model.generate(arguments.count, seed=arguments.seed, condition=condition)
        whole = grid(images, None if len(conditions) == 1 else arguments.count)
        for file, image in zip(files, [*images, whole], strict=True):
            image.save(file)
        result = {
            **where(model),
            "seed": arguments.seed,
            "conditions": arguments.condition or [],
            "files": [str(file) for file in files[:-1]],
            "grid": str(files[-1]),
        }
    if arguments.json:
        print_json(result)
        return
    print(f"{len(images)} images of {images[0]}, and {_GRID} of {whole}, in {arguments.out}")
    next_command(f"{PROG} bench {arguments.bundle}")


def _restore(arguments: argparse.Namespace) -> None:
    arguments.bundle, paths = bundle_and_images(arguments.bundle, arguments.paths)
    sources = expand(paths, arguments.on_bad_image)
    targets = _targets(arguments, _names(sources, paths))
    bad: dict[str, str] = {}
    made: list[tuple[str, str, str]] = []
    with load_model(arguments, Restorer) as model:
        for source, target in progress(list(zip(sources, targets, strict=True)), "restoring"):
            try:
                restored = model(source)
            except ImageError as error:
                bad[str(source)] = str(error)
                report_bad([error], arguments.on_bad_image)
                continue
            restored.save(target)
            made.append((str(source), str(target), str(restored)))
        location = where(model)
    if not made:
        raise DataError("no image is left: none of the files can be decoded")
    if arguments.json:
        results = [{"file": source, "restored": target, "size": size} for source, target, size in made]
        skipped = [{"file": file, "cause": cause} for file, cause in bad.items()]
        print_json({**location, "results": results, "skipped": skipped})
        return
    print(table(("file", "restored", "size"), made))
    next_command(f"{PROG} bench {arguments.bundle}")


def _names(sources: Sequence[Path], paths: Sequence[Path]) -> list[str]:
    """Return the names of the restored images: as the given files, those of a folder as they lie in it.

    Where several would have one name, each keeps its suffix in it: ``same.jpg.png``. Those that still have one name,
    such as files of two folders, are numbered in the order in which they are given: ``same.jpg-2.png``. Names that
    differ in case alone are one name, as some file systems have it.
    """
    folders = [path for path in paths if path.is_dir()]
    given = [
        source.relative_to(next((folder for folder in folders if folder in source.parents), source.parent))
        for source in sources
    ]
    names = [path.with_suffix(".png") for path in given]
    while True:
        taken = Counter(map(_key, names)) + Counter({_key(parent): 2 for name in names for parent in name.parents})
        longer = [
            path.with_name(f"{path.name}.png") if taken[_key(name)] > 1 else name
            for path, name in zip(given, names, strict=True)
        ]
        if longer == names:
            break
        names = longer
    used = {_key(parent) for name in names for parent in name.parents}
    used |= {_key(name) for name in names if taken[_key(name)] == 1}
    for index, name in enumerate(names):
        if taken[_key(name)] > 1:
            numbered = (name.with_stem(f"{name.stem}-{number}") for number in count(2))
            names[index] = next(each for each in chain([name], numbered) if _key(each) not in used)
            used.add(_key(names[index]))
    return [str(name) for name in names]


def _key(path: PurePath) -> str:
    """Return a path without regard to case and to the spelling of accents, as some file systems take it."""
    return unicodedata.normalize("NFC", str(path)).casefold()


def _targets(arguments: argparse.Namespace, names: Sequence[str]) -> list[Path]:
    """Return the files to write, and refuse those that are there."""
    if arguments.out.exists() and not arguments.out.is_dir():
        raise UsageError(f"{arguments.out} is a file; give a folder to --out")
    targets = [arguments.out / name for name in names]
    there = [str(target) for target in targets if target.exists()]
    if there and not arguments.overwrite:
        raise UsageError(f"{there[0]} exists already; give another folder to --out, or --overwrite to replace it")
    return targets
