"""Networks that make a better image of an image: super-resolution, denoising, removal of JPEG's artifacts.

All of them add what they computed to a plain enlargement of their input (bicubic; at scale 1 the input itself), so
that training begins at what a resize gives. The published forms, for imported weights, add nothing: ESPCN has tanh in
them, and EDSR enlarges features and has a last convolution after that.

Names: ``espcn`` or ``espcn-WIDTH`` (Shi et al. 2016, https://arxiv.org/abs/1609.05158, with ReLU), ``fsrcnn`` or
``fsrcnn-D-S-M`` (Dong et al. 2016, https://arxiv.org/abs/1608.00367), ``edsr-BLOCKS-WIDTH`` (after Lim et al. 2017,
https://arxiv.org/abs/1707.02921, with one convolution before the pixel shuffle). ``unet-WIDTH-DEPTH`` and
``style-WIDTH`` keep the size and see the whole image: see ``image_to_image``.
"""

from __future__ import annotations

import difflib
import re
from collections.abc import Callable
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from krl_runtime.errors import ModelError
from krl_runtime.images.preprocessing import Preprocessing

from .image_to_image import StyleNetwork, UNet
from .spec import ModelSpec
from .widths import cut_as_recorded

__all__ = [
    "Enlargement",
    "RestorerNetwork",
    "SkipNetwork",
    "build_restorer",
    "is_restorer",
    "receptive_radius",
    "restorer_names",
]


class Enlargement(nn.Module):
    """Bicubic enlargement by a whole number, as a fixed convolution and a pixel shuffle.

    Keys' kernel with a = -0.5, edges repeated: what MATLAB's ``imresize`` and Pillow's ``BICUBIC`` do away from the
    edges. Written so, every backend runs it alike.

    Args:
        scale: The factor; 1 leaves images as they are.
        channels: Of the images.
    """

    kernel: Tensor

    def __init__(self, scale: int, channels: int) -> None:
        super().__init__()
        self.scale, self.channels = scale, channels
        offsets = (torch.arange(scale, dtype=torch.float64) + 0.5) / scale - 0.5  # of the new pixels, in old ones
        taps = _keys(torch.arange(-2, 3, dtype=torch.float64) - offsets[:, None])
        kernel = torch.einsum("iy,jx->ijyx", taps, taps).reshape(scale * scale, 1, 5, 5)
        self.register_buffer("kernel", kernel.float().repeat(channels, 1, 1, 1), persistent=False)

    def forward(self, x: Tensor) -> Tensor:
        """Map ``[N, C, H, W]`` to ``[N, C, scale * H, scale * W]``."""
        if self.scale == 1:
            return x
        phases = F.conv2d(F.pad(x, (2, 2, 2, 2), mode="replicate"), self.kernel, groups=self.channels)
        return F.pixel_shuffle(phases, self.scale)


def _keys(distance: Tensor) -> Tensor:
    """Keys' cubic kernel with a = -0.5 at distances in pixels."""
    x = distance.abs()
    near = 1.5 * x**3 - 2.5 * x**2 + 1
    far = -0.5 * x**3 + 2.5 * x**2 - 4 * x + 2
    return torch.where(x <= 1, near, torch.where(x < 2, far, torch.zeros_like(x)))


class SkipNetwork(nn.Module):
    """Trunk and tail, whose output is added to the plain enlargement.

    Args:
        trunk: Maps ``[N, C, H, W]`` to features ``[N, width, H, W]``; distillation compares these.
        tail: Maps features to ``[N, C, scale * H, scale * W]``.
        skip: Maps the input to the plain enlargement; ``None`` where nothing is added.
    """

    def __init__(self, trunk: nn.Module, tail: nn.Module, skip: Enlargement | None) -> None:
        super().__init__()
        self.trunk, self.tail, self.skip = trunk, tail, skip

    def forward(self, x: Tensor) -> Tensor:
        """Map normalized images ``[N, C, H, W]`` to ``[N, C, scale * H, scale * W]``."""
        return self.finish(self.trunk(x), x)

    def finish(self, features: Tensor, x: Tensor) -> Tensor:
        """Return the output of ``forward``, from the trunk's features and its input."""
        restored: Tensor = self.tail(features)
        return restored if self.skip is None else restored + self.skip(x)


class _Residual(nn.Module):
    """Adds what its layers compute to their input."""

    def __init__(self, *layers: nn.Module) -> None:
        super().__init__()
        self.layers = nn.Sequential(*layers)

    def forward(self, x: Tensor) -> Tensor:
        added: Tensor = x + self.layers(x)
        return added


