"""The distiller of embeddings: teacher, student and weighted losses as one objective."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from krl_compress import losses
from krl_compress.teachers.teacher import FrozenTeacher
from krl_runtime.errors import UsageError
from krl_train.models.embedders import EmbeddingNetwork
from krl_train.tasks import Batch, Objective
from krl_train.tasks.gather import gather_batch
from krl_train.tasks.metric_losses import MetricLoss

from .weighted_losses import Loss, WeightedLoss, rkd

__all__ = ["EMBEDDING_LOSSES", "EmbeddingDistiller", "of_labels", "sees_labels"]

EMBEDDING_LOSSES: Mapping[str, Loss] = {
    **{
        name: Loss(partial(MetricLoss, name), "labels", couples=True)
        for name in ("proxy-anchor", "contrastive", "triplet", "multi-similarity", "supcon")
    },
    "cosine": Loss(losses.cosine, "embedding"),
    "rkd": Loss(rkd, "embedding", weight=0.1, couples=True),
    "sp": Loss(losses.sp, "embedding", weight=1000.0, couples=True),
    "pkt": Loss(losses.pkt, "embedding", weight=70000.0, couples=True),
    "cc": Loss(losses.cc, "embedding", weight=60.0, couples=True),
}
"""The losses by the name that ``--loss`` takes: of embeddings and labels, and of both networks' embeddings."""


class EmbeddingDistiller(Objective):
    """Minimizes Σ weight · loss over its terms; teacher and student see the same views.

    Args:
        network: The student.
        teacher: Another network of embeddings; it is frozen here, and is no part of this module.
        terms: The losses, of ``EMBEDDING_LOSSES``.
        labels: Labels of the training images, ``[M]``.

    Raises:
        UsageError: There is no term, or one is given twice.
    """

    def __init__(
        self, network: EmbeddingNetwork, teacher: EmbeddingNetwork, terms: Sequence[WeightedLoss], labels: Tensor
    ) -> None:
        super().__init__()
        names = [term.name for term in terms]
        if not names or len(set(names)) < len(names):
            raise UsageError(f"the losses are {', '.join(names) or 'none'}; accepted: one or more, each once")
        self.network, self.terms = network, tuple(terms)
        self._teacher = FrozenTeacher(teacher)
        mine, theirs = (_size_of(each) for each in (network, teacher))
        self.of_labels = nn.ModuleDict(
            {term.name: of_labels(term, labels, mine) for term in terms if sees_labels(term)}
        )
        # Embeddings of another size have no angle to the teacher's. A linear map, which is dropped later, gives one.
        self.projection = nn.Identity() if mine == theirs else nn.Linear(mine, theirs, bias=False)

    def forward(self, batch: Batch) -> dict[str, Tensor]:
        """Return ``"loss"``, and each term before weighting, all scalars."""
        student = self.network(batch.pixels).float()
        alone = all(sees_labels(term) for term in self.terms)
        teacher = student.detach() if alone else self._teacher(batch)
        parts = {term.name: self._value(term, student, teacher, batch) for term in self.terms}
        weighted = [term.factor(batch.epoch) * parts[term.name] for term in self.terms]
        return {"loss": torch.stack(weighted).sum(), **parts}

    def _value(self, term: WeightedLoss, student: Tensor, teacher: Tensor, batch: Batch) -> Tensor:
        if sees_labels(term):
            labeled: Tensor = self.of_labels[term.name](student, batch.labels)
            return labeled
        mine = F.normalize(self.projection(student)) if term.name == "cosine" else student
        options: dict[str, Any] = dict(term.options)
        kind = EMBEDDING_LOSSES[term.name]
        pair = [gather_batch(each) for each in (mine, teacher)] if kind.couples else [mine, teacher]
        value: Tensor = kind.function(*pair, **options)
        return value


def sees_labels(term: WeightedLoss) -> bool:
    """Return whether a term is of embeddings and labels, without the teacher."""
    return EMBEDDING_LOSSES[term.name].sees == "labels"


def of_labels(term: WeightedLoss, labels: Tensor, size: int) -> MetricLoss:
    """Return the loss of a term that sees labels, freshly initialized.

    Args:
        term: The term.
        labels: Labels of the training images, ``[M]``.
        size: Numbers of an embedding.

    Raises:
        UsageError: The loss does not take an option of the term.
    """
    made: MetricLoss = EMBEDDING_LOSSES[term.name].function(labels, size, **term.options)
    return made


def _size_of(network: EmbeddingNetwork) -> int:
    """Return how many numbers an embedding has; the network is run once."""
    shape, training = network.preprocessing.shape, network.training
    with torch.no_grad():
        made: Tensor = network.eval()(torch.zeros(1, *shape, dtype=torch.uint8, device=network.device))
    network.train(training)
    return made.shape[1]
