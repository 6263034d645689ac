"""The conditions of a training set: which tokens belong to which image."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from krl_runtime.conditions import attribute_values, encode, words
from krl_runtime.errors import DataError, UsageError
from krl_runtime.files import sha256_file
from krl_train.config import ConditioningConfig
from krl_train.data import PixelSet, Source
from krl_train.models.conditioners import Conditioner

from .graph import index_triples, train_transe
from .tables import Triple, read_attributes, read_texts, read_triples, read_words
from .word_vectors import word_vectors

__all__ = ["Conditions", "read_conditions"]

_SHOWN = 5  # names in a message
_MOST_FACTS = 16  # facts of one entity: tokens of a condition, each of which the encoder and the device pay for
_LONGEST_TEXT = 64  # words of a description, as tokens; longer texts are no captions


@dataclass(frozen=True)
class Conditions:
    """The conditions of each training image.

    Attributes:
        settings: The condition's settings, as ``krl_runtime.conditions`` describes them.
        tokens: int64 ``[T, L]``, those of the first image, then those of the second …; an image has one or more.
        counts: Number of conditions of each image, int64 ``[M]``.
        dropout: Share of the attributes or facts that ``draw`` leaves open.
        start: First values of the conditioner's weights, by name, where knowledge gives some.
        identity: SHA-256 of the file of conditions; empty where there is none.
    """

    settings: Mapping[str, Any]
    tokens: Tensor
    counts: Tensor
    dropout: float = 0.0
    start: Mapping[str, Tensor] = field(default_factory=dict)
    identity: str = ""

    def __len__(self) -> int:
        """Return the number of images, M."""
        return len(self.counts)

    def draw(self, indices: Tensor) -> Tensor:
        """Return a condition of each image: one of its own at random, with some attributes or facts left open.

        What is random comes from torch's global generator, which the loop seeds in each step.

        Args:
            indices: Which images, int64 ``[N]``, on the CPU.

        Returns:
            Tokens int64 ``[N, L]``, on the CPU.
        """
        counts = self.counts[indices]
        first = (self.counts.cumsum(0) - self.counts)[indices]
        chosen = self.tokens[first + (torch.rand(len(indices)) * counts).long()]
        if self.settings["kind"] == "attributes":
            return torch.where(torch.rand(chosen.shape) < self.dropout, self._open(), chosen)
        if self.settings["kind"] == "graph":
            return self._forget(chosen)
        return chosen

    def initialize(self, conditioner: Conditioner) -> None:
        """Give a fresh conditioner the first values that knowledge has for it."""
        conditioner.load_state_dict({**conditioner.state_dict(), **self.start})

    def _open(self) -> Tensor:
        """Return for each attribute the token that leaves it open, int64 ``[L]``."""
        vocabulary = list(self.settings["vocabulary"])
        return torch.tensor([vocabulary.index(f"{name}=") for name in attribute_values(self.settings)])

    def _forget(self, tokens: Tensor) -> Tensor:
        """Leave facts out, but not all facts of an image."""
        facts = tokens.reshape(len(tokens), -1, 2)
        real = facts[..., 1] != 0
        kept = real & (torch.rand(real.shape) >= self.dropout)
        kept = torch.where(kept.any(1, keepdim=True), kept, real)
        return torch.where(kept.unsqueeze(-1), facts, 0).flatten(1)


def read_conditions(config: ConditioningConfig, source: Source, data: PixelSet, *, seed: int) -> Conditions | None:
    """Read what the training images show.

    Args:
        config: The kind of conditions and their file.
        source: Where the images come from.
        data: The training images.
        seed: Of the vectors of a graph.

    Returns:
        The conditions; ``None`` where none are asked for.

    Raises:
        DataError: The file cannot be used, a training image has no row, or a row's image does not exist.
        UsageError: The data set has no image files that a table could name.
    """
    if config.condition == "none":
        return None
    if config.condition in ("labels", "graph"):
        source.require_one_class(f"--condition {config.condition}")
    if config.condition == "labels":
        settings = _settings(config, 1, source.labels)
        return _one_each(settings, data.labels.unsqueeze(1), config)
    assert config.condition_file is not None  # noqa: S101  ConditioningConfig has checked it
    if config.condition == "graph":
        return _graph(config, config.condition_file, source.labels, data.labels, seed)
    if source.folder is None:
        raise UsageError(
            f"--condition {config.condition}: data set {source.name} has no files that a table could name; write it as "
            "a folder with krl-train unpack, and name the images as train/CLASS/NAME.png"
        )
    base = source.folder.base
    names = [file.resolve().relative_to(base.resolve()).as_posix() for file in data.files]
    if config.condition == "attributes":
        return _attributes(config, config.condition_file, base, names)
    return _texts(config, config.condition_file, base, names)


def _settings(config: ConditioningConfig, length: int, vocabulary: Sequence[str], **more: Any) -> dict[str, Any]:
    return {
        "kind": config.condition,
        "length": length,
        "dim": config.condition_dim,
        "vocabulary": list(vocabulary),
        **more,
    }


def _one_each(
    settings: Mapping[str, Any], tokens: Tensor, config: ConditioningConfig, start: Mapping[str, Tensor] | None = None
) -> Conditions:
    identity = sha256_file(config.condition_file) if config.condition_file else ""
    ones = torch.ones(len(tokens), dtype=torch.int64)
    return Conditions(settings, tokens, ones, config.condition_dropout, start or {}, identity)


def _attributes(config: ConditioningConfig, file: Path, root: Path, names: Sequence[str]) -> Conditions:
    table = read_attributes(file)
    _check_rows(table, file, root, names)
    rows = [table[name] for name in names]
    vocabulary: list[str] = []
    for attribute in rows[0]:
        values = sorted({row[attribute] for row in rows} - {""})
        vocabulary += [f"{attribute}={value}" for value in ("", *values)]
    settings = _settings(config, len(rows[0]), vocabulary)
    return _one_each(settings, torch.from_numpy(encode(rows, settings)), config)


def _texts(config: ConditioningConfig, file: Path, root: Path, names: Sequence[str]) -> Conditions:
    table = read_texts(file)
    _check_rows(table, file, root, names)
    texts = [text for name in names for text in table[name]]
    split = {text: words(text) for text in set(texts)}
    for text, found in split.items():
        if not 1 <= len(found) <= _LONGEST_TEXT:
            raise DataError(f"{file}: {text!r} has {len(found)} words; accepted: 1 to {_LONGEST_TEXT}")
    vocabulary = ["", *sorted({word for found in split.values() for word in found})]
    longest = max(map(len, split.values()))
    if config.sentence_model is None:
        settings = _settings(config, longest, vocabulary)
    else:
        more = [word for word in read_words(config.more_words) if word not in vocabulary] if config.more_words else []
        vectors = word_vectors(config.sentence_model, vocabulary[1:], more)
        settings = _settings(config, longest, [*vocabulary, *more], untrained=more, vectors=vectors)
    tokens = dict(zip(split, encode(list(split), settings), strict=True))
    counts = torch.tensor([len(table[name]) for name in names])
    return Conditions(
        settings, torch.stack([torch.from_numpy(tokens[text]) for text in texts]), counts, identity=sha256_file(file)
    )


def _graph(config: ConditioningConfig, file: Path, labels: Sequence[str], classes: Tensor, seed: int) -> Conditions:
    facts = read_triples(file)
    if not labels:
        raise UsageError("--condition graph needs images in class folders, whose names are entities of the graph")
    missing = [label for label in labels if label not in {head for head, _, _ in facts}]
    if missing:
        raise DataError(f"{file} has no fact about {_some(missing)}; each class of the images needs one or more")
    relations = sorted({relation for _, relation, _ in facts})
    entities = sorted({entity for head, _, tail in facts for entity in (head, tail)})
    most = max(sum(head == entity for head, _, _ in facts) for entity in entities)
    if most > _MOST_FACTS:
        raise DataError(f"{file}: an entity has {most} facts; accepted: {_MOST_FACTS} at most")
    settings = _settings(
        config, 2 * most, ["", *relations, *entities], relations=relations, facts=[list(fact) for fact in facts]
    )
    tokens = torch.from_numpy(encode(list(labels), settings))
    start = {"embedding.weight": _vectors(facts, entities, relations, config.condition_dim, seed)}
    return _one_each(settings, tokens[classes], config, start)


def _vectors(facts: Sequence[Triple], entities: list[str], relations: list[str], dim: int, seed: int) -> Tensor:
    """Return the vectors of all tokens of a graph, ``[1 + R + E, D]``; their numbers have a variance of about one."""
    learned = train_transe(index_triples(facts, entities, relations), len(entities), len(relations), dim, seed=seed)
    scale: float = dim**0.5
    return torch.cat([torch.zeros(1, dim), learned.relations * scale, learned.entities * scale])


def _check_rows(table: Mapping[str, Any], file: Path, root: Path, names: Sequence[str]) -> None:
    missing = [name for name in names if name not in table]
    if missing:
        raise DataError(f"{file} has no row for {_some(missing)} of the {len(names)} training images")
    known = set(names)
    unknown = [name for name in table if name not in known and not (root / name).is_file()]
    if unknown:
        raise DataError(f"{file} names {_some(unknown)}, not found in {root}; expected paths such as {names[0]}")


def _some(items: Iterable[str]) -> str:
    shown = list(items)
    return f"{len(shown)} ({', '.join(shown[:_SHOWN])}{' …' if len(shown) > _SHOWN else ''})"
