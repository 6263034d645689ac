"""``krl-train explain``: a folder of sheets and figures, and ``explain.json``."""

from __future__ import annotations

import logging
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from krl_runtime.bundle import MANIFEST
from krl_runtime.conditions import encode
from krl_runtime.device.explanation import check_out, write_explanation
from krl_runtime.errors import DataError, KrlError, UsageError
from krl_runtime.files import atomic_folder, write_atomic
from krl_runtime.images.folders import decode
from krl_runtime.progress import progress
from krl_train.config import ExplainConfig
from krl_train.data import PixelSet, Source, open_source
from krl_train.evaluation.evaluate import choose_split, open_data
from krl_train.loop import resolve_device
from krl_train.models import Network
from krl_train.models.generators import GeneratorNetwork
from krl_train.models.sampling import sample_latents
from krl_train.run import Run

from .comparison import compare, heat_map, rows_of_csv
from .conditions import explain_conditions, factors_of
from .neighbors import Gallery
from .predictions import Explainer, images_of

__all__ = ["explain"]

_log = logging.getLogger("krl")

_BATCH = 64  # inputs of one comparison: their Gram matrices are small, and the estimator's variance is, too
_GALLERY = 5000  # training images at most that neighbors are looked for among; a pass of seconds


def explain(config: ExplainConfig) -> dict[str, Any]:
    """Explain a run, and write what was found.

    Returns:
        The content of ``explain.json``; see ``docs/explain.md``.

    Raises:
        KrlError: A run, an image or the data cannot be used, or there is nothing to explain.
    """
    check_out(config.out, overwrite=config.overwrite)
    if (config.run / MANIFEST).is_file():
        raise UsageError(f"{config.run} is a bundle; use: krl-runtime explain {config.run} IMAGES -o FOLDER")
    run = Run.open(config.run)
    network = _network(run, config)
    result: dict[str, Any] = {
        "run": str(config.run),
        "weights_sha256": run.record.weights_sha256,
        "model": run.record.model.name,
        "task": run.record.task,
        "skipped": [],
    }
    with atomic_folder(config.out, replace=True) as folder:
        if isinstance(network, GeneratorNetwork):
            if config.teacher is None or network.condition is not None:
                result["conditions"] = explain_conditions(network, config.condition, folder)
        elif config.images:
            result |= _explain_images(run, network, config, folder, result["skipped"])
        if config.teacher is not None:
            result["teacher"] = _compare(run, network, config, folder)
        write_explanation(folder, result)
    return result


def _network(run: Run, config: ExplainConfig) -> Network | GeneratorNetwork:
    """Return the run's network where it computes, after checking that it can be explained as asked."""
    record = run.record
    if record.inputs:
        raise UsageError(
            f"run {run.path} takes several inputs, and explain has images alone; export it, and use: krl-runtime "
            "explain NAME.krl LIST.csv"
        )
    made = run.module()
    if not isinstance(made, Network | GeneratorNetwork):
        raise UsageError(
            f"run {run.path} is of the task {record.task!r}; accepted: classification, embedding and generation"
        )
    is_generator = isinstance(made, GeneratorNetwork)
    if is_generator and config.images:
        raise UsageError(f"run {run.path} is a generator, which takes no images; leave them out")
    if not is_generator and config.condition is not None:
        raise UsageError(f"--condition is for generators; run {run.path} is of the task {record.task!r}")
    if not is_generator and not config.images and config.teacher is None:
        raise UsageError("there is nothing to explain: give images, --teacher RUN, or both")
    return made.to(resolve_device(config.device))


def _explain_images(
    run: Run, network: Network, config: ExplainConfig, folder: Path, skipped: list[dict[str, str]]
) -> dict[str, Any]:
    files = images_of(config.images, config.data.on_bad_image)
    gallery = None
    if config.neighbors:
        try:
            gallery = Gallery(network, *_known_images(run, config))
        except KrlError as error:
            if config.neighbors_from is not None or config.data.data is not None:
                raise
            _log.warning("no neighbors: %s", error)
            skipped.append({"what": "neighbors", "cause": str(error)})
    explainer = Explainer(run, network, gallery, config)
    if explainer.attributor.layer is None:
        cause = f"{run.record.model.name} has no feature maps"
        _log.warning("no class activation maps: %s", cause)
        skipped.append({"what": "class activation maps", "cause": cause})
    pixels, read = decode(files, run.record.preprocessing, on_bad=config.data.on_bad_image)
    pairs = list(zip(read, pixels, strict=True))
    images = [
        explainer.explain(image.path, each, folder, f"{number:04d}.png")
        for number, (image, each) in enumerate(progress(pairs, "explaining"))
    ]
    return {"cam_layer": explainer.attributor.layer, "ig_steps": config.ig_steps, "images": images}


