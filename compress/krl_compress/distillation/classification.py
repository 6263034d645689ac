"""Distilling classifiers: ``krl-compress distill`` where the teachers are classifiers."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from krl_compress.config import DistillConfig, QuantizationConfig
from krl_compress.distillers import Distiller, FrozenTeacher, FusedTeacher, Teacher, WeightedLoss
from krl_compress.teachers.files import load_bundle_teacher, load_onnx_teacher
from krl_compress.teachers.kinds import ACCEPTED, TeacherKind, kind_of
from krl_compress.teachers.loading import LoadedTeacher, load_custom_teacher, load_teacher, name_alike
from krl_compress.teachers.store import StoredTeacher
from krl_compress.teachers.strength import answers_quality, warn_if_weak
from krl_runtime.bundle.further_inputs import column_names
from krl_runtime.errors import DataError, UsageError
from krl_runtime.images.preprocessing import Preprocessing
from krl_train.config import LoopConfig, TrainingConfig, plan_loop, to_plain
from krl_train.custom import sources_of
from krl_train.data import Source, open_source, preprocessing_for
from krl_train.data.splits import Training, read_training
from krl_train.evaluation.evaluate import evaluate_run
from krl_train.loop import process_first, resolve_device
from krl_train.metrics import quality_error, quality_name, quality_of
from krl_train.models import Network
from krl_train.models.custom import custom_arguments
from krl_train.models.spec import carried_arguments
from krl_train.run import RECORD, ModelSpec, Run, RunRecord
from krl_train.tasks import Objective, Supervised
from krl_train.training.balance import check_options, class_weights
from krl_train.training.start import start_classifier
from krl_train.training.train import train_classifier

from .data_free import FROM_TEACHER, generated_source
from .inputs import check_size, inputs_of, same_inputs
from .job import COMMAND, Job, carry_out, fine_tuned, parents, starting_point
from .label_losses import label_losses
from .quantization import check_quantized, gentle, measure_start, quantized_student
from .student_input import student_input
from .terms import resolve_losses, resolve_names
from .unlabeled import add_unlabeled, class_of_each, log_share, plan_alone, see_the_teacher

__all__ = ["ClassifierJob", "classifier_record", "prepare"]

_log = logging.getLogger("krl")

FLOAT = "float"
_OF_TEACHERS = ("top1", "map", "loss", "count", "recall", "top1_standard_error", "map_standard_error", "f1_macro")


@dataclass
class ClassifierJob(Job):
    """A classifier's distillation.

    ``labeled`` is ``training`` without unlabeled images.
    ``teaching_quality`` is the top-1 (mAP of several labels) of what the student learns from: of all teachers as one,
    on images as the student sees them.
    """

    training: Training
    labeled: Training
    teachers: Sequence[LoadedTeacher]
    terms: Sequence[WeightedLoss]
    teaching_quality: float = field(init=False)

    def measure_teachers(self) -> list[dict[str, Any]]:
        """Return the metrics of each teacher on the validation data, at the teacher's own input."""
        source, measured = self.training.source, []
        for teacher in self.teachers:
            network = teacher.network
            val = source.read("val", network.preprocessing, limit=source.config.val_limit)
            found = evaluate_run(network, source.labels, val, self.config.loop.device)
            kept = {name: found[name] for name in _OF_TEACHERS if name in found}
            measured.append({**kept, **teacher.size()})
        self.teaching_quality = self._measure_teaching(measured)
        # Labels of generated images are the teacher's own. A student in floating point, which is distilled before a
        # quantized one, names a weak teacher itself.
        apart = self.config.data_free.data_free is not None or self.config.quantization.float_epochs > 0
        if see_the_teacher(self.terms) and not apart:
            warn_if_weak(" + ".join(map(str, self.config.teacher)), self.teaching_quality, self.labeled)
        return measured

    def _measure_teaching(self, measured: Sequence[dict[str, Any]]) -> float:
        (first, *others), device = self.teachers, resolve_device(self.config.loop.device)
        alike = not others and first.network.preprocessing == self.record.preprocessing
        if alike or not see_the_teacher(self.terms):
            return quality_of(measured[0])
        answers = self._fuse([FrozenTeacher(teacher.network) for teacher in self.teachers], measured)
        return answers_quality(answers, self.labeled.val, device)

    def quality(self, metrics: Mapping[str, Any]) -> tuple[float, str]:
        """Return top-1 (mAP of several labels), also as text."""
        value, name = quality_of(metrics), "an mAP" if quality_name(metrics) == "map" else "a top-1"
        return value, f"{name} of {100 * value:.1f} ± {100 * quality_error(metrics):.1f} %"

    def measure_start(self) -> dict[str, Any]:
        """Return how accurate a student is that is to be quantized, once it has been trained in floating point."""
        if not self.config.quantization.quantize:
            return {}
        self.start = self.start or _float_student(self.config)
        device = self.config.loop.device
        return measure_start(quantized_student(self.record, self.training, self.start, device), self.training, device)

    def measure(self, network: nn.Module) -> dict[str, Any]:
        """Return the metrics of ``evaluate_classifier`` on the validation images."""
        assert isinstance(network, Network)  # noqa: S101  for the type checker
        found = evaluate_run(network, self.record.labels, self.labeled.val, self.config.loop.device)
        network.cpu()
        return found

    def metric(self) -> tuple[str, str]:
        """Return top-1, or mAP of several labels."""
        return "map" if self.labeled.source.multi_label else "top1", "%"

    def training_losses(self, network: nn.Module) -> Iterator[Tensor]:
        """Return the loss on the labels of up to 1024 training images, evenly spread."""
        assert isinstance(network, Network)  # noqa: S101  for the type checker
        return label_losses(Supervised(network), self.labeled.train, resolve_device(self.config.loop.device))

    def train_alone(self, record: RunRecord, out: Path) -> Run:
        """Train the student on the labels."""
        smoothing, weights = self.config.optim.label_smoothing, class_weights(self.labeled.train, self.config.loop)
        supervised = partial(Supervised, label_smoothing=smoothing, class_weights=weights)
        return self._train(record, supervised, out, *self._alone())

    def train(self, record: RunRecord) -> Run:
        """Train the student with the teachers."""
        every = [_answers(teacher, self.training, self.config) for teacher in self.teachers]
        answers = self._fuse(every, record.metrics["teachers"])
        at, loop = self.config.losses.feature_taps, self.config.loop
        weights = class_weights(self.labeled.train, loop)
        data = (self.training, loop) if see_the_teacher(self.terms) else self._alone()
        labels = class_of_each(self.terms, answers, data[0], resolve_device(loop.device))
        log_share(data[0].train)

        def objective(network: Network) -> Objective:
            quality = self.teaching_quality
            made = Distiller(
                network, answers, self.terms, at=at, labels=labels, class_weights=weights, teacher_quality=quality
            )
            if self.start is not None and any(term.adaptive for term in self.terms):
                made.evaluated(evaluate_run(network, record.labels, self.labeled.val, loop.device))
                network.cpu()
            return made

        return self._train(record, objective, self.config.out, *data)

    def _alone(self) -> tuple[Training, LoopConfig]:
        """Return the labeled images, and the plan for them that has as many steps as that for all."""
        labeled, every = len(self.labeled.train), len(self.training.train)
        loop = self.config.loop
        return self.labeled, loop if labeled == every else plan_alone(loop, labeled, every, len(self.labeled.val))

    def _fuse(self, answers: Sequence[Teacher], measured: Sequence[dict[str, Any]]) -> Teacher:
        if len(answers) == 1:
            return answers[0]
        if self.config.fusion != "mean":
            self.training.source.require_one_class(f"--fusion {self.config.fusion}")
        found = [each.get("recall", {}).values() for each in measured]
        recall = torch.tensor([[value or 0.0 for value in each] for each in found])
        return FusedTeacher(answers, self.config.fusion, recall)

    def _train(
        self,
        record: RunRecord,
        objective: Callable[[Network], Objective],
        out: Path,
        training: Training,
        asked: LoopConfig,
    ) -> Run:
        config, start = self.config, self.start
        torch.manual_seed(config.loop.seed)
        optim, loop = config.optim, plan_loop(asked, len(training.train), len(training.val))
        if config.quantization.quantize and start is not None:
            network = quantized_student(record, self.training, start, config.loop.device)
            optim = gentle(optim, loop.batch_size)
        else:
            if self.fine_tunes:
                optim = fine_tuned(optim, loop.batch_size)
            network = record.model.build(record.preprocessing)
            if start is not None:
                start_classifier(network, start, record.model.name, record.labels)
        views = config.cache.views if config.cache.cache_teacher else None
        return train_classifier(
            objective, network, training, record, optim, loop, out, views=views, resume=config.resume
        )