class RestorerNetwork(nn.Module):
    """A backbone between pixels: what a device runs.

    Args:
        backbone: Maps normalized ``[N, C, H, W]`` to normalized ``[N, C, scale * H, scale * W]``, for any H and W.
        preprocessing: Its ``mean`` and ``std`` are applied before the backbone and taken back after it.
        scale: By how much the result is larger than the input.
    """

    gain: Tensor
    offset: Tensor

    def __init__(self, backbone: nn.Module, preprocessing: Preprocessing, scale: int) -> None:
        super().__init__()
        self.backbone = backbone
        self.preprocessing = preprocessing
        self.scale = scale
        mean, std = (torch.tensor(values, dtype=torch.float64) for values in (preprocessing.mean, preprocessing.std))
        self.register_buffer("gain", (255 * std).float().reshape(1, -1, 1, 1), persistent=False)
        self.register_buffer("offset", (255 * mean).float().reshape(1, -1, 1, 1), persistent=False)

    def forward(self, pixels: Tensor) -> Tensor:
        """Restore images.

        Args:
            pixels: ``[N, C, H, W]``, uint8 or floating point, 0 to 255.

        Returns:
            ``[N, C, scale * H, scale * W]`` of float32, 0 to 255, neither rounded nor clipped.
        """
        return self._to_pixels(self.backbone(self._normalized(pixels)))

    def with_features(self, pixels: Tensor) -> tuple[Tensor, Tensor]:
        """Return the output of ``forward``, and the trunk's features ``[N, width, H, W]``.

        Raises:
            ModelError: The backbone has no trunk to take features from.
        """
        backbone = self.backbone
        if not isinstance(backbone, SkipNetwork):
            raise ModelError(f"a {type(backbone).__name__} has no features to compare; use losses on images")
        x = self._normalized(pixels)
        features: Tensor = backbone.trunk(x)
        return self._to_pixels(backbone.finish(features, x)), features

    def _normalized(self, pixels: Tensor) -> Tensor:
        return (pixels.to(self.gain.dtype) - self.offset) / self.gain

    def _to_pixels(self, restored: Tensor) -> Tensor:
        return restored.float() * self.gain + self.offset


@dataclass(frozen=True)
class _Family:
    """Networks of one architecture.

    Attributes:
        pattern: Of the names; its groups are whole numbers.
        defaults: What the groups stand for where they are left out.
        build: From the numbers, the scale, the channels and whether it is the published form to the backbone.
        radius: From the numbers and the scale to the receptive field's radius in input pixels; ``None`` for networks
            that are not local, which take scale 1 alone.
    """

    pattern: str
    defaults: tuple[int, ...]
    build: Callable[[tuple[int, ...], int, int, bool], nn.Module]
    radius: Callable[[tuple[int, ...], int], int] | None

    def numbers(self, name: str) -> tuple[int, ...] | None:
        """Return the numbers in a name, ``None`` for another family's name."""
        match = re.fullmatch(self.pattern, name)
        if match is None:
            return None
        found = tuple(int(item) for item in match.groups() if item is not None) or self.defaults
        return found if all(1 <= number <= 1024 for number in found) else None


def _subpixel(width: int, scale: int, channels: int) -> nn.Sequential:
    return nn.Sequential(nn.Conv2d(width, channels * scale * scale, 3, padding=1), nn.PixelShuffle(scale))


def _skip_network(trunk: nn.Module, tail: nn.Module, scale: int, channels: int, published: bool) -> nn.Module:
    return SkipNetwork(trunk, tail, None if published else Enlargement(scale, channels))


