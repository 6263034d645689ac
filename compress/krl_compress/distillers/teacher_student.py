"""One teacher, one student, labels and softened probabilities: Hinton's distillation."""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor

from krl_compress.losses import kd
from krl_train.models import Network
from krl_train.tasks import Batch, Objective

from .teacher import Teacher

__all__ = ["TeacherStudent"]


class TeacherStudent(Objective):
    """Minimises α · CE(labels) + (1 − α) · T² · KL(teacher ‖ student).

    Hinton et al. 2015, https://arxiv.org/abs/1503.02531. Both nets see the same views.

    Args:
        network: The student.
        teacher: Answers without a gradient.
        alpha: α, the weight of the labels, 0 to 1.
        temperature: T, above 0.
        label_smoothing: Of the cross-entropy, 0 to below 1.
    """

    def __init__(
        self, network: Network, teacher: Teacher, *, alpha: float, temperature: float, label_smoothing: float = 0.0
    ) -> None:
        super().__init__()
        self.network = network
        self.teacher = teacher
        self.alpha = alpha
        self.temperature = temperature
        self.label_smoothing = label_smoothing

    def forward(self, batch: Batch) -> dict[str, Tensor]:
        """Return ``"loss"`` and its parts before weighting, ``"task_loss"`` and ``"kd_loss"``, all scalars in nats."""
        logits = self.network(batch.pixels).float()
        task_loss = F.cross_entropy(logits, batch.labels, label_smoothing=self.label_smoothing)
        kd_loss = kd(logits, self.teacher(batch), temperature=self.temperature)
        return {
            "loss": self.alpha * task_loss + (1 - self.alpha) * kd_loss,
            "task_loss": task_loss,
            "kd_loss": kd_loss,
        }
