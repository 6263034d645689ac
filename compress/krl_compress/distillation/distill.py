"""``krl-compress distill``: a teacher and a data set to a student's run."""

from __future__ import annotations

import logging
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from importlib import import_module
from pathlib import Path
from typing import Any

import torch

from krl_compress.config import DistillConfig, LossConfig, QuantisationConfig
from krl_compress.distillers import Distiller, FrozenTeacher, FusedTeacher, Teacher, TermSpec, parse_term
from krl_compress.teachers.loading import LoadedTeacher, load_teacher, name_alike
from krl_compress.teachers.store import StoredTeacher
from krl_runtime.errors import DataError, UsageError
from krl_runtime.images.preprocessing import Preprocessing
from krl_train.config import InputConfig, to_plain
from krl_train.data import Source, open_source, preprocessing_for
from krl_train.data.splits import Training, read_training
from krl_train.evaluation.evaluate import evaluate_run
from krl_train.loop import process_first, resolve_device
from krl_train.models import Network, native_size
from krl_train.run import RECORD, ModelSpec, Run, RunRecord
from krl_train.tasks import Objective, Supervised
from krl_train.training.fit import initialise_from, network_size, prepare_out, train_classifier

from .data_free import FROM_TEACHER, generated_source
from .quantization import check_quantized, gentle, measure_start, quantized_student
from .student import refuse_generator_options, starting_point, train_baseline

__all__ = ["distill"]

_log = logging.getLogger("krl")

FLOAT = "float"

_OTHER_TASKS = {
    "generation": "krl_compress.distillation.generation:distill_generator",
    "restoration": "krl_compress.distillation.restoration:distill_restorer",
}
"""What distils the teachers that are not classifiers, by their task."""