def prepare(config: DistillConfig) -> ClassifierJob:
    """Read teachers, data and start of a classifier's distillation.

    Raises:
        KrlError: A teacher, the student, the data or the configuration cannot be used.
    """
    if config.losses.loss:  # refused before anything is read
        resolve_names(config.losses)
    teachers, source = _teachers(config)
    inputs = inputs_of(teachers, config)
    source = replace(source, further=inputs)
    check_options(source, config.optim, config.loop)
    several = len(source.labels) if source.multi_label else None
    terms = resolve_losses(config.losses, config.optim.label_smoothing, mixup=config.augment.mixes, several=several)
    _check_loop(terms, config.loop)
    start, name = starting_point(config.student)
    check_quantized(config, start, terms)
    preprocessing = student_input(config, teachers[0].network.preprocessing, source, name, start)
    check_size(inputs, teachers, preprocessing)
    labeled = training = read_training(source, preprocessing, config.augment, config.loop.seed)
    record = classifier_record(config, name, preprocessing, training, COMMAND)
    if config.unlabeled:
        training, described = add_unlabeled(labeled, config.unlabeled, preprocessing)
        record = replace(record, data={**record.data, "unlabeled": described})
    arguments = {"quantize": config.quantization.quantize} if config.quantization.quantize else {}
    kept = carried_arguments(start.record.model if start else record.model)
    if config.student_inputs == "same":
        kept |= same_inputs(teachers)
    model = replace(record.model, arguments={**kept, **arguments})
    uses = [("loss", term.name) for term in terms if term.custom] + [("teacher", name) for name in config.teacher]
    record = replace(
        record,
        model=model,
        parent=parents([teacher.identity for teacher in teachers], start),
        sources=record.sources + sources_of(uses),
    )
    return ClassifierJob(config, record, start, training, labeled, teachers, terms)


