"""The start of a network: a run's weights, or published ones; and how a classifier is trained from there."""

from __future__ import annotations

import logging
from collections.abc import Collection, Sequence
from pathlib import Path
from typing import Any

from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm

from krl_runtime.errors import RunError, UsageError
from krl_train.config import FitConfig, TransferConfig
from krl_train.models import Network, load_weights, published_classes
from krl_train.models.heads import target_rows
from krl_train.models.stages import Stage, split_stages
from krl_train.models.widths import THINNED
from krl_train.run import RECORD, Run, hash_of_weights
from krl_train.tasks import Objective
from krl_train.tasks.transfer import TransferObjective

__all__ = ["initialize_from", "parent_of", "start_arguments", "start_classifier", "start_run", "transferring"]

_log = logging.getLogger("krl")

_LAST_LAYER = 2  # tensors: weight and bias
_FEWEST_STAGES = 3  # the last layer and two below it: with one there is nothing to go through


def start_run(config: FitConfig) -> Run | None:
    """Return the run that a network starts from; ``None`` where it starts otherwise.

    Raises:
        RunError: The run cannot be used.
    """
    source = config.transfer.from_
    return Run.open(source) if source is not None and Path(source, RECORD).is_file() else None


def start_arguments(run: Run | None, name: str) -> dict[str, Any]:
    """Return the arguments of a network that it has from the run which it starts from: the widths of a pruned one.

    Args:
        run: What it starts from, if that is a run.
        name: Name of the network.
    """
    if run is None or run.record.model.name != name:
        return {}
    return {key: value for key, value in run.record.model.arguments.items() if key in THINNED}


def start_classifier(network: Network, run: Run | None, name: str, labels: Sequence[str]) -> frozenset[str]:
    """Give a classifier the weights of a run, if it starts from one.

    Args:
        network: Freshly made, with published weights where it starts from these.
        run: What it starts from.
        name: Name of the network.
        labels: Classes of the data; where those of the run have other names, the last layer is a new one.

    Returns:
        The names of the backbone's tensors that come from the run or the published weights.

    Raises:
        RunError: The run is of another network.
    """
    others = published_classes(name) != len(labels) if run is None else _are_others(run.record.labels, labels)
    new = split_stages(network)[-1].parameters if others else ()
    if run is None:
        return frozenset(set(network.backbone.state_dict()) - set(new))
    return initialize_from(network, run, new=new)


def _are_others(before: Sequence[str], now: Sequence[str]) -> bool:
    """Whether classes have other names; classes that are numbers may have any."""
    numbers = tuple(str(index) for index in range(len(before)))
    return tuple(before) != tuple(now) and numbers not in (tuple(before), tuple(now))


def parent_of(run: Run | None, name: str, network: Network, transferred: Collection[str]) -> dict[str, str] | None:
    """Return the record of the start of a classifier: its folder or name, and the hash of its weights.

    Args:
        run: What it starts from, if that is a run.
        name: Name of the network.
        network: With the weights of the start.
        transferred: Those of them that come from there; none where the network starts from nothing.
    """
    if run is not None:
        return run.identity
    if not transferred:
        return None
    state = network.backbone.state_dict()
    digest = hash_of_weights({key: state[key] for key in transferred})
    return {"kind": "published", "name": name, "weights_sha256": digest}


def initialize_from(network: nn.Module, run: Run, *, new: Collection[str] = ()) -> frozenset[str]:
    """Copy a run's weights into a network; tensors of another shape (a last layer for other labels) keep theirs.

    Args:
        network: What ``Run.module`` returns for some task: its ``backbone`` gets the weights.
        run: Of the same architecture; of one with two heads, the network gets the target's.
        new: Tensors of the backbone that keep theirs whatever their shape.

    Returns:
        The names of the backbone's tensors that are the run's.

    Raises:
        RunError: The run is of another network.
    """
    backbone = network.get_submodule("backbone")
    mine, theirs = backbone.state_dict(), run.state()
    if run.record.source_labels:
        theirs = target_rows(theirs, mine, len(run.record.labels))
    if set(mine) != set(theirs):
        name = f"{'quantized ' * ('quantize' in run.record.model.arguments)}{run.record.model.name}"
        raise RunError(f"run {run.path} is a {name}; its weights do not fit the network asked for")
    fitting = {name: value for name, value in theirs.items() if value.shape == mine[name].shape and name not in new}
    if len(mine) - len(fitting) > _LAST_LAYER:
        raise RunError(
            f"run {run.path}: {len(mine) - len(fitting)} tensors have other shapes than the network asked for"
        )
    load_weights(backbone, {**mine, **fitting})
    left = sorted(set(mine) - set(fitting))
    if left:
        _log.info("new last layer, for other outputs: %s", ", ".join(left))
    return frozenset(fitting)


def transferring(objective: Objective, config: TransferConfig, transferred: Collection[str], name: str) -> Objective:
    """Return an objective that trains the weights of a start as the options say; itself where they say nothing.

    Args:
        objective: What is minimized; its network has the weights of the start.
        config: The options.
        transferred: Names of the backbone's tensors that come from the start.
        name: Name of the network, for messages.

    Raises:
        UsageError: The network is not made for an option.
    """
    if not config.changed:
        return objective
    stages = split_stages(objective.network)
    for option, asked in (
        ("--transfer staged", config.transfer == "staged"),
        ("--layer-decay", config.layer_decay < 1),
    ):
        if asked and len(stages) < _FEWEST_STAGES:
            raise UsageError(
                f"{option} goes through the stages of a network, and {name} has none that krl finds: modules that each "
                "end a resolution, or repeated blocks; leave it out, or give --transfer linear or full"
            )
    backbone = objective.network.backbone
    if config.freeze_statistics and not any(isinstance(module, _BatchNorm) for module in backbone.modules()):
        raise UsageError(f"--freeze-statistics is for batch normalization, and {name} has none; leave it out")
    _log_stages(stages, config)
    return TransferObjective(objective, config, stages, transferred)


def _log_stages(stages: Sequence[Stage], config: TransferConfig) -> None:
    names = ", ".join(stage.name for stage in reversed(stages))
    _log.info("plan: transfer %s; from the last layer down: %s", config.transfer, names)
