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
from .further import check_further, fusion_arguments, with_further
from .joint import fit as fit_joint
from .start import parent_of, start_arguments, start_classifier, start_run, transferring
from .train import train_classifier

__all__ = ["fit"]


def fit(config: FitConfig) -> Run:
    """Train a classifier from labels.

    Raises:
        KrlError: The data, the network or the configuration cannot be used, or training failed.
    """
    if config.joint.is_asked:
        return fit_joint(config)
    check_further(config)
    columns = (config.further.columns, config.further.further_images)
    source = open_source(config.data, seed=config.loop.seed, columns=columns)
    check_options(source, config.optim, config.loop)
    init = start_run(config)
    trained = init.record.preprocessing if init else None
    preprocessing = preprocessing_for(
        config.input, source, config.model, pretrained=config.pretrained and init is None, trained=trained
    )
    source = with_further(source, config.further, preprocessing)
    training = read_training(source, preprocessing, config.augment, config.loop.seed)
    data = training.describe()
    if config.synthetic.augment_from is not None:
        source.require_one_class("--augment-from")
        training, data["synthetic"] = add_synthetic(training, config.synthetic, preprocessing, config.loop.seed)
    arguments = start_arguments(init, config.model) | custom_arguments(config.model, preprocessing.shape)
    arguments |= fusion_arguments(source.further, config.further.input_fusion)
    spec = ModelSpec(config.model, len(source.labels), preprocessing.channels, arguments)
    sources = sources_of([("model", config.model), ("data", config.data.data)])
    torch.manual_seed(config.loop.seed)
    network = spec.build(preprocessing, pretrained=config.pretrained)
    starts = init is not None or config.pretrained
    transferred = start_classifier(network, init, config.model, source.labels) if starts else frozenset()
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
        parent=parent_of(init, config.model, network, transferred),
        sources=sources,
    )
    supervised = Supervised(network, config.optim.label_smoothing, class_weights(training.train, config.loop))
    objective = transferring(supervised, config.transfer, transferred, config.model)
    finished = prepare_out(config.out, record, resume=config.resume, overwrite=config.overwrite)
    if finished is not None:
        return finished
    return train_classifier(
        lambda _: objective,
        network,
        training,
        record,
        config.optim,
        config.loop,
        config.out,
        resume=config.resume,
    )
