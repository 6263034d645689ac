"""From a condition's tokens to the vector that a generator is conditioned on; trained and exported with the generator.

All of them take tokens int64 ``[N, L]`` as ``krl_runtime.conditions.encode`` makes them, and return float32 ``[N, D]``.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from krl_runtime.conditions import check_settings
from krl_runtime.errors import UsageError

__all__ = [
    "AttributeConditioner",
    "Conditioner",
    "FixedWords",
    "GraphConditioner",
    "LabelConditioner",
    "TextConditioner",
    "build_conditioner",
]


class Conditioner(nn.Module):
    """Maps tokens int64 ``[N, L]`` to vectors float32 ``[N, dim]``."""

    dim: int


class LabelConditioner(Conditioner):
    """One vector for each label.

    Args:
        count: Number of labels.
        dim: Length of a vector.
    """

    def __init__(self, count: int, dim: int) -> None:
        super().__init__()
        self.dim = dim
        self.embedding = nn.Embedding(count, dim)

    def forward(self, tokens: Tensor) -> Tensor:
        """Map tokens ``[N, 1]`` to vectors ``[N, dim]``."""
        vectors: Tensor = self.embedding(tokens[:, 0])
        return vectors


class AttributeConditioner(Conditioner):
    """The sum of one vector for each attribute's value; an attribute that is left open has a vector of its own.

    A sum, and nothing after it that could memorize combinations, so that combinations which training never saw get a
    vector that the generator knows the parts of. It is divided by √L and so has the variance of one vector.

    Args:
        count: Number of tokens: values of all attributes, and one more for each attribute.
        length: Number of attributes, L.
        dim: Length of a vector.
    """

    def __init__(self, count: int, length: int, dim: int) -> None:
        super().__init__()
        self.dim = dim
        self.embedding = nn.Embedding(count, dim)
        self.scale = 1 / math.sqrt(length)

    def forward(self, tokens: Tensor) -> Tensor:
        """Map tokens ``[N, L]`` to vectors ``[N, dim]``."""
        vectors: Tensor = self.embedding(tokens)
        return vectors.sum(1) * self.scale


class FixedWords(nn.Module):
    """Words whose vectors are given and stay, and a linear layer that is trained.

    What is learned of the words that training reads so holds for words near them that it never reads.

    Args:
        vectors: One for each token, ``[V, R]``; with the weights, so a run and a graph have them.
        dim: Length of the vectors that they are mapped to.
    """

    vectors: Tensor

    def __init__(self, vectors: Tensor, dim: int) -> None:
        super().__init__()
        self.register_buffer("vectors", vectors)
        self.linear = nn.Linear(vectors.shape[1], dim)

    def forward(self, tokens: Tensor) -> Tensor:
        """Map tokens ``[N, L]`` to vectors ``[N, L, dim]``."""
        mapped: Tensor = self.linear(F.embedding(tokens, self.vectors))
        return mapped


class TextConditioner(Conditioner):
    """Words with their positions, one layer of attention (https://arxiv.org/abs/1706.03762), and the words' mean.

    Args:
        embedding: Maps tokens ``[N, L]`` to the words' vectors ``[N, L, dim]``; token 0 is padding and does not count.
        length: Words of a description at most, L.
        dim: Length of a vector.
    """

    def __init__(self, embedding: nn.Module, length: int, dim: int) -> None:
        super().__init__()
        self.dim = dim
        self.embedding = embedding
        # Small against the words: what a word means counts for more than where it stands.
        self.position = nn.Parameter(0.1 * torch.randn(length, dim))
        self.norm = nn.LayerNorm(dim)
        self.query_key_value = nn.Linear(dim, 3 * dim)
        self.mix = nn.Linear(dim, dim)
        self.out = nn.Sequential(nn.Linear(dim, dim), nn.LayerNorm(dim))  # as large as a label's vector

    def forward(self, tokens: Tensor) -> Tensor:
        """Map tokens ``[N, L]`` to vectors ``[N, dim]``."""
        real = (tokens != 0).to(torch.float32)
        x = self.embedding(tokens) + self.position
        query, key, value = self.query_key_value(self.norm(x)).split(self.dim, dim=-1)
        scores = query @ key.transpose(1, 2) / math.sqrt(self.dim)
        scores = scores - 1e4 * (1 - real).unsqueeze(1)  # a finite number: it stays one in half precision, too
        x = x + self.mix(scores.softmax(-1) @ value)
        mean = (x * real.unsqueeze(-1)).sum(1) / real.sum(1, keepdim=True).clamp(min=1)
        vectors: Tensor = self.out(mean)
        return vectors


class GraphConditioner(Conditioner):
    """Vectors of entities from the facts about them, by TransE (https://arxiv.org/abs/1301.3781).

    There head + relation ≈ tail, so each fact (relation, tail) names a place for its head, tail − relation. The mean
    over the facts is a vector for any entity and any wanted combination of facts, also for those without an image.

    Args:
        count: Number of tokens: "no fact", relations, entities.
        length: Two tokens for each fact, relation and tail; 0, 0 is no fact.
        dim: Length of a vector.
    """

    def __init__(self, count: int, length: int, dim: int) -> None:
        super().__init__()
        self.dim = dim
        self.embedding = nn.Embedding(count, dim, padding_idx=0)
        self.out = nn.Sequential(nn.Linear(dim, dim), nn.LayerNorm(dim))  # as large as a label's vector

    def forward(self, tokens: Tensor) -> Tensor:
        """Map tokens ``[N, L]`` to vectors ``[N, dim]``."""
        relations, tails = tokens[:, 0::2], tokens[:, 1::2]
        real = (tails != 0).to(torch.float32).unsqueeze(-1)
        heads = (self.embedding(tails) - self.embedding(relations)) * real
        vectors: Tensor = self.out(heads.sum(1) / real.sum(1).clamp(min=1))
        return vectors


def build_conditioner(settings: Mapping[str, Any]) -> Conditioner:
    """Make the encoder of a generator's conditions, freshly initialized.

    Args:
        settings: The condition's settings; ``krl_runtime.conditions`` says what they hold.

    Raises:
        UsageError: The settings are not whole.
    """
    check_settings(settings)
    count, length, dim = len(settings["vocabulary"]), int(settings["length"]), int(settings["dim"])
    if settings["kind"] == "labels":
        return LabelConditioner(count, dim)
    if settings["kind"] == "attributes":
        return AttributeConditioner(count, length, dim)
    if settings["kind"] == "graph":
        return GraphConditioner(count, length, dim)
    words: nn.Module = nn.Embedding(count, dim, padding_idx=0)
    if "vectors" in settings:
        words = FixedWords(_vectors(settings["vectors"], count), dim)
    return TextConditioner(words, length, dim)


def _vectors(given: Any, count: int) -> Tensor:
    """Return the words' vectors ``[V, R]``, which stand in the settings as lists of numbers."""
    try:
        vectors = torch.tensor(given, dtype=torch.float32)
    except (TypeError, ValueError, RuntimeError) as error:
        raise UsageError(f"the condition's vectors are not {count} lists of as many numbers: {error}") from error
    if vectors.ndim != 2 or len(vectors) != count or not vectors.shape[1] or not vectors.isfinite().all():
        raise UsageError(f"the condition's vectors are {list(vectors.shape)}; expected [{count}, 1 or more], finite")
    return vectors
