"""``krl-train fit --source-data``: a classifier on a target and a source at once."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import chain
from pathlib import Path
from typing import Any

import numpy as np
import torch

from krl_runtime.errors import DataError, RunError, UsageError
from krl_runtime.images.preprocessing import Preprocessing
from krl_train.config import DataConfig, FitConfig, plan_loop, to_plain
from krl_train.custom import sources_of
from krl_train.data import Source, open_source, preprocessing_for
from krl_train.data.splits import Training, read_training
from krl_train.loop import BatchStream
from krl_train.loop.joint import JointStream
from krl_train.models import SOURCE_CLASSES, TwoHeads, load_weights
from krl_train.models.custom import custom_arguments
from krl_train.models.heads import carry_heads
from krl_train.models.stages import split_stages
from krl_train.run import JOINT, ModelSpec, Run, RunRecord
from krl_train.synthetic import add_synthetic
from krl_train.tasks.joint import JointSupervised, JointTask

from .balance import class_weights, warn_of_imbalance
from .folder import prepare_out
from .start import parent_of, start_arguments, start_classifier, start_run
from .train import network_size, train_task

__all__ = ["fit"]

_log = logging.getLogger("krl")

_SOURCE_ORDER = 1  # beside the seed: images that target and source share are then not shown in the same steps


@dataclass(frozen=True)
class _Joint:
    """The images of both data sets, read.

    Attributes:
        target: The target's images.
        source: The source's.
        data: The record of both.
    """

    target: Training
    source: Training
    data: dict[str, Any]


def fit(config: FitConfig) -> Run:
    """Train a classifier with two heads.

    Raises:
        KrlError: The data, the network or the configuration cannot be used, or training failed.
    """
    if config.transfer.changed:
        raise UsageError(
            f"{config.transfer.changed[0]} is for one labeling; with --source-data all weights are trained, so leave "
            "it out"
        )
    for name, given in (("--accumulate", config.loop.accumulate > 1), ("--compile", config.loop.compile)):
        if given:
            raise UsageError(f"{name} is for one labeling; with --source-data leave it out")
    start = start_run(config)
    target = open_source(config.data, seed=config.loop.seed)
    other = _open_other(config, start)
    for each in (target, other):
        each.require_one_class("--source-data")
    preprocessing = preprocessing_for(
        config.input,
        target,
        config.model,
        pretrained=config.pretrained and start is None,
        trained=start.record.preprocessing if start else None,
    )
    joint = _read(config, target, other, preprocessing)
    own = start_arguments(start, config.model) | custom_arguments(config.model, preprocessing.shape)
    arguments = {**own, SOURCE_CLASSES: len(other.labels)}
    spec = ModelSpec(config.model, len(target.labels), preprocessing.channels, arguments)
    torch.manual_seed(config.loop.seed)
    network = spec.build(preprocessing, pretrained=config.pretrained)
    assert isinstance(network, TwoHeads)  # noqa: S101  for the type checker
    labels = (target.labels, other.labels)
    record = RunRecord(
        task="classification",
        model=spec,
        preprocessing=preprocessing,
        labels=target.labels,
        source_labels=other.labels,
        command="krl-train fit",
        configuration=to_plain(config),
        seed=config.loop.seed,
        data=joint.data,
        parent=_start(network, config, labels, start),
        sources=sources_of(
            [("model", config.model), ("data", config.data.data), ("source_data", config.joint.source_data)]
        ),
    )
    finished = prepare_out(config.out, record, resume=config.resume, overwrite=config.overwrite)
    return finished if finished is not None else _train(config, network, joint, record)


def _open_other(config: FitConfig, start: Run | None) -> Source:
    """Open the source's data: what is named, else that of the run that the training starts from."""
    if config.joint.source_data is not None:
        return open_source(replace(config.data, data=config.joint.source_data, limit=None, shots=None))
    if start is None:
        raise UsageError("--source-weight needs a source: give --source-data, or a run with --from, whose data it is")
    there = start.record.data
    if "source" not in there or "train" not in there:
        raise UsageError(f"run {start.path} does not say which data it was trained on; give --source-data")
    data = DataConfig(
        data=there["source"],
        data_root=Path(there["root"]),
        val_fraction=there["val_fraction"],
        on_bad_image=there["on_bad_image"],
        val_limit=config.data.val_limit,
        memory_limit_mb=config.data.memory_limit_mb,
        disk_cache_mb=config.data.disk_cache_mb,
    )
    try:
        return open_source(data)
    except DataError as error:
        raise DataError(
            f"run {start.path}: its data cannot be read again; name others with --source-data: {error}"
        ) from error


