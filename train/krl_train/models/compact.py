"""The other networks of the CIFAR-100 distillation tables, for images of 32×32 pixels.

Names start with ``cifar-``, because torchvision has networks of the same families for 224×224: ``cifar-vgg8`` and
``cifar-vgg13`` (https://arxiv.org/abs/1409.1556 with batch normalization), ``cifar-mobilenetv2`` (half width,
https://arxiv.org/abs/1801.04381), ``cifar-shufflenetv1`` (three groups, https://arxiv.org/abs/1707.01083),
``cifar-shufflenetv2`` (https://arxiv.org/abs/1807.11164) and ``cifar-resnet50`` (https://arxiv.org/abs/1512.03385).
Widths and strides are those of the published tables (Tian et al. 2020, https://arxiv.org/abs/1910.10699).
"""

from __future__ import annotations

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor, nn

__all__ = ["COMPACT"]


class _Pooled(nn.Module):
    """Features, their mean over all positions, and a linear layer."""

    def __init__(self, features: nn.Sequential, width: int, num_classes: int) -> None:
        super().__init__()
        self.features = features
        self.linear = nn.Linear(width, num_classes)
        _initialize(self)

    def forward(self, x: Tensor) -> Tensor:
        """Map ``[N, in_channels, H, W]`` to logits ``[N, num_classes]``."""
        logits: Tensor = self.linear(self.features(x).mean((2, 3)))
        return logits


