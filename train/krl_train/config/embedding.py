"""Options of a network that learns embeddings, for retrieval."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, TypeAlias

from krl_runtime.cli.options import Advanced, option_name
from krl_runtime.errors import UsageError

__all__ = ["PROXY_LOSSES", "EmbeddingConfig", "EmbeddingLoss"]

EmbeddingLoss: TypeAlias = Literal["proxy-anchor", "contrastive", "triplet", "multi-similarity", "supcon"]
"""Losses of embeddings and labels, by the names that options take."""

PROXY_LOSSES: tuple[EmbeddingLoss, ...] = ("proxy-anchor",)
"""Losses that compare each image with a learned proxy of each class, and not with other images of the batch."""

_IMAGES_PER_CLASS = 4  # of each class in a batch: the usual number in studies of metric learning (Musgrave et al. 2020)


@dataclass(frozen=True)
class EmbeddingConfig:
    """Embeddings: images of one class close together, those of others far apart."""

    embedding_dim: int | None = None
    """Numbers of an embedding, which has length 1: 128, or those of the run of embeddings that --from names."""
    embedding_loss: EmbeddingLoss = "proxy-anchor"
    """Proxies of the classes (proxy-anchor), pairs (contrastive, multi-similarity, supcon), or triplets."""
    margin: Advanced[float | None] = None
    """contrastive: least distance of images of two classes, 1; triplet: how much farther these are, 0.2; proxy-anchor:
    margin of the cosine, 0.1."""
    images_per_class: Advanced[int | None] = None
    """Images of each class that come together in a batch: 4, which pairs and triplets need; 1 leaves it to chance, as
    proxies do."""
    held_out_classes: tuple[str, ...] = ()
    """Classes that are not trained on: all of their images are for validation, as of things that are new in use."""

    def __post_init__(self) -> None:
        """Check the ranges."""
        object.__setattr__(self, "held_out_classes", tuple(map(str, self.held_out_classes)))
        for name, least in (("embedding_dim", 2), ("images_per_class", 1)):
            value = getattr(self, name)
            if value is not None and value < least:
                raise UsageError(f"{option_name(name)} is {value}; accepted: {least} or more")
        if self.margin is not None and self.embedding_loss in ("multi-similarity", "supcon"):
            raise UsageError(f"--margin is for contrastive, triplet and proxy-anchor, not {self.embedding_loss}")
        if self.margin is not None and not 0 < self.margin <= 2:
            raise UsageError(f"--margin is {self.margin}; accepted: above 0, up to 2, the largest distance")

    @property
    def per_class(self) -> int:
        """Return how many images of each class come together in a batch; 1 where that is left to chance."""
        if self.images_per_class is not None:
            return self.images_per_class
        return 1 if self.embedding_loss in PROXY_LOSSES else _IMAGES_PER_CLASS
