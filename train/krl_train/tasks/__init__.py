"""Tasks: what a training step and an evaluation are. The loop does the rest."""

from __future__ import annotations

from .base import Batch, Learner, Stream, Task, Update
from .classification import ClassificationTask, Objective, Supervised

__all__ = ["Batch", "ClassificationTask", "Learner", "Objective", "Stream", "Supervised", "Task", "Update"]
