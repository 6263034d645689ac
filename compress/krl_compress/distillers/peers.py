"""Networks that are trained at the same time and teach each other."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, cast

import torch
from torch import Tensor, nn

from krl_compress.losses import kd
from krl_runtime.errors import UsageError
from krl_train.config import OptimConfig, plan_optim
from krl_train.data import PixelSet
from krl_train.metrics import evaluate_classifier
from krl_train.models import Network, load_weights
from krl_train.tasks import Batch, Task, Update, label_loss, make_learner
from krl_train.tasks.learners import moving_average
from krl_train.tasks.optim import build_optimizer
from krl_train.worker import Worker

__all__ = ["PeerTask"]


class _Peer(nn.Module):
    """One network as the loop trains it, so that evaluations are not in the loop's mixed precision."""

    def __init__(self, network: Network) -> None:
        super().__init__()
        self.network = network

    def forward(self, pixels: Tensor) -> Tensor:
        logits: Tensor = self.network(pixels)
        return logits


class PeerTask(Task[Batch]):
    """Trains several networks at once; each learns from labels and from some of the others.

    L_i = CE_i + λ · mean_{j in tutors(i)} T² · KL(p_j ‖ p_i), tutors detached. All forward passes come first, then all
    updates. Of mixed images, CE is that of both by their shares. With a moving average, each network's average is
    what is measured and kept; tutors answer with their weights of the moment.

    - Mutual learning: everybody is everybody's tutor, T = 1, λ = 1 (Deep Mutual Learning,
      https://arxiv.org/abs/1706.00384; K − 1 tutors are averaged as there).
    - Joint training: the student's only tutor is the teacher, who has none and is trained on labels meanwhile.

    Args:
        networks: Two or more, with the same classes and the same input.
        tutors: For each network the indices of those it learns from.
        optim: How weights are moved; each network has an optimizer of its own.
        temperature: T.
        weight: λ.
        steps: Number of optimization steps in the whole training.
        batch_size: Images in one step over all processes.
        val: Validation images.
        labels: Class names.
        class_weights: Weight of each class in the cross-entropy, ``[K]``; ``None`` for equal ones.

    Raises:
        UsageError: There are fewer than two networks.
    """

    def __init__(
        self,
        networks: Sequence[Network],
        tutors: Sequence[Sequence[int]],
        optim: OptimConfig,
        *,
        temperature: float,
        weight: float,
        steps: int,
        batch_size: int,
        val: PixelSet,
        labels: tuple[str, ...],
        class_weights: Tensor | None = None,
    ) -> None:
        if len(networks) < 2:
            raise UsageError(f"{len(networks)} networks; two or more can teach each other")
        self.networks, self.tutors = list(networks), [list(each) for each in tutors]
        self.temperature, self.weight, self.label_smoothing = temperature, weight, optim.label_smoothing
        self.val, self.labels, self.class_weights = val, labels, class_weights
        planned = plan_optim(optim, steps)
        self.learners = {
            f"net{index}": make_learner(
                _Peer(network),
                planned,
                build_optimizer(optim, network, batch_size),
                steps,
                average=moving_average(network, planned.ema),
                average_of=network,
            )
            for index, network in enumerate(networks)
        }

    def step(self, batch: Batch, update: Update) -> Mapping[str, Tensor]:
        """Let all networks answer, then move each along its loss."""
        answers: list[Tensor] = [learner.module(batch.pixels).float() for learner in self.learners.values()]
        weights = None if self.class_weights is None else self.class_weights.to(answers[0].device)
        parts: dict[str, Tensor] = {}
        for index, logits in enumerate(answers):
            loss = label_loss(logits, batch, self.label_smoothing, weights)
            if self.tutors[index]:
                lessons = [kd(logits, answers[tutor], temperature=self.temperature) for tutor in self.tutors[index]]
                loss = loss + self.weight * torch.stack(lessons).mean()
            parts[f"net{index}"] = loss
        for name, loss in list(parts.items()):
            update(name, loss)
        detached = {name: value.detach() for name, value in parts.items()}
        return {"loss": torch.stack(list(detached.values())).sum(), **detached}

    def evaluate(self, worker: Worker) -> dict[str, Any]:
        """Measure all networks: the first one's metrics, and every ``top1`` as ``net0_top1`` and so on."""
        measured = self.evaluate_all(worker)
        return {**measured[0], **{f"net{index}_top1": each["top1"] for index, each in enumerate(measured)}}

    def evaluate_all(self, worker: Worker) -> list[dict[str, Any]]:
        """Return the metrics of each network."""
        return [evaluate_classifier(network, self.val, self.labels, worker) for network in self.final()]

    def final(self) -> list[Network]:
        """Return the networks that the runs keep: their moving averages, where there are any."""
        averages = [learner.average for learner in self.learners.values()]
        pairs = zip(self.networks, averages, strict=True)
        return [network if average is None else cast("Network", average.module) for network, average in pairs]

    def quality(self, metrics: Mapping[str, Any]) -> tuple[float, ...]:
        """Return the first network's top-1, and its loss for epochs that are equal in it."""
        return metrics["top1"], -metrics["loss"]

    def state(self) -> dict[str, Tensor]:
        """Return the weights of all networks, under ``net0.`` and so on."""
        return {
            f"net{index}.{name}": value
            for index, network in enumerate(self.final())
            for name, value in network.backbone.state_dict().items()
        }

    def load(self, state: Mapping[str, Tensor]) -> None:
        """Take weights that ``state`` returned, of the epoch that is kept."""
        for index, network in enumerate(self.final()):
            start = f"net{index}."
            own = {name.removeprefix(start): value for name, value in state.items() if name.startswith(start)}
            load_weights(network.backbone, own)
