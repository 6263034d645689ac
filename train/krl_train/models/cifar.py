"""The small networks of the distillation literature, for images of about 32×32 pixels.

Names are those of the papers: ``resnet8`` … ``resnet110``, ``resnet8x4`` and ``resnet32x4`` (He et al. 2016,
https://arxiv.org/abs/1512.03385; widths as in Tian et al. 2020, https://arxiv.org/abs/1910.10699); ``resnet8-b`` …
with option B of the paper, 1×1 convolutions on the shortcuts; ``cifar-resnet18`` and ``cifar-resnet34``, those for
ImageNet with a stem of 3×3 pixels, and with its max pooling as ``…-pooled``; ``wrn-16-2`` and
the like (Zagoruyko and Komodakis 2016, https://arxiv.org/abs/1605.07146), ``dscnn-W`` (a depthwise-separable net after
MobileNet, https://arxiv.org/abs/1704.04861, with width multiplier ``W``); and ``cifar-…``, which are in ``compact``.
"""

from __future__ import annotations

import re
from collections.abc import Callable

import torch.nn.functional as F
from torch import Tensor, nn

from .compact import COMPACT

__all__ = ["CifarResNet", "DepthwiseSeparableNet", "WideResNet", "cifar_model", "cifar_names"]

# 6n + 2, those of the paper (He et al. 2016) and of the distillation tables.
_RESNET_DEPTHS = (8, 14, 20, 32, 44, 56, 110)
_WIDE = re.compile(r"wrn-(\d+)-(\d+)")
_SEPARABLE = re.compile(r"dscnn-(\d+(?:\.\d+)?)")