def classifier_record(
    config: TrainingConfig, name: str, preprocessing: Preprocessing, training: Training, command: str
) -> RunRecord:
    """Return the record of a classifier, without the results and its parent.

    Args:
        config: The full configuration.
        name: The network.
        preprocessing: Its input.
        training: The data.
        command: The command that it is for.
    """
    labels = training.source.labels
    return RunRecord(
        task="classification",
        model=ModelSpec(name, len(labels), preprocessing.channels, custom_arguments(name, preprocessing.shape)),
        preprocessing=preprocessing,
        labels=labels,
        output_kind=training.source.output_kind,
        command=command,
        configuration=to_plain(config),
        seed=config.loop.seed,
        data=training.describe(),
        sources=sources_of([("model", name), ("data", training.source.name)]),
    )


def _check_loop(terms: Sequence[WeightedLoss], loop: LoopConfig) -> None:
    """Refuse --accumulate for losses that look at all images of a step, and --compile for those that look inside."""
    coupled = [term.name for term in terms if term.kind.couples]
    if loop.accumulate > 1 and coupled:
        raise UsageError(
            f"--accumulate {loop.accumulate} computes each step in parts, but --loss {' and '.join(coupled)} "
            "compares all images of a step; leave --accumulate out, or give other losses"
        )
    inside = [term.name for term in terms if term.kind.sees not in ("labels", "logits", "logits+labels")]
    if loop.compile and inside:
        raise UsageError(
            f"--compile hides the features that --loss {' and '.join(inside)} compares; leave one of them out"
        )


