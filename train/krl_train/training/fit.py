"""``krl-train fit``: data to a run. Arguments are checked before anything here imports torch."""

from __future__ import annotations

from dataclasses import replace
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING

from krl_runtime.cli.options import refuse_other_tasks
from krl_runtime.errors import RunError, UsageError
from krl_train.config import (
    RECORD,
    FitConfig,
    check_data,
    check_model,
    check_run,
    recorded_model,
    recorded_task,
    torchvision_classifiers,
)
from krl_train.custom import is_custom

if TYPE_CHECKING:
    from krl_train.run import Run

__all__ = ["fit"]

_RECORDED = {"gan": "generation", "vae": "generation", "translation": "restoration", "style": "restoration"}
"""Tasks of runs by the tasks of the command, where these differ."""
_LABELED = ("classification", "embedding")  # tasks that start from a classifier's weights, published ones included


def fit(config: FitConfig) -> Run:
    """Train what ``config.task`` says, on data alone.

    Raises:
        KrlError: The data, the network or the configuration cannot be used, or training failed.
    """
    refuse_other_tasks(config, config.task)
    config = _with_start(config)
    if is_custom(config.model) and config.task not in _LABELED:
        raise UsageError(
            f"--model {config.model}: your own network is for --task classification and embedding, not {config.task}"
        )
    if config.transfer.relation_transfer and config.loop.accumulate > 1:
        raise UsageError("--relation-transfer compares all images of a step; leave --accumulate out")
    check_model(config.model, config.task)
    check_data(config.data.data)
    check_data(config.joint.source_data)
    module = import_module(f"krl_train.training.{config.task}")
    run: Run = module.fit(config)
    return run


def _with_start(config: FitConfig) -> FitConfig:
    """Return a configuration whose ``--from`` is a run or published weights, and whose ``--model`` is the network.

    Raises:
        RunError: What it starts from is neither.
        UsageError: ``--pretrained`` is missing or one too many, or ``--model`` names another network.
    """
    source = config.transfer.from_
    if source is None:
        return config
    if config.task in _LABELED and not Path(source, RECORD).is_file() and _is_published(source):
        if not config.pretrained:
            raise UsageError(
                f"--from {source} is a published network, whose weights may have to be downloaded; give --pretrained "
                "as well, or --from RUN"
            )
        if config.model not in ("", source):
            raise UsageError(f"--from {source} is the network itself, and --model is {config.model}; leave --model out")
        return replace(config, model=source)
    if config.task in _LABELED and not Path(source).exists():
        raise RunError(
            f"--from {source} is neither the folder of a run nor a network with published weights; accepted: a folder "
            "that krl-train or krl-compress made, a classifier of torchvision (resnet18), or timm/NAME"
        )
    check_run(source)
    task = recorded_task(source)
    fits = config.task == "embedding" and task == "classification"  # its last layer is a new one
    if task != _RECORDED.get(config.task, config.task) and not fits:
        raise RunError(f"--from {source} is a run of the task {task}, and --task is {config.task}; give another run")
    if config.task in _LABELED and config.pretrained:
        raise UsageError(f"--from {source} is a run, and --pretrained is for --from NAME; leave one of them out")
    return replace(config, model=config.model or recorded_model(source))


def _is_published(name: str) -> bool:
    return name.startswith("timm/") or name in torchvision_classifiers()
