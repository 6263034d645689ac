"""The Python API of training: the commands of ``krl-train`` as functions. Importing it does not import torch."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from krl_runtime.cli.recipes import with_recipes
from krl_runtime.verbs import Result, configure

from .config import (
    TRAINING_RECIPES,
    EvaluateConfig,
    ExplainConfig,
    FitConfig,
    ImportConfig,
    UnpackConfig,
    check_data,
    refuse_shots,
)

if TYPE_CHECKING:
    from .run import Run

__all__ = [
    "EvaluateResult",
    "ExplainResult",
    "RunResult",
    "UnpackResult",
    "evaluate",
    "explain",
    "fit",
    "import_weights",
    "unpack",
]


@dataclass(frozen=True)
class RunResult(Result):
    """A run that was made.

    Attributes:
        run: Its folder.
        model: Name of the network.
        labels: Class names in the order of the logits; empty where there are none.
    """

    run: Path
    model: str
    labels: tuple[str, ...]

    @property
    def metrics(self) -> Mapping[str, Any]:
        """Return the metrics by name: ``"top1"`` of a classifier (0 to 1), ``"psnr"`` of a restorer (dB)."""
        return self.details

    @classmethod
    def of(cls, run: Run) -> RunResult:
        """Return the result for a run."""
        record = run.record
        return cls(run.path, record.model.name, tuple(record.labels), details=dict(record.metrics))


@dataclass(frozen=True)
class EvaluateResult(Result):
    """Metrics of a run or a bundle.

    Attributes:
        run: Its folder.
    """

    run: Path

    @property
    def metrics(self) -> Mapping[str, Any]:
        """Return the metrics by name."""
        return self.details


@dataclass(frozen=True)
class ExplainResult(Result):
    """The explanation of a run: the content of ``explain.json``, as ``docs/explain.md`` lists it.

    Attributes:
        out: The folder.
    """

    out: Path


@dataclass(frozen=True)
class UnpackResult(Result):
    """A data set that was written as a folder.

    Attributes:
        out: The folder.
        count: Number of images.
    """

    out: Path
    count: int


def fit(config: FitConfig | None = None, /, **options: Any) -> RunResult:
    """Train a network on images: a classifier, a generator, or a network from image to image.

    Args:
        config: A whole configuration; or give options.
        **options: As on the command line of ``krl-train fit``: ``data``, ``model``, ``out``, ``task``, ``epochs`` …

    Returns:
        The run, and what was measured of it.

    Raises:
        KrlError: The data, the network or an option cannot be used, or training failed.
    """
    config = configure(FitConfig, config, with_recipes(options, (TRAINING_RECIPES,)))
    from .training.fit import fit as run_fit

    return RunResult.of(run_fit(config))


def evaluate(config: EvaluateConfig | None = None, /, **options: Any) -> EvaluateResult:
    """Measure a run on its own data or on any other; or the bundle of a generator, as a device runs it.

    Args:
        config: A whole configuration; or give options.
        **options: As on the command line of ``krl-train evaluate``: ``run``, ``data``, ``split`` …

    Raises:
        KrlError: The run or the data cannot be used.
    """
    config = configure(EvaluateConfig, config, options)
    check_data(config.data.data)
    refuse_shots(config.data.shots)
    from .evaluation.evaluate import evaluate as run_evaluate

    found = run_evaluate(config)
    return EvaluateResult(config.run, details={name: value for name, value in found.items() if name != "run"})


def explain(config: ExplainConfig | None = None, /, **options: Any) -> ExplainResult:
    """Show where a run looks and what it learned: class activation maps, neighbors, layers beside those of a teacher.

    Args:
        config: A whole configuration; or give options.
        **options: As on the command line of ``krl-train explain``: ``run``, ``images``, ``out``, ``teacher`` …

    Raises:
        KrlError: A run, an image or the data cannot be used, or the run is not of a task that can be explained.
    """
    config = configure(ExplainConfig, config, options)
    check_data(config.data.data)
    refuse_shots(config.data.shots)
    from .explaining.explain import explain as run_explain

    return ExplainResult(config.out, details=run_explain(config))


def import_weights(config: ImportConfig | None = None, /, **options: Any) -> RunResult:
    """Turn third-party weights into a run, and measure them.

    Args:
        config: A whole configuration; or give options.
        **options: As on the command line of ``krl-train import``: ``weights``, ``model``, ``out``, ``data`` …

    Raises:
        KrlError: The file, the network or the data cannot be used.
    """
    config = configure(ImportConfig, config, options)
    check_data(config.data.data)
    refuse_shots(config.data.shots)
    from .importers.importing import import_weights as run_import

    return RunResult.of(run_import(config))


def unpack(config: UnpackConfig | None = None, /, **options: Any) -> UnpackResult:
    """Write a named data set as a folder of PNG files, ``train/CLASS`` and ``val/CLASS``.

    Args:
        config: A whole configuration; or give options.
        **options: As on the command line of ``krl-train unpack``: ``data``, ``out`` …

    Raises:
        KrlError: The data cannot be used, or ``out`` exists.
    """
    config = configure(UnpackConfig, config, options)
    check_data(config.data.data)
    refuse_shots(config.data.shots)
    from krl_runtime.files import atomic_folder

    from .data import open_source
    from .data.unpacking import unpack as write

    source = open_source(config.data)
    with atomic_folder(config.out) as folder:
        count = write(source, folder)
    return UnpackResult(config.out, count)
