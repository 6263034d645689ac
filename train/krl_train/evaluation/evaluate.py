"""``krl-train evaluate``: measuring a run on its own data or on any other."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from krl_runtime.bundle import MANIFEST, Bundle
from krl_runtime.bundle.further_inputs import column_names
from krl_runtime.errors import DataError, UsageError
from krl_runtime.images.hashes import hash_files
from krl_train.config import DataConfig, EvaluateConfig
from krl_train.custom import warn_of_change
from krl_train.data import PixelSet, Source, open_source
from krl_train.data.sources import HELD_OUT
from krl_train.loop import resolve_device
from krl_train.metrics import evaluate_classifier
from krl_train.metrics.retrieval import evaluate_embedder
from krl_train.models import Network, TwoHeads
from krl_train.models.embedders import EmbeddingNetwork
from krl_train.run import JOINT, Run, RunRecord
from krl_train.worker import Worker

from .training_data import count_trained, is_imported, trained_on, warn_of_trained

__all__ = ["choose_split", "evaluate", "evaluate_embedding_run", "evaluate_run", "open_data", "pick_split"]

_log = logging.getLogger("krl")


def evaluate(config: EvaluateConfig) -> dict[str, Any]:
    """Measure a run, or a generator's bundle.

    Returns:
        ``run``, ``data``, ``split``, ``trained_on`` and what ``evaluate_classifier``, ``evaluate_embedder``,
        ``evaluate_restorer`` or ``evaluate_generator`` returns. Of a classifier or an embedder also ``images``, their
        number, and ``trained_images``, how many of them it was trained on (``None`` where that is not known); of one
        with two heads ``head``, ``"target"`` or ``"source"``.

    Raises:
        KrlError: The run or the data cannot be used, or the data has classes that the run does not know.
    """
    run = None if (config.run / MANIFEST).is_file() else Run.open(config.run)
    if run is None:
        _check_generator(config.run)
    if run is not None and (config.generator.variant is not None or config.generator.backend is not None):
        raise UsageError(f"--variant and --backend are for bundles; {config.run} is a run")
    if run is None or run.record.task == "generation":
        from .generation import evaluate_generator

        return evaluate_generator(run, config)
    record = run.record
    if record.task == "restoration":
        from .restoration import evaluate_restoration

        return evaluate_restoration(run, config)
    network = run.module()
    assert isinstance(network, Network)  # noqa: S101  for the type checker: classifiers and embedders are
    source = open_data(run, config.data)
    _check_alike(run, source)
    head, network, record = _head_for(run, network, source.labels)
    source, split = choose_split(
        record, replace(source, further=record.model.further(record.preprocessing)), config.split
    )
    limit = config.data.limit if split == "train" else config.data.val_limit
    pixels = source.read(split, record.preprocessing, limit=limit)
    if isinstance(network, EmbeddingNetwork):  # any classes: it is asked which images are alike
        metrics = evaluate_embedding_run(network, pixels, config.device, config.batch_size)
    else:
        pixels.labels = _translate(pixels.labels, source.labels, record.labels, config.run)
        metrics = evaluate_run(network, record.labels, pixels, config.device, config.batch_size)
    trained = _count_trained(record, source, split, pixels)
    warn_of_trained(trained, len(pixels))
    return {
        "run": str(config.run),
        "data": source.name,
        "split": split,
        "images": len(pixels),
        "trained_on": trained_on(record),
        "trained_images": trained,
        **head,
        **metrics,
    }


def _head_for(run: Run, network: Network, labels: Sequence[str]) -> tuple[dict[str, str], Network, RunRecord]:
    """Return the head of a network that knows the data's classes, and the record of its training alone.

    Of two heads it is the target's, unless the source's alone knows all of the classes; ``"head"`` says which.
    """
    record = run.record
    if not isinstance(network, TwoHeads):
        return {}, network, record
    if set(labels) <= set(record.labels) or not set(labels) <= set(record.source_labels):
        return {"head": "target"}, network, record
    other = replace(record, labels=record.source_labels, source_labels=(), data=record.data[JOINT])
    return {"head": "source"}, network.source(), other


def _check_generator(path: Path) -> None:
    """Check that a bundle is a generator's: all others are measured where they run, without torch.

    Raises:
        UsageError: It is not; the message has the command.
    """
    task = Bundle.open(path).manifest.task
    if task != "generation":
        raise UsageError(
            f"{path} is a bundle for {task}; measure it as a device runs it, with: krl-runtime evaluate {path} FOLDER"
        )


def open_data(run: Run, data: DataConfig) -> Source:
    """Open the data that is named, else that of the run; of its own data the same classes are held out.

    Raises:
        DataError: It is not there, or cannot be used.
    """
    there, columns = run.record.data, column_names(run.record.model.further(run.record.preprocessing))
    if data.data is not None:
        source = open_source(data, columns=columns)
        return source.holding_out(there.get(HELD_OUT, ())) if source.name == there.get("source") else source
    data = replace(data, data=there["source"], data_root=Path(there["root"]), val_fraction=there["val_fraction"])
    try:
        source = open_source(data, columns=columns)
    except DataError as error:
        raise DataError(f"run {run.path}: its data cannot be read again; name others with --data: {error}") from error
    warn_of_change(run.record.sources, "data", source.name, f"run {run.path}")
    return source.holding_out(there.get(HELD_OUT, ()))


def pick_split(source: Source, asked: str) -> str:
    """Return the split of data that nothing was trained on: as asked, or ``val`` of split data, else ``all``."""
    if asked != "auto":
        return asked
    return "val" if source.is_split else "all"


def choose_split(record: RunRecord, source: Source, asked: str) -> tuple[Source, str]:
    """Return the images to measure a run on.

    Args:
        record: The run's record.
        source: The data set.
        asked: ``"auto"`` or a split.

    Returns:
        The data set and the split: ``asked``, or for ``"auto"`` as ``pick_split`` says. Data that is not split itself,
        and that the run was trained on, is split as it was for the training, wherever it lies now; ``"auto"`` is then
        the part that was held out.
    """
    if is_imported(record) or source.is_split:
        return source, pick_split(source, asked)
    own = source.name == record.data.get("source")
    if not own:
        files = [] if source.folder is None else source.folder.split("all")
        known = count_trained(record, hash_files([image.path for image in files]))
        if not known:
            return source, pick_split(source, asked)
        _log.info("the run was trained on %d of the %d images of %s", known, len(files), source.name)
    config = replace(source.config, val_fraction=record.data["val_fraction"])
    return replace(source, config=config), "val" if asked == "auto" else asked


def _count_trained(record: RunRecord, source: Source, split: str, pixels: PixelSet) -> int | None:
    """Return how many of the measured images a run was trained on, ``None`` where that is not known."""
    if pixels.files or is_imported(record) or source.name != record.data.get("source"):
        return count_trained(record, pixels.file_hashes())
    if split == "val":
        return 0
    return min(len(pixels), int(record.data["train"]["count"]))  # of a named set, known by its name


def evaluate_run(
    network: Network, labels: Sequence[str], data: PixelSet, device_name: str, batch_size: int = 256
) -> dict[str, Any]:
    """Measure a network on a device given by name; see ``evaluate_classifier``."""
    device = resolve_device(device_name)
    return evaluate_classifier(network.to(device), data, labels, Worker(device), batch_size=batch_size)


def evaluate_embedding_run(
    network: EmbeddingNetwork, data: PixelSet, device_name: str, batch_size: int = 256
) -> dict[str, Any]:
    """Measure a network of embeddings on a device given by name; see ``evaluate_embedder``."""
    device = resolve_device(device_name)
    return evaluate_embedder(network.to(device), data, Worker(device), batch_size=batch_size)


def _translate(classes: Tensor, names: Sequence[str], labels: Sequence[str], run: Path) -> Tensor:
    """Turn the data's class indices into the model's, by name."""
    unknown = [name for name in names if name not in labels]
    if unknown:
        raise DataError(
            f"the data has classes that run {run} does not know: {', '.join(unknown[:10])}; it knows: "
            f"{', '.join(labels[:20])}"
        )
    index = torch.tensor([labels.index(name) for name in names], dtype=torch.int64)
    if classes.ndim == 1:
        return index[classes]
    translated = torch.zeros(len(classes), len(labels), dtype=classes.dtype)
    translated[:, index] = classes
    return translated


def _check_alike(run: Run, source: Source) -> None:
    """Check that run and data agree in whether an image has one class, or any number of labels.

    Raises:
        DataError: They do not.
    """
    if run.record.multi_label == source.multi_label:
        return
    kinds = ("one class for each image", "any number of labels")
    raise DataError(
        f"run {run.path} predicts {kinds[run.record.multi_label]}, and {source.name} has {kinds[source.multi_label]}; "
        f"give a list of images with a column {'labels' if run.record.multi_label else 'label'!r}"
    )
