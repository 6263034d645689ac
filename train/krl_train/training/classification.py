"""``krl-train fit``: a classifier from labeled images."""

from __future__ import annotations

import torch

from krl_train.config import FitConfig, to_plain
from krl_train.custom import sources_of
from krl_train.data import open_source, preprocessing_for
from krl_train.data.splits import read_training
from krl_train.models.custom import custom_arguments
from krl_train.run import ModelSpec, Run, RunRecord
from krl_train.synthetic import add_synthetic
from krl_train.tasks import Supervised

from .balance import check_options, class_weights
from .folder import prepare_out
from .train import initialize_from, train_classifier

__all__ = ["fit"]


def fit(config: FitConfig) -> Run:
    """Train a classifier from labels.

    Raises:
        KrlError: The data, the network or the configuration cannot be used, or training failed.
    """
    source = open_source(config.data)
    check_options(source, config.optim, config.loop)
    init = Run.open(config.init) if config.init is not None else None
    trained = init.record.preprocessing if init else None
    preprocessing = preprocessing_for(
        config.input, source, config.model, pretrained=config.pretrained and init is None, trained=trained
    )
    training = read_training(source, preprocessing, config.augment, config.loop.seed)
    data = training.describe()
    if config.synthetic.augment_from is not None:
        source.require_one_class("--augment-from")
        training, data["synthetic"] = add_synthetic(training, config.synthetic, preprocessing, config.loop.seed)
    arguments = custom_arguments(config.model, preprocessing.shape)
    spec = ModelSpec(config.model, len(source.labels), preprocessing.channels, arguments)
    record = RunRecord(
        task="classification",
        model=spec,
        preprocessing=preprocessing,
        labels=source.labels,
        output_kind=source.output_kind,
        command="krl-train fit",
        configuration=to_plain(config),
        seed=config.loop.seed,
        data=data,
        parent=init.identity if init else None,
        sources=sources_of([("model", config.model), ("data", config.data.data)]),
    )
    torch.manual_seed(config.loop.seed)
    network = spec.build(preprocessing, pretrained=config.pretrained)
    if init is not None:
        initialize_from(network, init)
    finished = prepare_out(config.out, record, resume=config.resume, overwrite=config.overwrite)
    if finished is not None:
        return finished
    weights = class_weights(training.train, config.loop)
    return train_classifier(
        lambda made: Supervised(made, config.optim.label_smoothing, weights),
        network,
        training,
        record,
        config.optim,
        config.loop,
        config.out,
        resume=config.resume,
    )
