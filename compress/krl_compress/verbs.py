"""The Python API of compression: the commands of ``krl-compress`` as functions. Importing it does not import torch."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from krl_runtime.cli.recipes import with_recipes
from krl_runtime.errors import UsageError
from krl_runtime.verbs import Result, configure
from krl_train.config import TRAINING_RECIPES, TrainingConfig, check_data, check_model, check_run, recorded_task

from .config import (
    RECIPES,
    DistillConfig,
    JointConfig,
    LossConfig,
    MutualConfig,
    PruneConfig,
    SearchConfig,
    StudyConfig,
    check_loss,
)
from .teachers.kinds import ACCEPTED, check_teacher, task_of

if TYPE_CHECKING:
    from krl_train.run import Run

__all__ = [
    "DistillResult",
    "PruneResult",
    "SearchResult",
    "StudyResult",
    "TogetherResult",
    "distill",
    "joint",
    "mutual",
    "prune",
    "search",
    "study",
]

_RECIPES = (RECIPES, TRAINING_RECIPES)
_BESIDE = ("teacher", "teachers", "baseline", "float", "rounded")


@dataclass(frozen=True)
class DistillResult(Result):
    """A distilled student.

    Attributes:
        run: Its folder.
        model: Name of the network.
        teachers: What was measured of each teacher, on the same data.
        baseline: What was measured of the same student without a teacher; ``None`` unless that was asked for.
        student: What was measured of the student.
    """

    run: Path
    model: str
    teachers: tuple[Mapping[str, Any], ...]
    baseline: Mapping[str, Any] | None
    student: Mapping[str, Any]

    @classmethod
    def of(cls, run: Run) -> DistillResult:
        """Return the result for a student's run."""
        metrics = run.record.metrics
        student = {name: value for name, value in metrics.items() if name not in _BESIDE}
        details = {name: metrics.get(name) for name in ("teacher", "float", "rounded")}
        teachers = tuple(metrics["teachers"])
        return cls(run.path, run.record.model.name, teachers, metrics.get("baseline"), student, details=details)


@dataclass(frozen=True)
class TogetherResult(Result):
    """Networks that were trained at the same time.

    Attributes:
        runs: For each network its folder, model and metrics.
    """

    runs: tuple[Mapping[str, Any], ...]

    @classmethod
    def of(cls, runs: Sequence[Run]) -> TogetherResult:
        """Return the result for runs."""
        return cls(tuple({"run": str(run.path), "model": run.record.model.name, **run.record.metrics} for run in runs))


@dataclass(frozen=True)
class PruneResult(Result):
    """A pruned network.

    Attributes:
        run: Its folder.
        model: Name of the network that it was cut from.
        teacher: What was measured of the whole network, on the same data.
        steps: For each step the channels ``"kept"`` of each layer, and what was measured before the distillation.
        left_alone: By the name of a layer, the reason why its channels were not pruned.
        student: What was measured of the pruned network.
    """

    run: Path
    model: str
    teacher: Mapping[str, Any]
    steps: tuple[Mapping[str, Any], ...]
    left_alone: Mapping[str, str]
    student: Mapping[str, Any]

    @classmethod
    def of(cls, run: Run) -> PruneResult:
        """Return the result for a pruned network's run."""
        metrics = run.record.metrics
        pruning = metrics["pruning"]
        beside = ("teacher", "teachers", "pruning", "sensitivity")
        student = {name: value for name, value in metrics.items() if name not in beside}
        details = {"sensitivity": metrics.get("sensitivity"), "sparsity": pruning.get("sparsity")}
        return cls(
            run.path,
            run.record.model.name,
            metrics["teacher"],
            tuple(pruning["steps"]),
            pruning["left_alone"],
            student,
            details=details,
        )


@dataclass(frozen=True)
class SearchResult(Result):
    """The best student within the budgets; ``details`` has all that were tried, see ``to_dict``.

    Attributes:
        run: Folder of its run.
        bundle: Its bundle.
        precision: The variant that meets the budgets.
    """

    run: Path
    bundle: Path
    precision: str


@dataclass(frozen=True)
class StudyResult(Result):
    """Methods compared on the same budget, data and seeds; see ``to_dict``."""


def distill(config: DistillConfig | None = None, /, **options: Any) -> DistillResult:
    """Train a small student with a large teacher, or with several.

    Args:
        config: A whole configuration; or give options.
        **options: As on the command line of ``krl-compress distill``: ``teacher``, ``student``, ``data``, ``out`` …

    Raises:
        KrlError: The teacher, the student, the data or an option cannot be used, or training failed.
    """
    config = configure(DistillConfig, config, with_recipes(options, _RECIPES))
    task = _check_teachers(config)
    _check_losses(config.losses, task)
    if task in ("classification", "embedding"):
        _check_networks(config, (config.student,))
    check_data(config.data.data)
    from .distillation.distill import distill as run_distill

    return DistillResult.of(run_distill(config))


