from __future__ import annotations

import itertools

import pytest
import torch

from krl_train.conditioning.graph import TransE, index_triples, train_transe

COLORS, DIGITS = ("red", "green", "blue"), ("one", "two", "three", "four")
TRIPLES = [
    fact
    for color, digit in itertools.product(COLORS, DIGITS)
    for fact in ((f"{color} {digit}", "color", color), (f"{color} {digit}", "digit", digit))
]
ENTITIES = sorted({entity for head, _, tail in TRIPLES for entity in (head, tail)})


def tail_ranks(model: TransE, triples: torch.Tensor) -> torch.Tensor:
    """Return for each fact the rank of its tail among all entities that make no other fact, 1 for the best."""
    true = {tuple(triple) for triple in triples.tolist()}
    ranks = []
    for head, relation, tail in triples.tolist():
        others = [e for e in range(len(model.entities)) if (head, relation, e) not in true]
        distances = model.distance(torch.tensor([[head, relation, e] for e in (tail, *others)]))
        ranks.append(1 + int((distances[1:] < distances[0]).sum()))
    return torch.tensor(ranks)


def test_distance_by_hand() -> None:
    model = TransE(torch.tensor([[1.0, 0], [0, 1]]), torch.tensor([[0.0, 2]]))
    assert float(model.distance(torch.tensor([0, 0, 1]))) == pytest.approx(2**0.5)  # (1, 0) + (0, 2) - (0, 1)
    assert model.distance(torch.tensor([[[0, 0, 0]]])).shape == (1, 1)


def test_ranks_by_hand() -> None:
    model = TransE(torch.tensor([[0.0, 0], [1, 0], [5, 0]]), torch.tensor([[1.0, 0]]))
    # 0 + 1 lies on entity 1 exactly; of the fact (0, 0, 2) only entity 0 is a rival, since 1 makes a fact itself
    assert tail_ranks(model, torch.tensor([[0, 0, 1], [0, 0, 2]])).tolist() == [1, 2]


def test_facts_rank_above_corrupted_ones() -> None:
    triples = index_triples(TRIPLES, ENTITIES, ["color", "digit"])
    model = train_transe(triples, len(ENTITIES), 2, 16, seed=0)
    ranks = tail_ranks(model, triples).double()
    assert float((ranks == 1).double().mean()) > 0.9
    untrained = train_transe(triples, len(ENTITIES), 2, 16, seed=0, steps=0)
    assert float(tail_ranks(untrained, triples).double().mean()) > 4  # of 19 entities
    torch.testing.assert_close(model.entities.norm(dim=1), torch.ones(len(ENTITIES)))


def test_the_same_seed_gives_the_same_vectors() -> None:
    triples = index_triples(TRIPLES, ENTITIES, ["color", "digit"])
    first, second = (train_transe(triples, len(ENTITIES), 2, 8, seed=3, steps=20) for _ in range(2))
    assert torch.equal(first.entities, second.entities)
    assert torch.equal(first.relations, second.relations)


def test_an_unseen_combination_lies_where_its_facts_say() -> None:
    """The mean of tail − relation of facts that nobody had together is nearest to the entity that was held out."""
    triples = index_triples(TRIPLES, ENTITIES, ["color", "digit"])
    model = train_transe(triples, len(ENTITIES), 2, 16, seed=0)
    hits = 0
    for color, digit in itertools.product(COLORS, DIGITS):
        tails = [ENTITIES.index(color), ENTITIES.index(digit)]
        composed = (model.entities[tails] - model.relations).mean(0)
        heads = [ENTITIES.index(f"{c} {d}") for c, d in itertools.product(COLORS, DIGITS)]
        nearest = heads[int(torch.linalg.vector_norm(model.entities[heads] - composed, dim=1).argmin())]
        hits += ENTITIES[nearest] == f"{color} {digit}"
    assert hits == 12
