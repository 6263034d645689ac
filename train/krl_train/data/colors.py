"""RandAugment, TrivialAugmentWide and color jitter, by torchvision's rules."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cache
from typing import Literal

import numpy as np
import torch
from torch import Tensor

from .draws import Draws

__all__ = ["AutoAugment", "ColorJitter", "apply_operation", "operations"]

Policy = Literal["randaugment", "trivialaugment"]

_BINS = 31  # magnitudes of each operation, as by default in torchvision
# Draws of each kind begin at a number of their own. An operation takes 3, and there may be any number of them.
_JITTER_DRAWS, _OPERATION_DRAWS = 300, 1000
_SIGNED = frozenset(
    ["ShearX", "ShearY", "TranslateX", "TranslateY", "Rotate", "Brightness", "Color", "Contrast", "Sharpness"]
)


@cache
def operations(policy: Policy, height: int, width: int) -> Mapping[str, tuple[float, ...]]:
    """Return the operations of a policy and their magnitudes, 31 or, where there is nothing to choose, none.

    Args:
        policy: ``"randaugment"`` (https://arxiv.org/abs/1909.13719) or ``"trivialaugment"``, its wide space
            (https://arxiv.org/abs/2103.10158).
        height: Of the views.
        width: Of the views.
    """
    shear, angle, color, bits, across, down = {
        "randaugment": (0.3, 30.0, 0.9, 4, 150.0 / 331.0 * width, 150.0 / 331.0 * height),
        "trivialaugment": (0.99, 135.0, 0.99, 6, 32.0, 32.0),
    }[policy]

    def up_to(largest: float) -> tuple[float, ...]:
        return tuple(torch.linspace(0.0, largest, _BINS).tolist())

    return {
        "Identity": (),
        **{"ShearX": up_to(shear), "ShearY": up_to(shear)},
        **{"TranslateX": up_to(across), "TranslateY": up_to(down)},
        "Rotate": up_to(angle),
        **{name: up_to(color) for name in ("Brightness", "Color", "Contrast", "Sharpness")},
        "Posterize": tuple((8 - torch.arange(_BINS) / ((_BINS - 1) / bits)).round().tolist()),  # bits that are kept
        "Solarize": tuple(torch.linspace(1.0, 0.0, _BINS).tolist()),
        "AutoContrast": (),
        "Equalize": (),
    }


def apply_operation(image: Tensor, name: str, magnitude: float) -> Tensor:
    """Return an image after one operation; black comes in from outside.

    Args:
        image: ``[C, H, W]`` of uint8. Color does nothing to a gray one.
        name: One of ``operations``.
        magnitude: One of its magnitudes, or its negative where it has two directions; ignored where it has none.
    """
    return _OPERATIONS[name](image, magnitude)


def _affine(image: Tensor, *, across: float = 0, down: float = 0, x: float = 0.0, y: float = 0.0) -> Tensor:
    """Move an image by pixels, and shear it by the tangents ``x`` and ``y`` about its corner."""
    from torchvision.transforms.v2 import functional

    shear = [math.degrees(math.atan(x)), math.degrees(math.atan(y))]
    center = [0.0, 0.0] if x or y else None
    moved = [int(across), int(down)]
    changed: Tensor = functional.affine(image, angle=0.0, translate=moved, scale=1.0, shear=shear, center=center)
    return changed


def _call(name: str, image: Tensor, *arguments: float) -> Tensor:
    from torchvision.transforms.v2 import functional

    changed: Tensor = getattr(functional, name)(image, *arguments)
    return changed


_OPERATIONS: Mapping[str, Callable[[Tensor, float], Tensor]] = {
    "Identity": lambda image, _: image,
    "ShearX": lambda image, magnitude: _affine(image, x=magnitude),
    "ShearY": lambda image, magnitude: _affine(image, y=magnitude),
    "TranslateX": lambda image, magnitude: _affine(image, across=magnitude),
    "TranslateY": lambda image, magnitude: _affine(image, down=magnitude),
    "Rotate": lambda image, magnitude: _call("rotate", image, magnitude),
    "Brightness": lambda image, magnitude: _call("adjust_brightness", image, 1 + magnitude),
    "Color": lambda image, magnitude: _call("adjust_saturation", image, 1 + magnitude),
    "Contrast": lambda image, magnitude: _call("adjust_contrast", image, 1 + magnitude),
    "Sharpness": lambda image, magnitude: _call("adjust_sharpness", image, 1 + magnitude),
    "Posterize": lambda image, magnitude: _call("posterize", image, int(magnitude)),
    "Solarize": lambda image, magnitude: _call("solarize", image, 255.0 * magnitude),
    "AutoContrast": lambda image, _: _call("autocontrast", image),
    "Equalize": lambda image, _: _call("equalize", image),
}


@dataclass(frozen=True)
class AutoAugment:
    """RandAugment or TrivialAugmentWide.

    Attributes:
        policy: Which one.
        ops: Operations on each view, one after the other.
        magnitude: Number of the magnitude, 0 to 30; ``None`` draws one.
    """

    policy: Policy
    ops: int
    magnitude: int | None

    def __call__(self, views: Tensor, draws: Draws) -> Tensor:
        """Return the views ``[N, C, H, W]`` of uint8 after changing them in place."""
        space = list(operations(self.policy, *views.shape[2:]).items())
        firsts = [_OPERATION_DRAWS + 3 * number for number in range(self.ops)]
        chosen = [draws.below(first, len(space)) for first in firsts]
        negative = [draws.uniform(first + 1) < 0.5 for first in firsts]
        bins = [draws.below(first + 2, _BINS) for first in firsts]
        for position, view in enumerate(views):
            image = view.contiguous()  # by planes: autocontrast is ten times as quick so
            for number in range(self.ops):
                name, magnitudes = space[chosen[number][position]]
                drawn = bins[number][position] if self.magnitude is None else self.magnitude
                magnitude = magnitudes[drawn] if magnitudes else 0.0
                minus = negative[number][position] and name in _SIGNED
                image = apply_operation(image, name, -magnitude if minus else magnitude)
            view.copy_(image)
        return views


@dataclass(frozen=True)
class ColorJitter:
    """Random brightness, contrast, saturation and hue, in random order: torchvision's ``ColorJitter``.

    Attributes:
        brightness: Largest change of the factor 1, 0 or more.
        contrast: The same.
        saturation: The same; does nothing to gray images.
        hue: Largest change in turns of the color circle, 0 to 0.5; does nothing to gray images.
    """

    brightness: float
    contrast: float
    saturation: float
    hue: float

    def __call__(self, views: Tensor, draws: Draws) -> Tensor:
        """Return the views ``[N, C, H, W]`` of uint8 after changing them in place."""
        changes = []
        for number, name in enumerate(("brightness", "contrast", "saturation", "hue")):
            most = getattr(self, name)
            low, high = (-most, most) if name == "hue" else (max(0.0, 1 - most), 1 + most)
            factors = draws.between(_JITTER_DRAWS + number, low, high).tolist()
            order = draws.uniform(_JITTER_DRAWS + 4 + number)
            if most:
                changes.append((f"adjust_{name}", factors, order))
        orders = np.argsort([order for _, _, order in changes], axis=0) if changes else np.empty((0, len(views)), int)
        for position, view in enumerate(views):
            image = view.contiguous()
            for which in orders[:, position]:
                name, factors, _ = changes[which]
                image = _call(name, image, factors[position])
            view.copy_(image)
        return views