def mutual(config: MutualConfig | None = None, /, **options: Any) -> TogetherResult:
    """Train networks that teach each other.

    Args:
        config: A whole configuration; or give options.
        **options: As on the command line of ``krl-compress mutual``: ``peer``, ``data``, ``out`` …

    Raises:
        KrlError: A network, the data or an option cannot be used, or training failed.
    """
    config = configure(MutualConfig, config, with_recipes(options, _RECIPES))
    _check_networks(config, config.peer)
    from .distillation.together import mutual as run_mutual

    return TogetherResult.of(run_mutual(config))


def joint(config: JointConfig | None = None, /, **options: Any) -> TogetherResult:
    """Train a teacher and, at the same time, a student that learns from it.

    Args:
        config: A whole configuration; or give options.
        **options: As on the command line of ``krl-compress joint``: ``teacher``, ``student``, ``data``, ``out`` …

    Raises:
        KrlError: A network, the data or an option cannot be used, or training failed.
    """
    config = configure(JointConfig, config, with_recipes(options, _RECIPES))
    _check_networks(config, (config.teacher, config.student))
    from .distillation.together import joint as run_joint

    return TogetherResult.of(run_joint(config))


def prune(config: PruneConfig | None = None, /, **options: Any) -> PruneResult:
    """Remove channels of a network, and distill what is left from the whole one.

    Args:
        config: A whole configuration; or give options.
        **options: As on the command line of ``krl-compress prune``: ``run``, ``keep_channels``, ``macs``, ``out`` …

    Raises:
        KrlError: The run, the data or an option cannot be used, or training failed.
    """
    config = configure(PruneConfig, config, options)
    check_run(config.run)
    _check_losses(config.losses, recorded_task(config.run))
    check_data(config.data.data)
    from .pruning.prune import prune as run_prune

    if config.latency is not None:
        from .searching.latency import with_channels

        config = with_channels(config)
    return PruneResult.of(run_prune(config))


def search(config: SearchConfig | None = None, /, **options: Any) -> SearchResult:
    """Find the best student that meets budgets of latency, memory, size or operations.

    Args:
        config: A whole configuration; or give options.
        **options: As on the command line of ``krl-compress search``: ``teacher``, ``budget``, ``out`` …

    Raises:
        CheckFailedError: No student was trained before the time was up, or none passes the accuracy gate.
        KrlError: No student meets the budgets, an option cannot be used, or a training failed.
    """
    config = configure(SearchConfig, config, options)
    check_run(config.teacher)
    _check_losses(config.losses, task_of(config.teacher))
    check_data(config.data.data)
    from .searching.report import show
    from .searching.search import search as run_search

    state = run_search(config)
    winner = state.result
    found = (Path(winner["run"]), Path(winner["bundle"]), winner["precision"])
    return SearchResult(*found, details=state.to_dict(), text=show(state))


def study(config: StudyConfig | None = None, /, **options: Any) -> StudyResult:
    """Compare methods on the same budget, data and seeds.

    Args:
        config: A whole configuration; or give options.
        **options: As on the command line of ``krl-compress study``: ``teacher``, ``student``, ``methods``, ``out`` …

    Raises:
        KrlError: The teacher, a method or an option cannot be used, or a training failed.
    """
    config = configure(StudyConfig, config, options)
    from .studies import show
    from .studies import study as run_study

    found = run_study(config)
    return StudyResult(details=found, text=show(found))


def _check_losses(losses: LossConfig, task: str) -> None:
    """Check the losses that are given by name."""
    for loss in losses.loss:
        if isinstance(loss, str):
            check_loss(loss, task)


def _check_teachers(config: DistillConfig) -> str:
    """Check that each teacher is one that can be had; return the task."""
    if not config.teacher:
        raise UsageError(f"no teacher is named; give --teacher; accepted: {ACCEPTED}")
    for teacher in config.teacher:
        check_teacher(teacher, config.pretrained)
    return task_of(config.teacher[0])


def _check_networks(config: TrainingConfig, names: Sequence[object]) -> None:
    """Check networks that are given by name; a run's folder is no name."""
    for name in names:
        if isinstance(name, str) and not Path(name).exists():
            check_model(name, "classification")
    check_data(config.data.data)
