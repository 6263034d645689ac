"""The images that a network sees as most alike: nearest neighbors among its features."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor

from krl_runtime.images.modes import image_of
from krl_runtime.progress import progress
from krl_train.data import PixelSet
from krl_train.models.embedders import EmbeddingNetwork
from krl_train.models.features import last_linear, reading, stage_outputs
from krl_train.models.network import Network

__all__ = ["Gallery", "Neighbor", "embed"]

_BATCH = 128  # images in one run: bounded memory


@dataclass(frozen=True)
class Neighbor:
    """An image of a gallery.

    Attributes:
        index: Its place in the gallery.
        name: Its file; of a data set without files ``"#"`` and its place.
        label: Its class; empty where it has none.
        similarity: Cosine of the features, -1 to 1.
    """

    index: int
    name: str
    label: str
    similarity: float


@torch.no_grad()
def embed(network: Network, pixels: Tensor) -> Tensor:
    """Return the features of images at length 1, ``[N, D]`` of float32, on the CPU.

    They are the embeddings of a network of embeddings, else the input of the last linear layer; of a network without
    one the mean of its last feature map.

    Args:
        network: In eval mode, of an image alone.
        pixels: ``[N, C, H, W]``, 0 to 255.
    """
    shown = pixels.to(network.device)
    if isinstance(network, EmbeddingNetwork):
        return F.normalize(network(shown).float(), dim=1).cpu()
    last = last_linear(network.backbone)
    if last is not None:
        with reading({}, {"features": last}) as found:
            network(shown)
        return F.normalize(found["features"].flatten(1).float(), dim=1).cpu()
    name = stage_outputs(network)[-1].name
    with reading({"features": network.backbone.get_submodule(name)}) as found:
        network(shown)
    return F.normalize(found["features"].flatten(2).mean(2).float(), dim=1).cpu()


class Gallery:
    """Images with their features.

    Args:
        network: In eval mode, of an image alone.
        data: The images, as the network takes them.
        labels: Class names in the order of the indices of ``data``; empty for images without classes.
    """

    def __init__(self, network: Network, data: PixelSet, labels: Sequence[str]) -> None:
        self._data, self._labels = data, labels
        starts = list(range(0, len(data), _BATCH))
        parts = [np.arange(start, min(start + _BATCH, len(data))) for start in progress(starts, "features of images")]
        self._features = torch.cat([embed(network, data.inside(part)) for part in parts])

    def search(self, features: Tensor, count: int) -> list[Neighbor]:
        """Return the images with the most similar features, the nearest first.

        Args:
            features: ``[D]``, of length 1.
            count: Number of images at most.
        """
        found = (self._features @ features).topk(min(count, len(self._features)))
        pairs = zip(found.indices.tolist(), found.values.tolist(), strict=True)
        return [Neighbor(index, self._name(index), self._label(index), similarity) for index, similarity in pairs]

    def features(self, index: int) -> Tensor:
        """Return the features of an image, ``[D]``."""
        return self._features[index]

    def image(self, index: int) -> Image.Image:
        """Return an image as the network sees it."""
        return image_of(self._data.inside(np.array([index]))[0].permute(1, 2, 0).numpy(), "rgb")

    def _name(self, index: int) -> str:
        return str(self._data.files[index]) if self._data.files else f"#{index}"

    def _label(self, index: int) -> str:
        if not self._labels:
            return ""
        label = self._data.labels[index]
        chosen = [int(label)] if label.ndim == 0 else (label > 0).nonzero().flatten().tolist()
        return ", ".join(self._labels[each] for each in chosen if each >= 0)
