"""Content and style of images in the features of a frozen classifier."""

from __future__ import annotations

from torch import Tensor

from krl_runtime.errors import UsageError

from .features import channels_first, reading, stage_outputs
from .network import Network

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
    """Maps of a frozen classifier: the outputs of its finest stages, four at most.

    For VGG16 these are the four of Johnson et al. (https://arxiv.org/abs/1603.08155): relu1_2, 2_2, 3_3 and 4_3.
    It is not a module, on purpose: whoever holds it does not train it.

    Args:
        network: The classifier; it is frozen here. It normalizes in its own way, and sees images at their own size.

    Raises:
        UsageError: The classifier has no feature maps.
    """

    def __init__(self, network: Network) -> None:
        self.network = network.requires_grad_(False).eval()
        self.taps = stage_outputs(network)[:_RESOLUTIONS]
        if not self.taps:
            raise UsageError("the classifier has no feature maps to tell style and content by; give another one")

    def __call__(self, pixels: Tensor) -> list[Tensor]:
        """Return the maps, from fine to coarse, of images ``[N, C, H, W]`` of 0 to 255; gradients flow to them."""
        self.network.to(pixels.device).eval()
        modules = dict(self.network.backbone.named_modules())
        with reading({tap.name: modules[tap.name] for tap in self.taps}) as found:
            self.network(pixels)
        return [channels_first(found[tap.name], tap) for tap in self.taps]
