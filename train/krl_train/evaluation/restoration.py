"""``krl-train evaluate`` for restorers: PSNR and SSIM on images whose truth is known."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

from krl_runtime.errors import UsageError
from krl_train.config import DataConfig, EvaluateConfig
from krl_train.data import Truths
from krl_train.data.patches import list_images
from krl_train.loop import resolve_device
from krl_train.metrics import evaluate_restorer
from krl_train.run import Run
from krl_train.training.restoration import read_images
from krl_train.worker import Worker

__all__ = ["evaluate_restoration"]


def evaluate_restoration(run: Run, config: EvaluateConfig) -> dict[str, Any]:
    """Measure a restorer's run on its own validation images, or on any other folder.

    Returns:
        ``run``, ``data``, ``split`` and what ``evaluate_restorer`` returns.

    Raises:
        KrlError: The run or the images cannot be used.
    """
    record, data = run.record, config.data
    own = data.data is None
    if own:
        there = record.data
        if not there:
            raise UsageError(f"run {run.path} was imported, and nothing is known that its images should look like")
        data = replace(data, data=there["val_source"] or there["source"], val_fraction=there["val_fraction"])
    if record.model.arguments["degradation"]["kind"] == "none":
        root, split, truths = _read_pairs(run, data, config.split)
    else:
        folder = list_images(str(data.data), data)
        root, split = folder.root, config.split
        if split == "auto":
            split = "val" if "all" not in folder.splits or (own and record.data["val_source"] is None) else "all"
        truths = read_images(folder, split, data, record.model, data.limit if split == "train" else data.val_limit)
    device = resolve_device(config.device)
    arguments = record.model.arguments
    metrics = evaluate_restorer(
        run.module().to(device), truths, arguments["scale"], arguments["degradation"], Worker(device)
    )
    return {"run": str(config.run), "data": str(root), "split": split, **metrics}


def _read_pairs(run: Run, data: DataConfig, split: str) -> tuple[Path, str, Truths]:
    """Return the pairs that a run of translation is measured on: where they come from, the split, and the images."""
    from krl_train.data.pairs import read_pairs

    if run.record.configuration.get("task") != "translation":
        raise UsageError(f"run {run.path} paints in a style; there is no truth to measure it by. Look at its images")
    split = "val" if split == "auto" else split
    root = Path(str(data.data))
    return root, split, read_pairs(root, split, data, run.record.model.arguments["color"])
