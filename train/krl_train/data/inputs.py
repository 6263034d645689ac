"""The input of a network: what the user, its start and the data say of it."""

from __future__ import annotations

import logging
import statistics
from dataclasses import replace

from krl_runtime.errors import UsageError
from krl_runtime.images.preprocessing import Preprocessing
from krl_train.config import InputConfig
from krl_train.custom import is_custom
from krl_train.models import native_size, published_input

from .sources import LARGEST_NATIVE, Source

__all__ = ["preprocessing_for"]

_log = logging.getLogger("krl")

_CROP_FRACTION = 0.875  # 224 of 256 pixels, as ImageNet's networks are evaluated


def preprocessing_for(
    config: InputConfig,
    source: Source,
    model: str,
    *,
    pretrained: bool = False,
    trained: Preprocessing | None = None,
) -> Preprocessing:
    """Fill in what the configuration leaves open about the network's input.

    Args:
        config: What the user asked for.
        source: The data; its size counts for networks that take any, and it is measured for mean and std.
        model: Name of the network.
        pretrained: Whether the network starts from published weights, or from third-party ones: ``trained`` is then
            what those state, and ImageNet's normalization for networks for small images.
        trained: The input that the weights were trained with, which the network starts from; it stays as it is where
            the user does not say otherwise.
    """
    native = native_size(model)
    if pretrained and native is not None:
        trained = published_input(model)
    if trained is not None:
        kept = _kept(config, trained)
        if (kept.mean, kept.std) != (trained.mean, trained.std):
            _log.warning(
                "the weights were trained with mean %s and std %s; the normalization asked for is mean %s and std %s",
                *(trained.mean, trained.std, kept.mean, kept.std),
            )
        return kept
    if config.size is not None:
        height, width = config.size[0], config.size[-1]
    elif native is None:
        if source.size is None and is_custom(model):
            raise UsageError(f"--size is needed: krl does not know which size of images {model} takes")
        height, width = source.size or (32, 32)
    else:
        height = width = native
    channels = config.channels or (source.channels if native is None else 3)
    base = _kept(replace(config, size=(height, width), channels=channels), Preprocessing(height, width))
    if pretrained or (config.mean and config.std):
        return base
    sample = source.read("train", base, limit=2000)
    mean, std = sample.statistics()
    return replace(base, mean=config.mean or mean, std=config.std or std)


def _kept(config: InputConfig, trained: Preprocessing) -> Preprocessing:
    """Return an input with what the user says about it changed."""
    size = config.size or (trained.height, trained.width)
    small = min(size) <= LARGEST_NATIVE
    channels = config.channels or trained.channels
    fraction = trained.crop_fraction if config.size is None else 1.0 if small else _CROP_FRACTION
    return Preprocessing(
        height=size[0],
        width=size[-1],
        channels=channels,
        resize=config.resize or trained.resize,
        crop_fraction=config.crop_fraction or fraction,
        interpolation=config.interpolation or trained.interpolation,
        decode_tolerance=trained.decode_tolerance if config.decode_tolerance is None else config.decode_tolerance,
        mean=config.mean or _for_channels(trained.mean, channels),
        std=config.std or _for_channels(trained.std, channels),
    )


def _for_channels(values: tuple[float, ...], channels: int) -> tuple[float, ...]:
    """Return a mean or deviation for another number of channels: gray is taken for the mean of R, G and B."""
    return values if len(values) == channels else (statistics.fmean(values),) * channels
