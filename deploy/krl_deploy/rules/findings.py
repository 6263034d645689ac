"""Results of a check: findings, with their sources."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final, Literal

__all__ = ["SEVERITIES", "Finding", "Rule", "Severity", "Verdict"]

Severity = Literal["error", "warning", "note"]

SEVERITIES: Final[tuple[Severity, ...]] = ("error", "warning", "note")
"""Worst first."""


@dataclass(frozen=True)
class Finding:
    """One certain or possible fault of a node or file.

    Attributes:
        severity: ``"error"``: the target refuses the file, or computes something else. ``"warning"``: it is slow, or
            wrong on some devices. ``"note"``: further information.
        rule: The rule, as ``"qdq/symmetric"``; the part before the slash is its family.
        node: The node's name, or the tensor's for an input, or empty for the whole file.
        op: The node's operator; empty if it is not a node.
        why: The fault; the same words for the same fault of all nodes.
        do: The remedy.
        source: Source of the fact.
    """

    severity: Severity
    rule: str
    node: str
    op: str
    why: str
    do: str
    source: str


@dataclass(frozen=True)
class Rule:
    """The shared part of the findings of one rule.

    Attributes:
        severity: See ``Finding``.
        name: See ``Finding.rule``.
        do: See ``Finding``.
        source: See ``Finding``.
    """

    severity: Severity
    name: str
    do: str
    source: str

    def at(self, node: str, op: str, why: str) -> Finding:
        """Return a finding of this rule."""
        return Finding(self.severity, self.name, node, op, why, self.do, self.source)


@dataclass(frozen=True)
class Verdict:
    """Result of NVIDIA's parser and builder for a file; their complaints are findings.

    Attributes:
        library: ``"TensorRT"`` or ``"TensorRT-RTX"``.
        version: Its version.
        parsed: Whether the parser took the file.
        built: Whether the builder made an engine of it; ``None`` where it was not asked.
        seconds: Duration of both; ``None`` where they did not come to an end.
        note: What the verdict does not say; empty if there is nothing.
        exact: Whether the library is the target's own, in its version.
    """

    library: str
    version: str
    parsed: bool
    built: bool | None
    seconds: float | None
    note: str = ""
    exact: bool = True

    @property
    def title(self) -> str:
        """Return name and version, as ``"TensorRT-RTX 1.7.1.116"``."""
        return f"{self.library} {self.version}"
