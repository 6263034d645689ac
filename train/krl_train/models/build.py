"""Networks by name: the CIFAR family, torchvision's classifiers, and timm's behind an extra."""

from __future__ import annotations

import difflib
from typing import Any

from torch import nn

from krl_runtime.errors import ModelError, require
from krl_train.custom import is_custom

from .cifar import cifar_model, cifar_names
from .custom import build_custom
from .lenet import LeNet5

__all__ = ["build_model", "native_size"]


def native_size(name: str) -> int | None:
    """Return the side in pixels that a network was designed for, ``None`` where it takes small images as they are."""
    return None if is_custom(name) or _small_model(name, 2, 3) is not None else 224


def _small_model(name: str, num_classes: int, in_channels: int) -> nn.Module | None:
    """Return a network for small images, ``None`` for a name of none."""
    if name in ("lenet5", "lenet5-half"):
        return LeNet5(num_classes, in_channels, half=name == "lenet5-half")
    return cifar_model(name, num_classes, in_channels)


def build_model(name: str, num_classes: int, in_channels: int = 3, *, pretrained: bool = False) -> nn.Module:
    """Build a classifier by name.

    Args:
        name: ``"lenet5"``, ``"lenet5-half"``, one of ``cifar_names()``, a torchvision classifier (``"resnet18"``),
            ``"timm/NAME"``, or a user's own, ``"package.module:name"``.
        num_classes: Number of logits.
        in_channels: Channels of the input, 1 or 3; torchvision's networks take 3.
        pretrained: Start from the published ImageNet weights, which are downloaded unless they are in the cache;
            the classifier's last layer is made anew where ``num_classes`` is not theirs.

    Returns:
        The network, in training mode; it maps normalized ``[N, C, H, W]`` to logits ``[N, num_classes]``.

    Raises:
        ModelError: The name is not known, or pretrained weights do not exist or cannot be had.
        MissingExtraError: timm is not installed.
    """
    if num_classes < 1:
        raise ModelError(f"model {name}: num_classes is {num_classes}; accepted: 1 or more")
    if is_custom(name):
        if pretrained:
            raise ModelError(f"model {name}: krl has no weights for it; let it load its own, or leave out --pretrained")
        return build_custom(name, num_classes, in_channels)
    small = _small_model(name, num_classes, in_channels)
    if small is not None:
        if pretrained:
            raise ModelError(f"model {name} has no pretrained weights here; krl-train import takes third-party ones")
        return small
    make = _timm_model if name.startswith("timm/") else _torchvision_model
    return _with_short_memory(make(name, num_classes, in_channels, pretrained))


def _with_short_memory(model: nn.Module) -> nn.Module:
    """Let batch normalization forget its first statistics within tens of steps, not hundreds.

    Some networks (MobileNetV3, MNASNet, EfficientNet) come with a momentum of 0.01 or less, for the hundred thousand
    steps of ImageNet. In the few hundred steps of a small data set their running variance still remembers the 1 that it
    started from, and a network that trains well answers the same to every image when it is evaluated.
    """
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d) and module.momentum is not None:
            module.momentum = max(module.momentum, 0.1)
    return model


def _timm_model(name: str, num_classes: int, in_channels: int, pretrained: bool) -> nn.Module:
    timm = require("timm", extra="timm", purpose=f"model {name}")
    try:
        model: nn.Module = timm.create_model(
            name.removeprefix("timm/"), pretrained=pretrained, num_classes=num_classes, in_chans=in_channels
        )
    except (RuntimeError, ValueError, OSError) as error:
        raise ModelError(f"model {name}: timm cannot make it: {error}") from error
    return model


def _torchvision_model(name: str, num_classes: int, in_channels: int, pretrained: bool) -> nn.Module:
    models: Any = require("torchvision.models", extra="train", purpose=f"model {name}")
    known = models.list_models(module=models)
    if name not in known:
        close = difflib.get_close_matches(name, [*cifar_names(), *known], n=3)
        hint = f"; did you mean {' or '.join(close)}?" if close else ""
        raise ModelError(
            f"unknown model {name!r}{hint} Accepted: {', '.join(cifar_names())}, lenet5, lenet5-half, any torchvision "
            "classifier, timm/NAME, or your own as package.module:name"
        )
    if in_channels != 3:
        raise ModelError(f"model {name} takes RGB images, 3 channels, not {in_channels}; use --channels 3")
    if not pretrained:
        return _made(models.get_model(name, weights=None, num_classes=num_classes))
    try:
        model = _made(models.get_model(name, weights="DEFAULT"))
    except OSError as error:  # urllib's errors are OSErrors
        raise ModelError(f"model {name}: its pretrained weights cannot be downloaded: {error}") from error
    return model if num_classes == 1000 else _replace_head(name, model, num_classes)


def _made(model: Any) -> nn.Module:
    # GoogLeNet and Inception return auxiliary logits in training; one output is what every part of krl expects.
    for attribute in ("aux1", "aux2", "AuxLogits"):
        if hasattr(model, attribute):
            setattr(model, attribute, None)
            model.aux_logits = False
    assert isinstance(model, nn.Module)  # noqa: S101  for the type checker
    return model


def _replace_head(name: str, model: nn.Module, num_classes: int) -> nn.Module:
    """Replace the last linear layer or 1×1 convolution, which every torchvision classifier ends with."""
    for path, layer in reversed(list(model.named_modules())):
        new: nn.Module
        if isinstance(layer, nn.Linear):
            new = nn.Linear(layer.in_features, num_classes, bias=layer.bias is not None)
        elif isinstance(layer, nn.Conv2d) and layer.out_channels == 1000:
            new = nn.Conv2d(layer.in_channels, num_classes, layer.kernel_size)  # type: ignore[arg-type]
        else:
            continue
        parent, _, attribute = path.rpartition(".")
        setattr(model.get_submodule(parent), attribute, new)
        return model
    raise ModelError(f"model {name}: its classifier layer was not found; train it without --pretrained")