def _read(config: FitConfig, target: Source, other: Source, preprocessing: Preprocessing) -> _Joint:
    """Read both data sets as the network takes them."""
    seed = config.loop.seed
    training = read_training(target, preprocessing, config.augment, seed)
    data = training.describe()
    if config.synthetic.augment_from is not None:
        training, data["synthetic"] = add_synthetic(training, config.synthetic, preprocessing, seed)
    source = read_training(other, preprocessing, config.augment, _source_seed(seed))
    return _Joint(training, source, {**data, JOINT: source.describe()})


def _source_seed(seed: int) -> int:
    return int(np.random.SeedSequence((seed, _SOURCE_ORDER)).generate_state(1)[0])


def _start(
    network: TwoHeads, config: FitConfig, labels: Sequence[tuple[str, ...]], start: Run | None
) -> dict[str, str] | None:
    """Give a network the weights that it starts from, and return what its record says of them.

    Of a run these are its features, and its heads for labels that are the target's or the source's.

    Raises:
        RunError: The run is of another network.
    """
    if start is None:
        every = tuple(chain.from_iterable(labels))
        published = start_classifier(network, None, config.model, every) if config.pretrained else ()
        return parent_of(None, config.model, network, published)
    backbone, theirs, there = network.backbone, start.state(), start.record
    mine, heads = backbone.state_dict(), split_stages(network)[-1].parameters
    unlike = [name for name in set(mine) & set(theirs) if name not in heads and mine[name].shape != theirs[name].shape]
    if set(mine) != set(theirs) or unlike:
        raise RunError(f"run {start.path} is a {there.model.name}; its weights do not fit the network asked for")
    known = [own for own in (there.labels, there.source_labels) if own]
    load_weights(backbone, carry_heads(mine, theirs, heads, labels, known))
    for name, own in zip(("target", "source"), labels, strict=True):
        if own not in known:
            _log.info("new head for the %s, whose labels are not those of run %s", name, start.path)
    return start.identity


def _train(config: FitConfig, network: TwoHeads, joint: _Joint, record: RunRecord) -> Run:
    """Train the network and write its run."""
    target, source, loop = joint.target, joint.source, config.loop
    planned = plan_loop(loop, len(target.train), len(target.val))
    for part, labels in ((target, record.labels), (source, record.source_labels)):
        warn_of_imbalance(part.train, labels, loop)
    balanced = loop.balance == "sampling"
    batches = BatchStream(
        source.train, source.augmentation, planned.batch_size, _source_seed(loop.seed), balanced=balanced
    )
    stream = JointStream(
        target.train, target.augmentation, planned.batch_size, loop.seed, balanced=balanced, source=batches
    )
    _log.info("plan: the source: %d images in %d steps, weight %g", batches.count, batches.steps, config.joint.weight)
    weights = class_weights(target.train, loop), class_weights(source.train, loop)
    objective = JointSupervised(network, config.joint.weight, config.optim.label_smoothing, weights)
    task = JointTask(
        objective,
        optim=config.optim,
        steps=planned.epochs * stream.steps,
        batch_size=planned.batch_size,
        val=target.val,
        labels=record.labels,
        source_val=source.val,
        source_labels=record.source_labels,
    )
    return train_task(task, stream, record, network_size(network), planned, config.out, resume=config.resume)
