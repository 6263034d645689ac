"""Third-party restorers, and krl's own from their weights alone: ``krl-train import --model espcn`` and its like."""

from __future__ import annotations

import logging
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Literal

from torch import Tensor

from krl_runtime.errors import UsageError
from krl_runtime.images.preprocessing import Preprocessing
from krl_train.config import ImportConfig, RestorationConfig
from krl_train.evaluation.restoration import measure_restorer, read_measured
from krl_train.evaluation.training_data import UNKNOWN
from krl_train.models.restorers import RestorerNetwork, build_restorer
from krl_train.run import ModelSpec, RunRecord
from krl_train.training.restoration import restorer_preprocessing, restorer_spec
from krl_train.training.train import network_size

from .matching import Match, Rename, find_weights, match_weights
from .spellings import rename_restorer
from .target import Measured, Target
from .weights import read_weights

__all__ = ["restorer_target"]

_log = logging.getLogger("krl")

# Chosen for the record alone, where --size is not given: the network takes every size.
_SIZE = (64, 64)
# Of DIV2K's images, 0 to 1, as EDSR-PyTorch and BasicSR subtract it.
_DIV2K_MEAN = (0.4488, 0.4371, 0.4040)
_PUBLISHED_FAMILIES = ("espcn", "fsrcnn", "edsr")
_MEAN_SHIFT = ("sub_mean", "add_mean")
_SCALES = (2, 3, 4)  # that super-resolution has


@dataclass(frozen=True)
class _Form:
    """One network that the weights may belong to, and what they have of it."""

    spec: ModelSpec
    network: RestorerNetwork
    match: Match


def restorer_target(config: ImportConfig) -> Target:
    """Return the restorer that the weights are for, in krl's own form or in the published one.

    Scale and channels are read from the shapes. It is measured on the images that are named, if any.

    Raises:
        UsageError: The weights fit several scales, and none is given.
        KrlError: The weights do not fit, or the data cannot be used.
    """
    where = f"weights {config.weights}"
    everything = read_weights(config.weights)
    weights = {name: value for name, value in everything.items() if not set(name.split(".")) & set(_MEAN_SHIFT)}
    form = _fitting(config, weights, where)
    network, rename = form.network, _rename(form.spec, form.network)
    entry = match_weights(weights, network.backbone, where, key=config.weights_key, rename=rename)
    network = RestorerNetwork(network.backbone, _input(config, form.spec, everything), network.scale)
    if form.spec.arguments.get("published"):
        _fold_residual_scale(network, config)
        _log.info("the names are those of published code: nothing is added to the network's output")

    def measure() -> Measured:
        size = network_size(network)
        if config.data.data is None:
            return Measured(size, {})
        record = RunRecord("restoration", form.spec, network.preprocessing, (), "krl-train import", {}, 0, data={})
        root, split, truths = read_measured(record, config.data, config.split)
        metrics = measure_restorer(network, form.spec, truths, config.device)
        data = {
            "source": str(root.resolve()),
            "val_source": None,
            "root": str(config.data.data_root.resolve()),
            "val_fraction": config.data.val_fraction,
            "on_bad_image": config.data.on_bad_image,
            "val": truths.describe(),
        }
        return Measured({**metrics, "split": split, "trained_on": UNKNOWN, **size}, data)

    return Target("restoration", form.spec, network, entry, measure)


def _fitting(config: ImportConfig, weights: Mapping[str, Tensor], where: str) -> _Form:
    """Return the form of the network that the weights fit, or the closest, which will be refused."""
    forms = list(_forms(config, weights))
    fitting = [form for form in forms if form.match.complete]
    scales = sorted({form.spec.arguments["scale"] for form in fitting})
    if len(scales) > 1:
        raise UsageError(
            f"{where} fit {config.model} with every scale; give --scale, accepted: {', '.join(map(str, scales))}"
        )
    if fitting:
        return fitting[0]
    return max(forms, key=lambda form: len(form.match.tensors) - len(form.match.misshapen))


def _forms(config: ImportConfig, weights: Mapping[str, Tensor]) -> Iterator[_Form]:
    options = config.restorer
    enlarges = options.restore == "super-resolution"
    scales = (options.scale,) if options.scale is not None else _SCALES if enlarges else (RestorationConfig.scale,)
    colors: tuple[Literal["y", "rgb", "gray"], ...] = ("y", "rgb") if options.color is None else (options.color,)
    published = (False, True) if config.model.startswith(_PUBLISHED_FAMILIES) else (False,)
    for form in published:
        for scale in scales:
            for color in colors:
                asked = RestorationConfig(options.restore, scale, color, options.noise_level, options.jpeg_quality)
                spec = restorer_spec(config.model, asked)
                if form:
                    # The last convolution of EDSR, after the enlargement, looks at one input pixel more.
                    overlap = (spec.arguments["overlap"] or 0) + 1
                    spec = replace(spec, arguments={**spec.arguments, "published": True, "overlap": overlap})
                network = build_restorer(spec, restorer_preprocessing(spec.in_channels, _size(config)))
                rename = _rename(spec, network)
                match, _ = find_weights(weights, network.backbone, key=config.weights_key, rename=rename)
                yield _Form(spec, network, match)


def _size(config: ImportConfig) -> tuple[int, int]:
    size = config.input.size or _SIZE
    return size[0], size[-1]


def _rename(spec: ModelSpec, network: RestorerNetwork) -> Rename | None:
    names = list(network.backbone.state_dict())
    return rename_restorer(spec.name, names) if spec.arguments.get("published") else None


def _input(config: ImportConfig, spec: ModelSpec, weights: Mapping[str, Tensor]) -> Preprocessing:
    """Return how a network sees pixels: a published one 0 to 1, but EDSR 0 to 255, less the mean of DIV2K."""
    own = restorer_preprocessing(spec.in_channels, _size(config))
    mean, std, published = own.mean, own.std, spec.arguments.get("published")
    if published:
        mean = (0.0,) * spec.in_channels
    if published and spec.name.startswith("edsr"):
        mean = _DIV2K_MEAN if spec.in_channels == 3 else mean
        shift = next((value for name, value in weights.items() if name.endswith("sub_mean.bias")), None)
        if shift is None or float(shift.abs().max()) > 1:  # the file says whether its range is 0 to 1
            std = (1 / 255,) * spec.in_channels
    return replace(own, mean=config.input.mean or mean, std=config.input.std or std)


def _fold_residual_scale(network: RestorerNetwork, config: ImportConfig) -> None:
    """Multiply the last convolution of each residual block of an EDSR."""
    factor = config.restorer.res_scale
    if factor == 1 or not config.model.startswith("edsr"):
        return
    for name, value in network.backbone.state_dict().items():
        if re.search(r"\.layers\.\d+\.layers\.2\.", name):
            value.mul_(factor)
