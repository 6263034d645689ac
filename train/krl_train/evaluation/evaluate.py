"""``krl-train evaluate``: measuring a run on its own data or on any other."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from krl_runtime.bundle import MANIFEST
from krl_runtime.errors import DataError, UsageError
from krl_train.config import DataConfig, EvaluateConfig
from krl_train.custom import warn_of_change
from krl_train.data import PixelSet, Source, open_source
from krl_train.loop import resolve_device
from krl_train.metrics import evaluate_classifier
from krl_train.models import Network
from krl_train.run import Run
from krl_train.worker import Worker

__all__ = ["evaluate", "evaluate_run", "pick_split"]


def evaluate(config: EvaluateConfig) -> dict[str, Any]:
    """Measure a run, or a generator's bundle.

    Returns:
        ``run``, ``data``, ``split`` and what ``evaluate_classifier``, ``evaluate_restorer`` or
        ``evaluate_generator`` returns.

    Raises:
        KrlError: The run or the data cannot be used, or the data has classes that the run does not know.
    """
    run = None if (config.run / MANIFEST).is_file() else Run.open(config.run)
    if run is not None and (config.generator.variant is not None or config.generator.backend is not None):
        raise UsageError(f"--variant and --backend are for bundles; {config.run} is a run")
    if run is None or run.record.task == "generation":
        from .generation import evaluate_generator

        return evaluate_generator(run, config)
    record = run.record
    if record.task == "restoration":
        from .restoration import evaluate_restoration

        return evaluate_restoration(run, config)
    network = run.network()
    source = _open_data(run, config.data)
    split = pick_split(source, config.split, trained_on=str(record.data["source"]))
    limit = config.data.limit if split == "train" else config.data.val_limit
    pixels = source.read(split, record.preprocessing, limit=limit)
    pixels.labels = _translate(pixels.labels, source.labels, record.labels, config.run)
    metrics = evaluate_run(network, record.labels, pixels, config.device, config.batch_size)
    return {"run": str(config.run), "data": source.name, "split": split, **metrics}


def _open_data(run: Run, data: DataConfig) -> Source:
    """Open the data that is named, else that of the run."""
    if data.data is not None:
        return open_source(data)
    there = run.record.data
    data = replace(data, data=there["source"], data_root=Path(there["root"]), val_fraction=there["val_fraction"])
    try:
        source = open_source(data)
    except DataError as error:
        raise DataError(f"run {run.path}: its data cannot be read again; name others with --data: {error}") from error
    warn_of_change(run.record.sources, "data", source.name, f"run {run.path}")
    return source


def pick_split(source: Source, asked: str, trained_on: str | None) -> str:
    """Return the split to measure on.

    Args:
        source: The data set.
        asked: ``"auto"`` or a split.
        trained_on: Name of the data that the model was trained on, if that is known.

    Returns:
        ``asked``, or for ``"auto"``: ``"val"`` where the data is split or is what the model was trained on, else
        ``"all"``.
    """
    if asked != "auto":
        return asked
    return "val" if source.is_split or source.name == trained_on else "all"


def evaluate_run(
    network: Network, labels: Sequence[str], data: PixelSet, device_name: str, batch_size: int = 256
) -> dict[str, Any]:
    """Measure a network on a device given by name; see ``evaluate_classifier``."""
    device = resolve_device(device_name)
    return evaluate_classifier(network.to(device), data, labels, Worker(device), batch_size=batch_size)


def _translate(classes: Tensor, names: Sequence[str], labels: Sequence[str], run: Path) -> Tensor:
    """Turn the data's class indices into the model's, by name."""
    unknown = [name for name in names if name not in labels]
    if unknown:
        raise DataError(
            f"the data has classes that run {run} does not know: {', '.join(unknown[:10])}; it knows: "
            f"{', '.join(labels[:20])}"
        )
    return torch.tensor([labels.index(name) for name in names], dtype=torch.int64)[classes]
