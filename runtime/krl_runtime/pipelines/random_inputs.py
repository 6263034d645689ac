"""Random latents and conditions of a generator, as in real use: to calibrate, to test and to measure it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import numpy as np

from krl_runtime.conditions import Condition, attribute_values, encode

from .generator import CONDITION, LATENT, latents_of

if TYPE_CHECKING:
    import numpy.typing as npt

__all__ = ["random_conditions", "random_inputs"]


def random_inputs(settings: Mapping[str, Any], count: int, seed: int) -> dict[str, npt.NDArray[Any]]:
    """Return inputs of a generator as ``Generator.generate`` draws them.

    Args:
        settings: Of the bundle.
        count: How many.
        seed: Of the latents and the conditions.
    """
    latent = settings["latent"]
    inputs: dict[str, npt.NDArray[Any]] = {LATENT: latents_of(seed, count, latent["size"], latent["distribution"])}
    if settings.get("condition") is not None:
        inputs[CONDITION] = encode(random_conditions(settings["condition"], count, seed), settings["condition"])
    return inputs


def random_conditions(condition: Mapping[str, Any], count: int, seed: int) -> list[Condition]:
    """Return conditions: each label in turn; or random attribute values, entities or words of the vocabulary.

    Args:
        condition: Its settings, see ``krl_runtime.conditions``.
        count: How many.
        seed: Of the choice.
    """
    rng = np.random.default_rng(seed)
    vocabulary = list(condition["vocabulary"])
    if condition["kind"] == "labels":
        return [vocabulary[number % len(vocabulary)] for number in range(count)]
    if condition["kind"] == "attributes":
        values = attribute_values(condition)
        return [{name: str(rng.choice(each)) for name, each in values.items() if each} for _ in range(count)]
    if condition["kind"] == "graph":
        return [str(name) for name in rng.choice(_entities(condition), count)]
    known = [word for word in vocabulary if word and word not in condition.get("untrained", ())]
    return [" ".join(rng.choice(known, int(rng.integers(1, condition["length"] + 1)))) for _ in range(count)]


def _entities(condition: Mapping[str, Any]) -> list[str]:
    """Return the entities of a graph whose facts a condition has room for."""
    about = [fact[0] for fact in condition["facts"]]
    entities = condition["vocabulary"][1 + len(condition["relations"]) :]
    return [name for name in entities if 2 * about.count(name) <= condition["length"]]
