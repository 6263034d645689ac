"""Distilling restorers: ``krl-compress distill`` where the teacher is a restorer."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import islice
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from krl_compress import losses
from krl_compress.config import DistillConfig
from krl_compress.distillers import WeightedLoss, parse_loss
from krl_compress.distillers.weighted_losses import Loss
from krl_compress.teachers.restorers import FileRestorer, LoadedRestorer, load_restorer
from krl_runtime.errors import UsageError
from krl_train.config import DataConfig
from krl_train.data import PatchBatch
from krl_train.evaluation.restoration import measure_restorer
from krl_train.loop import resolve_device
from krl_train.metrics import evaluate_restorer
from krl_train.models.restorers import RestorerNetwork, build_restorer, receptive_radius
from krl_train.models.widths import THINNED
from krl_train.run import ModelSpec, Run, RunRecord
from krl_train.tasks import PixelLoss, RestorationObjective
from krl_train.tasks.gather import gather_batch
from krl_train.tasks.restoration import pixel_loss
from krl_train.training.restoration import (
    RestorationTraining,
    like_start,
    read_restoration,
    restoration_optim,
    restorer_record,
    train_restorer,
)
from krl_train.worker import Worker

from .job import COMMAND, MEASURED_LOSSES, Job, parents, starting_point

__all__ = ["RESTORATION_LOSSES", "RestorationDistiller", "prepare"]

RESTORATION_LOSSES: Mapping[str, Loss] = {
    "pixels": Loss(pixel_loss, "truth", weight=0.5),
    "teacher": Loss(pixel_loss, "restored", weight=0.5),
    "affinity": Loss(losses.spatial_affinity, "map", weight=0.04),
    "fitnet": Loss(losses.hint, "map", weight=0.1, adapter="projection"),
    "at": Loss(losses.at, "map", weight=10.0),
    "sp": Loss(losses.sp, "map", weight=1.0, couples=True),
}
"""The losses by the name that ``--loss`` takes: on images (of 0 to 1), and on the features before the last layer."""

_DEFAULT = ("pixels", "teacher")


class RestorationDistiller(RestorationObjective):
    """Minimizes Σ weight · loss over its terms; teacher and student see the same patches.

    With ``pixels``, ``teacher`` and ``affinity`` this is FAKD (https://doi.org/10.1109/ICIP40778.2020.9190683): half
    the L1 to the truth, half the L1 to the teacher's restoration, and how alike positions of the features are.

    Args:
        network: The student.
        teacher: Another restorer of the same scale and colors; it is frozen here, and is no part of this module.
        terms: The losses, of ``RESTORATION_LOSSES``.

    Raises:
        UsageError: There is no term, one is given twice, or the nets are not of one scale and channels.
    """

    def __init__(
        self, network: RestorerNetwork, teacher: RestorerNetwork | FileRestorer, terms: Sequence[WeightedLoss]
    ) -> None:
        super().__init__()
        names = [term.name for term in terms]
        if not names or len(set(names)) < len(names):
            raise UsageError(f"the losses are {', '.join(names) or 'none'}; accepted: one or more, each once")
        channels = [item.preprocessing.channels for item in (network, teacher)]
        if network.scale != teacher.scale or channels[0] != channels[1]:
            raise UsageError(
                f"the student enlarges {network.scale} times in {channels[0]} channels, the teacher {teacher.scale} "
                f"times in {channels[1]}; both need the same"
            )
        self.network = network
        self.terms = tuple(terms)
        self._ask = _frozen(teacher)
        self.adapters = nn.ModuleDict()
        self._on_features = any(RESTORATION_LOSSES[name].sees == "map" for name in names)
        if self._on_features:
            shape = network.preprocessing.shape
            example = torch.zeros(1, *shape, dtype=torch.uint8)
            with torch.no_grad():
                widths = [item.with_features(example)[1].shape[1] for item in (network, teacher)]
            for name in names:
                if RESTORATION_LOSSES[name].adapter:
                    self.adapters[name] = nn.Conv2d(widths[0], widths[1], 1, bias=False)

    def forward(self, batch: PatchBatch) -> dict[str, Tensor]:
        """Return ``"loss"`` and each term before weighting under its name, all scalars."""
        restored, features = self._student(batch.pixels)
        wanted, teacher_features = self._ask(batch.pixels, self._on_features)
        parts = {}
        for term in self.terms:
            kind, options = RESTORATION_LOSSES[term.name], dict(term.options)
            if kind.sees == "truth":
                parts[term.name] = kind.function(restored, batch.truth, **options)
            elif kind.sees == "restored":
                parts[term.name] = kind.function(restored, wanted, **options)
            else:
                mine = self.adapters[term.name](features) if term.name in self.adapters else features
                pair = (mine, teacher_features)
                if kind.couples:
                    pair = (gather_batch(mine), gather_batch(teacher_features))
                parts[term.name] = kind.function(*pair, **options)
        weighted = [term.factor(batch.epoch) * parts[term.name] for term in self.terms]
        # The last layer must take part, or distributed training waits for its gradient.
        return {"loss": torch.stack([*weighted, 0 * restored.sum()]).sum(), **parts}

    def _student(self, pixels: Tensor) -> tuple[Tensor, Tensor]:
        if self._on_features:
            return self.network.with_features(pixels)
        restored: Tensor = self.network(pixels)
        return restored, restored


def _frozen(teacher: RestorerNetwork | FileRestorer) -> Callable[[Tensor, bool], tuple[Tensor, Tensor]]:
    """Return a function from images to the teacher's restorations and features; no module holds the teacher."""
    teacher.requires_grad_(False)

    @torch.no_grad()
    def ask(pixels: Tensor, features: bool) -> tuple[Tensor, Tensor]:
        teacher.to(pixels.device).eval()
        if features:
            return teacher.with_features(pixels)
        restored: Tensor = teacher(pixels)
        return restored, restored

    return ask


@dataclass
class _RestorerJob(Job):
    """A restorer's distillation."""

    training: RestorationTraining
    teacher: LoadedRestorer
    terms: Sequence[WeightedLoss]

    def measure_teachers(self) -> list[dict[str, Any]]:
        """Return the metrics of the teacher on the validation images."""
        device, arguments = resolve_device(self.config.loop.device), self.teacher.arguments
        network = self.teacher.network.to(device)
        measured = evaluate_restorer(
            network, self.training.val, arguments["scale"], arguments["degradation"], Worker(device)
        )
        return [{**measured, **self.teacher.size()}]

    def measure(self, network: nn.Module) -> dict[str, Any]:
        """Return the metrics of ``evaluate_restorer`` on the validation images."""
        found = measure_restorer(network, self.record.model, self.training.val, self.config.loop.device)
        network.cpu()
        return found

    def metric(self) -> tuple[str, str]:
        """Return PSNR."""
        return "psnr", "dB"

    def training_losses(self, network: nn.Module) -> Iterator[Tensor]:
        """Yield the pixel loss on up to 1024 patches of the first epoch."""
        assert isinstance(network, RestorerNetwork)  # noqa: S101  for the type checker
        worker, stream = Worker(resolve_device(self.config.loop.device)), self.training.stream
        objective = PixelLoss(network).to(worker.device).eval()
        steps = min(stream.steps, max(1, MEASURED_LOSSES // stream.loop.batch_size))
        for batch in islice(stream.epoch(0, 0, worker), steps):
            yield objective(batch)["loss"] / steps

    def quality(self, metrics: Mapping[str, Any]) -> tuple[float, str]:
        """Return PSNR in dB, also as text."""
        return metrics["psnr"], f"a PSNR of {metrics['psnr']:.2f} dB"

    def train_alone(self, record: RunRecord, out: Path) -> Run:
        """Train the student on the true images."""
        return self._train(record, PixelLoss, out)

    def train(self, record: RunRecord) -> Run:
        """Train the student with the teacher."""
        return self._train(record, self.objective, self.config.out)

    def objective(self, network: RestorerNetwork) -> RestorationObjective:
        """Return the objective of the student; a student that does not fit the teacher is refused."""
        return RestorationDistiller(network, self.teacher.network, self.terms)

    def _train(self, record: RunRecord, objective: Callable[[RestorerNetwork], RestorationObjective], out: Path) -> Run:
        return train_restorer(objective, self.training, record, self.config, init=self.start, out=out)


def prepare(config: DistillConfig) -> Job:
    """Read teacher, images and start of a restorer's distillation.

    Raises:
        KrlError: The teacher, the student, the images or the configuration cannot be used.
    """
    _refuse_unused(config)
    teacher = load_restorer(config.teacher[0])
    terms = [parse_loss(text, RESTORATION_LOSSES) for text in config.losses.loss or _DEFAULT]
    config = replace(config, optim=restoration_optim(config.optim))
    start, name = starting_point(config.student)
    spec = like_start(_student_spec(name, teacher), start)
    training = read_restoration(replace(config, data=_data(config.data, teacher)), spec, _patch(config, teacher))
    parent = parents([teacher.identity], start)
    record = restorer_record(config, spec, training, command=COMMAND, parent=parent, start=start)
    job = _RestorerJob(config, record, start, training, teacher, terms)
    job.objective(build_restorer(spec, record.preprocessing))  # refuses before anything is written
    return job


def _refuse_unused(config: DistillConfig) -> None:
    if len(config.teacher) != 1:
        raise UsageError(f"{len(config.teacher)} teachers are given; restoration takes one")


def _student_spec(name: str, teacher: LoadedRestorer) -> ModelSpec:
    """Return the student, which does what the teacher does."""
    overlap = receptive_radius(name, teacher.arguments["scale"])
    arguments = {key: value for key, value in teacher.arguments.items() if key not in ("published", *THINNED)}
    return ModelSpec(name, 0, teacher.network.preprocessing.channels, {**arguments, "overlap": overlap})


def _patch(config: DistillConfig, teacher: LoadedRestorer) -> tuple[int, int]:
    """Return height and width of a patch: what the user says, else the teacher's."""
    own = teacher.network.preprocessing
    size = config.input.size or (own.height, own.width)
    return size[0], size[-1]


def _data(data: DataConfig, teacher: LoadedRestorer) -> DataConfig:
    """Return where the images are: what the user says, or what the teacher was trained and validated on."""
    if data.data is not None:
        return data
    there = teacher.data
    if not there:
        raise UsageError(f"teacher {teacher.name} names no data; give --data FOLDER, a folder of images")
    validation = Path(there["val_source"]) if there["val_source"] else None
    return replace(data, data=there["source"], val_data=data.val_data or validation, val_fraction=there["val_fraction"])
