"""The start of a generator and its discriminator from a run, for other images, classes or attributes."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from krl_runtime.errors import RunError, UsageError
from krl_runtime.images.preprocessing import Preprocessing
from krl_train.config import FitConfig, GenerationConfig
from krl_train.models import load_weights
from krl_train.models.discriminators import Discriminator, build_discriminator, discriminator_width
from krl_train.models.generators import GeneratorNetwork
from krl_train.run import ModelSpec, Run

from .start import start_run

__all__ = ["check_start", "make_discriminator", "start_generator", "start_of_generator"]

_log = logging.getLogger("krl")

_TOKENS = "conditioner.embedding.weight"  # of labels and attributes: one row for each token of the vocabulary
_CARRIED = ("labels", "attributes")  # kinds of conditions whose vocabulary may be another one
_SHOWN = 5  # names in a message


def start_of_generator(config: FitConfig) -> Run | None:
    """Return the generator's run that a training starts from; ``None`` where it starts afresh.

    Raises:
        RunError: The run cannot be used, or is not a generator's.
        UsageError: It has another architecture than ``--model`` or ``--latent`` say.
    """
    run = start_run(config)
    if run is None:
        return None
    record = run.record
    if config.model != record.model.name:
        raise UsageError(
            f"--model is {config.model}, but the run {run.path} is a {record.model.name}, whose weights have no place "
            "there; leave --model out"
        )
    latent = record.model.arguments["latent"]
    if config.generation.latent not in (GenerationConfig.latent, latent):
        raise UsageError(f"--latent is {config.generation.latent}, but the run {run.path} has {latent}; leave it out")
    return run


def check_start(run: Run, preprocessing: Preprocessing, condition: Mapping[str, Any] | None) -> None:
    """Check that images and conditions are of the kind that a run has.

    Args:
        run: The generator's.
        preprocessing: Size and channels of the images that are asked for.
        condition: Settings of the condition that is asked for, if any.

    Raises:
        UsageError: They are not.
    """
    there = run.record.preprocessing
    if preprocessing.shape != there.shape:
        asked, had = ("×".join(map(str, item.shape[1:])) for item in (preprocessing, there))
        raise UsageError(
            f"--from {run.path} makes images of {had} with {there.channels} channels, and {asked} with "
            f"{preprocessing.channels} are asked for; leave --size and --channels out, images are resized"
        )
    old: Mapping[str, Any] = run.record.model.arguments.get("condition") or {}
    new = condition or {}
    kinds = [settings.get("kind", "none") for settings in (old, new)]
    if kinds[0] != kinds[1]:
        raise UsageError(
            f"--from {run.path} was trained with --condition {kinds[0]}, and --condition {kinds[1]} is asked for; "
            f"give --condition {kinds[0]}, whose classes or attributes may be others"
        )
    if old.get("dim") != new.get("dim"):
        raise UsageError(
            f"--condition-dim is {new.get('dim')}, but the run {run.path} has {old.get('dim')}; give that one"
        )
    if kinds[0] not in (*_CARRIED, "none") and _without_vectors(old) != _without_vectors(new):
        raise UsageError(
            f"--from {run.path} was trained with --condition {kinds[0]} of another --condition-file; it can go on with "
            f"the same words or facts alone ({' and '.join(_CARRIED)} may be others)"
        )


def start_generator(generator: GeneratorNetwork, run: Run) -> None:
    """Copy a run's weights, after ``check_start``; tokens that the run has not get the mean of its tokens.

    Raises:
        RunError: The weights do not fit.
    """
    _load(generator.backbone, run.state(), run, generator.condition)
    _log.info("the generator starts from %s", run.path)


def make_discriminator(
    config: FitConfig, spec: ModelSpec, preprocessing: Preprocessing, condition: Mapping[str, Any] | None
) -> Discriminator:
    """Return the discriminator of a training: that of the run it starts from, or a fresh one.

    Args:
        config: The training's.
        spec: The generator's.
        preprocessing: Of the images.
        condition: Settings of the condition, if any.

    Raises:
        RunError: The run has no discriminator and no fresh one is asked for, or its weights do not fit.
        UsageError: ``--discriminator-width`` is another one than the run's, or there are fewer layers than are to be
            frozen.
    """
    width, options = config.generation.discriminator_width, config.discriminator_start
    run = start_run(config)
    if run is None or options.fresh_discriminator:
        return build_discriminator(spec.name, preprocessing, condition, width)
    state = run.discriminator_state()
    if not state:
        raise RunError(
            f"run {run.path} has no discriminator (it was imported, distilled without one, or is a VAE's); give "
            "--fresh-discriminator to begin with one that has not seen any image"
        )
    trained = discriminator_width(state)
    if width not in (None, trained):
        raise UsageError(
            f"--discriminator-width is {width}, but the run {run.path} has {trained}; leave it out, or give "
            "--fresh-discriminator"
        )
    discriminator = build_discriminator(spec.name, preprocessing, condition, trained)
    _load(discriminator, state, run, condition)
    discriminator.freeze(options.freeze_discriminator)
    return discriminator


def _load(module: nn.Module, state: dict[str, Tensor], run: Run, condition: Mapping[str, Any] | None) -> None:
    if condition is not None and condition["kind"] in _CARRIED:
        names = run.record.model.arguments["condition"]["vocabulary"]
        state = {**state, _TOKENS: _rows(state[_TOKENS], names, condition["vocabulary"])}
    try:
        load_weights(module, state)
    except RuntimeError as error:
        raise RunError(f"run {run.path}: its weights do not fit: {error}") from error


def _rows(rows: Tensor, names: list[str], wanted: list[str]) -> Tensor:
    """Return one row for each wanted token: the one of the same name, or the mean of all, which is no class's."""
    known = dict(zip(names, rows, strict=True))
    fresh = [name for name in wanted if name not in known]
    if fresh:
        shown = ", ".join(fresh[:_SHOWN]) + (", …" if len(fresh) > _SHOWN else "")
        _log.info("new conditions start from the mean of the run's: %s", shown)
    return torch.stack([known.get(name, rows.mean(0)) for name in wanted])


def _without_vectors(settings: Mapping[str, Any]) -> dict[str, Any]:
    """Return settings of a condition without the words' vectors, which are among the weights."""
    return {name: value for name, value in settings.items() if name != "vectors"}
