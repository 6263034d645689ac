"""Architectures of generators: from a latent (and the vector of a condition) to images in -1 to 1."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Mapping
from itertools import pairwise

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from krl_runtime.errors import ModelError
from krl_runtime.images.preprocessing import Preprocessing

__all__ = [
    "ConvolutionalGenerator",
    "FullyConnectedGenerator",
    "MapGenerator",
    "Norm",
    "SubPixelGenerator",
    "image_sizes",
]

_SEEDS, _LOWEST = 4, 8
"""Of ``subgan-W``: channels of the first map, and its side at most."""


def image_sizes(height: int, width: int, least: int = 4) -> list[tuple[int, int]]:
    """Return the resolutions that a generator goes through, from ``least`` pixels or less up to ``(height, width)``."""
    sizes = [(height, width)]
    while min(sizes[0]) > least:
        sizes.insert(0, ((sizes[0][0] + 1) // 2, (sizes[0][1] + 1) // 2))
    return sizes


class Norm(nn.Module):
    """Batch normalization, whose scale and shift may come from a condition (https://arxiv.org/abs/1707.00683).

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
    """A convolution (4×4 transposed where it doubles the size, else 3×3), normalization, ReLU."""

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
    """Nearest upsampling where it doubles the size, a 3×3 depthwise and a 1×1 convolution, normalization, ReLU."""

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
    """Two 3×3 convolutions behind normalizations, and a shortcut; the first may double the size."""

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


class MapGenerator(nn.Module):
    """A generator with maps at several resolutions, which distillation compares.

    Attributes:
        levels: Height and width of each map that ``features`` returns.
    """

    levels: list[tuple[int, int]]

    @abstractmethod
    def features(self, latent: Tensor, condition: Tensor | None = None) -> tuple[list[Tensor], Tensor]:
        """Return the map at each level ``[N, C_i, H_i, W_i]``, and the images ``[N, C, H, W]`` in -1 to 1."""

    def forward(self, latent: Tensor, condition: Tensor | None = None) -> Tensor:
        """Map latents ``[N, Z]`` and tokens ``[N, L]`` to images ``[N, C, H, W]`` in -1 to 1."""
        return self.features(latent, condition)[1]


class ConvolutionalGenerator(MapGenerator):
    """A linear layer to a map of about 4×4, then blocks that double the size, then a 3×3 convolution and tanh.

    Args:
        kind: ``"dcgan"``, ``"resgan"`` or ``"dsgan"``.
        width: Channels at full resolution.
        blocks: Blocks at each resolution above the lowest.
        latent_size: Length of the latent.
        preprocessing: Size and channels of the images.
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
        self.lowest, *self.levels = image_sizes(preprocessing.height, preprocessing.width)
        self.conditioner = conditioner
        dim = int(getattr(conditioner, "dim", 0))
        ups = len(self.levels)
        channels = [width * min(8, 2 ** (ups - level)) for level in range(ups + 1)]
        area = self.lowest[0] * self.lowest[1]
        seeds = channels[0] if kind != "dsgan" else 2 * width
        self.stem: nn.Module = nn.Linear(latent_size, seeds * area)
        self.widen: nn.Module = nn.Identity()
        if kind == "dsgan":  # the first layer would have most of the parameters
            narrow = nn.Linear(latent_size, 4 * width)
            self.stem = nn.Sequential(narrow, nn.ReLU(), nn.Linear(4 * width, seeds * area))
            self.widen = nn.Conv2d(seeds, channels[0], 1)
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

    def features(self, latent: Tensor, condition: Tensor | None = None) -> tuple[list[Tensor], Tensor]:
        """Return the maps at each resolution above the lowest, and the images."""
        vector = None if self.conditioner is None else self.conditioner(condition)
        flat: Tensor = self.stem(latent)
        # No size of the batch here: an exported graph would keep it. A pruned stem makes fewer channels.
        x = flat.reshape(-1, flat.shape[1] // (self.lowest[0] * self.lowest[1]), *self.lowest)
        x = self.widen(x)
        if self.norm is not None:
            x = F.relu(self.norm(x, vector))
        maps = []
        for (height, width), blocks in zip(self.levels, self.stages, strict=True):
            for block in blocks:  # type: ignore[attr-defined]
                x = block(x, vector)[:, :, :height, :width]
            maps.append(x)
        if self.last is not None:
            x = F.relu(self.last(x, vector))
        return maps, torch.tanh(self.head(x))


class SubPixelGenerator(MapGenerator):
    """A hidden layer wider than the latent, a thin map of about 8×8, blocks up to half the size, sub-pixel convolution.

    Most parameters are in the two linear layers, where the latent's numbers meet; the blocks are depthwise-separable,
    and the last doubling needs none.

    Args:
        width: Channels at half the resolution; √2 times as many at each lower one.
        blocks: Residual blocks at each resolution.
        latent_size: Length of the latent.
        preprocessing: Size and channels of the images.
        conditioner: Maps tokens ``[N, L]`` to vectors ``[N, dim]``; ``None`` without a condition.

    Raises:
        ModelError: The images have a side of one pixel, which cannot be halved.
    """

    def __init__(
        self, width: int, blocks: int, latent_size: int, preprocessing: Preprocessing, conditioner: nn.Module | None
    ) -> None:
        super().__init__()
        least = min(preprocessing.height, preprocessing.width)
        if least < 2:
            raise ModelError(f"subgan-{width} makes images of 2 pixels a side or more; these have {least}")
        sizes = image_sizes(preprocessing.height, preprocessing.width, min(_LOWEST, (least + 1) // 2))
        self.levels, self.size = sizes[:-1], sizes[-1]
        self.conditioner = conditioner
        dim = int(getattr(conditioner, "dim", 0))
        channels = [round(width * 2 ** (level / 2)) for level in reversed(range(len(self.levels)))]
        area = self.levels[0][0] * self.levels[0][1]
        hidden = 2 * channels[0]
        self.stem = nn.Sequential(nn.Linear(latent_size, hidden), nn.ReLU(), nn.Linear(hidden, _SEEDS * area))
        self.widen = nn.Conv2d(_SEEDS, channels[0], 3, 1, 1, bias=False)
        self.norm = Norm(channels[0], dim)
        self.stages = nn.ModuleList(
            nn.ModuleList(
                [
                    SeparableBlock(channels[max(0, level - 1)], count, dim, up=level > 0),
                    *(SeparableBlock(count, count, dim, up=False) for _ in range(blocks)),
                ][level == 0 :]
            )
            for level, count in enumerate(channels)
        )
        self.head = nn.Conv2d(channels[-1], 4 * preprocessing.channels, 3, 1, 1)

    def features(self, latent: Tensor, condition: Tensor | None = None) -> tuple[list[Tensor], Tensor]:
        """Return the maps at each resolution below the last, and the images."""
        vector = None if self.conditioner is None else self.conditioner(condition)
        x: Tensor = self.stem(latent).reshape(-1, _SEEDS, *self.levels[0])
        x = F.relu(self.norm(self.widen(x), vector))
        maps = []
        for (height, width), blocks in zip(self.levels, self.stages, strict=True):
            for block in blocks:  # type: ignore[attr-defined]
                y = block(x, vector)[:, :, :height, :width]
                x = y if block.up else torch.add(x, y)
            maps.append(x)
        height, width = self.size
        return maps, torch.tanh(F.pixel_shuffle(self.head(x), 2)[:, :, :height, :width])


class FullyConnectedGenerator(nn.Sequential):
    """Linear layers with ReLU between them and tanh at the end.

    Args:
        latent_size: Length of the latent.
        hidden: Units of the hidden layers.
        preprocessing: Size and channels of the images.
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
        """Map latents ``[N, Z]`` to images ``[N, C, H, W]`` in -1 to 1."""
        x = latent
        for layer in self:
            x = layer(x)
        return torch.tanh(x).reshape(-1, *self.shape)
