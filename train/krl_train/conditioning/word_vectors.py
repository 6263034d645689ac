"""Vectors of words, from a sentence-embedding model that the user names (extra ``text``)."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from pathlib import Path

import torch
from torch import Tensor

from krl_runtime.errors import DataError, UsageError, require

__all__ = ["place_words", "word_vectors"]

_log = logging.getLogger("krl")

_MOST_WORDS = 4096  # words with a vector each, which the graph on the device carries
_LEAST_SHARE = 1e-3  # of the variance: axes with less are noise of the sentence model
_LEAST_LENGTH = 0.1  # of a vector before it is scaled to length 1: a shorter one has no meaningful direction
_DIGITS = 4  # decimals of a vector in run.json: finer than float16, and a quarter of the text
_NEAR = 0.2
"""Cosine to the nearest trained word below which a word is a guess: in 256 dimensions chance gives up to 0.19 or so."""


def word_vectors(folder: Path, trained: Sequence[str], more: Sequence[str]) -> list[list[float]]:
    """Return vectors of words, and say how those that training does not read are understood.

    Args:
        folder: A sentence-transformers model. Nothing is downloaded, and no code that comes with it is run.
        trained: Words of the training descriptions.
        more: Words beside them.

    Returns:
        ``[1 + T + M]`` vectors of R numbers: padding, the trained words, the others; see ``place_words``.

    Raises:
        UsageError: The folder is not there, or there are too many words.
        DataError: It is no such model, or it says the same of all words.
        MissingExtraError: sentence-transformers is not installed.
    """
    if len(trained) + len(more) > _MOST_WORDS:
        raise UsageError(f"{len(trained) + len(more)} words are given; accepted: {_MOST_WORDS} at most")
    meanings = _embed(folder, [*trained, *more])
    vectors = place_words(meanings, len(trained))
    if vectors.shape[1] == 0:
        raise DataError(f"--sentence-model {folder} says the same of all {len(trained)} words of the descriptions")
    near = torch.nn.functional.normalize(_away(meanings, len(trained)), dim=1)
    for word, similarities in zip(more, near[len(trained) :] @ near[: len(trained)].T, strict=True):
        best = similarities.topk(min(2, len(trained)))
        known = ", ".join(f"{trained[place]} {value:.2f}" for value, place in zip(*best, strict=True))
        if float(best.values[0]) >= _NEAR:
            _log.info("the word %r, which no description has, is understood as near: %s", word, known)
        else:
            _log.warning("the word %r is near none of the descriptions' words and is a guess; nearest: %s", word, known)
    return [[0.0] * vectors.shape[1], *([round(x, _DIGITS) for x in row] for row in vectors.tolist())]


def place_words(meanings: Tensor, trained: int) -> Tensor:
    """Place words where training can tell them apart: in the span of those that it reads.

    A direction in which no two trained words differ can teach nothing, and would add noise to the others. So what is
    kept of a word is its difference from the trained words' mean, along the principal components of these, and all
    are made equally long: how typical a word is says nothing of what it names.

    Args:
        meanings: Of the trained words, then of the others, ``[V, E]``.
        trained: Number of trained words, T.

    Returns:
        ``[V, R]``, R at most T - 1; each row has length √R, or less where almost nothing of a word is kept.
    """
    away = _away(meanings, trained)
    _, values, directions = torch.linalg.svd(away[:trained], full_matrices=False)
    rank = int((values > _LEAST_SHARE * values.sum()).sum()) if float(values.sum()) > _LEAST_SHARE else 0
    placed = away @ directions[:rank].T
    long: Tensor = torch.nn.functional.normalize(placed, dim=1, eps=_LEAST_LENGTH) * rank**0.5
    return long.float()


def _away(meanings: Tensor, trained: int) -> Tensor:
    """Return the differences of words, as unit vectors, from the trained words' mean, ``[V, E]`` of float64."""
    unit = torch.nn.functional.normalize(meanings.double(), dim=1)
    return unit - unit[:trained].mean(0)


def _embed(folder: Path, words: list[str]) -> Tensor:
    """Return the model's embedding of each word, ``[V, E]``."""
    if not folder.is_dir():
        raise UsageError(f"--sentence-model {folder} is not a folder; save a sentence-transformers model there first")
    library = require("sentence_transformers", extra="text", purpose="--sentence-model")
    try:
        model = library.SentenceTransformer(str(folder), device="cpu", local_files_only=True)
        meanings: Tensor = model.encode(words, convert_to_tensor=True, show_progress_bar=False)
    except Exception as error:  # a third-party file: the library raises whatever its parts do
        raise DataError(f"--sentence-model {folder} cannot be used: {error}") from error
    if meanings.ndim != 2 or len(meanings) != len(words) or not meanings.isfinite().all():
        raise DataError(f"--sentence-model {folder} gives {list(meanings.shape)} for {len(words)} words, or NaN")
    found: Tensor = meanings.float().cpu()
    return found
