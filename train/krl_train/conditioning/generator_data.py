"""The data and the conditions that go with a generator."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path

from krl_runtime.errors import DataError, RunError, UsageError
from krl_runtime.images.preprocessing import Preprocessing
from krl_train.config import ConditioningConfig, DataConfig
from krl_train.data import PixelSet, Source, open_source
from krl_train.models.generators import GeneratorNetwork
from krl_train.run import Run, RunRecord

from .conditions import Conditions, read_conditions

__all__ = ["GeneratorData", "open_generator", "read_data"]


@dataclass(frozen=True)
class GeneratorData:
    """The data that a generator is trained on, or measured on.

    Attributes:
        source: The data set.
        train: Training images.
        val: Validation images.
        conditions: Of the training images; ``None`` for a generator without conditions.
        preprocessing: How the images were read.
    """

    source: Source
    train: PixelSet
    val: PixelSet
    conditions: Conditions | None
    preprocessing: Preprocessing


def open_generator(path: Path) -> tuple[Run, GeneratorNetwork]:
    """Open a generator's run.

    Returns:
        The run, and the generator in eval mode on the CPU.

    Raises:
        RunError: It is missing, damaged, or not a generator's.
    """
    run = Run.open(path)
    return run, _generator_of(run)


def _generator_of(run: Run) -> GeneratorNetwork:
    generator = run.module()
    if not isinstance(generator, GeneratorNetwork):
        raise RunError(f"run {run.path} is of the task {run.record.task!r}; a generator is needed here")
    return generator


def read_data(record: RunRecord, config: DataConfig) -> GeneratorData:
    """Read the images that go with a generator: those that ``config`` names, else those that it was trained on.

    Raises:
        UsageError: Neither names any.
        DataError: They cannot be read, or have not the conditions that the generator was trained on.
    """
    there = record.data
    if config.data is None and "source" not in there:
        raise UsageError("no data is known: the generator is a bundle, or its weights were imported; give --data")
    if config.data is None:
        root = Path(there["root"])
        config = replace(config, data=there["source"], data_root=root, val_fraction=there["val_fraction"])
    source = open_source(config, classes=bool(record.labels))
    train = source.read("train", record.preprocessing, limit=config.limit)
    val = source.read("val", record.preprocessing, limit=config.val_limit)
    return GeneratorData(source, train, val, _conditions(record, source, train), record.preprocessing)


def _conditions(record: RunRecord, source: Source, train: PixelSet) -> Conditions | None:
    settings = record.model.arguments.get("condition")
    if settings is None:
        return None
    kept = {name: value for name, value in record.data["conditions"].items() if name != "sha256"}
    file = kept.pop("condition_file")
    knowledge = ConditioningConfig(**kept, condition_file=None if file is None else Path(file))
    conditions = read_conditions(knowledge, source, train, seed=record.seed)
    untrained = settings.get("untrained", [])  # they come after the words of the descriptions
    trained = [word for word in settings["vocabulary"] if word not in untrained]
    if conditions is None or list(conditions.settings["vocabulary"]) != trained:
        raise DataError(
            f"{source.name} has not the {settings['kind']} that the generator was trained on; give the same data"
        )
    return replace(conditions, settings=settings)
