"""Distilling embeddings: ``krl-compress distill`` where the teacher is a network of embeddings."""

from __future__ import annotations

import logging
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, cast, get_args

import torch
from torch import Tensor, nn

from krl_compress.config import DistillConfig
from krl_compress.distillers import WeightedLoss, parse_loss
from krl_compress.distillers.embedder import EMBEDDING_LOSSES, EmbeddingDistiller, of_labels, sees_labels
from krl_compress.teachers.kinds import kind_of
from krl_runtime.errors import UsageError
from krl_train.config import PROXY_LOSSES, DataConfig, EmbeddingConfig, EmbeddingLoss, plan_loop, to_plain
from krl_train.custom import sources_of
from krl_train.data.sources import HELD_OUT, Source
from krl_train.data.splits import Training
from krl_train.evaluation.evaluate import evaluate_embedding_run
from krl_train.loop import resolve_device
from krl_train.models.custom import custom_arguments
from krl_train.models.embedders import EmbeddingNetwork, build_embedder
from krl_train.models.spec import carried_arguments
from krl_train.run import ModelSpec, Run, RunRecord
from krl_train.tasks.embedding import MetricLearning
from krl_train.tasks.metric_losses import MetricLoss
from krl_train.training.embedding import open_labeled, per_class, read_labeled, start_embedder, train_embedder
from krl_train.training.train import network_size

from .job import COMMAND, Job, fine_tuned, parents, starting_point
from .label_losses import label_losses
from .student_input import student_input

__all__ = ["EmbeddingJob", "prepare"]

_log = logging.getLogger("krl")

_OF_TEACHER = ("recall_at_1", "recall_at_1_standard_error", "recall_at_5", "map_at_r", "count")


@dataclass
class EmbeddingJob(Job):
    """The distillation of a network of embeddings."""

    training: Training
    teacher: Run
    terms: Sequence[WeightedLoss]

    def measure_teachers(self) -> list[dict[str, Any]]:
        """Return the metrics of the teacher on the validation data, at its own input."""
        network, source = _embedder(self.teacher), self.training.source
        val = source.read("val", network.preprocessing, limit=source.config.val_limit)
        found = evaluate_embedding_run(network, val, self.config.loop.device)
        return [{**{name: found[name] for name in _OF_TEACHER}, **network_size(network)}]

    def quality(self, metrics: Mapping[str, Any]) -> tuple[float, str]:
        """Return recall@1, also as text."""
        value, error = metrics["recall_at_1"], metrics["recall_at_1_standard_error"]
        return value, f"a recall@1 of {100 * value:.1f} ± {100 * error:.1f} %"

    def measure(self, network: nn.Module) -> dict[str, Any]:
        """Return the metrics of ``evaluate_embedder`` on the validation images."""
        assert isinstance(network, EmbeddingNetwork)  # noqa: S101  for the type checker
        found = evaluate_embedding_run(network, self.training.val, self.config.loop.device)
        network.cpu()
        return found

    def metric(self) -> tuple[str, str]:
        """Return recall@1."""
        return "recall_at_1", "%"

    def training_losses(self, network: nn.Module) -> Iterator[Tensor]:
        """Return supervised contrastive losses of up to 1024 training images, evenly spread."""
        assert isinstance(network, EmbeddingNetwork)  # noqa: S101  for the type checker
        objective = MetricLearning(network, MetricLoss("supcon", self.training.train.labels, 0))
        return label_losses(objective, self.training.train, resolve_device(self.config.loop.device))

    def train_alone(self, record: RunRecord, out: Path) -> Run:
        """Train the student on the labels, with the loss that the teacher was trained with."""
        alone = [term for term in self.terms if sees_labels(term)] or _default_terms(self.teacher.record)[:1]
        return self._train(record, alone, out)

    def train(self, record: RunRecord) -> Run:
        """Train the student with the teacher."""
        return self._train(record, self.terms, self.config.out)

    def _train(self, record: RunRecord, terms: Sequence[WeightedLoss], out: Path) -> Run:
        config, start, train = self.config, self.start, self.training.train
        torch.manual_seed(config.loop.seed)
        loop = plan_loop(config.loop, len(train), len(self.training.val))
        network = build_embedder(record.model, record.preprocessing)
        if start is not None:
            start_embedder(network, start)
        teacher = _embedder(self.teacher)
        return train_embedder(
            lambda _: EmbeddingDistiller(network, teacher, terms, train.labels),
            network,
            self.training,
            record,
            fine_tuned(config.optim, loop.batch_size) if self.fine_tunes else config.optim,
            loop,
            out,
            together=per_class(train, _batches(config, terms)),
            resume=config.resume,
        )