def _teachers(config: DistillConfig) -> tuple[list[LoadedTeacher], Source]:
    """Load the teachers, and open the data: that of the first teacher's run, unless another is named.

    A teacher of the user's own and an ONNX file say neither what their classes are nor what they take: they are the
    data's, and what the options on the input say.
    """
    if not config.teacher:
        raise UsageError(f"no teacher is named; give --teacher; accepted: {ACCEPTED}")
    kinds = {name: kind_of(name) for name in config.teacher}
    known = {name: _KNOWN[kind](name, config.pretrained) for name, kind in kinds.items() if kind in _KNOWN}
    if config.data_free.data_free is not None and len(known) < len(kinds):
        raise UsageError(
            "--data-free needs a teacher that knows its classes, a run or a bundle; leave it out, or make one of it"
        )
    source = _source(config, next(iter(known.values()))) if known else open_source(config.data, seed=config.loop.seed)
    teachers = []
    for name in config.teacher:
        teacher = known[name] if name in known else _OF_DATA[kinds[name]](name, source, config)
        _check_alike(teacher, source)
        teachers.append(name_alike(teacher, source.labels, config.map_labels))
    return teachers, source


def _check_alike(teacher: LoadedTeacher, source: Source) -> None:
    """Check that a teacher answers what the data asks: one class for each image, or any number of labels.

    Raises:
        UsageError: It does not.
    """
    kinds = ("one class for each image", "any number of labels")
    if teacher.multi_label != source.multi_label:
        raise UsageError(
            f"teacher {teacher.name} predicts {kinds[teacher.multi_label]}, and {source.name} has "
            f"{kinds[source.multi_label]}; give data of the same kind with --data, or another --teacher"
        )


_KNOWN: Mapping[TeacherKind, Callable[[str, bool], LoadedTeacher]] = {
    "run": load_teacher,
    "published": load_teacher,
    "bundle": lambda name, _: load_bundle_teacher(name),
}
"""By kind, how a teacher is loaded that knows its classes."""
_OF_DATA: Mapping[TeacherKind, Callable[[str, Source, DistillConfig], LoadedTeacher]] = {
    "own": lambda name, source, config: load_custom_teacher(
        name, source.labels, preprocessing_for(config.input, source, name), multi_label=source.multi_label
    ),
    "onnx": lambda name, source, config: load_onnx_teacher(
        name, source, config.input, numbered=bool(config.map_labels)
    ),
}
"""By kind, how a teacher is loaded whose classes are the data's."""


def _source(config: DistillConfig, teacher: LoadedTeacher) -> Source:
    """Open the data; with --data-free that is generated images, and real ones to measure on where there are any."""
    if config.data_free.data_free is None:
        return _open_data(config, teacher)
    if teacher.multi_label:
        raise UsageError("--data-free needs a teacher of one class for each image; leave it out, and give --data")
    if config.baseline:
        raise UsageError("--baseline trains on labels, and with --data-free there are none; leave it out")
    if config.data.shots is not None:
        raise UsageError("--shots draws images of --data, and with --data-free these are not trained on; leave it out")
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
    further = () if teacher.record is None else teacher.record.model.further(teacher.record.preprocessing)
    return open_source(data, seed=config.loop.seed, columns=column_names(further))


def _answers(teacher: LoadedTeacher, training: Training, config: DistillConfig) -> Teacher:
    frozen = FrozenTeacher(teacher.network, teacher.features)
    if not config.cache.cache_teacher:
        return frozen
    if config.augment.mixes:
        raise UsageError("--mixup and --cutmix make views that are not stored; leave out --cache-teacher")
    if config.cache.cache_top_k is not None:
        training.source.require_one_class("--cache-top-k")
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


def _float_student(config: DistillConfig) -> Run:
    """Distil the student in floating point first."""
    out = config.out / FLOAT
    _log.info("the student in floating point:")
    loop = replace(config.loop, epochs=config.quantization.float_epochs)
    resume = config.resume and (out / RECORD).is_file()
    asked = replace(config, out=out, loop=loop, quantization=QuantizationConfig(), baseline=False, resume=resume)
    return carry_out(prepare(asked))