def distill(config: DistillConfig) -> Run:
    """Train a student with a teacher, and without one if asked.

    Returns:
        The student's run; its metrics have the teacher's and the baseline's beside its own.

    Raises:
        KrlError: The teacher, the student, the data or the configuration cannot be used, or training failed.
    """
    task = _task(config)
    if task != "classification":
        return _other_task(task, config)
    refuse_generator_options(config, "classifier")
    terms = resolve_terms(config.losses, config.optim.label_smoothing)
    teachers = [load_teacher(name, config.pretrained) for name in config.teacher]
    if not teachers:
        raise UsageError("no teacher is named; give --teacher RUN")
    source = _source(config, teachers[0])
    teachers = [name_alike(teacher, source.labels, config.map_labels) for teacher in teachers]
    start, name = starting_point(config.student)
    check_quantized(config, start, terms)
    asked = _input(config.input, teachers[0].network.preprocessing, name)
    keeps = start is not None and config.quantisation.quantize  # its normalisation is frozen
    preprocessing = start.record.preprocessing if start and keeps else preprocessing_for(asked, source, name)
    training = read_training(source, preprocessing, config.augment, config.loop.seed)
    record = RunRecord(
        task="classification",
        model=ModelSpec(name, len(source.labels), preprocessing.channels, _arguments(config)),
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
        return finished
    measured = [_measure_teacher(teacher, training, config) for teacher in teachers]
    metrics: dict[str, Any] = {"teacher": measured[0], "teachers": measured}
    if config.quantisation.quantize:
        start = start or _float_student(config)
        student = quantized_student(record, training, start, config.loop.device)
        metrics |= measure_start(student, training, config.loop.device)
    if config.baseline:
        supervised = partial(Supervised, label_smoothing=config.optim.label_smoothing)
        metrics["baseline"] = train_baseline(
            config, record, lambda alone, out: _train(config, alone, training, start, supervised, out)
        )
    answers = _fuse(teachers, measured, training, config)

    def objective(network: Network) -> Objective:
        return Distiller(network, answers, terms, at=config.losses.at, labels=training.train.labels)

    return _train(config, replace(record, metrics=metrics), training, start, objective, config.out)


def _task(config: DistillConfig) -> str:
    """Return the task of the first teacher; one that is given by name is a classifier."""
    if not config.teacher or not (Path(config.teacher[0]) / RECORD).is_file():
        return "classification"
    return RunRecord.read(Path(config.teacher[0]) / RECORD).task


def _other_task(task: str, config: DistillConfig) -> Run:
    """Distil a run that is not a classifier's."""
    if task not in _OTHER_TASKS:
        raise UsageError(
            f"teacher {config.teacher[0]} is of the task {task!r}; accepted: classification, {', '.join(_OTHER_TASKS)}"
        )
    module, _, name = _OTHER_TASKS[task].partition(":")
    run: Run = getattr(import_module(module), name)(config)
    return run


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


def _source(config: DistillConfig, teacher: LoadedTeacher) -> Source:
    """Open the data; with --data-free that is generated pictures, and real ones to measure on where there are any."""
    if config.data_free.data_free is None:
        return _open_data(config, teacher)
    if config.baseline:
        raise UsageError("--baseline trains on labels, and with --data-free there are none; leave it out")
    if config.data_free.data_free != FROM_TEACHER and not Path(str(config.data_free.data_free)).exists():
        raise UsageError(
            f"--data-free {config.data_free.data_free} does not exist; give a generator's run or bundle, or "
            f"{FROM_TEACHER!r}"
        )
    try:
        real = _open_data(config, teacher)
    except (DataError, UsageError):
        if config.data.data is not None:
            raise
        return generated_source(config, teacher, None)
    return generated_source(config, name_alike(teacher, real.labels, config.map_labels), real)


def _open_data(config: DistillConfig, teacher: LoadedTeacher) -> Source:
    data = config.data
    if data.data is None and teacher.record is not None:
        there = teacher.record.data
        data = replace(data, data=there["source"], data_root=Path(there["root"]), val_fraction=there["val_fraction"])
    return open_source(data)


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


def _measure_teacher(teacher: LoadedTeacher, training: Training, config: DistillConfig) -> dict[str, Any]:
    network = teacher.network
    val = training.source.read("val", network.preprocessing, limit=training.source.config.val_limit)
    measured = evaluate_run(network, training.source.labels, val, config.loop.device)
    return {
        "top1": measured["top1"],
        "loss": measured["loss"],
        "count": measured["count"],
        "recall": measured["recall"],
        **network_size(network),
    }


def _fuse(
    teachers: list[LoadedTeacher], measured: list[dict[str, Any]], training: Training, config: DistillConfig
) -> Teacher:
    answers = [_answers(teacher, training, config) for teacher in teachers]
    if len(answers) == 1:
        return answers[0]
    recall = torch.tensor([[value or 0.0 for value in each["recall"].values()] for each in measured])
    return FusedTeacher(answers, config.fusion, recall)


def _answers(teacher: LoadedTeacher, training: Training, config: DistillConfig) -> Teacher:
    frozen = FrozenTeacher(teacher.network)
    if not config.cache.cache_teacher:
        return frozen
    if config.augment.mixup:
        raise UsageError("--mixup makes views that are not stored; leave out --cache-teacher")
    stored = StoredTeacher(
        frozen,
        teacher.answers_sha256,
        training.train,
        training.augmentation,
        views=config.cache.views,
        top_k=config.cache.cache_top_k,
        folder=config.cache.cache_dir,
    )
    with process_first(config.loop.device):
        stored.fill(resolve_device(config.loop.device))
    return stored


def _arguments(config: DistillConfig) -> dict[str, Any]:
    return {"quantize": config.quantisation.quantize} if config.quantisation.quantize else {}


def _float_student(config: DistillConfig) -> Run:
    """Distil the student in floating point first."""
    out = config.out / FLOAT
    _log.info("the student in floating point:")
    return distill(
        replace(
            config,
            out=out,
            loop=replace(config.loop, epochs=config.quantisation.float_epochs),
            quantisation=QuantisationConfig(),
            baseline=False,
            resume=config.resume and (out / RECORD).is_file(),
        )
    )


def _train(
    config: DistillConfig,
    record: RunRecord,
    training: Training,
    start: Run | None,
    objective: Callable[[Network], Objective],
    out: Path,
) -> Run:
    torch.manual_seed(config.loop.seed)
    optim = config.optim
    if config.quantisation.quantize and start is not None:
        network = quantized_student(record, training, start, config.loop.device)
        optim = gentle(optim, config.loop.batch_size)
    else:
        network = record.model.build(record.preprocessing)
        if start is not None:
            initialise_from(network, start)
    return train_classifier(
        objective,
        network,
        training,
        record,
        optim,
        config.loop,
        out,
        views=config.cache.views if config.cache.cache_teacher else None,
        resume=config.resume,
    )
