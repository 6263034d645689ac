"""Further heads of a classifier: outputs beside the first one, each with labels of its own."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Final

from .manifest import Manifest

__all__ = ["HEADS", "Head", "further_heads"]

HEADS: Final = "heads"
"""Name of the further heads among a manifest's settings; where it is absent the first output is the only one."""


@dataclass(frozen=True)
class Head:
    """A further output of a classifier: logits.

    Attributes:
        name: What results are named after, as ``"source"``.
        output: Name of the graph's output.
        labels: Class names in the order of its logits.
    """

    name: str
    output: str
    labels: tuple[str, ...]

    def to_dict(self) -> dict[str, Any]:
        """Return the head as a manifest's settings have it."""
        return {"name": self.name, "output": self.output, "labels": list(self.labels)}


def further_heads(manifest: Manifest) -> tuple[Head, ...]:
    """Return the heads of a classifier's outputs after the first one.

    Raises:
        ValueError: The settings are not well formed, or do not fit the outputs.
    """
    given = manifest.settings.get(HEADS, [])
    heads = tuple(map(_head, given)) if isinstance(given, list) else None
    if heads is None or any(head is None for head in heads):
        raise ValueError(f"{HEADS} is {given!r}; accepted: a list of name, output and labels, all of them text")
    known = tuple(head for head in heads if head is not None)
    stated = [(head.output, [len(head.labels)]) for head in known]
    there = [(spec.name, list(spec.shape[1:])) for spec in manifest.outputs[1:]]
    if stated != there or len({head.name for head in known}) < len(known):
        raise ValueError(
            f"{HEADS} are for the outputs {stated} with as many labels, and the outputs after the first are {there}"
        )
    return known


def _head(values: Any) -> Head | None:
    """Return a head; ``None`` for values that are none."""
    if not isinstance(values, Mapping) or set(values) != {"name", "output", "labels"}:
        return None
    name, output, labels = values["name"], values["output"], values["labels"]
    texts = isinstance(labels, list) and bool(labels) and all(isinstance(label, str) for label in labels)
    if not (texts and isinstance(name, str) and name and isinstance(output, str)):
        return None
    return Head(name, output, tuple(labels))
