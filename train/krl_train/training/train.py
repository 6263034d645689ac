"""From a network and its data to a run, whatever the task; distillation trains its students with it, too."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Mapping
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import torch

from krl_runtime.device.bench import peak_memory_mib
from krl_train.config import LoopConfig, OptimConfig, PlannedLoop, plan_loop
from krl_train.data.splits import Training
from krl_train.loop import CHECKPOINT, BatchStream, Trainer
from krl_train.models import Network, count_macs, count_parameters
from krl_train.models.restorers import RestorerNetwork
from krl_train.run import Run, RunRecord
from krl_train.tasks import ClassificationTask, Objective, Task, TrainingStream

from .balance import warn_of_imbalance
from .view_sheet import write_view_sheet

__all__ = ["costs", "network_size", "train_classifier", "train_task"]


def train_classifier(
    make_objective: Callable[[Network], Objective],
    network: Network,
    training: Training,
    record: RunRecord,
    optim: OptimConfig,
    loop: LoopConfig,
    out: Path,
    *,
    views: int | None = None,
    resume: bool = False,
) -> Run:
    """Train a network and write its run.

    Args:
        make_objective: From the network to what is minimized.
        network: The network, initialized.
        training: The data.
        record: What ``run.json`` will say, but for the results.
        optim: How weights are moved.
        loop: How long and on what.
        out: The run's folder, which ``prepare_out`` has made.
        views: Number of different views of each image; ``None`` for a new one in each epoch.
        resume: Whether to continue from the checkpoint.

    Raises:
        TrainingError: The loss is not a finite number.
    """
    planned = plan_loop(loop, len(training.train), len(training.val))
    warn_of_imbalance(training.train, record.labels, loop)
    balanced = loop.balance == "sampling"
    stream = BatchStream(training.train, training.augmentation, planned.batch_size, loop.seed, views, balanced)
    write_view_sheet(stream, out)
    task = ClassificationTask(
        make_objective(network),
        optim,
        steps=planned.epochs * stream.steps,
        batch_size=planned.batch_size,
        val=training.val,
        labels=record.labels,
    )
    return train_task(task, stream, record, network_size(network), planned, out, resume=resume)


def network_size(network: Network | RestorerNetwork) -> dict[str, int]:
    """Return ``"parameters"``, and ``"macs"`` for one input of the preprocessing's size."""
    return {"parameters": count_parameters(network), "macs": count_macs(network, network.preprocessing.shape)}


def train_task(
    task: Task[Any],
    stream: TrainingStream[Any],
    record: RunRecord,
    size: Mapping[str, int],
    loop: PlannedLoop,
    out: Path,
    *,
    resume: bool = False,
) -> Run:
    """Train any task and write its run.

    Args:
        task: What is trained.
        stream: What it is trained on.
        record: What ``run.json`` will say, but for the results.
        size: What its metrics say of the network: ``"parameters"`` and ``"macs"``.
        loop: How long and on what.
        out: The run's folder, which ``prepare_out`` has made.
        resume: Whether to continue from the checkpoint.

    Raises:
        TrainingError: The training failed; the last good checkpoint stays.
    """
    trainer = Trainer(loop, task, stream, out)
    if resume:
        trainer.resume()
    metrics = trainer.fit()
    finished = replace(
        record,
        plan={**asdict(trainer.plan), **task.planned()},
        metrics={**record.metrics, **metrics, **size, **costs(trainer)},
        history=tuple(trainer.state.history),
    )
    run = Run(out, finished)
    if trainer.accelerator.is_main_process:
        run = Run.write(out, finished, trainer.kept(), task.discriminator_state())
        shutil.rmtree(out / CHECKPOINT.parent, ignore_errors=True)
    trainer.accelerator.wait_for_everyone()
    return run


def costs(trainer: Trainer) -> dict[str, Any]:
    """Return the cost of a training: seconds, and this process's peak memory in MiB."""
    device = trainer.worker.device
    gpu = (
        {"peak_gpu_memory_mib": round(torch.cuda.max_memory_allocated(device) / 2**20)} if device.type == "cuda" else {}
    )
    return {
        "train_seconds": round(trainer.state.seconds, 1),
        "peak_memory_mib": round(peak_memory_mib() or 0),
        **gpu,
    }
