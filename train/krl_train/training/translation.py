"""``krl-train fit --task translation``: from pairs of images, one network that turns the one into the other."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from krl_runtime.errors import UsageError
from krl_train.config import FitConfig
from krl_train.data.pairs import read_pairs
from krl_train.models.restorers import receptive_radius
from krl_train.run import ModelSpec, Run
from krl_train.tasks.translation import TranslationObjective, TranslationTask

from .restoration import fit_restorer, restoration_training
from .start import start_run

__all__ = ["fit"]

_DEFAULT_PATCH = 64  # pixels a side
_DEFAULT_LR = 2e-4  # pix2pix's (Isola et al. 2017)


def fit(config: FitConfig) -> Run:
    """Train a network on pairs.

    Raises:
        KrlError: The pairs, the network or the configuration cannot be used, or training failed.
    """
    config = replace(config, optim=replace(config.optim, optimizer="adamw", lr=config.optim.lr or _DEFAULT_LR))
    options = config.translation
    arguments = {
        "scale": 1,
        "color": options.translation_color,
        "overlap": receptive_radius(config.model, 1),
        "degradation": {"kind": "none"},
    }
    spec = ModelSpec(config.model, 0, 3 if options.translation_color == "rgb" else 1, arguments)
    data = config.data
    if data.data is None:
        raise UsageError("no data is named; give --data FOLDER with the folders A and B")
    train, val = (read_pairs(Path(data.data), split, data, options.translation_color) for split in ("train", "val"))
    size = config.input.size or (_DEFAULT_PATCH,)
    training = restoration_training(config, spec, (size[0], size[-1]), train, val, Path(data.data), None)
    init = start_run(config)
    return fit_restorer(
        lambda network: TranslationObjective(network, options.pixel_weight, options.adversarial_weight),
        training,
        spec,
        config,
        init=init,
        task=TranslationTask,
    )
