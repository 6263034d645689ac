"""The planner's view of a precision: what can be kept, how a part alone is measured, how a plan is written."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

__all__ = ["Emitted", "Group", "Subject"]


@dataclass(frozen=True)
class Group:
    """Layers or nodes that are kept in the higher precision, or not, as one.

    Attributes:
        layers: Their names, in the order of execution.
        ops: Their operators.
        macs: Multiply-accumulates of each one; ``None`` where a shape is not known.
    """

    layers: tuple[str, ...]
    ops: tuple[str, ...]
    macs: tuple[int | None, ...]

    @property
    def name(self) -> str:
        """Name of the group: that of its first layer, which is in no other group."""
        return self.layers[0]


@dataclass(frozen=True)
class Emitted:
    """The files of one plan.

    Attributes:
        sessions: Sessions to judge, by file.
        precisions: Precision of each layer in each file, by the layer's name: ``{"tensorrt": "int8", "cpu": "fp32"}``.
        fault: Reason why the files cannot be used, whatever they compute; ``None`` if they can.
    """

    sessions: Mapping[str, Any]
    precisions: Mapping[str, Mapping[str, str]] = field(default_factory=dict)
    fault: str | None = None


class Subject(Protocol):
    """A model and the precision to plan."""

    precision: str
    """The lower precision: ``"int8"`` or ``"fp16"``."""
    kept: str
    """Words for what stays in the higher precision, as ``"layers in float"``."""
    files: tuple[str, str]
    """Names of the plan and of its plot in a bundle."""
    fp32: bytes
    """The reference."""
    groups: Sequence[Group]
    """Layers that can be kept, in the order of execution."""
    identity: Mapping[str, Any]
    """Everything that the graphs depend on."""

    def alone(self, group: Group) -> list[bytes]:
        """Return models in which only this group has the lower precision."""
        ...

    def emit(self, keep: Mapping[str, str]) -> Emitted:
        """Write a plan.

        Args:
            keep: Names of the layers to keep, each with the reason.
        """
        ...
