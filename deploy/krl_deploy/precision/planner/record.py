"""The plan of mixed precision as a bundle keeps it: file, plot, evidence, and what is left of the lower precision."""

from __future__ import annotations

import json
import logging
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass
from typing import Any

from .plot import sensitivity_plot
from .search import Attempt, attempts_table
from .subject import Subject

__all__ = ["MixedPrecisionPlan"]

_log = logging.getLogger("krl")

_SCHEMA_VERSION = 2  # of the plan's file
_NEARLY_ALL = 0.75  # of the layers: what is left cannot make a network much faster or smaller, so the user should know


@dataclass(frozen=True)
class MixedPrecisionPlan:
    """The accepted plan that keeps the fewest layers, and its evidence.

    Attributes:
        subject: The model and the precision.
        errors: Error of the outputs with a group alone in the lower precision, by the group's name. A group that was
            not measured in time has none.
        attempts: In the order in which they were tried.
        keep: Names of the layers that are kept, each with the reason.
        precisions: Of each layer in each file.
        evidence: The data of the measurement, and its time.
    """

    subject: Subject
    errors: Mapping[str, float]
    attempts: tuple[Attempt, ...]
    keep: Mapping[str, str]
    precisions: Mapping[str, Mapping[str, str]]
    evidence: Mapping[str, Any]

    def summary(self) -> dict[str, Any]:
        """Return the evidence of the plan for a bundle."""
        plan, plot = self.subject.files
        return {
            "file": plan,
            "plot": plot,
            "layers": sum(len(group.layers) for group in self.subject.groups),
            "groups": len(self.subject.groups),
            "layers_kept_float": list(self.keep),
            "attempts": [asdict(attempt) for attempt in self.attempts],
            **self.evidence,
        }

    def files(self) -> dict[str, bytes]:
        """Return the files that the bundle gets."""
        plan, plot = self.subject.files
        values = {"schema_version": _SCHEMA_VERSION, **self.summary(), "layers": list(self._layers())}
        bars = [
            (group.name, self.errors.get(group.name, 0.0), next(iter(self.precisions[group.name].values())))
            for group in self.subject.groups
        ]
        data = json.dumps(values, indent=1, allow_nan=False).encode() + b"\n"
        return {plan: data, plot: sensitivity_plot(bars, self.subject.precision)}

    def table(self) -> str:
        """Return the table of what was tried, and on how much."""
        tried = attempts_table(list(self.attempts), self.subject.kept)
        return f"plans, tried on {self.evidence['tried_on']} inputs that nothing else uses:\n{tried}"

    def _layers(self) -> Iterator[dict[str, Any]]:
        for number, group in enumerate(self.subject.groups):
            for name, op in zip(group.layers, group.ops, strict=True):
                error = self.errors.get(group.name)
                yield {"name": name, "op": op, "group": number, "sensitivity": error, **self.precisions[name]}

    def warn(self) -> None:
        """Log how little is left in the lower precision, if the plan keeps nearly everything."""
        macs = {
            name: each for group in self.subject.groups for name, each in zip(group.layers, group.macs, strict=True)
        }
        if len(self.keep) < _NEARLY_ALL * len(macs):
            return
        left = []
        for file in next(iter(self.precisions.values())):
            lower = [name for name in macs if self.precisions[name][file] == self.subject.precision]
            left.append(f"{len(lower)} of {len(macs)} layers{_share(macs, lower)} for {file}")
        _log.warning(
            "the plan keeps %d of %d layers; %s is left in %s",
            len(self.keep),
            len(macs),
            self.subject.precision.upper(),
            ", ".join(left),
        )


def _share(macs: Mapping[str, int | None], names: list[str]) -> str:
    """Return the share of the multiply-accumulates in words; nothing if the number is not known."""
    total, part = [sum(macs[name] or 0 for name in each) for each in (list(macs), names)]
    known = total > 0 and all(value is not None for value in macs.values())
    return f" ({part / total:.1%} of the multiply-accumulates)" if known else ""
