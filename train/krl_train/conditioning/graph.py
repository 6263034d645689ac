"""Vectors for the entities and relations of a graph of facts, learned by TransE (https://arxiv.org/abs/1301.3781)."""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from .tables import Triple

__all__ = ["TransE", "index_triples", "train_transe"]


class TransE:
    """Vectors with head + relation ≈ tail for each fact.

    Attributes:
        entities: Unit vectors, float32 ``[E, D]``.
        relations: Vectors, float32 ``[R, D]``.
    """

    def __init__(self, entities: Tensor, relations: Tensor) -> None:
        self.entities, self.relations = entities, relations

    def distance(self, triples: Tensor) -> Tensor:
        """Return how far facts are from holding, ``|head + relation − tail|``.

        Args:
            triples: Indices int64 ``[..., 3]``: head, relation, tail.

        Returns:
            float32 ``[...]``, 0 or more.
        """
        head, relation, tail = triples.unbind(-1)
        difference = self.entities[head] + self.relations[relation] - self.entities[tail]
        return difference.square().sum(-1).add(1e-12).sqrt()  # the gradient of a norm of 0 is no number


def index_triples(triples: Sequence[Triple], entities: Sequence[str], relations: Sequence[str]) -> Tensor:
    """Return facts as indices, int64 ``[T, 3]``: head, relation, tail."""
    entity = {name: number for number, name in enumerate(entities)}
    relation = {name: number for number, name in enumerate(relations)}
    return torch.tensor([[entity[head], relation[kind], entity[tail]] for head, kind, tail in triples])


def train_transe(
    triples: Tensor, entities: int, relations: int, dim: int, *, seed: int, steps: int = 500, margin: float = 1.0
) -> TransE:
    """Learn the vectors: a fact shall be nearer to holding, by a margin, than the same fact with a random head or tail.

    The loss is ``mean max(0, margin + d(fact) − d(corrupted))`` with d the Euclidean ``distance``; corrupted facts that
    are facts themselves do not count. Vectors of entities are kept on the unit sphere, as in the paper.

    Args:
        triples: Facts, indices int64 ``[T, 3]``.
        entities: Number of entities.
        relations: Number of relations.
        dim: Length of the vectors.
        seed: Of the first values and of the corruption.
        steps: Steps of Adam; each sees at most 1,024 facts.
        margin: By how much.
    """
    random = torch.Generator().manual_seed(seed)
    entity = F.normalize(torch.randn(entities, dim, generator=random), dim=1).requires_grad_()
    relation = F.normalize(torch.randn(relations, dim, generator=random), dim=1).requires_grad_()
    optimizer = torch.optim.Adam([entity, relation], lr=0.02)
    keys = _keys(triples, entities, relations)
    for _ in range(steps):
        chosen = triples[torch.randperm(len(triples), generator=random)[:1024]]
        corrupted = chosen.clone()
        side = 2 * torch.randint(2, (len(chosen),), generator=random)
        corrupted[torch.arange(len(chosen)), side] = torch.randint(entities, (len(chosen),), generator=random)
        false = ~torch.isin(_keys(corrupted, entities, relations), keys)
        model = TransE(F.normalize(entity, dim=1), relation)
        hinge = F.relu(margin + model.distance(chosen) - model.distance(corrupted))
        loss = (hinge * false).sum() / false.sum().clamp(min=1)
        optimizer.zero_grad()
        loss.backward()  # type: ignore[no-untyped-call]
        optimizer.step()
    return TransE(F.normalize(entity.detach(), dim=1), relation.detach())


def _keys(triples: Tensor, entities: int, relations: int) -> Tensor:
    """Return one number for each triple, the same for the same triple."""
    head, relation, tail = triples.unbind(-1)
    return (head * relations + relation) * entities + tail
