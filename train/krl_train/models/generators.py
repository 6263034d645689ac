"""Generators: from a latent (and a condition) to images.

By name: ``dcgan-W`` (transposed convolutions, https://arxiv.org/abs/1511.06434), ``resgan-W`` (residual blocks,
https://arxiv.org/abs/1802.05957), ``dsgan-W`` (depthwise-separable convolutions behind a low-rank first layer: for
students), each with ``W`` channels at full resolution, doubled at each lower one up to ``8 W``, and ``…-WxB`` for ``B``
blocks at each resolution instead of one; ``subgan-W`` (depthwise-separable residual blocks up to half the resolution,
where it has ``W`` channels, and sub-pixel convolution, https://arxiv.org/abs/1609.05158: for students as well);
``mlp-H1-H2…`` (fully connected layers of that many hidden units).
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from krl_runtime.errors import ModelError, UsageError
from krl_runtime.images.preprocessing import Preprocessing

from .conditioners import build_conditioner
from .generator_backbones import ConvolutionalGenerator, FullyConnectedGenerator, SubPixelGenerator
from .spec import ModelSpec
from .widths import THINNED, cut_as_recorded

__all__ = ["GeneratorNetwork", "build_generator", "count_generator_macs", "generator_width", "is_generator"]

_CONVOLUTIONAL = re.compile(r"(dcgan|resgan|dsgan|subgan)-(\d+)(?:x(\d+))?")
_MLP = re.compile(r"mlp-(\d+(?:-\d+)*)")
_ACCEPTED = "dcgan-W, resgan-W, dsgan-W, subgan-W (W channels; -WxB for B blocks at each resolution), mlp-H1-H2"


class GeneratorNetwork(nn.Module):
    """A backbone behind the scale of images: what is trained, distilled and exported.

    Args:
        backbone: Maps latents ``[N, Z]`` (and condition tokens ``[N, L]``, where it has a condition) to images
            ``[N, C, H, W]`` in the units that ``preprocessing`` normalizes to.
        latent_size: Z.
        preprocessing: Size, channels, mean and std of the images.
        condition: Settings of the condition, or ``None``.
    """

    scale: Tensor
    offset: Tensor

    def __init__(
        self,
        backbone: nn.Module,
        latent_size: int,
        preprocessing: Preprocessing,
        condition: Mapping[str, Any] | None = None,
    ) -> None:
        super().__init__()
        self.backbone = backbone
        self.latent_size = latent_size
        self.preprocessing = preprocessing
        self.condition = condition
        shape = (1, preprocessing.channels, 1, 1)
        self.register_buffer("scale", 255 * torch.tensor(preprocessing.std).reshape(shape), persistent=False)
        self.register_buffer("offset", 255 * torch.tensor(preprocessing.mean).reshape(shape), persistent=False)

    def forward(self, latent: Tensor, condition: Tensor | None = None) -> Tensor:
        """Generate images.

        Args:
            latent: ``[N, Z]`` of float32, drawn from the standard normal distribution.
            condition: ``[N, L]`` of int64, tokens; for a generator with a condition alone.

        Returns:
            ``[N, C, H, W]`` of float32 in 0 to 255, neither rounded nor clipped.

        Raises:
            UsageError: The latent or the condition has another shape, or there is one too many or too few of them.
        """
        if latent.ndim != 2 or latent.shape[1] != self.latent_size:
            raise UsageError(f"the latent is {list(latent.shape)}; this generator takes [N, {self.latent_size}]")
        if self.condition is None:
            if condition is not None:
                raise UsageError("a condition is given, but this generator was trained without one")
            return self.images(self.backbone(latent))
        length = int(self.condition["length"])
        if condition is None or condition.ndim != 2 or condition.shape[1] != length:
            given = "missing" if condition is None else f"{list(condition.shape)}"
            raise UsageError(f"the condition is {given}; this generator takes tokens [N, {length}] of int64")
        return self.images(self.backbone(latent, condition))

    @property
    def device(self) -> torch.device:
        """Where latents and conditions are expected."""
        return self.scale.device

    def images(self, normalized: Tensor) -> Tensor:
        """Bring what the backbone gives, ``[N, C, H, W]``, to the range 0 to 255."""
        return normalized.float() * self.scale + self.offset


def generator_width(name: str) -> int | None:
    """Return the channels that a generator's name asks for; ``None`` for ``mlp-…``, which has none."""
    match = _CONVOLUTIONAL.fullmatch(name)
    return int(match[2]) if match else None