def prepare(config: DistillConfig) -> EmbeddingJob:
    """Read teacher, data and start of the distillation of embeddings.

    Raises:
        KrlError: The teacher, the student, the data or the configuration cannot be used.
    """
    terms = [parse_loss(text, EMBEDDING_LOSSES) for text in config.losses.loss]
    for term in filter(sees_labels, terms):
        of_labels(term, torch.arange(2), 2)  # refuses what it does not take before anything is read
    teacher = _teacher(config)
    there = teacher.record
    source = _source(config, teacher)
    start, name = starting_point(config.student)
    if start is not None and start.record.task not in ("embedding", "classification"):
        raise UsageError(
            f"student {start.path} is of the task {start.record.task}; accepted: embedding, classification"
        )
    preprocessing = student_input(config, there.preprocessing, source, name, start)
    training = read_labeled(source, preprocessing, config.augment, config.loop.seed)
    size = config.embedding_student.embedding_dim or there.model.num_classes
    kept = carried_arguments(start.record.model) if start else {}
    arguments = {**custom_arguments(name, preprocessing.shape), **kept}
    record = RunRecord(
        task="embedding",
        model=ModelSpec(name, size, preprocessing.channels, arguments),
        preprocessing=preprocessing,
        labels=source.labels,
        command=COMMAND,
        configuration=to_plain(config),
        seed=config.loop.seed,
        data=training.describe(),
        parent=parents([{"kind": "run", **teacher.identity}], start),
        sources=sources_of([("model", name), ("data", source.name)]),
    )
    return EmbeddingJob(config, record, start, training, teacher, terms or _default_terms(there))


def _teacher(config: DistillConfig) -> Run:
    """Open the teacher.

    Raises:
        UsageError: There are several, or it is no run.
    """
    if len(config.teacher) > 1:
        raise UsageError(f"--teacher is given {len(config.teacher)} times; embeddings are distilled from one teacher")
    name = config.teacher[0]
    if kind_of(name) != "run":
        raise UsageError(f"teacher {name} is no run; embeddings are distilled from a run of krl-train or krl-compress")
    return Run.open(name)


def _source(config: DistillConfig, teacher: Run) -> Source:
    """Open the data, with the classes held out that the teacher has not seen, where the data has them all."""
    source = open_labeled(_data(config, teacher), (), config.loop.seed)
    held_out = teacher.record.data.get(HELD_OUT, ())
    if set(held_out) <= set(source.labels):
        return source.holding_out(held_out)
    _log.info(
        "plan: no class is held out; the data lacks some of the classes that the teacher has not seen: %s",
        ", ".join(held_out),
    )
    return source


def _data(config: DistillConfig, teacher: Run) -> DataConfig:
    """Return the data that is named, else that of the teacher."""
    there = teacher.record.data
    if config.data.data is not None:
        return config.data
    root = Path(there["root"])
    return replace(config.data, data=there["source"], data_root=root, val_fraction=there["val_fraction"])


def _default_terms(teacher: RunRecord) -> list[WeightedLoss]:
    """Return the loss of labels that a teacher was trained with, and relational distillation; see docs/results.md."""
    trained = teacher.configuration.get("embedding", {})
    name = trained.get("embedding_loss", PROXY_LOSSES[0])
    margin = {} if trained.get("margin") is None else {"margin": trained["margin"]}
    return [WeightedLoss(name, 1.0, options=margin), parse_loss("rkd", EMBEDDING_LOSSES)]


def _batches(config: DistillConfig, terms: Sequence[WeightedLoss]) -> EmbeddingConfig:
    """Return how batches are made: as the loss of labels wants them that compares images of the batch."""
    pairs = [name for name in get_args(EmbeddingLoss) if name not in PROXY_LOSSES]
    asked = [term.name for term in terms if term.name in pairs]
    chosen = cast("EmbeddingLoss", (*asked, PROXY_LOSSES[0])[0])
    return EmbeddingConfig(embedding_loss=chosen, images_per_class=config.embedding_student.images_per_class)


def _embedder(run: Run) -> EmbeddingNetwork:
    network = run.module()
    assert isinstance(network, EmbeddingNetwork)  # noqa: S101  for the type checker
    return network
