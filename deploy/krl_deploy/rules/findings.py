"""Results of a check: findings, with their sources."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final, Literal

__all__ = ["SEVERITIES", "Finding", "Rule", "Severity"]

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
