"""``krl-runtime index`` and ``krl-runtime search``: an index of images, and the images of it that are like others."""

from __future__ import annotations

import argparse
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from krl_runtime.errors import UsageError
from krl_runtime.pipelines.embedder import Embedder
from krl_runtime.retrieval.building import index
from krl_runtime.retrieval.files import index_path
from krl_runtime.retrieval.gallery import Index, Neighbor, SearchResult

from .arguments import (
    PROG,
    add_bundle,
    add_command,
    add_model_options,
    add_on_bad_image,
    bundle_and_images,
    expand,
    load_model,
    positive,
    share,
    where,
)
from .commandline import next_command, print_json
from .running import run_samples
from .tables import table

__all__ = ["add_index", "add_search"]


def add_index(commands: Any) -> None:
    """Add the command ``index``."""
    parser = add_command(commands, "index", _index, "embed images, and keep them in one file to search in")
    add_bundle(parser)
    parser.add_argument(
        "data",
        type=Path,
        nargs="?",
        metavar="FOLDER",
        help="images, in folders CLASS/ or not, or a LIST.csv; left out: calibrate the index that is there, and build "
        "its graph on this machine",
    )
    parser.add_argument("-o", "--out", type=Path, metavar="FILE", help="the index (default: NAME.krl.index)")
    parser.add_argument("--add", action="store_true", help="add the images to the index that is there")
    parser.add_argument(
        "--overwrite", action="store_true", help="replace the index; with --add, its images of the same name"
    )
    parser.add_argument(
        "--none-of-these",
        type=share,
        metavar="S",
        help="calibrate which images are none of these, so that this share of known ones is refused, as 0.05",
    )
    parser.add_argument(
        "--validation", type=Path, metavar="FOLDER", help="known images for that (default: those of the index)"
    )
    parser.add_argument("--others", type=Path, metavar="FOLDER", help="images of other things, to measure it with")
    add_on_bad_image(parser, "nothing is indexed")
    add_model_options(parser)


def add_search(commands: Any) -> None:
    """Add the command ``search``."""
    parser = add_command(commands, "search", _search, "find the images of an index that are most like others")
    parser.add_argument(
        "paths", nargs="+", type=Path, metavar="NAME.krl|FILE", help="the bundle, and images or folders of images"
    )
    parser.add_argument("-b", "--bundle", type=Path, metavar="NAME.krl", help="the bundle, if not among these")
    parser.add_argument("--index", type=Path, metavar="FILE", help="the index (default: NAME.krl.index)")
    parser.add_argument("--top-k", type=positive, default=5, metavar="K", help="neighbors of an image (default: 5)")
    parser.add_argument(
        "--least-similarity",
        type=float,
        metavar="X",
        help="below it an image is none of these (default: the one that the index was calibrated to)",
    )
    parser.add_argument("--sheet", type=Path, metavar="FILE.png", help="image of all queries beside their neighbors")
    parser.add_argument("--gallery", type=Path, metavar="FOLDER", help="folder that was indexed, for --sheet")
    add_on_bad_image(parser, "nothing is searched")
    add_model_options(parser)


def _index(arguments: argparse.Namespace) -> None:
    with load_model(arguments, Embedder) as model:
        made = index(
            model,
            arguments.data,
            out=arguments.out,
            add=arguments.add,
            overwrite=arguments.overwrite,
            none_of_these=arguments.none_of_these,
            validation=arguments.validation,
            others=arguments.others,
            on_bad_image=arguments.on_bad_image,
        )
        location = where(model)
    if arguments.json:
        print_json({**location, **made.to_dict()})
        return
    print(_described(made))
    own = "" if arguments.out is None else f" --index {made.path}"
    next_command(f"{PROG} search {arguments.bundle} IMAGE{own}")


def _described(made: Index) -> str:
    facts = made.to_dict()
    labels = f" of {facts['labels']} labels" if facts["labels"] else ""
    lines = [f"{facts['count']} images{labels}, {facts['size']} dimensions, in {facts['index']}"]
    found = made.calibration
    if made.least_similarity is not None and found:
        source = "its own, each against the others" if found["source"] == "index" else found["source"]
        lines.append(
            f"none of these below a similarity of {made.least_similarity:.4f}, which refuses {found['refused']:.2%} of "
            f"{found['images']} known images ({source})"
        )
    if "others" in found:
        others = found["others"]
        lines.append(
            f"of {others['images']} images of {others['data']} it refuses {others['refused']:.2%}; AUROC "
            f"{others['auroc']:.4f}"
        )
    return "\n".join(lines)


def _search(arguments: argparse.Namespace) -> None:
    if (arguments.sheet is None) != (arguments.gallery is None):
        raise UsageError("--sheet FILE.png and --gallery FOLDER go together: the sheet shows images of that folder")
    arguments.bundle, images = bundle_and_images(arguments.bundle, arguments.paths)
    files = expand(images, arguments.on_bad_image)
    with load_model(arguments, Embedder) as model:
        path = arguments.index or index_path(model.bundle.path)
        opened = Index.open(path, model)
        embeddings, bad = run_samples(model, {file: file for file in files}, "searching", arguments.on_bad_image)
        found = opened.search(list(embeddings.values()), arguments.top_k, least_similarity=arguments.least_similarity)
        location = where(model)
    results = dict(zip(embeddings, found, strict=True))
    if arguments.sheet is not None:
        from krl_runtime.retrieval.sheet import sheet

        sheet(results, arguments.gallery).save(arguments.sheet)
    if arguments.json:
        print_json(
            {
                **location,
                "index": str(path),
                "results": [{"file": str(file), **result.to_dict()} for file, result in results.items()],
                "skipped": [{"file": str(file), "cause": cause} for file, cause in bad.items()],
            }
        )
        return
    print(_table(results))
    next_command(f"{PROG} bench {arguments.bundle}")


def _table(results: Mapping[Path, SearchResult]) -> str:
    rows = [
        (
            file,
            result.prediction,
            f"{result.similarity:.3f}",
            result.neighbors[0].name,
            ", ".join(_shown(item) for item in result.neighbors[1:]),
        )
        for file, result in results.items()
    ]
    return table(("query", "result", "similarity", "nearest", "then"), rows)


def _shown(item: Neighbor) -> str:
    return f"{item.name} {item.similarity:.3f}"
