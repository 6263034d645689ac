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

from .config import DistillConfig, LossConfig
from .distillers import Distiller, FrozenTeacher, FusedTeacher, Teacher, TermSpec, parse_term
from .teacher_store import StoredTeacher

__all__ = ["distill"]

_log = logging.getLogger("krl")

BASELINE = "baseline"


@dataclass(frozen=True)
class _LoadedTeacher:
    """A teacher and where it comes from."""

    name: str
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
    terms = resolve_terms(config.losses, config.optim.label_smoothing)
    teachers = [_load_teacher(name, config.pretrained) for name in config.teacher]
    if not teachers:
        raise UsageError("no teacher is named; give --teacher RUN")
    source = _open_data(config, teachers[0])
    for teacher in teachers:
        _check_labels(teacher, source.labels)
    start = Run.open(config.student) if (Path(config.student) / RECORD).is_file() else None
    name = start.record.model.name if start else config.student
    preprocessing = preprocessing_for(_input(config.input, teachers[0].network.preprocessing, name), source, name)
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
        parent={"teachers": [teacher.identity for teacher in teachers]},
    )
    finished = prepare_out(config.out, record, resume=config.resume, overwrite=config.overwrite)
    if finished is not None:
        _log.info("run %s is finished already", config.out)
        return finished
    measured = [_measure_teacher(teacher, training, config) for teacher in teachers]
    metrics: dict[str, Any] = {"teacher": measured[0], "teachers": measured}
    if config.baseline:
        metrics[BASELINE] = _train_baseline(config, record, training, start).record.metrics
    answers = _fuse(teachers, measured, training, config)

    def objective(network: Network) -> Objective:
        return Distiller(network, answers, terms, at=config.losses.at, labels=training.train.labels)

    return _train(config, replace(record, metrics=metrics), training, start, objective, config.out)


def resolve_terms(config: LossConfig, label_smoothing: float) -> list[TermSpec]:
    """Return the terms that a configuration asks for: those of ``--loss``, or Hinton's two.

    Args:
        config: What the user asked for.
        label_smoothing: Of the cross-entropy, unless ``--loss ce:label_smoothing=…`` says otherwise.

    Raises:
        UsageError: A term is not known.
    """
    terms = [parse_term(text) for text in config.loss]
    if not terms:
        terms = [
            TermSpec("ce", config.alpha),
            TermSpec("kd", 1 - config.alpha, options={"temperature": config.temperature}),
        ]
    smooth = {"label_smoothing": label_smoothing}
    return [replace(term, options={**smooth, **term.options}) if term.name == "ce" else term for term in terms]


def _load_teacher(name: str, pretrained: bool) -> _LoadedTeacher:
    folder = Path(name)
    if folder.exists():
        run = Run.open(folder)
        identity = {"path": str(folder.resolve()), "weights_sha256": run.record.weights_sha256}
        return _LoadedTeacher(name, run.network(), identity, run.record.labels, run.record)
    if "/" in name and not name.startswith("timm/"):
        raise UsageError(f"teacher {name} does not exist; give a run's folder or the name of a network")
    size = native_size(name)
    if size is None or not pretrained:
        raise UsageError(
            f"teacher {name!r} is not a run's folder; a network's name is accepted for torchvision's and "
            "timm's classifiers, with --pretrained (their published weights may then be downloaded)"
        )
    preprocessing = Preprocessing(height=size, width=size, crop_fraction=0.875)
    network = ModelSpec(name, 1000, 3).build(preprocessing, pretrained=True)
    return _LoadedTeacher(name, network, {"name": name, "weights_sha256": _state_hash(network)}, None, None)


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


def _check_labels(teacher: _LoadedTeacher, labels: tuple[str, ...]) -> None:
    if teacher.labels is None:
        if len(labels) != 1000:
            raise UsageError(f"teacher {teacher.name} knows ImageNet's 1000 classes, the data has {len(labels)}")
    elif teacher.labels != labels:
        raise UsageError(
            f"teacher {teacher.name} and the data do not have the same labels in the same order; teacher: "
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
        decode_tolerance=teacher.decode_tolerance if config.decode_tolerance is None else config.decode_tolerance,
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
        "recall": measured["recall"],
        "parameters": count_parameters(network),
        "macs": count_macs(network, network.preprocessing.shape),
    }


def _fuse(
    teachers: list[_LoadedTeacher], measured: list[dict[str, Any]], training: Training, config: DistillConfig
) -> Teacher:
    answers = [_answers(teacher, training, config) for teacher in teachers]
    if len(answers) == 1:
        return answers[0]
    recall = torch.tensor([[value or 0.0 for value in each["recall"].values()] for each in measured])
    return FusedTeacher(answers, config.fusion, recall)


def _answers(teacher: _LoadedTeacher, training: Training, config: DistillConfig) -> Teacher:
    frozen = FrozenTeacher(teacher.network)
    if not config.cache.cache_teacher:
        return frozen
    if config.augment.mixup:
        raise UsageError("--mixup makes views that are not stored; leave out --cache-teacher")
    stored = StoredTeacher(
        frozen,
        teacher.identity["weights_sha256"],
        training.train,
        training.augmentation,
        views=config.cache.views,
        top_k=config.cache.cache_top_k,
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