def is_generator(name: str) -> bool:
    """Return whether a network's name is a generator's."""
    return bool(_MLP.fullmatch(name) or _CONVOLUTIONAL.fullmatch(name))


def build_generator(spec: ModelSpec, preprocessing: Preprocessing) -> GeneratorNetwork:
    """Return a generator, freshly initialized.

    Args:
        spec: ``name`` as the module says; ``arguments["latent"]`` is the latent's size and ``arguments["condition"]``,
            where it is there, the condition's settings; of one that was pruned, its widths are there as well.
        preprocessing: Size, channels, mean and std of the images.

    Raises:
        ModelError: The name is not known, the latent's size is missing, the architecture takes no condition, or it
            cannot be cut to its widths.
    """
    generator = _whole_generator(spec, preprocessing)
    cut_as_recorded(generator.backbone, spec.arguments)
    return generator


def _whole_generator(spec: ModelSpec, preprocessing: Preprocessing) -> GeneratorNetwork:
    arguments = {name: value for name, value in spec.arguments.items() if name not in THINNED}
    latent, condition = arguments.pop("latent", None), arguments.pop("condition", None)
    if arguments:
        raise ModelError(f"generator {spec.name}: unknown arguments {sorted(arguments)}; accepted: latent, condition")
    if not isinstance(latent, int) or isinstance(latent, bool) or latent < 1:
        raise ModelError(f"generator {spec.name}: the latent's size is {latent!r}; accepted: 1 or more")
    backbone: nn.Module
    if match := _MLP.fullmatch(spec.name):
        if condition is not None:
            raise ModelError(f"generator {spec.name} takes no condition; dcgan-W, resgan-W, dsgan-W and subgan-W do")
        backbone = FullyConnectedGenerator(latent, [int(units) for units in match[1].split("-")], preprocessing)
        return GeneratorNetwork(backbone, latent, preprocessing)
    match = _CONVOLUTIONAL.fullmatch(spec.name)
    if match is None or int(match[2]) < 1 or int(match[3] or 1) < 1:
        raise ModelError(f"unknown generator {spec.name!r}; accepted: {_ACCEPTED}")
    conditioner = None
    if condition is not None:
        conditioner = build_conditioner(condition)
    kind, width, blocks = match[1], int(match[2]), int(match[3] or 1)
    if kind == "subgan":
        backbone = SubPixelGenerator(width, blocks, latent, preprocessing, conditioner)
    else:
        backbone = ConvolutionalGenerator(kind, width, blocks, latent, preprocessing, conditioner)
    return GeneratorNetwork(backbone, latent, preprocessing, condition)


@torch.no_grad()
def count_generator_macs(generator: GeneratorNetwork) -> int:
    """Return the multiply-accumulate operations of one image, in convolutions and matrix products."""
    from torch.utils.flop_counter import FlopCounterMode

    was_training = generator.training
    device = next(generator.parameters()).device
    condition = None
    if generator.condition is not None:
        condition = torch.zeros(1, int(generator.condition["length"]), dtype=torch.int64, device=device)
    generator.eval()
    with FlopCounterMode(display=False) as counter:
        generator(torch.zeros(1, generator.latent_size, device=device), condition)
    generator.train(was_training)
    return int(counter.get_total_flops()) // 2
