"""Budgets: what a deployed student may cost, as ``latency=2ms``."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal, TypeAlias

from krl_runtime.errors import UsageError

__all__ = ["QUANTITIES", "Budget", "Quantity", "parse_amount", "parse_budgets", "parse_seconds", "show_amount"]

Quantity: TypeAlias = Literal["latency", "memory", "size", "macs"]

_UNITS: Mapping[Quantity, Mapping[str, float]] = {
    "latency": {"us": 1e-3, "ms": 1.0, "s": 1e3},
    "memory": {"KB": 1e3, "MB": 1e6, "GB": 1e9, "KiB": 2**10, "MiB": 2**20, "GiB": 2**30},
    "size": {"B": 1, "KB": 1e3, "MB": 1e6, "GB": 1e9, "KiB": 2**10, "MiB": 2**20, "GiB": 2**30},
    "macs": {"": 1, "k": 1e3, "K": 1e3, "M": 1e6, "G": 1e9},
}
"""For each quantity its units, as factors of the one that krl counts in: milliseconds, bytes, or operations."""

QUANTITIES: Mapping[Quantity, str] = {
    "latency": "p50 of the network at batch 1",
    "memory": "peak of the process that runs it",
    "size": "model file",
    "macs": "multiply-accumulate operations of one image",
}
"""The quantities, and what is measured of each."""

_EXAMPLES: Mapping[Quantity, str] = {"latency": "2ms", "memory": "200MB", "size": "300KB", "macs": "10M"}
_SECONDS = {"s": 1.0, "m": 60.0, "min": 60.0, "h": 3600.0}


@dataclass(frozen=True)
class Budget:
    """The most of a quantity that a student may cost.

    Attributes:
        quantity: See ``QUANTITIES``.
        most: In milliseconds, bytes or operations.
    """

    quantity: Quantity
    most: float

    def __str__(self) -> str:
        """Return the budget as people write it."""
        return f"{self.quantity} {show_amount(self.quantity, self.most)}"


def parse_budgets(texts: Sequence[str]) -> list[Budget]:
    """Return budgets, from ``QUANTITY=AMOUNT`` with a unit.

    Args:
        texts: As in ``["latency=2ms", "size=300KB"]``.

    Raises:
        UsageError: There is none, a quantity or unit is not known, an amount is not above 0, or a quantity is given
            twice.

    Example:
        >>> [str(budget) for budget in parse_budgets(["latency=2ms", "size=300KB"])]
        ['latency 2 ms', 'size 300 KB']
    """
    if not texts:
        raise UsageError("no budget is given; give --budget latency=2ms, or memory=200MB, size=300KB or macs=10M")
    found: dict[str, Budget] = {}
    for text in texts:
        name, equals, amount = text.partition("=")
        quantity = next((known for known in QUANTITIES if known == name), None)
        if quantity is None or not equals:
            accepted = ", ".join(f"{known}={example}" for known, example in _EXAMPLES.items())
            raise UsageError(f"--budget {text}: accepted: {accepted}")
        if quantity in found:
            raise UsageError(f"--budget {name} is given twice; leave one of them out")
        found[quantity] = Budget(quantity, parse_amount(quantity, amount, f"--budget {text}"))
    return list(found.values())


def parse_amount(quantity: Quantity, text: str, option: str) -> float:
    """Return an amount in milliseconds, bytes or operations.

    Args:
        quantity: Its quantity.
        text: The amount with its unit, as in ``"2ms"``.
        option: For messages.

    Raises:
        UsageError: There is no such unit, or the amount is not above 0.
    """
    return _parse(text, _UNITS[quantity], option, _EXAMPLES[quantity])


def parse_seconds(text: str, option: str) -> float:
    """Return a time in seconds, from ``"90s"``, ``"30m"`` or ``"2h"``.

    Raises:
        UsageError: There is no such unit, or the time is not above 0.
    """
    return _parse(text, _SECONDS, option, "30m")


def _parse(text: str, units: Mapping[str, float], option: str, example: str) -> float:
    match = re.fullmatch(r"\s*([0-9]*\.?[0-9]+(?:e[+-]?[0-9]+)?)\s*([A-Za-z]*)\s*", text)
    if match is None or match[2] not in units or not 0 < (amount := float(match[1])) < float("inf"):
        names = ", ".join(unit for unit in units if unit) + (", or none" if "" in units else "")
        raise UsageError(f"{option}: accepted: a number above 0 with its unit ({names}), as in {example}")
    return amount * units[match[2]]


def show_amount(quantity: Quantity, amount: float) -> str:
    """Return an amount with a unit in which it is neither tiny nor huge."""
    if quantity == "latency":
        return f"{amount:.4g} ms" if amount >= 0.1 else f"{amount * 1e3:.4g} us"  # below, more zeros than digits
    units = ("G", "M", "k" if quantity == "macs" else "K", "")
    for unit, factor in zip(units, (1e9, 1e6, 1e3, 1), strict=True):
        if amount >= factor or factor == 1:
            return f"{amount / factor:.4g} {unit}{'' if quantity == 'macs' else 'B'}".rstrip()
    raise AssertionError  # the last unit always fits
