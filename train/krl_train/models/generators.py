"""Generators: from a latent (and a condition) to pictures.

By name: ``dcgan-W`` (transposed convolutions, https://arxiv.org/abs/1511.06434), ``resgan-W`` (residual blocks,
https://arxiv.org/abs/1802.05957), ``dsgan-W`` (depthwise-separable convolutions behind a low-rank first layer: for
students), each with ``W`` channels at full resolution, doubled at each lower one up to ``8 W``, and ``…-WxB`` for ``B``
blocks at each resolution instead of one; ``mlp-H1-H2…`` (fully connected layers of that many hidden units).
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from itertools import pairwise
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from krl_runtime.errors import ModelError, UsageError
from krl_runtime.preprocess import Preprocessing

from .spec import ModelSpec

__all__ = [
    "ConvolutionalGenerator",
    "Generator",
    "build_generator",
    "count_generator_macs",
    "is_generator",
    "picture_sizes",
]

_CONVOLUTIONAL = re.compile(r"(dcgan|resgan|dsgan)-(\d+)(?:x(\d+))?")
_MLP = re.compile(r"mlp-(\d+(?:-\d+)*)")
_ACCEPTED = "dcgan-W, resgan-W, dsgan-W (W channels; -WxB for B blocks at each resolution), mlp-H1-H2"


class Generator(nn.Module):
    """A backbone behind the scale of pictures: what is trained, distilled and exported.

    Args:
        backbone: Maps latents ``[N, Z]`` (and condition tokens ``[N, L]``, where it has a condition) to pictures
            ``[N, C, H, W]`` in the units that ``preprocessing`` normalises to.
        latent_size: Z.
        preprocessing: Size, channels, mean and std of the pictures.
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
        """Generate pictures.

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
            return self.pictures(self.backbone(latent))
        length = int(self.condition["length"])
        if condition is None or condition.ndim != 2 or condition.shape[1] != length:
            given = "missing" if condition is None else f"{list(condition.shape)}"
            raise UsageError(f"the condition is {given}; this generator takes tokens [N, {length}] of int64")
        return self.pictures(self.backbone(latent, condition))

    @property
    def device(self) -> torch.device:
        """Where latents and conditions are expected."""
        return self.scale.device

    def pictures(self, normalised: Tensor) -> Tensor:
        """Bring what the backbone gives, ``[N, C, H, W]``, to the range 0 to 255."""
        return normalised.float() * self.scale + self.offset


def picture_sizes(height: int, width: int) -> list[tuple[int, int]]:
    """Return the resolutions that a generator goes through, from about 4 pixels up to ``(height, width)``."""
    sizes = [(height, width)]
    while min(sizes[0]) > 4:
        sizes.insert(0, ((sizes[0][0] + 1) // 2, (sizes[0][1] + 1) // 2))
    return sizes


class Norm(nn.Module):
    """Batch normalisation, whose scale and shift may come from a condition (https://arxiv.org/abs/1707.00683).

    Args:
        channels: Of the map.
        dim: Length of the condition's vector; 0 without one.
    """

    def __init__(self, channels: int, dim: int) -> None:
        super().__init__()
        self.norm = nn.BatchNorm2d(channels, affine=dim == 0)
        self.modulation = nn.Linear(dim, 2 * channels) if dim else None
        if self.modulation is not None:
            nn.init.normal_(self.modulation.weight, std=0.02)
            nn.init.zeros_(self.modulation.bias)

    def forward(self, x: Tensor, vector: Tensor | None) -> Tensor:
        """Map ``[N, C, H, W]`` and the vector ``[N, D]`` to ``[N, C, H, W]``."""
        x = self.norm(x)
        if self.modulation is None:
            return x
        scale, shift = self.modulation(vector)[:, :, None, None].chunk(2, dim=1)
        return torch.add(x * (1 + scale), shift)


class TransposedBlock(nn.Module):
    """A convolution (4×4 transposed where it doubles the size, else 3×3), normalisation, ReLU."""

    def __init__(self, channels: int, out_channels: int, dim: int, *, up: bool) -> None:
        super().__init__()
        self.conv: nn.Module = (
            nn.ConvTranspose2d(channels, out_channels, 4, 2, 1, bias=False)
            if up
            else nn.Conv2d(channels, out_channels, 3, 1, 1, bias=False)
        )
        self.norm = Norm(out_channels, dim)

    def forward(self, x: Tensor, vector: Tensor | None) -> Tensor:
        """Map ``[N, C, H, W]`` to ``[N, out_channels, 2 H, 2 W]``, or ``[N, out_channels, H, W]``."""
        return F.relu(self.norm(self.conv(x), vector))


class SeparableBlock(nn.Module):
    """Nearest upsampling where it doubles the size, a 3×3 depthwise and a 1×1 convolution, normalisation, ReLU."""

    def __init__(self, channels: int, out_channels: int, dim: int, *, up: bool) -> None:
        super().__init__()
        self.up = up
        self.depthwise = nn.Conv2d(channels, channels, 3, 1, 1, groups=channels, bias=False)
        self.pointwise = nn.Conv2d(channels, out_channels, 1, bias=False)
        self.norm = Norm(out_channels, dim)

    def forward(self, x: Tensor, vector: Tensor | None) -> Tensor:
        """Map ``[N, C, H, W]`` to ``[N, out_channels, 2 H, 2 W]``, or ``[N, out_channels, H, W]``."""
        if self.up:
            x = F.interpolate(x, scale_factor=2.0, mode="nearest")
        return F.relu(self.norm(self.pointwise(self.depthwise(x)), vector))


class ResidualBlock(nn.Module):
    """Two 3×3 convolutions behind normalisations, and a shortcut; the first may double the size."""

    def __init__(self, channels: int, out_channels: int, dim: int, *, up: bool) -> None:
        super().__init__()
        self.up = up
        self.norm1 = Norm(channels, dim)
        self.conv1 = nn.Conv2d(channels, out_channels, 3, 1, 1, bias=False)
        self.norm2 = Norm(out_channels, dim)
        self.conv2 = nn.Conv2d(out_channels, out_channels, 3, 1, 1)
        self.shortcut = nn.Conv2d(channels, out_channels, 1) if channels != out_channels else nn.Identity()

    def forward(self, x: Tensor, vector: Tensor | None) -> Tensor:
        """Map ``[N, C, H, W]`` to ``[N, out_channels, 2 H, 2 W]``, or ``[N, out_channels, H, W]``."""
        y = F.relu(self.norm1(x, vector))
        shortcut = self.shortcut(x)  # before the upsampling: a 1×1 convolution gives the same there, for a quarter
        if self.up:
            y = F.interpolate(y, scale_factor=2.0, mode="nearest")
            shortcut = F.interpolate(shortcut, scale_factor=2.0, mode="nearest")
        y = self.conv2(F.relu(self.norm2(self.conv1(y), vector)))
        return torch.add(y, shortcut)


_BLOCKS: Mapping[str, type[TransposedBlock] | type[SeparableBlock] | type[ResidualBlock]] = {
    "dcgan": TransposedBlock,
    "dsgan": SeparableBlock,
    "resgan": ResidualBlock,
}


class ConvolutionalGenerator(nn.Module):
    """A linear layer to a map of about 4×4, then blocks that double the size, then a 3×3 convolution and tanh.

    ``stages`` has one module for each resolution; distillation compares what they give.

    Args:
        kind: ``"dcgan"``, ``"resgan"`` or ``"dsgan"``.
        width: Channels at full resolution.
        blocks: Blocks at each resolution above the lowest.
        latent_size: Length of the latent.
        preprocessing: Size and channels of the pictures.
        conditioner: Maps tokens ``[N, L]`` to vectors ``[N, dim]``; ``None`` without a condition.
    """

    def __init__(
        self,
        kind: str,
        width: int,
        blocks: int,
        latent_size: int,
        preprocessing: Preprocessing,
        conditioner: nn.Module | None,
    ) -> None:
        super().__init__()
        self.sizes = picture_sizes(preprocessing.height, preprocessing.width)
        self.conditioner = conditioner
        dim = int(getattr(conditioner, "dim", 0))
        ups = len(self.sizes) - 1
        channels = [width * min(8, 2 ** (ups - level)) for level in range(ups + 1)]
        area = self.sizes[0][0] * self.sizes[0][1]
        self.seeds = channels[0] if kind != "dsgan" else 2 * width
        self.stem: nn.Module = nn.Linear(latent_size, self.seeds * area)
        self.widen: nn.Module = nn.Identity()
        if kind == "dsgan":  # the first layer would have most of the parameters
            narrow = nn.Linear(latent_size, 4 * width)
            self.stem = nn.Sequential(narrow, nn.ReLU(), nn.Linear(4 * width, self.seeds * area))
            self.widen = nn.Conv2d(self.seeds, channels[0], 1)
        residual = kind == "resgan"
        self.norm = None if residual else Norm(channels[0], dim)
        block = _BLOCKS[kind]
        self.stages = nn.ModuleList(
            nn.ModuleList(
                block(channels[level if index == 0 else level + 1], channels[level + 1], dim, up=index == 0)
                for index in range(blocks)
            )
            for level in range(ups)
        )
        self.last = Norm(channels[-1], dim) if residual else None
        self.head = nn.Conv2d(channels[-1], preprocessing.channels, 3, 1, 1)

    def forward(self, latent: Tensor, condition: Tensor | None = None) -> Tensor:
        """Map latents ``[N, Z]`` and tokens ``[N, L]`` to pictures ``[N, C, H, W]`` in -1 to 1."""
        return self.features(latent, condition)[1]

    def features(self, latent: Tensor, condition: Tensor | None = None) -> tuple[list[Tensor], Tensor]:
        """Return the maps at each resolution above the lowest ``[N, C_i, H_i, W_i]``, and the pictures."""
        vector = None if self.conditioner is None else self.conditioner(condition)
        # No size of the batch here: an exported graph would keep it.
        x: Tensor = self.stem(latent).reshape(-1, self.seeds, *self.sizes[0])
        x = self.widen(x)
        if self.norm is not None:
            x = F.relu(self.norm(x, vector))
        maps = []
        for (height, width), blocks in zip(self.sizes[1:], self.stages, strict=True):
            for block in blocks:  # type: ignore[attr-defined]
                x = block(x, vector)[:, :, :height, :width]
            maps.append(x)
        if self.last is not None:
            x = F.relu(self.last(x, vector))
        return maps, torch.tanh(self.head(x))


class FullyConnectedGenerator(nn.Sequential):
    """Linear layers with ReLU between them and tanh at the end.

    Args:
        latent_size: Length of the latent.
        hidden: Units of the hidden layers.
        preprocessing: Size and channels of the pictures.
    """

    def __init__(self, latent_size: int, hidden: list[int], preprocessing: Preprocessing) -> None:
        self.shape = preprocessing.shape
        units = [latent_size, *hidden]
        layers: list[nn.Module] = []
        for inputs, outputs in pairwise(units):
            layers += [nn.Linear(inputs, outputs), nn.ReLU()]
        channels, height, width = self.shape
        super().__init__(*layers, nn.Linear(units[-1], channels * height * width))

    def forward(self, latent: Tensor) -> Tensor:
        """Map latents ``[N, Z]`` to pictures ``[N, C, H, W]`` in -1 to 1."""
        x = latent
        for layer in self:
            x = layer(x)
        return torch.tanh(x).reshape(-1, *self.shape)


def is_generator(name: str) -> bool:
    """Return whether a network's name is a generator's."""
    return bool(_MLP.fullmatch(name) or _CONVOLUTIONAL.fullmatch(name))


def build_generator(spec: ModelSpec, preprocessing: Preprocessing) -> Generator:
    """Return a generator, freshly initialised.

    Args:
        spec: ``name`` as the module says; ``arguments["latent"]`` is the latent's size and ``arguments["condition"]``,
            where it is there, the condition's settings.
        preprocessing: Size, channels, mean and std of the pictures.

    Raises:
        ModelError: The name is not known, the latent's size is missing, or the architecture takes no condition.
    """
    arguments = dict(spec.arguments)
    latent, condition = arguments.pop("latent", None), arguments.pop("condition", None)
    if arguments:
        raise ModelError(f"generator {spec.name}: unknown arguments {sorted(arguments)}; accepted: latent, condition")
    if not isinstance(latent, int) or isinstance(latent, bool) or latent < 1:
        raise ModelError(f"generator {spec.name}: the latent's size is {latent!r}; accepted: 1 or more")
    backbone: nn.Module
    if match := _MLP.fullmatch(spec.name):
        if condition is not None:
            raise ModelError(f"generator {spec.name} takes no condition; dcgan-W, resgan-W and dsgan-W do")
        backbone = FullyConnectedGenerator(latent, [int(units) for units in match[1].split("-")], preprocessing)
        return Generator(backbone, latent, preprocessing)
    match = _CONVOLUTIONAL.fullmatch(spec.name)
    if match is None or int(match[2]) < 1 or int(match[3] or 1) < 1:
        raise ModelError(f"unknown generator {spec.name!r}; accepted: {_ACCEPTED}")
    conditioner = None
    if condition is not None:
        from krl_train.knowledge import build_conditioner

        conditioner = build_conditioner(condition)
    backbone = ConvolutionalGenerator(match[1], int(match[2]), int(match[3] or 1), latent, preprocessing, conditioner)
    return Generator(backbone, latent, preprocessing, condition)


@torch.no_grad()
def count_generator_macs(generator: Generator) -> int:
    """Return the multiply-accumulate operations of one picture, in convolutions and matrix products."""
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
