"""What tasks share that train one network by one objective."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Generic, TypeVar

from torch import Tensor, nn
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

from krl_train.config import OptimConfig

from .base import Learner, Task, Update
from .optim import build_optimizer, build_schedule

__all__ = ["ObjectiveTask", "make_learner"]

_Batch = TypeVar("_Batch")
_Net = TypeVar("_Net", bound=nn.Module)


def make_learner(
    module: nn.Module, optim: OptimConfig, *, steps: int, batch_size: int, average_of: nn.Module | None = None
) -> Learner:
    """Return a module with its optimiser and schedule.

    Args:
        module: What is trained.
        optim: How; ``ema`` counts where there is something to average.
        steps: Number of optimisation steps in the whole training.
        batch_size: Pictures in one step over all processes; the default learning rate grows with it.
        average_of: The part of the module whose moving average is kept.
    """
    optimizer = build_optimizer(optim, module.parameters(), batch_size)
    average = None
    if optim.ema and average_of is not None:
        # Over a fifth of the training at most: the beginning of a short one would still weigh at its end.
        decay = min(optim.ema, max(0.0, 1 - 5 / steps))
        ema = get_ema_multi_avg_fn(decay)  # type: ignore[no-untyped-call]
        average = AveragedModel(average_of, multi_avg_fn=ema, use_buffers=True)
    return Learner(module, optimizer, build_schedule(optim, optimizer, steps), optim.clip_norm, average, average_of)


class ObjectiveTask(Task[_Batch], Generic[_Batch, _Net]):
    """Trains the network of an objective; how it is measured is for subclasses to say.

    Args:
        objective: Maps a batch to named scalar losses, of which ``"loss"`` is minimised.
        network: The part of it that the run keeps; its weights are those of its ``backbone``.
        optim: How.
        steps: Number of optimisation steps in the whole training.
        batch_size: Pictures in one step over all processes; the default learning rate grows with it.
    """

    def __init__(self, objective: nn.Module, network: _Net, optim: OptimConfig, *, steps: int, batch_size: int) -> None:
        self.network = network
        learner = make_learner(objective, optim, steps=steps, batch_size=batch_size, average_of=network)
        self.learners = {"model": learner}

    def step(self, batch: _Batch, update: Update) -> Mapping[str, Tensor]:
        """Minimise the objective's ``"loss"`` on one batch."""
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
