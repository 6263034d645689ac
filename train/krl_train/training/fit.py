"""``krl-train fit``: data to a run."""

from __future__ import annotations

from importlib import import_module

from krl_train.config import FitConfig
from krl_train.run import Run

__all__ = ["fit"]


def fit(config: FitConfig) -> Run:
    """Train what ``config.task`` says, on data alone.

    Raises:
        KrlError: The data, the network or the configuration cannot be used, or training failed.
    """
    module = import_module(f"krl_train.training.{config.task}")
    run: Run = module.fit(config)
    return run
