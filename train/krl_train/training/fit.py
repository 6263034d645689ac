"""``krl-train fit``: data to a run. Arguments are checked before anything here imports torch."""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING

from krl_runtime.cli.options import refuse_other_tasks
from krl_runtime.errors import UsageError
from krl_train.config import FitConfig, check_data, check_model, check_run
from krl_train.custom import is_custom

if TYPE_CHECKING:
    from krl_train.run import Run

__all__ = ["fit"]


def fit(config: FitConfig) -> Run:
    """Train what ``config.task`` says, on data alone.

    Raises:
        KrlError: The data, the network or the configuration cannot be used, or training failed.
    """
    refuse_other_tasks(config, config.task)
    if is_custom(config.model) and config.task != "classification":
        raise UsageError(f"--model {config.model}: your own network is for --task classification, not {config.task}")
    check_model(config.model, config.task)
    check_data(config.data.data)
    check_data(config.joint.source_data)
    if config.transfer.from_ is not None:
        check_run(config.transfer.from_)
    if config.init is not None:
        check_run(config.init)
    module = import_module(f"krl_train.training.{config.task}")
    run: Run = module.fit(config)
    return run
