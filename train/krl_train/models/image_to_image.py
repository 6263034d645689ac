"""Networks that turn an image into another one of its size, and the discriminator that judges them.

Names: ``unet-WIDTH-DEPTH`` for translation (after Isola et al. 2017, https://arxiv.org/abs/1611.07004) and
``style-WIDTH`` for style transfer (Johnson et al. 2016, https://arxiv.org/abs/1603.08155, with the instance
normalization of https://arxiv.org/abs/1607.08022). Both normalize over the whole image, so an output pixel depends on
all of the input: such a network is not local, and images are not cut into tiles for it.

Images have any size: what strides round up is cut off at the end, by shapes and not by values, so that exported
graphs do the same.
"""

from __future__ import annotations

from itertools import pairwise

import torch
import torch.nn.functional as F
from torch import Tensor, nn

__all__ = ["PatchDiscriminator", "StyleNetwork", "UNet"]

_STYLE_BLOCKS = 5  # residual blocks of Johnson et al. 2016
_EPSILON = 1e-3  # of instance normalization, as in the published networks of style (TensorFlow)


def _norm(channels: int) -> nn.Module:
    return nn.InstanceNorm2d(channels, eps=_EPSILON, affine=True)


class UNet(nn.Module):
    """Encoder and decoder with skips; its answer is added to the input where the channels agree.

    Args:
        width: Channels at full resolution; each level has twice as many, up to 8 times.
        depth: How often the resolution is halved.
        channels: Of input and output.
    """

    def __init__(self, width: int, depth: int, channels: int) -> None:
        super().__init__()
        widths = [width * min(2**level, 8) for level in range(depth + 1)]
        self.first = nn.Sequential(nn.Conv2d(channels, width, 3, padding=1), nn.LeakyReLU(0.2))
        self.down = nn.ModuleList(
            nn.Sequential(nn.Conv2d(a, b, 3, 2, padding=1), _norm(b), nn.LeakyReLU(0.2)) for a, b in pairwise(widths)
        )
        self.up = nn.ModuleList(
            nn.Sequential(nn.Conv2d(a + b, b, 3, padding=1), _norm(b), nn.ReLU())
            for a, b in zip(widths[:0:-1], widths[-2::-1], strict=True)
        )
        self.last = nn.Conv2d(width, channels, 3, padding=1)
        nn.init.zeros_(self.last.weight)

    def forward(self, x: Tensor) -> Tensor:
        """Map normalized images ``[N, C, H, W]`` to the same shape."""
        maps = [self.first(x)]
        for layer in self.down:
            maps.append(layer(maps[-1]))
        y = maps.pop()
        for layer in self.up:
            skip = maps.pop()
            # Nearest enlargement and a convolution leave no chequerboard, as transposed convolutions do.
            y = F.interpolate(y, scale_factor=2.0, mode="nearest")[:, :, : skip.shape[2], : skip.shape[3]]
            y = layer(torch.cat([y, skip], 1))
        answer: Tensor = x + self.last(y)
        return answer


class _Convolution(nn.Module):
    """Convolution, instance normalization and ReLU; at stride 2 padded as TensorFlow's SAME does for even sizes."""

    def __init__(self, channels: int, out_channels: int, kernel: int, stride: int = 1, *, relu: bool = True) -> None:
        super().__init__()
        # One column more than SAME needs, so that odd sizes round up.
        self.margin = (0, 2, 0, 2) if stride == 2 else (kernel // 2,) * 4
        self.conv = nn.Conv2d(channels, out_channels, kernel, stride, bias=False)
        self.norm = _norm(out_channels)
        self.relu = relu

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.norm(self.conv(F.pad(x, self.margin)))
        return F.relu(y) if self.relu else y


class _Enlarging(nn.Module):
    """Transposed convolution of stride 2, instance normalization and ReLU, exactly doubling, as TensorFlow's SAME."""

    def __init__(self, channels: int, out_channels: int) -> None:
        super().__init__()
        self.conv = nn.ConvTranspose2d(channels, out_channels, 3, 2, bias=False)
        self.norm = _norm(out_channels)

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.conv(x)[:, :, : 2 * x.shape[2], : 2 * x.shape[3]]
        return F.relu(self.norm(y))


class _Block(nn.Module):
    """Two convolutions and a shortcut."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.first = _Convolution(width, width, 3)
        self.second = _Convolution(width, width, 3, relu=False)

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = x + self.second(self.first(x))
        return y


class StyleNetwork(nn.Module):
    """Feed-forward style transfer: two halvings, five residual blocks, two doublings.

    Args:
        width: Channels of the first layer.
        channels: Of the images.
    """

    def __init__(self, width: int, channels: int) -> None:
        super().__init__()
        self.layers = nn.Sequential(
            _Convolution(channels, width, 9),
            _Convolution(width, 2 * width, 3, 2),
            _Convolution(2 * width, 4 * width, 3, 2),
            *[_Block(4 * width) for _ in range(_STYLE_BLOCKS)],
            _Enlarging(4 * width, 2 * width),
            _Enlarging(2 * width, width),
            _Convolution(width, channels, 9, relu=False),
        )

    def forward(self, x: Tensor) -> Tensor:
        """Map images ``[N, C, H, W]`` of 0 to 1 to the same shape, a little beyond 0 to 1."""
        y = self.layers(x)[:, :, : x.shape[2], : x.shape[3]]
        answer: Tensor = torch.tanh(y) * (150 / 255) + 0.5
        return answer


class PatchDiscriminator(nn.Module):
    """Judges whether parts of an image are real, given the input (https://arxiv.org/abs/1611.07004).

    Args:
        channels: Of the input and the image together.
        width: Channels of its first layer.
        halvings: How often the resolution is halved; 2 make parts of 34 pixels.
    """

    def __init__(self, channels: int, width: int = 32, halvings: int = 2) -> None:
        super().__init__()
        layers: list[nn.Module] = [nn.Conv2d(channels, width, 4, 2, 1), nn.LeakyReLU(0.2)]
        for level in range(1, halvings):
            a, b = width * 2 ** (level - 1), width * 2**level
            layers += [nn.Conv2d(a, b, 4, 2, 1), _norm(b), nn.LeakyReLU(0.2)]
        last = width * 2 ** (halvings - 1)
        layers += [nn.Conv2d(last, 2 * last, 4, 1, 1), _norm(2 * last), nn.LeakyReLU(0.2)]
        self.layers = nn.Sequential(*layers, nn.Conv2d(2 * last, 1, 4, 1, 1))

    def forward(self, given: Tensor, image: Tensor) -> Tensor:
        """Map input and image, each ``[N, C, H, W]`` of 0 to 255, to a logit for each part, ``[N, 1, h, w]``."""
        logits: Tensor = self.layers(torch.cat([given.float(), image.float()], 1) / 127.5 - 1)
        return logits
