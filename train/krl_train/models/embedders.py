"""Networks whose last layer gives embeddings: vectors of length 1 that are close for images of one class."""

from __future__ import annotations

from torch import Tensor, nn

from krl_runtime.images.preprocessing import Preprocessing

from .network import Network
from .spec import ModelSpec

__all__ = ["EmbeddingNetwork", "build_embedder"]

_LEAST = 1e-6  # of the largest number of an embedding, so that zeros stay zeros; FP16 holds it


class EmbeddingNetwork(Network):
    """A classifier's backbone whose outputs are brought to length 1.

    They are divided by the largest of them first, so that their squares fit into FP16 whatever their size.
    """

    def forward(self, pixels: Tensor) -> Tensor:
        """Map pixels ``[N, C, H, W]``, uint8 or floating point, 0 to 255, to embeddings ``[N, D]`` of length 1."""
        values = super().forward(pixels)
        values = values / values.detach().abs().amax(dim=1, keepdim=True).clamp(min=_LEAST)
        length = values.square().sum(dim=1, keepdim=True).clamp(min=_LEAST).sqrt()
        unit: Tensor = values / length
        return unit


def build_embedder(
    spec: ModelSpec, preprocessing: Preprocessing, module: nn.Module | None = None, *, pretrained: bool = False
) -> EmbeddingNetwork:
    """Return a network of embeddings with its normalization, around the backbone that is given if one is.

    Args:
        spec: Its ``num_classes`` is the number of an embedding's numbers.
        preprocessing: From an image to its input.
        module: The backbone, for a network that its name does not make.
        pretrained: Whether to take the published weights, below the last layer.

    Raises:
        ModelError: See ``ModelSpec.build``.
    """
    network = spec.build(preprocessing, pretrained=pretrained, module=module)
    return EmbeddingNetwork(network.backbone, preprocessing)
