"""The planner of mixed precision: find what costs accuracy in the lower precision, and keep it in the higher one.

The planner rounds each group of layers alone. The error of the outputs on a sample ranks the groups. Then the planner
tries plans that keep the worst 0, 1, 2, 3, 4, 6, 9, … groups on the planning data, and bisects after the first accepted
one.
Measurements are saved as they come, so that an interrupted plan can be continued.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from krl_deploy.data.arrays import Inputs, length, rows
from krl_deploy.evaluation import Task
from krl_deploy.evaluation.comparison import outputs_of
from krl_deploy.graph.session import open_cpu
from krl_runtime.cli.tables import table
from krl_runtime.errors import CheckFailedError, ModelError, require
from krl_runtime.progress import progress

from .checkpoint import PlanCheckpoint
from .judge import Judge
from .record import MixedPrecisionPlan
from .search import Attempt, attempts_table, search, steps
from .subject import Group, Subject

__all__ = ["PLANNING_LIMIT", "PlanOptions", "make_plan"]

_log = logging.getLogger("krl")

PLANNING_LIMIT = 512
"""Images to plan on at most: one is worth 0.2 points, and each attempt runs all of them through each file."""

_SAMPLE = 32  # inputs on which each group is measured alone: groups x inputs runs, so the cost is bounded
_SHARE_OF_SENSITIVITY = 0.6  # of --budget-seconds; the rest is for trying plans
_WORST = 10  # groups in the printed table; the plan's file and the plot have all
_LARGEST_ERROR = 1e6  # stands for outputs that are not finite, which JSON cannot hold
_REASON = "kept by the plan of --mixed-precision"


@dataclass(frozen=True)
class PlanOptions:
    """Options of a plan.

    Attributes:
        checkpoint: The file that holds the measurements until the plan is made.
        resume: Continue from this file.
        budget_seconds: Time of the planner; ``None`` for any.
        limits: Limits that the user gave, by name.
    """

    checkpoint: Path
    resume: bool
    budget_seconds: float | None
    limits: Mapping[str, float | None]


def make_plan(subject: Subject, task: Task, options: PlanOptions, sample: Inputs | None = None) -> MixedPrecisionPlan:
    """Measure the groups and return the accepted plan that keeps the fewest.

    Args:
        subject: The model and the precision.
        task: Gives the planning data, and accepts plans.
        options: The options.
        sample: Inputs to rank the groups with; left out: some of the planning data.

    Raises:
        CheckFailedError: No plan is accepted, or none in time. The message has the plans that were tried.
        DataError: There are too few images.
        MissingExtraError: matplotlib is missing.
    """
    require("matplotlib", extra="deploy", purpose="the plot of the planner")
    start = time.monotonic()
    budget = options.budget_seconds or float("inf")
    judge = Judge(subject, task)
    identity = {**subject.identity, "planning": judge.identity, "limits": options.limits}
    checkpoint = PlanCheckpoint(options.checkpoint, identity, resume=options.resume)
    parts = _sample(judge if sample is None else None, sample)
    errors = _measure_alone(subject, parts, checkpoint, start + _SHARE_OF_SENSITIVITY * budget)
    ranked = sorted(subject.groups, key=lambda group: errors.get(group.name, -1.0), reverse=True)
    attempts, accepted = search(
        len(ranked), _attempts(judge, ranked, checkpoint), lambda: time.monotonic() < start + budget
    )
    if accepted is None:
        complete = len(attempts) == len(steps(len(ranked))) and len(errors) == len(ranked)
        if complete:
            checkpoint.remove()
        raise _failure(subject, judge.count, attempts, ranked, errors, None if complete else options)
    keep = _kept(ranked[:accepted])
    evidence = {
        "drop": f"points of {task.metric}" if task.predicts else "dB of PSNR",
        "limits": {name: limit for name, limit in options.limits.items() if limit is not None},
        "ranked_on": sum(map(length, parts)),
        "tried_on": judge.count,
        "seconds": time.monotonic() - start,
    }
    plan = MixedPrecisionPlan(subject, errors, tuple(attempts), keep, subject.emit(keep).precisions, evidence)
    plan.warn()
    checkpoint.remove()
    return plan


def _kept(groups: Sequence[Group]) -> dict[str, str]:
    return {name: _REASON for group in groups for name in group.layers}


def _attempts(judge: Judge, ranked: Sequence[Group], checkpoint: PlanCheckpoint) -> Callable[[int], Attempt]:
    """Return the function that tries the plan which keeps this many groups; each plan is tried once."""
    count = sum(len(group.layers) for group in ranked)

    def attempt(groups: int) -> Attempt:
        keep = _kept(ranked[:groups])
        key = checkpoint.key(keep)
        if key not in checkpoint.attempts:
            checkpoint.add_attempt(key, judge.attempt(keep))
        made = checkpoint.attempts[key]
        _log.info("%d of %d %s: %s", made.kept, count, judge.subject.kept, made.refused or "accepted")
        return made

    return attempt


def _failure(
    subject: Subject,
    count: int,
    attempts: list[Attempt],
    ranked: Sequence[Group],
    errors: Mapping[str, float],
    unfinished: PlanOptions | None,
) -> CheckFailedError:
    in_time, advice = "", ""
    if unfinished is not None:
        in_time = f" within --budget-seconds {unfinished.budget_seconds:g}"
        advice = "; give more time and --resume to go on from here"
    worst = [(_title(group), "+".join(group.ops[:3]), _percent(errors.get(group.name))) for group in ranked[:_WORST]]
    return CheckFailedError(
        f"no plan with a layer in {subject.precision.upper()} is accepted on {count} planning images{in_time}; the "
        f"bundle is unchanged{advice}\n{attempts_table(attempts, subject.kept)}\n"
        f"most sensitive of {len(ranked)} groups of layers:\n"
        f"{table(('layers', 'operators', 'error alone'), worst)}"
    )


def _title(group: Group) -> str:
    return group.name if len(group.layers) == 1 else f"{group.name} and {len(group.layers) - 1} more"


def _percent(error: float | None) -> str | None:
    return None if error is None else f"{error:.2%}"


def _sample(judge: Judge | None, inputs: Inputs | None) -> list[Inputs]:
    """Return up to ``_SAMPLE`` inputs, spread over all of them, in batches of equal shape."""
    parts = [inputs] if inputs is not None else [batch for batch, _ in (judge.batches if judge else [])]
    parts = parts[:: -(-len(parts) // _SAMPLE)]
    step = max(1, -(-sum(map(length, parts)) // _SAMPLE))
    return [rows(part, slice(None, None, step)) for part in parts]


def _measure_alone(
    subject: Subject, sample: Sequence[Inputs], checkpoint: PlanCheckpoint, deadline: float
) -> dict[str, float]:
    """Return the error of the outputs with each group alone in the lower precision, by the group's name.

    It is the root mean square over the outputs' standard deviation, the largest one of the files.
    """
    missing = [group for group in subject.groups if group.name not in checkpoint.errors]
    if missing:
        session = open_cpu(subject.fp32)
        references = [outputs_of(session, part) for part in sample]
    for group in progress(missing, "measuring layers"):
        if checkpoint.errors and time.monotonic() > deadline:
            break
        error = max(_relative_error(model, sample, references) for model in subject.alone(group))
        checkpoint.add_error(group.name, min(error, _LARGEST_ERROR))
    measured, count = len(checkpoint.errors), len(subject.groups)
    if measured < count:
        _log.warning("the time was up after %d of %d groups of layers; the others rank last", measured, count)
    return checkpoint.errors


def _relative_error(model: bytes, sample: Sequence[Inputs], references: Sequence[Any]) -> float:
    session = open_cpu(model)
    try:
        outputs = [outputs_of(session, part) for part in sample]
    except ModelError:  # not finite
        return _LARGEST_ERROR
    made, wanted = (np.concatenate([part.ravel() for part in parts]) for parts in (outputs, references))
    return float(np.sqrt(np.square(made - wanted).mean()) / max(float(wanted.std()), 1e-12))
