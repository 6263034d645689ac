"""Images of a generator for one condition after the other, all else being the same."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from krl_runtime.conditions import attribute_values, encode, words
from krl_runtime.errors import UsageError
from krl_runtime.pipelines.raster import Raster
from krl_runtime.progress import progress
from krl_train.models.generators import GeneratorNetwork
from krl_train.models.sampling import generate_pixels, image_grid, sample_latents

__all__ = ["Factor", "explain_conditions", "factors_of"]

_log = logging.getLogger("krl")

_LATENTS = 8  # rows of a grid: images that differ in the latent alone
_MOST_VALUES = 16  # columns of a grid that fit a screen
_SEED = 0  # of the latents, the same for all conditions


@dataclass(frozen=True)
class Factor:
    """A part of a condition that is changed while all others stay.

    Attributes:
        name: Of the attribute or relation; ``"label"``; of a description the word and its place.
        values: What it is changed to, the first one being that of the base.
        conditions: The whole condition for each value, as ``krl_runtime.conditions.encode`` takes it.
    """

    name: str
    values: tuple[str, ...]
    conditions: tuple[str, ...]


def factors_of(settings: Mapping[str, Any], base: str | None) -> list[Factor]:
    """Return the parts of a generator's conditions, each with the conditions that differ in it alone.

    Args:
        settings: The settings of the condition.
        base: The condition that is changed. By default the first label, or the first value of each attribute or
            relation; a description has none.

    Raises:
        UsageError: The base is not known, or is needed and missing.
    """
    kind = settings["kind"]
    if base is not None:
        encode(base, settings)
    if kind == "labels":
        return [_limited("label", _first(base, settings["vocabulary"]), lambda value: value)]
    if kind == "text":
        return _of_words(base)
    values = attribute_values(settings) if kind == "attributes" else _relations(settings)
    parts = {} if base is None else dict(part.split("=", 1) for part in base.split(",") if "=" in part)
    parts = {name.strip(): value.strip() for name, value in parts.items()}
    entity = [] if base is None or kind == "attributes" else [part for part in base.split(",") if "=" not in part]
    if base is None:
        parts = {name: each[0] for name, each in values.items() if each}

    def condition(name: str, value: str) -> str:
        return ",".join([*entity, *(f"{key}={each}" for key, each in {**parts, name: value}.items())])

    return [
        _limited(name, _first(parts.get(name), each), lambda value, name=name: condition(name, value))
        for name, each in values.items()
        if len(each) > 1
    ]


def _relations(settings: Mapping[str, Any]) -> dict[str, list[str]]:
    """Return the entities that each relation of a graph leads to."""
    found: dict[str, list[str]] = {name: [] for name in settings["relations"]}
    for _, relation, tail in settings["facts"]:
        if tail not in found[relation]:
            found[relation].append(tail)
    return found


def _of_words(base: str | None) -> list[Factor]:
    if base is None:
        raise UsageError("give a description with --condition; its words are left out in turn")
    found = words(base)
    if len(found) < 2:
        raise UsageError(
            f"--condition {base!r} has {len(found)} words, which are left out in turn; accepted: 2 or more"
        )
    return [
        Factor(f"{place + 1} {word}", (word, "(left out)"), (base, " ".join(found[:place] + found[place + 1 :])))
        for place, word in enumerate(found)
    ]


def _first(chosen: str | None, values: Sequence[str]) -> list[str]:
    """Return values with the chosen one first."""
    return list(values) if chosen is None else [chosen, *(value for value in values if value != chosen)]


def _limited(name: str, values: Sequence[str], condition: Any) -> Factor:
    if len(values) > _MOST_VALUES:
        _log.warning("%s has %d values; the first %d are shown", name, len(values), _MOST_VALUES)
    shown = tuple(values[:_MOST_VALUES])
    return Factor(name, shown, tuple(condition(value) for value in shown))


def explain_conditions(generator: GeneratorNetwork, base: str | None, folder: Path) -> dict[str, Any]:
    """Write a grid for each part of the conditions: the same latents in all columns, another value in each.

    Args:
        generator: In eval mode.
        base: The condition that is changed; see ``factors_of``.
        folder: Where the grids go.

    Returns:
        ``kind``, ``latent_change`` (the mean absolute difference that another latent makes, in levels of 255), and
        ``factors``: each with ``name``, ``figure`` (the grid's file) and ``values``. A value has
        ``mean_absolute_change`` from the first value, over images, pixels and channels, in levels of 255.

    Raises:
        UsageError: The generator takes no condition, or the base is not known.
    """
    settings = generator.condition
    if settings is None:
        raise UsageError("the generator takes no condition, so that none can be changed; give --teacher RUN")
    factors = factors_of(settings, base)
    latents = sample_latents(_LATENTS, generator.latent_size, _SEED)
    described, latent_changes = [], []
    for number, factor in enumerate(progress(factors, "changing conditions")):
        images = _images(generator, settings, factor, latents)
        name = f"condition-{number}.png"
        values, rows = images.shape[:2]
        Raster(image_grid(images.transpose(0, 1).flatten(0, 1), columns=values)).save(folder / name)
        changes = (images.float() - images[0].float()).abs().flatten(1).mean(1)
        latent_changes.append(float((images[0].float() - images[0].roll(1, 0).float()).abs().mean()) if rows > 1 else 0)
        shown = [
            {"value": value, "condition": condition, "mean_absolute_change": round(float(change), 3)}
            for value, condition, change in zip(factor.values, factor.conditions, changes, strict=True)
        ]
        described.append({"name": factor.name, "figure": name, "values": shown})
    mean = sum(latent_changes) / max(1, len(latent_changes))
    return {"kind": settings["kind"], "latent_change": round(mean, 3), "factors": described}


def _images(generator: GeneratorNetwork, settings: Mapping[str, Any], factor: Factor, latents: Tensor) -> Tensor:
    """Return images ``[values, latents, C, H, W]`` of uint8."""
    tokens = torch.from_numpy(encode(list(factor.conditions), settings)).repeat_interleave(len(latents), 0)
    pixels = generate_pixels(generator, latents.repeat(len(factor.conditions), 1), tokens)
    return pixels.reshape(len(factor.conditions), len(latents), *pixels.shape[1:])
