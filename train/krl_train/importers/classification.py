"""Third-party classifiers: they need the data that they are measured on."""

from __future__ import annotations

import logging

from krl_train.config import ImportConfig
from krl_train.data import open_source, preprocessing_for
from krl_train.evaluation.evaluate import evaluate_run, pick_split
from krl_train.models import Network, build_model
from krl_train.run import ModelSpec
from krl_train.training.train import network_size

from .target import Measured, Target

__all__ = ["classifier_target"]

_log = logging.getLogger("krl")


def classifier_target(config: ImportConfig) -> Target:
    """Return the classifier that the weights are for, with the classes of the data.

    Raises:
        KrlError: The data or the network cannot be used.
    """
    source = open_source(config.data)
    labels = source.labels
    if config.input.mean is None or config.input.std is None:
        _log.warning("--mean and --std are not given; ImageNet's are assumed: check that the weights were trained so")
    preprocessing = preprocessing_for(config.input, source, config.model, pretrained=True)
    spec = ModelSpec(config.model, len(labels), preprocessing.channels)
    network = Network(build_model(spec.name, spec.num_classes, spec.in_channels), preprocessing)

    def measure() -> Measured:
        split = pick_split(source, config.split, trained_on=None)
        data = source.read(split, preprocessing, limit=config.data.val_limit)
        metrics = evaluate_run(network, labels, data, config.device)
        return Measured({**metrics, "split": split, **network_size(network)}, source.describe({"val": data}))

    return Target("classification", spec, network, measure, labels)
