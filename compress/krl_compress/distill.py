"""``krl-compress distill``: a teacher and a data set to a student's run."""

from __future__ import annotations

import logging
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch

from krl_runtime.errors import UsageError
from krl_runtime.preprocess import Preprocessing
from krl_train.config import InputConfig, to_plain
from krl_train.data import Source, open_source, preprocessing_for
from krl_train.evaluate import evaluate_run
from krl_train.fit import Training, initialise_from, prepare_out, read_training, train_classifier
from krl_train.loop import process_first, resolve_device
from krl_train.models import Network, count_macs, count_parameters, native_size
from krl_train.run import RECORD, ModelSpec, Run, RunRecord
from krl_train.tasks import Objective, Supervised

from .config import DistillConfig
from .distillers import FrozenTeacher, Teacher, TeacherStudent
from .teacher_cache import StoredTeacher

__all__ = ["distill"]

_log = logging.getLogger("krl")

BASELINE = "baseline"


@dataclass(frozen=True)
class _LoadedTeacher:
    """A teacher and where it comes from."""

    network: Network
    identity: dict[str, Any]
    labels: tuple[str, ...] | None
    record: RunRecord | None


def distill(config: DistillConfig) -> Run:
    """Train a student with a teacher, and without one if asked.

    Returns:
        The student's run; its metrics have the teacher's and the baseline's beside its own.

    Raises:
        KrlError: The teacher, the student, the data or the configuration cannot be used, or training failed.
    """
    teacher = _load_teacher(config)
    source = _open_data(config, teacher)
    _check_labels(teacher, source.labels, config.teacher)
    start = Run.open(config.student) if (Path(config.student) / RECORD).is_file() else None
    name = start.record.model.name if start else config.student
    preprocessing = preprocessing_for(_input(config.input, teacher.network.preprocessing, name), source, name)
    training = read_training(source, preprocessing, config.augment, config.loop.seed)
    record = RunRecord(
        task="classification",
        model=ModelSpec(name, len(source.labels), preprocessing.channels),
        preprocessing=preprocessing,
        labels=source.labels,
        command="krl-compress distill",
        configuration=to_plain(config),
        seed=config.loop.seed,
        data=training.describe(),
        parent=teacher.identity,
    )
    finished = prepare_out(config.out, record, resume=config.resume, overwrite=config.overwrite)
    if finished is not None:
        _log.info("run %s is finished already", config.out)
        return finished
    metrics: dict[str, Any] = {"teacher": _measure_teacher(teacher, training, config)}
    if config.baseline:
        metrics[BASELINE] = _train_baseline(config, record, training, start).record.metrics
    answers = _answers(teacher, training, config)

    def objective(network: Network) -> Objective:
        return TeacherStudent(
            network,
            answers,
            alpha=config.alpha,
            temperature=config.temperature,
            label_smoothing=config.optim.label_smoothing,
        )

    return _train(config, replace(record, metrics=metrics), training, start, objective, config.out)


def _load_teacher(config: DistillConfig) -> _LoadedTeacher:
    folder = Path(config.teacher)
    if folder.exists():
        run = Run.open(folder)
        identity = {"path": str(folder.resolve()), "weights_sha256": run.record.weights_sha256}
        return _LoadedTeacher(run.network(), identity, run.record.labels, run.record)
    if "/" in config.teacher and not config.teacher.startswith("timm/"):
        raise UsageError(f"teacher {config.teacher} does not exist; give a run's folder or the name of a network")
    size = native_size(config.teacher)
    if size is None or not config.pretrained:
        raise UsageError(
            f"teacher {config.teacher!r} is not a run's folder; a network's name is accepted for torchvision's and "
            "timm's classifiers, with --pretrained (their published weights may then be downloaded)"
        )
    preprocessing = Preprocessing(height=size, width=size, crop_fraction=0.875)
    network = ModelSpec(config.teacher, 1000, 3).build(preprocessing, pretrained=True)
    return _LoadedTeacher(network, {"name": config.teacher, "weights_sha256": _state_hash(network)}, None, None)


