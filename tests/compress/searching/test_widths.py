"""The widest network that fits, where the latency of each width is known."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest

from krl_compress.searching.budgets import Budget
from krl_compress.searching.costs import Cost, excess
from krl_compress.searching.widths import widest
from krl_runtime.errors import BackendError

WIDTHS = range(8, 257, 8)


class Convolutions:
    """A family whose networks have the square of their width in operations, of 8 to 256 channels."""

    name = "convolutions"

    def of_macs(self, macs: float) -> Any:
        width = max([width for width in WIDTHS if 1000 * width**2 <= macs], default=8)
        return SimpleNamespace(key=str(width), macs=1000 * width**2, channels=width / 256)


def asked(overhead: float, per_mega: float, most: float, **more: float) -> tuple[Any, dict[str, float]]:
    """Fit a latency of ``overhead + per_mega * macs / 1e6``, and return what was found and what was measured."""
    measured: dict[str, float] = {}

    def costs(student: Any, precision: str) -> Cost:
        measured[student.key] = overhead + per_mega * student.macs / 1e6
        return Cost(student.macs, 0, student.macs // 1000, measured[student.key])

    budgets = [Budget("latency", most), *(Budget(name, value) for name, value in more.items())]  # type: ignore[arg-type]
    return widest(Convolutions(), "fp32", budgets, costs), measured  # type: ignore[arg-type]


@pytest.mark.parametrize("overhead", [0.0, 0.05, 0.5])
@pytest.mark.parametrize("per_mega", [0.01, 0.1, 1.0])
def test_the_widest_that_fits_is_found_with_few_measurements(overhead: float, per_mega: float) -> None:
    fit, measured = asked(overhead, per_mega, most=1.0)
    possible = [width for width in WIDTHS if overhead + per_mega * width**2 / 1e3 <= 1.0]
    assert fit.meets
    assert fit.excess == measured[fit.student.key] <= 1.0
    # Within a step of 8 channels of the widest, or near the budget.
    assert int(fit.student.key) >= max(possible) - 8 or fit.excess >= 0.9
    assert len(measured) <= 4


def test_what_does_not_fit_at_all_is_the_cheapest() -> None:
    fit, measured = asked(overhead=2.0, per_mega=1.0, most=1.0)
    assert not fit.meets
    assert fit.student.key == "8"
    assert fit.excess == pytest.approx(2.0 + 0.064)
    assert min(measured.values()) == measured["8"]


def test_a_network_that_fits_whole_is_measured_once() -> None:
    fit, measured = asked(overhead=0.1, per_mega=0.001, most=1.0)
    assert list(measured) == ["256"]
    assert fit.student.key == "256"


def test_every_budget_counts() -> None:
    fit, _ = asked(overhead=0.0, per_mega=0.01, most=1.0, size=10_000)
    assert int(fit.student.key) ** 2 <= 10_000
    fit, _ = asked(overhead=0.0, per_mega=0.01, most=1.0, macs=5e6)
    assert fit.student.macs <= 5e6


def test_a_precision_that_cannot_be_had_has_no_fit() -> None:
    assert widest(Convolutions(), "int8", [Budget("latency", 1.0)], lambda student, precision: None) is None  # type: ignore[arg-type]


def test_a_cost_that_is_not_known_meets_no_budget() -> None:
    with pytest.raises(BackendError, match="memory is not known"):
        excess(Cost(1, 1, 1, 1.0), [Budget("memory", 1e6)])
