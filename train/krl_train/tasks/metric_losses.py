"""Losses of embeddings and their labels, by name; pytorch-metric-learning computes them."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch
import torch.nn.functional as F
from pytorch_metric_learning import losses, miners
from torch import Tensor, nn

from krl_runtime.errors import UsageError
from krl_train.config import LARGEST_MARGIN, EmbeddingLoss

from .gather import gather_batch

__all__ = ["MetricLoss"]

# Margins of the papers, on embeddings of length 1: Hadsell et al. 2006, Schroff et al. 2015 (FaceNet, of squared
# distances; here of distances) and Kim et al. 2020.
_MARGINS: Mapping[str, float] = {"contrastive": 1.0, "triplet": 0.2, "proxy-anchor": 0.1}


class MetricLoss(nn.Module):
    """A loss that is small where embeddings of one label are close, and those of two labels far apart.

    - ``proxy-anchor``: https://arxiv.org/abs/2003.13911, with a learned proxy of each class.
    - ``contrastive``: the squared distance of equal labels, and how much others fall short of the margin (Hadsell,
      Chopra and LeCun, 2006, "Dimensionality reduction by learning an invariant mapping").
    - ``triplet``: https://arxiv.org/abs/1503.03832, of the semi-hard triplets of the batch.
    - ``multi-similarity``: https://arxiv.org/abs/1904.06627, with its choice of pairs.
    - ``supcon``: https://arxiv.org/abs/2004.11362, supervised contrastive learning.

    Over several processes each sees the whole batch.

    Args:
        name: Name of the loss.
        trained: Labels of the training images, ``[M]``; each class among them gets a proxy, and no other.
        size: Numbers of an embedding.
        margin: Of the first three; the paper's by default.

    Raises:
        UsageError: A margin is given that the loss does not have, or is out of its range.
    """

    places: Tensor

    def __init__(self, name: EmbeddingLoss, trained: Tensor, size: int, *, margin: float | None = None) -> None:
        super().__init__()
        if margin is not None and not 0 < margin <= LARGEST_MARGIN:
            raise UsageError(f"the margin of {name} is {margin:g}; accepted: above 0, up to {LARGEST_MARGIN}")
        if margin is not None and name not in _MARGINS:
            raise UsageError(f"the loss {name} has no margin; those that have: {', '.join(_MARGINS)}")
        known = torch.unique(trained)
        places = torch.zeros(int(known[-1]) + 1, dtype=torch.int64).scatter(0, known, torch.arange(len(known)))
        self.register_buffer("places", places, persistent=False)
        chosen = _MARGINS.get(name, 0.0) if margin is None else margin
        make: Callable[[], tuple[nn.Module, nn.Module | None]] = {
            "proxy-anchor": lambda: (losses.ProxyAnchorLoss(len(known), size, margin=chosen), None),
            "contrastive": lambda: (losses.ContrastiveLoss(neg_margin=chosen), None),
            "triplet": lambda: (losses.TripletMarginLoss(chosen), miners.TripletMarginMiner(chosen, "semihard")),
            "multi-similarity": lambda: (losses.MultiSimilarityLoss(), miners.MultiSimilarityMiner()),
            "supcon": lambda: (losses.SupConLoss(), None),
        }[name]
        self.loss, self.miner = make()
        if isinstance(self.loss, losses.ProxyAnchorLoss):
            # Only the directions of proxies count. At length 1 they turn at the network's own learning rate; at the
            # library's, of about 16, they hardly do, which the paper makes up for by a rate of 100 times.
            self.loss.proxies.data = F.normalize(self.loss.proxies.data)

    def forward(self, embeddings: Tensor, labels: Tensor) -> Tensor:
        """Return the loss of embeddings ``[N, D]`` with labels ``[N]``; 0 where no pair or triplet counts."""
        embeddings, labels = gather_batch(embeddings), self.places[gather_batch(labels)]
        chosen: Any = None if self.miner is None else self.miner(embeddings, labels)
        value: Tensor = self.loss(embeddings, labels, chosen)
        return value
