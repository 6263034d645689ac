"""``krl-compress mutual`` and ``joint``: networks that are trained at the same time."""

from __future__ import annotations

import logging
import shutil
from collections.abc import Sequence
from dataclasses import asdict, replace
from pathlib import Path

import torch

from krl_compress.config import JointConfig, MutualConfig
from krl_compress.distillers import PeerTask
from krl_runtime.errors import UsageError
from krl_train.config import plan_loop
from krl_train.data import open_source, preprocessing_for
from krl_train.data.splits import read_training
from krl_train.loop import CHECKPOINT, BatchStream, Trainer
from krl_train.models import Network
from krl_train.run import Run, RunRecord
from krl_train.training.balance import class_weights, warn_of_imbalance
from krl_train.training.folder import prepare_out
from krl_train.training.train import costs, network_size
from krl_train.training.view_sheet import write_view_sheet

from .classification import classifier_record

__all__ = ["joint", "mutual"]

_log = logging.getLogger("krl")


def mutual(config: MutualConfig) -> list[Run]:
    """Train networks that all learn from each other (deep mutual learning).

    Returns:
        The networks' runs; the first one's folder is ``config.out``.

    Raises:
        KrlError: A network, the data or the configuration cannot be used, or training failed.
    """
    count = len(config.peer)
    if count < 2:
        raise UsageError(f"--peer is given {count} times; give two networks or more")
    tutors = [[other for other in range(count) if other != index] for index in range(count)]
    return _train(config, config.peer, tutors, "krl-compress mutual")


def joint(config: JointConfig) -> list[Run]:
    """Train a teacher on labels and, at the same time, a student on labels and on the teacher.

    Returns:
        The student's run and the teacher's; the student's folder is ``config.out``.

    Raises:
        KrlError: A network, the data or the configuration cannot be used, or training failed.
    """
    return _train(config, (config.student, config.teacher), [[1], []], "krl-compress joint")


def _train(
    config: MutualConfig | JointConfig, names: Sequence[str], tutors: Sequence[Sequence[int]], command: str
) -> list[Run]:
    source = open_source(config.data, seed=config.loop.seed)
    source.require_one_class(command)
    preprocessing = preprocessing_for(config.input, source, names[0])
    training = read_training(source, preprocessing, config.augment, config.loop.seed)
    records = [classifier_record(config, name, preprocessing, training, command) for name in names]
    finished = prepare_out(config.out, records[0], resume=config.resume, overwrite=config.overwrite)
    folders = [config.out, *(config.out / f"net{index}" for index in range(1, len(names)))]
    if finished is not None:
        return [Run.open(folder) for folder in folders]
    # Each starts from weights of its own: equal peers would have nothing to teach.
    networks = [_build(record, config.loop.seed + index) for index, record in enumerate(records)]
    loop = plan_loop(config.loop, len(training.train), len(training.val))
    warn_of_imbalance(training.train, source.labels, config.loop)
    balanced = loop.balance == "sampling"
    stream = BatchStream(training.train, training.augmentation, loop.batch_size, loop.seed, balanced=balanced)
    write_view_sheet(stream, config.out)
    task = PeerTask(
        networks,
        tutors,
        config.optim,
        temperature=config.temperature,
        weight=config.weight,
        steps=loop.epochs * stream.steps,
        batch_size=loop.batch_size,
        val=training.val,
        labels=source.labels,
        class_weights=class_weights(training.train, config.loop),
    )
    trainer = Trainer(loop, task, stream, config.out)
    if config.resume:
        trainer.resume()
    trainer.fit()
    runs = _write(trainer, task, records, folders)
    trainer.accelerator.wait_for_everyone()
    return runs


def _build(record: RunRecord, seed: int) -> Network:
    torch.manual_seed(seed)
    return record.model.build(record.preprocessing)


def _write(trainer: Trainer, task: PeerTask, records: Sequence[RunRecord], folders: Sequence[Path]) -> list[Run]:
    """Write all runs, of one epoch, the first one last: while it is not finished, the command can be resumed."""
    runs = []
    history = tuple(trainer.state.history)
    task.load(trainer.kept())
    measured = task.evaluate_all(trainer.worker)
    for network, record, folder, metrics in reversed(list(zip(task.final(), records, folders, measured, strict=True))):
        results = {**metrics, **network_size(network), **costs(trainer)}
        done = replace(record, plan=asdict(trainer.plan), metrics=results, history=history)
        if trainer.accelerator.is_main_process:
            runs.append(Run.write(folder, done, network.backbone.state_dict()))
        else:
            runs.append(Run(folder, done))
    if trainer.accelerator.is_main_process:
        shutil.rmtree(folders[0] / CHECKPOINT.parent, ignore_errors=True)
    return runs[::-1]