def _conv(
    channels: int,
    out_channels: int,
    kernel: int = 1,
    stride: int = 1,
    *,
    groups: int = 1,
    active: type[nn.Module] | None,
) -> list[nn.Module]:
    """Convolution, batch normalization, and an activation if there is one."""
    convolution = nn.Conv2d(channels, out_channels, kernel, stride, kernel // 2, groups=groups, bias=False)
    return [convolution, nn.BatchNorm2d(out_channels), *([active()] if active else [])]


class _Residual(nn.Module):
    """A branch and a shortcut, added; ``active`` says whether a ReLU follows."""

    def __init__(self, branch: nn.Sequential, shortcut: nn.Module | None = None, *, active: bool) -> None:
        super().__init__()
        self.branch = branch
        self.shortcut = shortcut or nn.Identity()
        self.active = active

    def forward(self, x: Tensor) -> Tensor:
        """Map ``[N, C, H, W]`` to ``[N, out_channels, H / stride, W / stride]``."""
        y: Tensor = self.branch(x) + self.shortcut(x)
        return F.relu(y) if self.active else y


def _vgg(stages: tuple[tuple[int, ...], ...]) -> Callable[[int, int], nn.Module]:
    def build(num_classes: int, in_channels: int) -> nn.Module:
        layers: list[nn.Module] = []
        channels = in_channels
        for index, widths in enumerate(stages):
            for width in widths:
                layers += [nn.Conv2d(channels, width, 3, padding=1), nn.BatchNorm2d(width), nn.ReLU()]
                channels = width
            if index < 3:  # the last two stages share a resolution
                layers.append(nn.MaxPool2d(2))
        return _Pooled(nn.Sequential(*layers), channels, num_classes)

    return build


def _inverted(channels: int, out_channels: int, stride: int, expansion: int) -> nn.Module:
    width = channels * expansion
    branch = nn.Sequential(
        *_conv(channels, width, active=nn.ReLU6),
        *_conv(width, width, 3, stride, groups=width, active=nn.ReLU6),
        *_conv(width, out_channels, active=None),
    )
    return _Residual(branch, active=False) if stride == 1 and channels == out_channels else branch


def _mobilenet_v2(num_classes: int, in_channels: int) -> nn.Module:
    """Half the width of MobileNetV2, its first stride kept and its second one dropped."""
    layers = _conv(in_channels, 16, 3, 2, active=nn.ReLU6)
    channels = 16
    plan = ((1, 8, 1, 1), (6, 12, 2, 1), (6, 16, 3, 2), (6, 32, 4, 2), (6, 48, 3, 1), (6, 80, 3, 2), (6, 160, 1, 1))
    for expansion, width, blocks, first_stride in plan:
        for block in range(blocks):
            layers.append(_inverted(channels, width, first_stride if block == 0 else 1, expansion))
            channels = width
    return _Pooled(nn.Sequential(*layers, *_conv(channels, 1280, active=nn.ReLU6)), 1280, num_classes)


def _shuffle(x: Tensor, groups: int) -> Tensor:
    """Interleave the channels of the groups."""
    batch, channels, height, width = x.shape
    apart = x.reshape(batch, groups, channels // groups, height, width)
    return apart.transpose(1, 2).reshape(batch, channels, height, width)


class _ShuffleV1(nn.Module):
    def __init__(self, channels: int, out_channels: int, stride: int, groups: int) -> None:
        super().__init__()
        # What passes by the branch is appended where the resolution falls, else added.
        made = out_channels - channels if stride == 2 else out_channels
        middle = made // 4
        self.groups = 1 if channels == 24 else groups  # the stem is too thin for groups
        self.reduce = nn.Sequential(*_conv(channels, middle, groups=self.groups, active=nn.ReLU))
        self.spread = nn.Sequential(
            *_conv(middle, middle, 3, stride, groups=middle, active=None),
            *_conv(middle, made, groups=groups, active=None),
        )
        self.pool = nn.AvgPool2d(3, 2, 1) if stride == 2 else None

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.spread(_shuffle(self.reduce(x), self.groups))
        return F.relu(torch.cat([y, self.pool(x)], 1) if self.pool is not None else y + x)


def _shufflenet_v1(num_classes: int, in_channels: int) -> nn.Module:
    layers = _conv(in_channels, 24, active=nn.ReLU)
    channels = 24
    for width, blocks in ((240, 4), (480, 8), (960, 4)):
        for block in range(blocks):
            layers.append(_ShuffleV1(channels, width, 2 if block == 0 else 1, groups=3))
            channels = width
    return _Pooled(nn.Sequential(*layers), channels, num_classes)


class _ShuffleV2(nn.Module):
    def __init__(self, channels: int) -> None:
        super().__init__()
        half = channels // 2
        self.branch = nn.Sequential(
            *_conv(half, half, active=nn.ReLU),
            *_conv(half, half, 3, groups=half, active=None),
            *_conv(half, half, active=nn.ReLU),
        )

    def forward(self, x: Tensor) -> Tensor:
        kept, changed = x.chunk(2, 1)
        return _shuffle(torch.cat([kept, self.branch(changed)], 1), 2)


class _ShuffleV2Down(nn.Module):
    def __init__(self, channels: int, out_channels: int) -> None:
        super().__init__()
        half = out_channels // 2
        self.left = nn.Sequential(
            *_conv(channels, channels, 3, 2, groups=channels, active=None), *_conv(channels, half, active=nn.ReLU)
        )
        self.right = nn.Sequential(
            *_conv(channels, half, active=nn.ReLU),
            *_conv(half, half, 3, 2, groups=half, active=None),
            *_conv(half, half, active=nn.ReLU),
        )

    def forward(self, x: Tensor) -> Tensor:
        return _shuffle(torch.cat([self.left(x), self.right(x)], 1), 2)


def _shufflenet_v2(num_classes: int, in_channels: int) -> nn.Module:
    layers = _conv(in_channels, 24, active=nn.ReLU)
    channels = 24
    for width, blocks in ((116, 3), (232, 7), (464, 3)):
        layers += [_ShuffleV2Down(channels, width), *(_ShuffleV2(width) for _ in range(blocks))]
        channels = width
    return _Pooled(nn.Sequential(*layers, *_conv(channels, 1024, active=nn.ReLU)), 1024, num_classes)


def _resnet50(num_classes: int, in_channels: int) -> nn.Module:
    layers = _conv(in_channels, 64, 3, active=nn.ReLU)
    channels = 64
    for stage, (width, blocks) in enumerate(((64, 3), (128, 4), (256, 6), (512, 3))):
        for block in range(blocks):
            stride = 2 if stage > 0 and block == 0 else 1
            branch = nn.Sequential(
                *_conv(channels, width, active=nn.ReLU),
                *_conv(width, width, 3, stride, active=nn.ReLU),
                *_conv(width, 4 * width, active=None),
            )
            changes = stride != 1 or channels != 4 * width
            shortcut = nn.Sequential(*_conv(channels, 4 * width, 1, stride, active=None)) if changes else None
            layers.append(_Residual(branch, shortcut, active=True))
            channels = 4 * width
    return _Pooled(nn.Sequential(*layers), channels, num_classes)


def _initialize(model: nn.Module) -> None:
    for module in model.modules():
        if isinstance(module, nn.Conv2d):
            nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")
            if module.bias is not None:
                nn.init.zeros_(module.bias)
        elif isinstance(module, nn.Linear):
            nn.init.normal_(module.weight, std=0.01)
            nn.init.zeros_(module.bias)


COMPACT: dict[str, Callable[[int, int], nn.Module]] = {
    "cifar-vgg8": _vgg(((64,), (128,), (256,), (512,), (512,))),
    "cifar-vgg13": _vgg(((64, 64), (128, 128), (256, 256), (512, 512), (512, 512))),
    "cifar-mobilenetv2": _mobilenet_v2,
    "cifar-shufflenetv1": _shufflenet_v1,
    "cifar-shufflenetv2": _shufflenet_v2,
    "cifar-resnet50": _resnet50,
}
"""By name, functions of the number of classes and of input channels."""