class PadShortcut(nn.Module):
    """Option-A shortcut: every second pixel, and zero channels on both sides; it has no parameters."""

    def __init__(self, channels: int, out_channels: int, stride: int) -> None:
        super().__init__()
        self.stride = stride
        missing = out_channels - channels
        self.padding = (0, 0, 0, 0, missing // 2, missing - missing // 2)

    def forward(self, x: Tensor) -> Tensor:
        """Map ``[N, C, H, W]`` to ``[N, out_channels, H / stride, W / stride]``."""
        return F.pad(x[:, :, :: self.stride, :: self.stride], self.padding)


class BasicBlock(nn.Module):
    """Two 3×3 convolutions and a shortcut."""

    def __init__(self, channels: int, out_channels: int, stride: int, *, projection: bool) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(channels, out_channels, 3, stride, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(out_channels)
        self.conv2 = nn.Conv2d(out_channels, out_channels, 3, 1, 1, bias=False)
        self.bn2 = nn.BatchNorm2d(out_channels)
        self.shortcut: nn.Module = nn.Identity()
        if stride != 1 or channels != out_channels:
            if projection:
                convolution = nn.Conv2d(channels, out_channels, 1, stride, bias=False)
                self.shortcut = nn.Sequential(convolution, nn.BatchNorm2d(out_channels))
            else:
                self.shortcut = PadShortcut(channels, out_channels, stride)

    def forward(self, x: Tensor) -> Tensor:
        """Map ``[N, C, H, W]`` to ``[N, out_channels, H / stride, W / stride]``."""
        y = F.relu(self.bn1(self.conv1(x)))
        y = self.bn2(self.conv2(y))
        return F.relu(y + self.shortcut(x))


class CifarResNet(nn.Module):
    """ResNet for small images; parameter names are those of published CIFAR-10 weights.

    Args:
        blocks: Blocks of each stage, three or four.
        widths: Channels of the stem and of each stage.
        num_classes: Number of logits.
        in_channels: Channels of the input.
        projection: 1×1 convolutions on the shortcuts that change shape; otherwise option A of the paper, zeros for the
            new channels.
        pooled: Whether a max pooling of stride 2 follows the stem.
    """

    def __init__(
        self,
        blocks: tuple[int, ...],
        widths: tuple[int, ...],
        num_classes: int,
        in_channels: int,
        *,
        projection: bool,
        pooled: bool = False,
    ) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(in_channels, widths[0], 3, 1, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(widths[0])
        self.relu = nn.ReLU()
        self.pool = nn.MaxPool2d(3, 2, 1) if pooled else None
        channels = widths[0]
        stages = []
        for stage, (count, width) in enumerate(zip(blocks, widths[1:], strict=True)):
            layers = []
            for block in range(count):
                stride = 2 if stage > 0 and block == 0 else 1
                layers.append(BasicBlock(channels, width, stride, projection=projection))
                channels = width
            stages.append(nn.Sequential(*layers))
        self.layer1, self.layer2, self.layer3 = stages[:3]
        self.layer4 = stages[3] if stages[3:] else None
        self.linear = nn.Linear(channels, num_classes)
        _initialize(self)

    def forward(self, x: Tensor) -> Tensor:
        """Map ``[N, in_channels, H, W]`` to logits ``[N, num_classes]``."""
        x = self.relu(self.bn1(self.conv1(x)))
        x = x if self.pool is None else self.pool(x)
        x = self.layer3(self.layer2(self.layer1(x)))
        x = x if self.layer4 is None else self.layer4(x)
        logits: Tensor = self.linear(x.mean((2, 3)))
        return logits


class PreActivationBlock(nn.Module):
    """BN, ReLU, convolution, twice, and a shortcut taken after the first activation where shapes change.

    Args:
        channels: Of the input.
        out_channels: Of the output.
        stride: Of the first convolution.
        enter: The first activation; where the block begins a stage, it is the one that ends the stage before.
    """

    def __init__(self, channels: int, out_channels: int, stride: int, enter: nn.Module) -> None:
        super().__init__()
        self.enter = enter
        self.bn1 = nn.BatchNorm2d(channels)
        self.conv1 = nn.Conv2d(channels, out_channels, 3, stride, 1, bias=False)
        self.bn2 = nn.BatchNorm2d(out_channels)
        self.conv2 = nn.Conv2d(out_channels, out_channels, 3, 1, 1, bias=False)
        changes = stride != 1 or channels != out_channels
        self.shortcut = nn.Conv2d(channels, out_channels, 1, stride, bias=False) if changes else None

    def forward(self, x: Tensor) -> Tensor:
        """Map ``[N, C, H, W]`` to ``[N, out_channels, H / stride, W / stride]``."""
        active = self.enter(self.bn1(x))
        y: Tensor = self.conv2(F.relu(self.bn2(self.conv1(active))))
        shortcut: Tensor = x if self.shortcut is None else self.shortcut(active)
        return y + shortcut


class WideResNet(nn.Module):
    """Wide residual network of ``6 n + 4`` layers and a widening factor.

    ``relu1``, ``relu2`` and ``relu3`` put out the three stages after their activation, which is computed by the first
    block of the next stage, or before pooling.
    """

    def __init__(self, depth: int, factor: int, num_classes: int, in_channels: int) -> None:
        super().__init__()
        channels = 16
        self.conv1 = nn.Conv2d(in_channels, channels, 3, 1, 1, bias=False)
        # Registered before the blocks that use them, so that these are their names.
        self.relu1, self.relu2, self.relu3 = nn.ReLU(), nn.ReLU(), nn.ReLU()
        enter = (nn.ReLU(), self.relu1, self.relu2)
        stages = []
        for stage, width in enumerate((16 * factor, 32 * factor, 64 * factor)):
            layers = []
            for block in range((depth - 4) // 6):
                first = block == 0
                stride = 2 if stage > 0 and first else 1
                layers.append(PreActivationBlock(channels, width, stride, enter[stage] if first else nn.ReLU()))
                channels = width
            stages.append(nn.Sequential(*layers))
        self.layer1, self.layer2, self.layer3 = stages
        self.bn = nn.BatchNorm2d(channels)
        self.linear = nn.Linear(channels, num_classes)
        _initialize(self)

    def forward(self, x: Tensor) -> Tensor:
        """Map ``[N, in_channels, H, W]`` to logits ``[N, num_classes]``."""
        x = self.layer3(self.layer2(self.layer1(self.conv1(x))))
        logits: Tensor = self.linear(self.relu3(self.bn(x)).mean((2, 3)))
        return logits


class DepthwiseSeparableNet(nn.Module):
    """Depthwise and pointwise convolutions with ReLU alone: what INT8 and small devices like.

    Args:
        width: Multiplier of the channel counts 32, 64, 128, 256; each is rounded to a multiple of 8.
        num_classes: Number of logits.
        in_channels: Channels of the input.
    """

    def __init__(self, width: float, num_classes: int, in_channels: int) -> None:
        super().__init__()
        stem, *stages = [max(8, int(channels * width / 8 + 0.5) * 8) for channels in (32, 64, 128, 256)]
        layers: list[nn.Module] = [_conv_bn_relu(in_channels, stem, 3, 1)]
        channels = stem
        for index, out_channels in enumerate(stages):
            for stride in (1 if index == 0 else 2, 1):
                layers.append(_conv_bn_relu(channels, channels, 3, stride, groups=channels))
                layers.append(_conv_bn_relu(channels, out_channels, 1, 1))
                channels = out_channels
        self.features = nn.Sequential(*layers)
        self.linear = nn.Linear(channels, num_classes)
        _initialize(self)

    def forward(self, x: Tensor) -> Tensor:
        """Map ``[N, in_channels, H, W]`` to logits ``[N, num_classes]``."""
        logits: Tensor = self.linear(self.features(x).mean((2, 3)))
        return logits


def _conv_bn_relu(channels: int, out_channels: int, kernel: int, stride: int, groups: int = 1) -> nn.Sequential:
    convolution = nn.Conv2d(channels, out_channels, kernel, stride, kernel // 2, groups=groups, bias=False)
    return nn.Sequential(convolution, nn.BatchNorm2d(out_channels), nn.ReLU())


def _initialize(model: nn.Module) -> None:
    for module in model.modules():
        if isinstance(module, nn.Conv2d):
            nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")
        elif isinstance(module, nn.Linear):
            nn.init.normal_(module.weight, std=1 / module.in_features**0.5)
            nn.init.zeros_(module.bias)


def _builders() -> dict[str, Callable[[int, int], nn.Module]]:
    def resnet(blocks: tuple[int, ...], widths: tuple[int, ...], **how: bool) -> Callable[[int, int], nn.Module]:
        return lambda classes, channels: CifarResNet(blocks, widths, classes, channels, **how)

    def three(depth: int) -> tuple[int, ...]:
        return ((depth - 2) // 6,) * 3

    thin = (16, 16, 32, 64)
    builders = {f"resnet{depth}": resnet(three(depth), thin, projection=False) for depth in _RESNET_DEPTHS}
    builders |= {f"resnet{depth}x4": resnet(three(depth), (32, 64, 128, 256), projection=True) for depth in (8, 32)}
    builders |= {f"resnet{depth}-b": resnet(three(depth), thin, projection=True) for depth in _RESNET_DEPTHS}
    for depth, blocks in ((18, (2, 2, 2, 2)), (34, (3, 4, 6, 3))):  # of He et al. 2016, table 1
        for pooled in (False, True):
            made = resnet(blocks, (64, 64, 128, 256, 512), projection=True, pooled=pooled)
            builders[f"cifar-resnet{depth}{'-pooled' if pooled else ''}"] = made
    return builders | COMPACT


def cifar_names() -> list[str]:
    """Return the names that ``cifar_model`` knows; upper-case parts stand for numbers."""
    return [*_builders(), "wrn-16-2", "wrn-40-2", "wrn-DEPTH-FACTOR", "dscnn-WIDTH"]


def cifar_model(name: str, num_classes: int, in_channels: int) -> nn.Module | None:
    """Build a network of this family, or return ``None`` for a name that does not belong to it.

    Args:
        name: As in the papers; see the module's text.
        num_classes: Number of logits.
        in_channels: Channels of the input.
    """
    builders = _builders()
    if name in builders:
        return builders[name](num_classes, in_channels)
    if (match := _WIDE.fullmatch(name)) and (int(match[1]) - 4) % 6 == 0 and int(match[1]) >= 10 and int(match[2]) > 0:
        return WideResNet(int(match[1]), int(match[2]), num_classes, in_channels)
    if (match := _SEPARABLE.fullmatch(name)) and 0 < float(match[1]) <= 16:
        return DepthwiseSeparableNet(float(match[1]), num_classes, in_channels)
    return None
