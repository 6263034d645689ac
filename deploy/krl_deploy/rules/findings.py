"""Results of a check: findings, and where the facts behind them come from."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final, Literal

__all__ = ["SEVERITIES", "Finding", "Rule", "Severity"]

Severity = Literal["error", "warning", "note"]

SEVERITIES: Final[tuple[Severity, ...]] = ("error", "warning", "note")
"""Worst first."""


@dataclass(frozen=True)
class Finding:
    """One thing that is wrong, or may be, at one place.

    Attributes:
        severity: ``"error"``: the target refuses the file, or computes something else than it says; ``"warning"``: it
            is slow, or wrong on some devices; ``"note"``: worth knowing.
        rule: The rule, as ``"qdq/symmetric"``; the part before the slash is its family.
        node: The node's name, or the tensor's for an input, or empty for the whole file.
        op: The node's operator; empty where it is no node.
        why: What is wrong; the same words for all nodes where it is the same.
        do: What to do about it.
        source: Where the fact comes from.
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
