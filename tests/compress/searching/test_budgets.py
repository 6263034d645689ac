"""Budgets and times as people write them."""

from __future__ import annotations

import pytest

from krl_compress.searching.budgets import parse_budgets, parse_seconds, show_amount
from krl_runtime.errors import UsageError


@pytest.mark.parametrize(
    ("text", "quantity", "most"),
    [
        ("latency=2ms", "latency", 2.0),
        ("latency=0.5s", "latency", 500.0),
        ("latency=250us", "latency", 0.25),
        ("latency= 1e1 ms", "latency", 10.0),
        ("memory=64MiB", "memory", 64 * 1024 * 1024),
        ("memory=1GB", "memory", 1e9),
        ("size=300KB", "size", 300_000.0),
        ("size=.5MiB", "size", 524_288.0),
        ("macs=10M", "macs", 1e7),
        ("macs=12500", "macs", 12500.0),
    ],
)
def test_an_amount_has_its_unit(text: str, quantity: str, most: float) -> None:
    (budget,) = parse_budgets([text])
    assert (budget.quantity, budget.most) == (quantity, pytest.approx(most))


@pytest.mark.parametrize(
    "text",
    [
        "2ms",
        "latency",
        "latency=",
        "latency=2",
        "latency=2m",
        "latency=-1ms",
        "latency=0ms",
        "latency=infms",
        "latency=nanms",
        "size=3",
        "macs=3MB",
        "watts=5W",
        "latency=1e999ms",
        "=2ms",
    ],
)
def test_a_wrong_budget_says_what_is_accepted(text: str) -> None:
    with pytest.raises(UsageError, match="accepted"):
        parse_budgets([text])


def test_budgets_are_given_and_each_once() -> None:
    with pytest.raises(UsageError, match="no budget"):
        parse_budgets([])
    with pytest.raises(UsageError, match="twice"):
        parse_budgets(["latency=2ms", "latency=3ms"])


@pytest.mark.parametrize(("text", "seconds"), [("90s", 90), ("30m", 1800), ("2h", 7200), ("1.5min", 90)])
def test_a_time_has_its_unit(text: str, seconds: float) -> None:
    assert parse_seconds(text, "--time-limit") == seconds


@pytest.mark.parametrize("text", ["90", "0s", "-1h", "1d", ""])
def test_a_wrong_time_is_refused(text: str) -> None:
    with pytest.raises(UsageError, match="--time-limit"):
        parse_seconds(text, "--time-limit")


def test_amounts_are_shown_with_a_fitting_unit() -> None:
    assert show_amount("latency", 2.0) == "2 ms"
    assert show_amount("latency", 0.07068) == "70.68 us"
    assert show_amount("size", 301_000) == "301 KB"
    assert show_amount("memory", 1.5e9) == "1.5 GB"
    assert show_amount("macs", 2_516_608) == "2.517 M"
    assert show_amount("macs", 12) == "12"
