"""The start of a network: a run's weights, or published ones."""

from __future__ import annotations

import logging
from pathlib import Path

from torch import nn

from krl_runtime.errors import RunError
from krl_train.config import FitConfig
from krl_train.run import Run

__all__ = ["initialize_from", "start_run"]

_log = logging.getLogger("krl")


def start_run(config: FitConfig) -> Run | None:
    """Return the run that a network starts from; ``None`` where it starts otherwise.

    Raises:
        RunError: The run cannot be used.
    """
    source = config.transfer.from_
    return Run.open(source) if source is not None and Path(source).exists() else None


def initialize_from(network: nn.Module, run: Run) -> None:
    """Copy a run's weights into a network; tensors of another shape (a last layer for other labels) keep theirs.

    Args:
        network: What ``Run.module`` returns for some task: its ``backbone`` gets the weights.
        run: Of the same architecture.

    Raises:
        RunError: The run is of another network.
    """
    backbone = network.get_submodule("backbone")
    mine, theirs = backbone.state_dict(), run.state()
    if set(mine) != set(theirs):
        raise RunError(f"run {run.path} is a {run.record.model.name}; its weights do not fit the network asked for")
    fitting = {name: value for name, value in theirs.items() if value.shape == mine[name].shape}
    if len(mine) - len(fitting) > 2:  # more than the last layer's weight and bias
        raise RunError(
            f"run {run.path}: {len(mine) - len(fitting)} tensors have other shapes than the network asked for"
        )
    backbone.load_state_dict({**mine, **fitting})
    left = sorted(set(mine) - set(fitting))
    if left:
        _log.info("new last layer, for other labels: %s", ", ".join(left))
