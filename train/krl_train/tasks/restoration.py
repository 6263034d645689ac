"""Training a restorer, whatever the objective: ground truth alone, or a teacher as well."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Mapping
from typing import Any

import numpy as np
import numpy.typing as npt
from torch import Tensor, nn

from krl_train.config import OptimConfig
from krl_train.data import PatchBatch, Truths
from krl_train.metrics import evaluate_restorer
from krl_train.metrics.restoration import enlarge, restore_image
from krl_train.models.restorers import RestorerNetwork
from krl_train.worker import Worker

from .objective import ObjectiveTask

__all__ = ["SHOWN_SIDE", "PixelLoss", "RestorationObjective", "RestorationTask", "framed", "pixel_loss"]

SHOWN = 3  # images of an evaluation that are put beside their truth in the log
SHOWN_SIDE = 96  # pixels of them at most, so that the log stays small


def pixel_loss(restored: Tensor, truth: Tensor, *, epsilon: float = 0.0) -> Tensor:
    """Return the mean absolute difference of images, or its smooth form, the mean of sqrt((a - b)² + ε²).

    The smooth form is Charbonnier's (https://arxiv.org/abs/1704.03915).

    Args:
        restored: ``[N, C, H, W]``, 0 to 255, floating point.
        truth: The same shape, uint8 or floating point.
        epsilon: Below which differences count quadratically, in units of 0 to 1; 0 is plain L1.

    Returns:
        Scalar, in units of 0 to 1.
    """
    difference = (restored - truth.to(restored.dtype)) / 255
    return (difference.square() + epsilon**2).sqrt().mean() if epsilon else difference.abs().mean()


class RestorationObjective(nn.Module):
    """A restorer together with what its training minimizes; all of its parameters are trained."""

    network: RestorerNetwork

    @abstractmethod
    def forward(self, batch: PatchBatch) -> dict[str, Tensor]:
        """Return named scalar losses; ``"loss"`` is the one to minimize."""


class PixelLoss(RestorationObjective):
    """The difference from the ground truth.

    Args:
        network: The restorer.
        epsilon: See ``pixel_loss``.
    """

    def __init__(self, network: RestorerNetwork, epsilon: float = 0.0) -> None:
        super().__init__()
        self.network = network
        self.epsilon = epsilon

    def forward(self, batch: PatchBatch) -> dict[str, Tensor]:
        """Return ``{"loss": mean difference in units of 0 to 1}``."""
        return {"loss": pixel_loss(self.network(batch.pixels), batch.truth, epsilon=self.epsilon)}


class RestorationTask(ObjectiveTask[PatchBatch, RestorerNetwork]):
    """Trains the network of an objective and measures it on whole images.

    Args:
        objective: What is minimized.
        optim: How.
        steps: Number of optimization steps in the whole training.
        batch_size: Patches in one step over all processes.
        val: Validation images.
        degradation: What is done to them, beside the scaling; see ``krl_runtime.images.luma.corrupt``.
    """

    def __init__(
        self,
        objective: RestorationObjective,
        optim: OptimConfig,
        *,
        steps: int,
        batch_size: int,
        val: Truths,
        degradation: Mapping[str, Any],
    ) -> None:
        super().__init__(objective, objective.network, optim, steps=steps, batch_size=batch_size)
        self.objective = objective
        self.val = val
        self.degradation = dict(degradation)

    def evaluate(self, worker: Worker) -> dict[str, Any]:
        """Measure the network (its moving average, where there is one) on the validation images."""
        return evaluate_restorer(self.final(), self.val, self.network.scale, self.degradation, worker)

    def quality(self, metrics: Mapping[str, Any]) -> tuple[float, ...] | None:
        """Return the PSNR, where there is one: paintings of a style have none."""
        return (metrics["psnr"],) if metrics.get("psnr") is not None else None

    def samples(self) -> Mapping[str, npt.NDArray[np.uint8]]:
        """Return ``"restored"``: for the first validation images input (enlarged), restoration and truth in a row."""
        network, scale = self.final().eval(), self.network.scale
        device = next(network.parameters()).device
        rows = []
        for index in range(min(SHOWN, len(self.val))):
            given, truth = self.val.pair(index, scale, self.degradation, side=SHOWN_SIDE)
            row = (enlarge(given, scale), restore_image(network, given, device), truth)
            rows.append(np.concatenate([framed(item) for item in row], axis=1))
        return {"restored": np.concatenate(rows)}


def framed(image: npt.NDArray[np.uint8]) -> npt.NDArray[np.uint8]:
    """Put an image into the upper left of a white square with a margin, as ``[H, W, C]``."""
    planes = image[..., None] if image.ndim == 2 else image
    square = np.full((SHOWN_SIDE + 2, SHOWN_SIDE + 2, planes.shape[2]), 255, np.uint8)
    square[: planes.shape[0], : planes.shape[1]] = planes
    return square
