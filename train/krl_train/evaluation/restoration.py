"""``krl-train evaluate`` for restorers: PSNR and SSIM on images whose truth is known."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

from torch import nn

from krl_runtime.errors import UsageError
from krl_train.config import DataConfig, EvaluateConfig
from krl_train.data import Truths
from krl_train.data.patches import list_images
from krl_train.loop import resolve_device
from krl_train.metrics import evaluate_restorer
from krl_train.run import ModelSpec, Run, RunRecord
from krl_train.training.restoration import read_images
from krl_train.worker import Worker

from .training_data import count_trained, is_imported, trained_on, warn_of_trained

__all__ = ["evaluate_restoration", "measure_restorer", "read_measured"]


def evaluate_restoration(run: Run, config: EvaluateConfig) -> dict[str, Any]:
    """Measure a restorer's run on its own validation images, or on any other folder.

    Returns:
        ``run``, ``data``, ``split``, ``trained_on``, ``trained_images`` (how many of the images it was trained on,
        ``None`` where that is not known) and what ``evaluate_restorer`` returns.

    Raises:
        KrlError: The run or the images cannot be used.
    """
    record, data = run.record, config.data
    if data.data is None:
        there = record.data
        if not there:
            raise UsageError(f"run {run.path} was imported, and nothing is known that its images should look like")
        data = replace(data, data=there["val_source"] or there["source"], val_fraction=there["val_fraction"])
    if record.model.arguments["degradation"]["kind"] == "none":
        root, split, truths = _read_pairs(run, data, config.split)
    else:
        root, split, truths = read_measured(record, data, config.split)
    metrics = measure_restorer(run.module(), record.model, truths, config.device)
    trained = count_trained(record, truths.hashes)
    warn_of_trained(trained, len(truths))
    about = {"data": str(root), "split": split, "trained_on": trained_on(record), "trained_images": trained}
    return {"run": str(config.run), **about, **metrics}


def measure_restorer(network: nn.Module, spec: ModelSpec, truths: Truths, device_name: str) -> dict[str, Any]:
    """Measure a restorer on a device given by name; see ``evaluate_restorer``."""
    device, arguments = resolve_device(device_name), spec.arguments
    return evaluate_restorer(network.to(device), truths, arguments["scale"], arguments["degradation"], Worker(device))


def read_measured(record: RunRecord, data: DataConfig, asked: str) -> tuple[Path, str, Truths]:
    """Read the images that a restorer is measured on.

    Args:
        record: The run's record.
        data: The folder.
        asked: ``"auto"`` or a split.

    Returns:
        The folder, the split and its images. ``"auto"`` is ``"val"`` of a folder that is split or that the run was
        trained on, wherever it lies now, else ``"all"``.
    """
    folder = list_images(str(data.data), data)

    def read(split: str) -> tuple[Path, str, Truths]:
        limit = data.limit if split == "train" else data.val_limit
        return folder.root, split, read_images(folder, split, data, record.model, limit)

    if "all" not in folder.splits:
        return read("val" if asked == "auto" else asked)
    everything = read("all")
    own = not is_imported(record) and str(folder.root.resolve()) == record.data["source"]
    if record.data.get("val_source") is None and (own or count_trained(record, everything[2].hashes)):
        data = replace(data, val_fraction=record.data["val_fraction"])
        return read("val" if asked == "auto" else asked)
    return everything if asked in ("auto", "all") else read(asked)


def _read_pairs(run: Run, data: DataConfig, split: str) -> tuple[Path, str, Truths]:
    """Return the pairs that a run of translation is measured on: where they come from, the split, and the images."""
    from krl_train.data.pairs import read_pairs

    if run.record.configuration.get("task") != "translation":
        raise UsageError(f"run {run.path} paints in a style; there is no truth to measure it by. Look at its images")
    split = "val" if split == "auto" else split
    root = Path(str(data.data))
    return root, split, read_pairs(root, split, data, run.record.model.arguments["color"])