def _state_hash(network: Network) -> str:
    from safetensors.torch import save

    from krl_runtime._files import sha256_bytes

    return sha256_bytes(save({name: value.contiguous() for name, value in network.backbone.state_dict().items()}))


def _open_data(config: DistillConfig, teacher: _LoadedTeacher) -> Source:
    data = config.data
    if data.data is None and teacher.record is not None:
        there = teacher.record.data
        data = replace(data, data=there["source"], data_root=Path(there["root"]), val_fraction=there["val_fraction"])
    return open_source(data)


def _check_labels(teacher: _LoadedTeacher, labels: tuple[str, ...], name: str) -> None:
    if teacher.labels is None:
        if len(labels) != 1000:
            raise UsageError(f"teacher {name} knows ImageNet's 1000 classes, the data has {len(labels)}")
    elif teacher.labels != labels:
        raise UsageError(
            f"teacher {name} and the data do not have the same labels in the same order; teacher: "
            f"{_some(teacher.labels)}; data: {_some(labels)}"
        )


def _some(labels: tuple[str, ...]) -> str:
    return f"{len(labels)} ({', '.join(labels[:10])}{' …' if len(labels) > 10 else ''})"


def _input(config: InputConfig, teacher: Preprocessing, student: str) -> InputConfig:
    """Let the student see pictures as the teacher does, but for what the user says."""
    needs_rgb = native_size(student) is not None
    channels = config.channels or (3 if needs_rgb else teacher.channels)
    same = channels == teacher.channels
    return replace(
        config,
        size=config.size or (teacher.height, teacher.width),
        channels=channels,
        resize=config.resize or teacher.resize,
        crop_fraction=config.crop_fraction or teacher.crop_fraction,
        interpolation=config.interpolation or teacher.interpolation,
        mean=config.mean or (teacher.mean if same else None),
        std=config.std or (teacher.std if same else None),
    )


def _measure_teacher(teacher: _LoadedTeacher, training: Training, config: DistillConfig) -> dict[str, Any]:
    network = teacher.network
    val = training.source.read("val", network.preprocessing, limit=training.source.config.val_limit)
    measured = evaluate_run(network, training.source.labels, val, config.loop.device)
    return {
        "top1": measured["top1"],
        "loss": measured["loss"],
        "count": measured["count"],
        "parameters": count_parameters(network),
        "macs": count_macs(network, network.preprocessing.shape),
    }


def _answers(teacher: _LoadedTeacher, training: Training, config: DistillConfig) -> Teacher:
    frozen = FrozenTeacher(teacher.network)
    if not config.cache.cache_teacher:
        return frozen
    stored = StoredTeacher(
        frozen,
        teacher.identity["weights_sha256"],
        training.train,
        training.augmentation,
        views=config.cache.views,
        folder=config.cache.cache_dir,
    )
    with process_first(config.loop.device):
        stored.fill(resolve_device(config.loop.device))
    return stored


def _train_baseline(config: DistillConfig, record: RunRecord, training: Training, start: Run | None) -> Run:
    """Train the same student from the same start on the same budget, with labels alone."""
    out = config.out / BASELINE
    record = replace(record, command="krl-compress distill --baseline", parent=None)
    finished = prepare_out(out, record, resume=(out / RECORD).is_file() and config.resume, overwrite=config.overwrite)
    if finished is not None:
        return finished
    _log.info("the student without the teacher, on the same budget:")
    return _train(config, record, training, start, lambda made: Supervised(made, config.optim.label_smoothing), out)


def _train(
    config: DistillConfig,
    record: RunRecord,
    training: Training,
    start: Run | None,
    objective: Callable[[Network], Objective],
    out: Path,
) -> Run:
    torch.manual_seed(config.loop.seed)
    network = record.model.build(record.preprocessing)
    if start is not None:
        initialise_from(network, start)
    return train_classifier(
        objective,
        network,
        training,
        record,
        config.optim,
        config.loop,
        out,
        views=config.cache.views if config.cache.cache_teacher else None,
        resume=config.resume,
    )
