"""Files of a run, and what can be said of one without torch."""

from __future__ import annotations

import json
from pathlib import Path

__all__ = ["DISCRIMINATOR", "RECORD", "TRAINING_RECIPES", "WEIGHTS", "recorded_model", "recorded_task"]

TRAINING_RECIPES = Path(__file__).parent.parent / "recipes"
"""Folder of the recipes for training options, NAME.yaml."""

RECORD = "run.json"
"""The record of a run: configuration, data, metrics, history and hashes."""

WEIGHTS = "model.safetensors"
"""The weights of a run."""

DISCRIMINATOR = "discriminator.safetensors"
"""The weights of a GAN's discriminator, beside those of its generator."""


def recorded_task(run: str | Path | None) -> str:
    """Return the task of a run; ``"classification"`` for a network by name, and where the record cannot be read.

    Example:
        >>> recorded_task(None)
        'classification'
    """
    if run is None:
        return "classification"
    try:
        return str(json.loads((Path(run) / RECORD).read_bytes())["task"])
    except (OSError, ValueError, KeyError, TypeError):
        return "classification"


def recorded_model(run: str | Path) -> str:
    """Return the name of a run's network; empty where the record cannot be read, which opening the run explains."""
    try:
        return str(json.loads((Path(run) / RECORD).read_bytes())["model"]["name"])
    except (OSError, ValueError, KeyError, TypeError):
        return ""