def _espcn(numbers: tuple[int, ...], scale: int, channels: int, published: bool) -> nn.Module:
    (width,) = numbers
    half = max(1, width // 2)
    first, second = nn.Conv2d(channels, width, 5, padding=2), nn.Conv2d(width, half, 3, padding=1)
    active = nn.Tanh if published else nn.ReLU
    trunk = nn.Sequential(first, active(), second, active())
    return _skip_network(trunk, _subpixel(half, scale, channels), scale, channels, published)


def _fsrcnn(numbers: tuple[int, ...], scale: int, channels: int, published: bool) -> nn.Module:
    width, shrunk, mappings = numbers
    layers: list[nn.Module] = [nn.Conv2d(channels, width, 5, padding=2), nn.PReLU(width)]
    layers += [nn.Conv2d(width, shrunk, 1), nn.PReLU(shrunk)]
    for _ in range(mappings):
        layers += [nn.Conv2d(shrunk, shrunk, 3, padding=1), nn.PReLU(shrunk)]
    layers += [nn.Conv2d(shrunk, width, 1), nn.PReLU(width)]
    tail = nn.ConvTranspose2d(width, channels, 9, scale, padding=4, output_padding=scale - 1)
    return _skip_network(nn.Sequential(*layers), tail, scale, channels, published)


def _edsr(numbers: tuple[int, ...], scale: int, channels: int, published: bool) -> nn.Module:
    blocks, width = numbers

    def block() -> nn.Module:
        return _Residual(nn.Conv2d(width, width, 3, padding=1), nn.ReLU(), nn.Conv2d(width, width, 3, padding=1))

    body = _Residual(*[block() for _ in range(blocks)], nn.Conv2d(width, width, 3, padding=1))
    trunk = nn.Sequential(nn.Conv2d(channels, width, 3, padding=1), body)
    tail = _subpixel(width, scale, channels)
    if published:  # enlarges by 4 in two steps
        steps = [layer for step in ((2, 2) if scale == 4 else (scale,)) for layer in _subpixel(width, step, width)]
        tail = nn.Sequential(*steps, nn.Conv2d(width, channels, 3, padding=1))
    return _skip_network(trunk, tail, scale, channels, published)


_FAMILIES: dict[str, _Family] = {
    "espcn-WIDTH": _Family(r"espcn(?:-(\d+))?", (64,), _espcn, lambda numbers, scale: 4),
    "fsrcnn-D-S-M": _Family(
        # A transposed convolution of 9 pixels reaches 4 of the large ones.
        r"fsrcnn(?:-(\d+)-(\d+)-(\d+))?",
        (56, 12, 4),
        _fsrcnn,
        lambda numbers, scale: 2 + numbers[2] + 1 + 3 // scale,
    ),
    "unet-WIDTH-DEPTH": _Family(
        r"unet-(\d+)-([1-6])", (), lambda numbers, _, channels, __: UNet(numbers[0], numbers[1], channels), None
    ),
    "style-WIDTH": _Family(
        r"style-(\d+)", (), lambda numbers, _, channels, __: StyleNetwork(numbers[0], channels), None
    ),
    "edsr-BLOCKS-WIDTH": _Family(r"edsr-(\d+)-(\d+)", (), _edsr, lambda numbers, scale: 2 * numbers[0] + 3),
}


def restorer_names() -> list[str]:
    """Return the names that ``build_restorer`` knows; upper-case parts stand for numbers."""
    return ["espcn", "fsrcnn", *_FAMILIES]


def is_restorer(name: str) -> bool:
    """Return whether a network's name is a restorer's."""
    return any(family.numbers(name) is not None for family in _FAMILIES.values())


def _find(name: str) -> tuple[_Family, tuple[int, ...]]:
    for family in _FAMILIES.values():
        numbers = family.numbers(name)
        if numbers is not None:
            return family, numbers
    close = difflib.get_close_matches(name, restorer_names(), n=1)
    hint = f"; did you mean {close[0]}?" if close else "."
    raise ModelError(f"unknown model {name!r} for restoration{hint} Accepted: {', '.join(restorer_names())}")


def receptive_radius(name: str, scale: int) -> int | None:
    """Return how many input pixels around a pixel its restoration looks at, in each direction; ``None`` for all.

    Args:
        name: Name of the network.
        scale: By how much it enlarges.

    Raises:
        ModelError: The name is not known.
    """
    family, numbers = _find(name)
    if family.radius is None:
        return None
    return max(family.radius(numbers, scale), 2)  # the enlargement alone looks at 2


def build_restorer(spec: ModelSpec, preprocessing: Preprocessing) -> RestorerNetwork:
    """Return a restorer, freshly initialized: but for ``style``, its answer is the plain enlargement.

    Args:
        spec: ``name`` as in the module's text, ``in_channels``, and among the arguments ``"scale"`` (1 to 4) and
            ``"published"``, whether it is the published form, and the widths of one that was pruned.
        preprocessing: Mean and deviation of the pixels.

    Raises:
        ModelError: The name is not known, the scale is not accepted, or the network cannot be cut to its widths.
    """
    family, numbers = _find(spec.name)
    scale = spec.arguments.get("scale")
    if scale not in (1, 2, 3, 4):
        raise ModelError(f"model {spec.name}: scale is {scale!r}; accepted: 1, 2, 3 or 4")
    if family.radius is None and scale != 1:
        raise ModelError(f"model {spec.name} keeps the size of images; it cannot enlarge them {scale} times")
    backbone = family.build(numbers, int(scale), spec.in_channels, bool(spec.arguments.get("published")))
    if isinstance(backbone, SkipNetwork):
        _initialize(backbone)
    cut_as_recorded(backbone, spec.arguments)
    return RestorerNetwork(backbone, preprocessing, int(scale))


def _initialize(backbone: SkipNetwork) -> None:
    for module in backbone.modules():
        if isinstance(module, nn.Conv2d):
            nn.init.kaiming_normal_(module.weight, nonlinearity="relu")
            if module.bias is not None:
                nn.init.zeros_(module.bias)
    for module in backbone.modules():
        if isinstance(module, _Residual):  # begins near the identity, or deep nets begin with large sums
            last = module.layers[-1]
            assert isinstance(last, nn.Conv2d)  # noqa: S101  for the type checker
            last.weight.data.mul_(0.3)
    for parameter in backbone.tail.parameters():
        nn.init.zeros_(parameter)
