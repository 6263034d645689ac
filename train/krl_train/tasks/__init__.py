"""Tasks: what a training step and an evaluation are. The loop does the rest."""

from __future__ import annotations

from .base import Batch, Learner, Task, TrainingStream, Update
from .classification import ClassificationTask, Objective, Supervised, label_loss
from .learners import make_learner
from .restoration import PixelLoss, RestorationObjective, RestorationTask

__all__ = [
    "Batch",
    "ClassificationTask",
    "Learner",
    "Objective",
    "PixelLoss",
    "RestorationObjective",
    "RestorationTask",
    "Supervised",
    "Task",
    "TrainingStream",
    "Update",
    "label_loss",
    "make_learner",
]
