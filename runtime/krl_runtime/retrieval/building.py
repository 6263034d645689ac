"""From a folder of images to an index of them, and the similarity below which an image is none of them."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from krl_runtime.errors import DataError, UsageError
from krl_runtime.evaluation.neighbors import nearest
from krl_runtime.evaluation.refusal import refusing, separation
from krl_runtime.images.folders import ImageFolder, OnBadImage
from krl_runtime.images.labeled import decoded_files, open_data, some
from krl_runtime.pipelines import load
from krl_runtime.pipelines.embedder import Embedder

from .files import index_path
from .gallery import Index

if TYPE_CHECKING:
    import numpy.typing as npt

__all__ = ["Embedded", "embed_folder", "index"]

Embedded = tuple["npt.NDArray[np.float32]", list[str], list[str]]
"""Vectors ``[N, D]`` of images, their names and their labels."""


def index(
    model: Embedder | str | Path,
    images: str | Path | None = None,
    *,
    out: str | Path | None = None,
    add: bool = False,
    overwrite: bool = False,
    none_of_these: float | None = None,
    validation: str | Path | None = None,
    others: str | Path | None = None,
    on_bad_image: OnBadImage = "refuse",
) -> Index:
    """Embed a folder of images, and write the index of them.

    Args:
        model: The loaded model, or its bundle.
        images: Folder of images, ``CLASS/*`` or without classes, or a list of images; all splits of it. ``None`` keeps
            the items of the index that is there, and calibrates it or builds its graph on this machine.
        out: File of the index; by default ``NAME.krl.index`` beside the bundle.
        add: Whether the images are added to the index that is there.
        overwrite: Whether the index that is there may be replaced; with ``add`` its items of the same name.
        none_of_these: Share of known images, above 0 and below 1, that may be refused as none of these; ``None``
            calibrates nothing. An index that is added to keeps its least similarity then.
        validation: Known images to calibrate on; by default those of the index, each against all others.
        others: Images of other things: how many of them are refused, and how well they are separated, is measured.
        on_bad_image: Action for files that are not readable images.

    Returns:
        The index, with its file.

    Raises:
        UsageError: The options do not fit each other, a file is there already, or a name is.
        DataError: Images cannot be used, or are too few for the share.
        BundleError: The index that is added to was made with another model.
        ModelError: An embedding is not finite.
    """
    if none_of_these is None and (validation is not None or others is not None):
        raise UsageError("validation and others are for the calibration of none_of_these; give none_of_these too")
    if none_of_these is not None and not 0 < none_of_these < 1:
        raise UsageError(f"none_of_these is {none_of_these:g}; accepted: a share above 0 and below 1")
    with _opened(model) as embedder:
        path = index_path(embedder.bundle.path) if out is None else Path(out)
        if images is None:
            made = replace(Index.open(path, embedder), graph=None)
        else:
            made = _filled(embedder, Path(images), path, on_bad_image, add=add, overwrite=overwrite)
        if none_of_these is not None:
            made = _calibrated(made, embedder, none_of_these, validation, others, on_bad_image)
    return made.save(path)


def _filled(model: Embedder, images: Path, path: Path, on_bad: OnBadImage, *, add: bool, overwrite: bool) -> Index:
    """Return an index of images, alone or with those of the index that is there; see ``index``."""
    there = Index.open(path, model) if add else None
    if there is None and path.exists() and not overwrite:
        raise UsageError(f"index {path} exists already; give --add, or --overwrite to replace it, or another --out")
    vectors, names, labels = embed_folder(model, images, on_bad, "embedding images")
    if there is None:
        return Index.of(model, vectors, names, labels)
    return there.add(vectors, names, labels, overwrite=overwrite)


@contextmanager
def _opened(model: Embedder | str | Path) -> Iterator[Embedder]:
    if isinstance(model, Embedder):
        yield model
        return
    with load(model, Embedder) as opened:
        yield opened


def embed_folder(model: Embedder, data: Path, on_bad: OnBadImage, description: str) -> Embedded:
    """Embed the images of a folder or a list.

    Args:
        model: The model.
        data: The folder or the list.
        on_bad: Action for files that are not readable images.
        description: Text of the progress bar.

    Returns:
        Vectors ``[N, D]``, the names of the images relative to the folder, and their labels, empty without one.

    Raises:
        DataError: The images cannot be used.
    """
    folder = open_data(data, on_bad=on_bad)
    base = data.parent if folder.root.is_file() else data
    parts: list[npt.NDArray[np.float32]] = []
    names: list[str] = []
    labels: list[str] = []
    for pixels, used in decoded_files(folder.split("all"), model.preprocessing, on_bad=on_bad, description=description):
        parts.append(model.embed(pixels))
        names += [Path(os.path.relpath(image.path, base)).as_posix() for image in used]
        labels += [_label(folder, image.label) for image in used]
    if not parts:
        raise DataError(f"no image of {data} is left: none of the files can be decoded")
    twice = [name for name, count in Counter(names).items() if count > 1]
    if twice:
        raise DataError(f"{data} names an image twice: {some(twice)}; an index has each once")
    return np.concatenate(parts), names, labels


def _label(folder: ImageFolder, label: int) -> str:
    return folder.labels[label] if label >= 0 else ""


def _known(made: Index, model: Embedder, validation: str | Path | None, on_bad: OnBadImage) -> npt.NDArray[np.float64]:
    """Return the similarity of known images to the nearest item: of those of the index each to all others."""
    if validation is not None:
        vectors, _, labels = embed_folder(model, Path(validation), on_bad, "embedding validation images")
        unknown = sorted(set(labels) - set(made.labels) - {""})
        if unknown:
            raise DataError(
                f"{validation} has classes that the index does not: {some(unknown)}; none_of_these is calibrated on "
                "known images; give those, and the others as others"
            )
        return _similarities(made, vectors)
    counts = Counter(made.labels)
    # An image that is alone with its label shows something that the others do not.
    chosen = [number for number, label in enumerate(made.labels) if not label or counts[label] > 1]
    if len(made) < 2 or not chosen:
        raise DataError("no two images of the index have one label, so that none_of_these needs validation images")
    _, near = nearest(made.vectors, made.vectors, 1, exclude_self=True, description="comparing the images")
    return near[chosen, 0].astype(np.float64)


def _similarities(made: Index, vectors: npt.NDArray[np.float32]) -> npt.NDArray[np.float64]:
    _, near = nearest(vectors, made.vectors, 1, description="comparing the images")
    return near[:, 0].astype(np.float64)


def _calibrated(
    made: Index,
    model: Embedder,
    share: float,
    validation: str | Path | None,
    others: str | Path | None,
    on_bad: OnBadImage,
) -> Index:
    """Return the index with the similarity that refuses a share of known images, and how it was chosen."""
    known = _known(made, model, validation, on_bad)
    least, refused = refusing(known, share, "known images", "with --validation FOLDER")
    calibration: dict[str, Any] = {
        "score": "similarity to the nearest item",
        "source": "index" if validation is None else Path(validation).name,
        "asked": share,
        "refused": refused,
        "images": len(known),
        "least": least,
    }
    if others is not None:
        calibration["others"] = _separated(made, model, Path(others), known, least, on_bad)
    return replace(made, least_similarity=least, calibration=calibration)


def _separated(
    made: Index, model: Embedder, folder: Path, known: npt.NDArray[np.float64], least: float, on_bad: OnBadImage
) -> dict[str, Any]:
    """Return how well images of other things are separated from the known ones."""
    vectors, _, labels = embed_folder(model, folder, on_bad, "embedding other images")
    same = sorted((set(labels) & set(made.labels)) - {""})
    if same:
        raise DataError(f"{folder} has classes of the index: {some(same)}; give images of other things alone")
    scores = _similarities(made, vectors)
    refused = float((scores < least).mean())
    return {
        "data": folder.name,
        "images": len(scores),
        "refused": refused,
        "false_positive_rate": 1 - refused,
        "auroc": separation(known, scores),
    }
