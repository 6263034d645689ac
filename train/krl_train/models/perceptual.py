"""What a frozen classifier's features say of pictures: their content and their style."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from krl_runtime.errors import UsageError

from . import Network

__all__ = ["FeatureMaps", "gram"]

_RESOLUTIONS = 4  # the highest four, as VGG16's relu1_2 to relu4_3 (Johnson et al. 2016)


def gram(features: Tensor) -> Tensor:
    """Return the Gram matrices of features, whose statistics are the style (https://arxiv.org/abs/1508.06576).

    Args:
        features: ``[N, C, H, W]``.

    Returns:
        ``[N, C, C]``: the mean over the positions of the products of two channels, divided by C.
    """
    flat = features.flatten(2).float()
    return flat @ flat.mT / flat[0].numel()


class FeatureMaps:
    """Maps of a frozen classifier: the last one of each of its finest resolutions, four at most.

    For VGG16 these are the four of Johnson et al. (https://arxiv.org/abs/1603.08155): relu1_2, 2_2, 3_3 and 4_3.
    It is not a module, on purpose: whoever holds it does not train it.

    Args:
        network: The classifier; it is frozen here. It normalises in its own way, and sees pictures at their own size.

    Raises:
        UsageError: The classifier has no feature maps.
    """

    def __init__(self, network: Network) -> None:
        self.network = network.requires_grad_(False).eval()
        self.names = self._last_of_each_resolution()
        if not self.names:
            raise UsageError("the classifier has no feature maps to tell style and content by; give another one")

    @torch.no_grad()
    def _last_of_each_resolution(self) -> list[str]:
        found: dict[int, str] = {}

        def hook(name: str) -> Any:
            def record(_: nn.Module, __: Any, output: Any) -> None:
                if isinstance(output, Tensor) and output.ndim == 4 and output.shape[2] > 1:
                    found[output.shape[2]] = name

            return record

        handles = [
            module.register_forward_hook(hook(name)) for name, module in self.network.backbone.named_modules() if name
        ]
        self.network(torch.zeros(1, *self.network.preprocessing.shape, dtype=torch.uint8))
        for handle in handles:
            handle.remove()
        return [found[side] for side in sorted(found, reverse=True)[:_RESOLUTIONS]]

    def __call__(self, pixels: Tensor) -> list[Tensor]:
        """Return the maps, from fine to coarse, of pictures ``[N, C, H, W]`` of 0 to 255; gradients flow to them."""
        self.network.to(pixels.device).eval()
        found: dict[str, Tensor] = {}

        def keep(name: str) -> Any:
            def record(_: nn.Module, __: Any, output: Tensor) -> None:
                found[name] = output

            return record

        modules: Mapping[str, nn.Module] = dict(self.network.backbone.named_modules())
        handles = [modules[name].register_forward_hook(keep(name)) for name in self.names]
        try:
            self.network(pixels)
        finally:
            for handle in handles:
                handle.remove()
        return [found[name] for name in self.names]
