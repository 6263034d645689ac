"""``krl-train fit --task embedding``: a network of embeddings from labeled images."""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from pathlib import Path

import torch

from krl_runtime.errors import DataError, UsageError
from krl_runtime.images.preprocessing import Preprocessing
from krl_train.config import (
    AugmentConfig,
    DataConfig,
    EmbeddingConfig,
    FitConfig,
    LoopConfig,
    OptimConfig,
    plan_loop,
    to_plain,
)
from krl_train.custom import sources_of
from krl_train.data import PixelSet, Source, open_source, preprocessing_for
from krl_train.data.splits import Training, read_training
from krl_train.loop import BatchStream
from krl_train.metrics.retrieval import check_measurable
from krl_train.models import Network
from krl_train.models.custom import custom_arguments
from krl_train.models.embedders import EmbeddingNetwork, build_embedder
from krl_train.models.stages import split_stages
from krl_train.run import ModelSpec, Run, RunRecord
from krl_train.tasks import Objective
from krl_train.tasks.embedding import EmbeddingTask, MetricLearning
from krl_train.tasks.metric_losses import MetricLoss

from .folder import prepare_out
from .start import initialize_from, parent_of, start_arguments, start_run, transferring
from .train import network_size, train_task
from .view_sheet import write_view_sheet

__all__ = ["fit", "open_labeled", "per_class", "read_labeled", "start_embedder", "train_embedder"]

_log = logging.getLogger("krl")

_NUMBERS = 128  # of an embedding: 512 bytes for each image that is searched; Kim et al. (2020) measure 64 to 1024


def fit(config: FitConfig) -> Run:
    """Train a network of embeddings from labels.

    Raises:
        KrlError: The data, the network or the configuration cannot be used, or training failed.
    """
    asked = config.embedding
    source = open_labeled(config.data, asked.held_out_classes, config.loop.seed)
    init = start_run(config)
    preprocessing = preprocessing_for(
        config.input,
        source,
        config.model,
        pretrained=config.pretrained and init is None,
        trained=init.record.preprocessing if init else None,
    )
    training = read_labeled(source, preprocessing, config.augment, config.loop.seed)
    size = _size(asked, init)
    arguments = start_arguments(init, config.model) | custom_arguments(config.model, preprocessing.shape)
    spec = ModelSpec(config.model, size, preprocessing.channels, arguments)
    torch.manual_seed(config.loop.seed)
    network = build_embedder(spec, preprocessing, pretrained=config.pretrained)
    starts = init is not None or config.pretrained
    transferred = start_embedder(network, init) if starts else frozenset()
    record = RunRecord(
        task="embedding",
        model=spec,
        preprocessing=preprocessing,
        labels=source.labels,
        command="krl-train fit",
        configuration=to_plain(config),
        seed=config.loop.seed,
        data=training.describe(),
        parent=parent_of(init, config.model, network, transferred),
        sources=sources_of([("model", config.model), ("data", config.data.data)]),
    )
    loss = MetricLoss(asked.embedding_loss, training.train.labels, size, margin=asked.margin)
    objective = transferring(MetricLearning(network, loss), config.transfer, transferred, config.model)
    finished = prepare_out(config.out, record, resume=config.resume, overwrite=config.overwrite)
    if finished is not None:
        return finished
    return train_embedder(
        lambda _: objective,
        network,
        training,
        record,
        config.optim,
        config.loop,
        config.out,
        together=per_class(training.train, asked),
        resume=config.resume,
    )


def open_labeled(config: DataConfig, held_out: Sequence[str], seed: int) -> Source:
    """Open data of one class for each image, some of whose classes may be for validation alone.

    Raises:
        UsageError: An image can have several labels, or a class that is to be held out is not there.
        DataError: The data cannot be used.
    """
    source = open_source(config, seed=seed)
    source.require_one_class("--task embedding")
    return source.holding_out(held_out)


def read_labeled(source: Source, preprocessing: Preprocessing, augment: AugmentConfig, seed: int) -> Training:
    """Read images that embeddings can be learned from and measured on; see ``read_training``.

    Raises:
        DataError: No class has two training images, or retrieval cannot be measured on the validation images.
    """
    training = read_training(source, preprocessing, augment, seed)
    if int(torch.bincount(training.train.labels).max()) < 2:
        raise DataError("each class has one training image; embeddings are learned from two or more of a class")
    try:
        check_measurable(training.val.labels.numpy())
    except DataError as error:
        raise DataError(f"the validation images of {source.name}: {error}") from error
    return training


def per_class(train: PixelSet, config: EmbeddingConfig) -> int:
    """Return how many images of a class come together in a batch: no more than the largest class has."""
    most = int(torch.bincount(train.labels).max())
    if config.per_class > most:
        _log.info("plan: %d images of a class in a batch; none has more", most)
    return min(config.per_class, most)


def _size(asked: EmbeddingConfig, init: Run | None) -> int:
    """Return how many numbers an embedding gets."""
    if asked.embedding_dim is not None:
        return asked.embedding_dim
    return init.record.model.num_classes if init is not None and init.record.task == "embedding" else _NUMBERS


def start_embedder(network: EmbeddingNetwork, run: Run | None) -> frozenset[str]:
    """Give a network the weights of a run; that of a classifier gets a new last layer.

    Args:
        network: Freshly made, with published weights where it starts from these.
        run: What it starts from.

    Returns:
        The names of the backbone's tensors that come from the run or the published weights.

    Raises:
        RunError: The run is of another network.
    """
    last = split_stages(network)[-1].parameters
    if run is None:
        return frozenset(set(network.backbone.state_dict()) - set(last))
    return initialize_from(network, run, new=() if run.record.task == "embedding" else last)


def train_embedder(
    make_objective: Callable[[Network], Objective],
    network: EmbeddingNetwork,
    training: Training,
    record: RunRecord,
    optim: OptimConfig,
    loop: LoopConfig,
    out: Path,
    *,
    together: int,
    resume: bool = False,
) -> Run:
    """Train a network of embeddings and write its run.

    Args:
        make_objective: From the network to what is minimized.
        network: The network, initialized.
        training: The data.
        record: What ``run.json`` will say, but for the results.
        optim: How weights are moved.
        loop: How long and on what.
        out: The run's folder, which ``prepare_out`` has made.
        together: Images of a class that come together in a batch; 1 leaves it to chance.
        resume: Whether to continue from the checkpoint.

    Raises:
        TrainingError: The loss is not a finite number.
    """
    planned = plan_loop(loop, len(training.train), len(training.val))
    if planned.batch_size < 2 * together:
        raise UsageError(
            f"--batch-size {planned.batch_size} has no room for {together} images of each of two classes; give "
            f"{2 * together} or more, or a smaller --images-per-class"
        )
    stream = BatchStream(training.train, training.augmentation, planned.batch_size, loop.seed, together=together)
    write_view_sheet(stream, out)
    task = EmbeddingTask(
        make_objective(network),
        optim,
        steps=planned.epochs * stream.steps,
        batch_size=planned.batch_size,
        val=training.val,
        labels=record.labels,
    )
    return train_task(task, stream, record, network_size(network), planned, out, resume=resume)
