"""krl-train import: third-party weights become a run."""

from __future__ import annotations

from krl_train.config import ImportConfig
from krl_train.data import open_source, preprocessing_for
from krl_train.evaluation.evaluate import evaluate_run, pick_split
from krl_train.models import Network, build_model
from krl_train.models.generators import is_generator
from krl_train.run import ModelSpec, Run
from krl_train.training.fit import network_size

from .weights import _log, match_weights, read_weights, write_import

__all__ = ["import_weights"]


def import_weights(config: ImportConfig) -> Run:
    """Turn foreign weights into a run, and measure them if there is data.

    Raises:
        KrlError: The weights do not fit the network, or the data cannot be used.
    """
    if is_generator(config.model):
        from .generator import import_generator

        return import_generator(config)
    if config.model.startswith("style-"):
        from .style import import_style

        return import_style(config)
    tensors = read_weights(config.weights)
    source = open_source(config.data)
    labels = source.labels
    if config.input.mean is None or config.input.std is None:
        _log.warning("--mean and --std are not given; ImageNet's are assumed: check that the weights were trained so")
    preprocessing = preprocessing_for(config.input, source, config.model, pretrained=True)
    spec = ModelSpec(config.model, len(labels), preprocessing.channels)
    network = Network(build_model(spec.name, spec.num_classes, spec.in_channels), preprocessing)
    match_weights(tensors, network.backbone, f"weights {config.weights}")
    split = pick_split(source, config.split, trained_on=None)
    data = source.read(split, preprocessing, limit=config.data.val_limit)
    metrics = evaluate_run(network, labels, data, config.device)
    measured = {**metrics, "split": split, **network_size(network)}
    described = source.describe({"val": data})
    return write_import(config, "classification", spec, network, measured, data=described, labels=labels)
