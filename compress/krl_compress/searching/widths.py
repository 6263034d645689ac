"""The widest network of a family that fits the budgets."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from .budgets import Budget
from .costs import Cost, Precision, excess
from .space import Family, Student

__all__ = ["Fit", "widest"]

Costs = Callable[[Student, Precision], Cost | None]
"""From a student to its cost in a precision, if it can be had; asked again, it answers from memory."""

_TRIES = 4  # measurements for one family and precision: the last ones change the width by a multiple or not at all
_NEAR = 0.93  # share of a budget that is used well enough: latencies are measured to a few percent
_AIM = 0.97  # share of a budget to aim at, so that an estimate a little off does not miss it


@dataclass(frozen=True)
class Fit:
    """A student and how far it uses the budgets.

    Attributes:
        student: The network.
        precision: The precision that it was fitted in.
        excess: Largest share of a budget that it uses; above 1 it meets them not.
    """

    student: Student
    precision: Precision
    excess: float

    @property
    def meets(self) -> bool:
        """Whether it meets all budgets."""
        return self.excess <= 1


def widest(
    family: Family, precision: Precision, budgets: Sequence[Budget], costs: Costs, most: float = math.inf
) -> Fit | None:
    """Return the widest network of a family that meets the budgets in a precision, or its cheapest one.

    Latency is taken to grow with the multiply-accumulate operations, and is measured at each width that is tried.

    Args:
        family: The family.
        precision: The precision.
        budgets: The budgets.
        costs: Tells what a student costs.
        most: Operations of the first network to try, at most.

    Returns:
        ``None`` where the precision cannot be had.
    """
    known = [budget.most for budget in budgets if budget.quantity == "macs"]
    measured = [budget for budget in budgets if budget.quantity != "macs"]
    student = family.of_macs(min([*known, most]))
    tried: dict[str, tuple[Student, float]] = {}
    for _ in range(_TRIES):
        cost = costs(student, precision)
        if cost is None:
            return None
        tried[student.key] = (student, excess(cost, budgets))
        if tried[student.key][1] <= 1 and (student.channels == 1 or tried[student.key][1] >= _NEAR or not measured):
            break
        following = family.of_macs(min([*known, _estimate(list(tried.values()))]))
        if following.key in tried:
            break
        student = following
    meeting = [Fit(student, precision, share) for student, share in tried.values() if share <= 1]
    if meeting:
        return max(meeting, key=lambda fit: fit.student.macs)
    student, share = min(tried.values(), key=lambda each: each[1])
    return Fit(student, precision, share)


def _estimate(tried: Sequence[tuple[Student, float]]) -> float:
    """Return the operations at which a budget would be used to the aim: on the line through the nearest two."""
    nearest = sorted(tried, key=lambda each: abs(math.log(each[1] / _AIM)))
    (student, share), *others = nearest
    for other, other_share in others:
        slope = (share - other_share) / (student.macs - other.macs) if student.macs != other.macs else 0.0
        if slope > 0:
            return max(0.0, student.macs + (_AIM - share) / slope)
    return student.macs * _AIM / share