def _known_images(run: Run, config: ExplainConfig) -> tuple[PixelSet, Sequence[str]]:
    """Return the images that neighbors are looked for among, and their class names."""
    limit = config.data.limit or _GALLERY
    if config.neighbors_from is not None:
        source = open_source(replace(config.data, data=str(config.neighbors_from)), classes=False)
        return source.read("all", run.record.preprocessing, limit=limit), source.labels
    source, split = choose_split(run.record, open_data(run, config.data), "train")
    return source.read(split, run.record.preprocessing, limit=limit), source.labels


def _compare(run: Run, student: Network | GeneratorNetwork, config: ExplainConfig, folder: Path) -> dict[str, Any]:
    """Compare the layers of student and teacher, and write the figure and the table."""
    assert config.teacher is not None  # noqa: S101  for the type checker
    opened = Run.open(config.teacher)
    teacher = _network(opened, replace(config, run=config.teacher, images=(), condition=None))
    if isinstance(student, GeneratorNetwork) != isinstance(teacher, GeneratorNetwork):
        raise UsageError(
            f"run {run.path} is of the task {run.record.task!r}, and --teacher {config.teacher} of "
            f"{opened.record.task!r}; a generator is compared with a generator"
        )
    if isinstance(student, GeneratorNetwork):
        assert isinstance(teacher, GeneratorNetwork)  # noqa: S101  for the type checker
        batches, count, where = _latents(student, teacher, config)
    else:
        batches, count, where = _same_images(run, opened, student.device, config)
    total = -(-count // _BATCH)
    found = compare(student, teacher, progress(batches, "comparing layers", total))
    write_atomic(folder / "cka.csv", rows_of_csv(found))
    write_atomic(folder / "cka.png", heat_map(found))
    return {
        "run": str(config.teacher),
        "weights_sha256": opened.record.weights_sha256,
        "model": opened.record.model.name,
        **where,
        "count": count,
        "cka": {
            "student_layers": found.student_layers,
            "teacher_layers": found.teacher_layers,
            "matrix": found.cka,
            "figure": "cka.png",
            "table": "cka.csv",
        },
        "stages": found.stages,
    }


_Batches = Iterator[tuple[Sequence[Tensor], Sequence[Tensor]]]


def _same_images(
    run: Run, teacher: Run, device: torch.device, config: ExplainConfig
) -> tuple[_Batches, int, dict[str, Any]]:
    """Yield batches of validation images, each network's as its own preprocessing makes them."""
    source, split = choose_split(run.record, open_data(run, config.data), "auto")
    limit = config.compared_images if config.data.val_limit is None else config.data.val_limit
    mine, theirs = (_read(source, split, each, limit) for each in (run, teacher))
    if len(mine) != len(theirs):
        raise DataError(
            f"{source.name}: {len(mine)} images can be read for the student, and {len(theirs)} for the teacher; remove "
            "the damaged ones"
        )

    def batches() -> _Batches:
        for start in range(0, len(mine), _BATCH):
            part = np.arange(start, min(start + _BATCH, len(mine)))
            yield [mine.inside(part).to(device)], [theirs.inside(part).to(device)]

    return batches(), len(mine), {"data": source.name, "split": split}


def _read(source: Source, split: str, run: Run, limit: int) -> PixelSet:
    return source.read(split, run.record.preprocessing, limit=limit)


def _latents(
    student: GeneratorNetwork, teacher: GeneratorNetwork, config: ExplainConfig
) -> tuple[_Batches, int, dict[str, Any]]:
    """Yield batches of the same latents and conditions, which are drawn from the vocabulary where there are some."""
    known = [(each.condition or {}).get("vocabulary") for each in (student, teacher)]
    if known[0] != known[1] or student.latent_size != teacher.latent_size:
        raise UsageError(f"run {config.run} and --teacher {config.teacher} have not the same latents and conditions")
    count = config.compared_images
    latents = sample_latents(count, student.latent_size, 0)
    tokens = None if student.condition is None else _tokens(student.condition, count)

    def batches() -> _Batches:
        for start in range(0, count, _BATCH):
            given = [each[start : start + _BATCH].to(student.device) for each in (latents, tokens) if each is not None]
            yield given, given

    return batches(), count, {"data": "latents", "split": "all"}


def _tokens(settings: Any, count: int) -> Tensor:
    """Return conditions ``[count, L]`` in turn: those that differ from the base in one part."""
    if settings["kind"] == "text":
        text = " ".join(list(settings["vocabulary"])[1 : 1 + int(settings["length"])])
        return torch.from_numpy(encode(text, settings)).repeat(count, 1)
    conditions = [each for factor in factors_of(settings, None) for each in factor.conditions]
    tokens = torch.from_numpy(encode(conditions, settings))
    return tokens[torch.arange(count) % len(tokens)]
