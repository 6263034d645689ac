"""A network that takes pixels: normalization is part of it, in training, in distillation and in the exported graph."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Mapping, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from krl_runtime.images.preprocessing import Preprocessing

__all__ = ["Network", "count_macs", "count_parameters", "fit_images", "load_weights"]

_LUMA = (0.299, 0.587, 0.114)  # BT.601, as Pillow converts to gray


class Network(nn.Module):
    """A backbone behind its normalization.

    A teacher and its student see the same pixels, each normalized in its own way; and what is exported is what
    was trained, with ``uint8`` at its input.

    Args:
        backbone: Maps normalized ``[N, C, H, W]`` of float32 to logits ``[N, classes]``.
        preprocessing: Its ``mean`` and ``std`` are applied here.
        classes: Which of the backbone's classes are answered, in this order; all of them by default.
    """

    scale: Tensor
    offset: Tensor

    def __init__(
        self, backbone: nn.Module, preprocessing: Preprocessing, *, classes: Sequence[int] | None = None
    ) -> None:
        super().__init__()
        self.classes = None if classes is None else list(classes)
        self.backbone = backbone
        self.preprocessing = preprocessing
        mean = torch.tensor(preprocessing.mean, dtype=torch.float64)
        std = torch.tensor(preprocessing.std, dtype=torch.float64)
        # (x / 255 - mean) / std as one multiplication and one addition
        scale, offset = 1 / (255 * std), -mean / std
        self.register_buffer("scale", scale.float().reshape(1, -1, 1, 1), persistent=False)
        self.register_buffer("offset", offset.float().reshape(1, -1, 1, 1), persistent=False)

    def forward(self, pixels: Tensor) -> Tensor:
        """Map pixels ``[N, C, H, W]``, uint8 or floating point, in the range 0 to 255, to logits ``[N, classes]``."""
        logits: Tensor = self.backbone(self.normalized(pixels))
        return logits if self.classes is None else logits[:, self.classes]

    def normalized(self, pixels: Tensor) -> Tensor:
        """Return the input of the backbone, from pixels ``[N, C, H, W]`` in the range 0 to 255."""
        return pixels.to(self.scale.dtype) * self.scale + self.offset

    @property
    def device(self) -> torch.device:
        """Where it computes."""
        return self.scale.device

    def answer(self, pixels: Tensor, further: Sequence[Tensor] = ()) -> Tensor:
        """Return the outputs for images, and for what is beside them if the network takes that.

        Args:
            pixels: ``[N, C, H, W]``, 0 to 255.
            further: What is beside them ``[N, ...]``; a network of images alone leaves it out.
        """
        del further
        logits: Tensor = self(pixels)
        return logits

    def example(self, count: int = 1) -> tuple[Tensor, ...]:
        """Return an example of all inputs, where the network is: black images ``[count, C, H, W]`` of uint8."""
        return (torch.zeros(count, *self.preprocessing.shape, dtype=torch.uint8, device=self.device),)

    def answering(self, classes: Sequence[int]) -> Network:
        """Return the same network, sharing its weights, that answers these of its classes in this order."""
        return type(self)(self.backbone, self.preprocessing, classes=classes)


def load_weights(module: nn.Module, state: Mapping[str, Tensor], *, strict: bool = True) -> None:
    """Copy weights into a module, as those of its own version.

    A file has tensors alone, not the versions of the layers' formats that ``state_dict`` has beside them; some networks
    (MNASNet) refuse weights without.

    Args:
        module: Gets the weights.
        state: They, by name, as ``state_dict`` of the same architecture gives them.
        strict: Whether all names must agree.

    Raises:
        RuntimeError: Names or shapes do not fit.
    """
    versioned: Any = OrderedDict(state)
    versions = dict(module.state_dict()._metadata)  # type: ignore[attr-defined]
    for name in module.state_dict():
        # Batch normalization of files from before torch 0.4.1 counts no batches, which torch accepts without a version.
        layer, _, tensor = name.rpartition(".")
        if tensor == "num_batches_tracked" and name not in state:
            versions.pop(layer, None)
    versioned._metadata = versions
    module.load_state_dict(versioned, strict=strict)


def count_parameters(model: nn.Module) -> int:
    """Return the number of parameters."""
    return sum(parameter.numel() for parameter in model.parameters())


@torch.no_grad()
def count_macs(model: nn.Module, shape: tuple[int, int, int]) -> int:
    """Return the multiply-accumulate operations of one forward pass, in convolutions and matrix products.

    Args:
        model: Takes ``[1, *shape]`` of uint8; and what else its ``example`` has.
        shape: Channels, height and width of one image.
    """
    from torch.utils.flop_counter import FlopCounterMode

    was_training = model.training
    device = next(model.parameters()).device
    model.eval()
    with FlopCounterMode(display=False) as counter:
        model(*(model.example() if isinstance(model, Network) else [torch.zeros(1, *shape).byte().to(device)]))
    model.train(was_training)
    return int(counter.get_total_flops()) // 2


def fit_images(images: Tensor, preprocessing: Preprocessing) -> Tensor:
    """Show images at the size and in the colors that a network takes.

    Args:
        images: ``[N, C, H, W]``, 0 to 255, with 1 or 3 channels.
        preprocessing: Of the network; what fits it already is returned as it is.

    Returns:
        ``[N, channels, height, width]``, 0 to 255; float where they had to be computed.
    """
    if images.shape[1] == 3 and preprocessing.channels == 1:
        weights = torch.tensor(_LUMA, device=images.device).reshape(1, 3, 1, 1)
        images = (images.float() * weights).sum(1, keepdim=True)
    elif images.shape[1] == 1 and preprocessing.channels == 3:
        images = images.expand(-1, 3, -1, -1)
    size = (preprocessing.height, preprocessing.width)
    if tuple(images.shape[2:]) != size:
        images = F.interpolate(images.float(), size, mode="bilinear", antialias=True)
    return images
