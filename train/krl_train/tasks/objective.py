"""The shared part of tasks that train one network by one objective."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Generic, TypeVar

from torch import Tensor, nn

from krl_train.config import OptimConfig, plan_optim

from .base import Task, Update
from .learners import make_learner, moving_average
from .optim import LayerRates, build_optimizer

__all__ = ["ObjectiveTask"]

_Batch = TypeVar("_Batch")
_Net = TypeVar("_Net", bound=nn.Module)


class ObjectiveTask(Task[_Batch], Generic[_Batch, _Net]):
    """Trains the network of an objective; how it is measured is for subclasses to say.

    Args:
        objective: Maps a batch to named scalar losses, of which ``"loss"`` is minimized.
        network: The part of it that the run keeps; its weights are those of its ``backbone``.
        optim: How.
        steps: Number of optimization steps in the whole training.
        batch_size: Images in one step over all processes; the default learning rate grows with it.
        layers: Which parameters are moved otherwise than the rest.
    """

    def __init__(
        self,
        objective: nn.Module,
        network: _Net,
        optim: OptimConfig,
        *,
        steps: int,
        batch_size: int,
        layers: LayerRates | None = None,
    ) -> None:
        self.network = network
        optimizer = build_optimizer(optim, objective, batch_size, layers)
        planned = plan_optim(optim, steps)
        average = moving_average(network, planned.ema)
        learner = make_learner(objective, planned, optimizer, steps, average=average, average_of=network)
        self.learners = {"model": learner}

    def step(self, batch: _Batch, update: Update) -> Mapping[str, Tensor]:
        """Minimize the objective's ``"loss"`` on one batch."""
        parts: dict[str, Tensor] = self.learners["model"].module(batch)
        update("model", parts["loss"])
        return {name: value.detach() for name, value in parts.items()}

    def final(self) -> _Net:
        """Return the network that the run keeps: its moving average, where there is one."""
        average = self.learners["model"].average
        if average is None:
            return self.network
        assert isinstance(average.module, type(self.network))  # noqa: S101  for the type checker
        return average.module

    def state(self) -> dict[str, Tensor]:
        """Return the backbone's weights (their moving average, where there is one)."""
        return self.final().get_submodule("backbone").state_dict()
