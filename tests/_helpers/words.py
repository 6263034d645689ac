"""A sentence-embedding model whose words mean what a test says."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np

__all__ = ["write_sentence_model"]


def write_sentence_model(folder: Path, meanings: Mapping[str, Sequence[float]]) -> Path:
    """Save a sentence-transformers model that knows some words; all others mean zeros. Return the folder."""
    from sentence_transformers import SentenceTransformer
    from sentence_transformers.sentence_transformer.modules import StaticEmbedding
    from tokenizers import Tokenizer, models, pre_tokenizers

    vocabulary = {word: number for number, word in enumerate(["[UNK]", *meanings])}
    tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token="[UNK]"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    known = np.array(list(meanings.values()), np.float32)
    embedding = StaticEmbedding(tokenizer, embedding_weights=np.concatenate([np.zeros_like(known[:1]), known]))
    SentenceTransformer(modules=[embedding], device="cpu").save(str(folder), create_model_card=False)
    return folder
