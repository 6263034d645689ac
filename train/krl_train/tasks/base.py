"""The protocol between the training loop and a task."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, fields, replace
from typing import Any, Generic, Protocol, TypeAlias, TypeVar

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn
from torch.optim.lr_scheduler import LRScheduler
from torch.optim.swa_utils import AveragedModel

from krl_train.config import PlannedOptim
from krl_train.worker import Worker

__all__ = ["Batch", "Learner", "Task", "TrainingStream", "Update"]

_Batch = TypeVar("_Batch")
_Yielded = TypeVar("_Yielded", covariant=True)


@dataclass(frozen=True)
class Batch:
    """One step's images, on the device.

    Attributes:
        pixels: Views ``[N, C, H, W]``, uint8 or float32, 0 to 255.
        labels: As of ``PixelSet``: class indices ``[N]``, or several labels ``[N, labels]`` of 0 and 1; -1 for an image
            without a label, which distillation alone has.
        indices: The images' indices in the training set, ``[N]`` of int64, on the CPU.
        view: Number of the view that all of them are shown in.
        epoch: From 0.
        partners: With mixup or CutMix, the class indices of the images that were mixed in, ``[N]``.
        share: Then also, how much of each view is the image that ``labels`` names: 0.5 to 1 (mixup), or 0 to 1.
        further: What is beside the images, for networks with several inputs, each ``[N, ...]``: other images, or
            numbers of float32; see ``krl_train.data.further``.
        whole: The batch of the whole step, where this is a part of it; ``None`` for a whole one.
    """

    pixels: Tensor
    labels: Tensor
    indices: Tensor
    view: int
    epoch: int = 0
    partners: Tensor | None = None
    share: float | None = None
    further: tuple[Tensor, ...] = ()
    whole: Batch | None = None

    def split(self, parts: int) -> tuple[Batch, ...]:
        """Return consecutive parts, whose numbers of images differ by one at most; fewer where it has fewer images.

        Args:
            parts: Their number, 1 or more; 1 returns the batch itself.
        """
        count = len(self.labels)
        if parts == 1:
            return (self,)
        pieces: dict[str, Sequence[Tensor]] = {}
        for name in (field.name for field in fields(self)):
            value = getattr(self, name)
            if isinstance(value, Tensor) and value.ndim:
                pieces[name] = value.tensor_split(min(parts, count))
        beside = [value.tensor_split(min(parts, count)) for value in self.further]
        each = enumerate(zip(*pieces.values(), strict=True))
        return tuple(
            replace(
                self,
                whole=self,
                further=tuple(value[number] for value in beside),
                **dict(zip(pieces, piece, strict=True)),
            )
            for number, piece in each
        )


@dataclass
class Learner:
    """A module that is trained, with its optimizer, schedule and (where wanted) moving average.

    The loop replaces ``module`` and ``optimizer`` by prepared ones (device, several processes), and checkpoints all.
    ``optim`` says how the module is trained.
    """

    module: nn.Module
    optimizer: torch.optim.Optimizer
    schedule: LRScheduler
    optim: PlannedOptim
    average: AveragedModel | None = None
    average_of: nn.Module | None = None


Update: TypeAlias = Callable[[str, Tensor], None]
"""Called by a step as ``update(learner_name, loss)``: backward, clip, optimizer, schedule, moving average."""


class TrainingStream(Protocol[_Yielded]):
    """The batches that a task is trained on; everything random in them follows from a seed, the epoch and the step."""

    @property
    def count(self) -> int:
        """Number of images in one epoch."""

    @property
    def steps(self) -> int:
        """Number of steps in one epoch."""

    def epoch(self, epoch: int, first_step: int, worker: Worker) -> Iterator[_Yielded]:
        """Yield this process's share of the batches of one epoch, from ``first_step`` on, on its device."""


class Task(ABC, Generic[_Batch]):
    """Something that can be trained: it owns its learners and says what a step and an evaluation are."""

    learners: Mapping[str, Learner]
    unfreezes = False
    """Whether more weights are trained later than at first."""

    def planned(self) -> Mapping[str, Any]:
        """Return the task's part of the record of the plan, as plain JSON types; nothing by default."""
        return {}

    @abstractmethod
    def step(self, batch: _Batch, update: Update) -> Mapping[str, Tensor]:
        """Train on one batch.

        Args:
            batch: What the stream yields.
            update: Moves the weights of a learner along a loss.

        Returns:
            Named scalars for the log; ``"loss"`` is among them and is watched for NaN.
        """

    def begin_epoch(self, epoch: int) -> None:
        """Prepare for an epoch, for instance put modules into training mode."""
        for learner in self.learners.values():
            learner.module.train()

    @abstractmethod
    def evaluate(self, worker: Worker) -> dict[str, Any]:
        """Return metrics on the validation data; all processes call it and get the same answer."""

    def quality(self, metrics: Mapping[str, Any]) -> tuple[float, ...] | None:
        """Return how good an evaluation is, to be compared with that of other epochs; higher is better.

        ``None``, the default, is for tasks whose metrics say too little to choose an epoch by: the last one is kept.
        """
        del metrics
        return None

    def samples(self) -> Mapping[str, npt.NDArray[np.uint8]]:
        """Return images ``[H, W, C]`` that show how far the training is, by name; none by default.

        The loop asks for them after each evaluation and puts them into the run's folder and TensorBoard.
        """
        return {}

    @abstractmethod
    def state(self) -> dict[str, Tensor]:
        """Return the weights that the run keeps."""

    def discriminator_state(self) -> dict[str, Tensor] | None:
        """Return the weights of a discriminator that the run keeps as well; ``None``, the default, for none."""
        return None
