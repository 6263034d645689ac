"""Third-party classifiers: they need the data that they are measured on."""

from __future__ import annotations

import logging
from collections.abc import Mapping

from torch import Tensor

from krl_train.config import ImportConfig
from krl_train.data import open_source, preprocessing_for
from krl_train.evaluation.evaluate import evaluate_run, pick_split
from krl_train.evaluation.training_data import UNKNOWN
from krl_train.models import Network, build_model, native_size
from krl_train.run import ModelSpec
from krl_train.training.train import network_size

from .matching import find_weights, match_weights
from .spellings import POOLED, rename_for, siblings
from .target import Measured, Target
from .weights import read_weights

__all__ = ["classifier_target"]

_log = logging.getLogger("krl")


def classifier_target(config: ImportConfig) -> Target:
    """Return the classifier that the weights are for, with the classes of the data.

    Raises:
        KrlError: The data or the network cannot be used.
    """
    source = open_source(config.data)
    labels = source.labels
    preprocessing = preprocessing_for(config.input, source, config.model, pretrained=True)
    if config.input.mean is None or config.input.std is None:
        _log.warning(
            "--mean and --std are not given; mean %s and std %s are assumed, those of %s: check that the weights were "
            "trained so",
            preprocessing.mean,
            preprocessing.std,
            "the network's published weights" if native_size(config.model) else "ImageNet",
        )
    weights = read_weights(config.weights)
    spec = ModelSpec(
        _fitting(config, weights, len(labels), preprocessing.channels), len(labels), preprocessing.channels
    )
    network = Network(build_model(spec.name, spec.num_classes, spec.in_channels), preprocessing)
    entry = match_weights(
        weights,
        network.backbone,
        f"weights {config.weights}",
        key=config.weights_key,
        rename=rename_for(spec.name),
    )

    if spec.name in POOLED:
        _log.info(
            "weights do not say whether a max pooling follows the stem; if top1 is low, try --model %s",
            POOLED[spec.name],
        )

    def measure() -> Measured:
        split = pick_split(source, config.split)
        data = source.read(split, preprocessing, limit=config.data.val_limit)
        metrics = evaluate_run(network, labels, data, config.device)
        measured = {**metrics, "split": split, "trained_on": UNKNOWN, **network_size(network)}
        return Measured(measured, source.describe({"val": data}))

    return Target("classification", spec, network, entry, measure, labels, source.output_kind)


def _fitting(config: ImportConfig, weights: Mapping[str, Tensor], classes: int, channels: int) -> str:
    """Return the network that is asked for, or its sibling where only that fits."""
    for name in (config.model, *siblings(config.model)):
        backbone = build_model(name, classes, channels)
        best, _ = find_weights(weights, backbone, key=config.weights_key, rename=rename_for(name))
        if best.complete:
            if name != config.model:
                _log.info("the weights have the shortcuts of %s, not of %s; the run is a %s", name, config.model, name)
            return name
    return config.model
