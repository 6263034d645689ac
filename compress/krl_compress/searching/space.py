"""Networks that a search may choose from: architectures, each at any width, and the teacher with channels removed."""

from __future__ import annotations

import copy
import logging
from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path

import torch

from krl_compress.pruning.criteria import lowest, scores
from krl_compress.pruning.networks import (
    PrunableNetwork,
    example_inputs,
    fresh_network_of,
    size_of,
    with_backbone,
)
from krl_compress.pruning.plan import any_channels, kept_channels, largest_share
from krl_compress.pruning.units import Unit, find_units, pruned_spec, removed
from krl_runtime.errors import ModelError
from krl_train.run import Run, RunRecord

__all__ = ["SIZED", "Family", "Student", "default_architectures"]

_log = logging.getLogger("krl")

SIZED = ("classification", "embedding")
"""Tasks whose networks take images of any size, and have the same architectures."""

_SMALL = ("resnet8", "resnet14", "resnet20", "resnet32", "wrn-10-2", "wrn-16-1", "wrn-16-2", "dscnn-1", "dscnn-2")
_LARGE = (
    *("resnet18", "mobilenet_v2", "mobilenet_v3_small", "shufflenet_v2_x0_5", "shufflenet_v2_x1_0"),
    *("squeezenet1_1", "mnasnet0_5", "efficientnet_b0"),
)
_RESTORERS = ("espcn-32", "fsrcnn-56-12-4", "edsr-2-32", "edsr-4-32", "edsr-8-32")
_GENERATORS = ("dcgan-32", "resgan-32", "dsgan-64", "subgan-64")
_HALVINGS = 8  # of the share of channels: 1/256 is less than a multiple of 8 of up to 2,048 channels
_SMALL_SIDE = 64  # pixels: networks of ImageNet's shape leave hardly an image of a smaller one


def default_architectures(task: str, height: int, width: int) -> tuple[str, ...]:
    """Return the architectures to try: common ones of the task, and of classifiers for images of this size.

    Args:
        task: As a run's record has it.
        height: Of the images.
        width: Of the images.
    """
    if task not in SIZED:
        return _GENERATORS if task == "generation" else _RESTORERS
    return _SMALL if max(height, width) <= _SMALL_SIDE else _LARGE


@dataclass(frozen=True)
class Student:
    """A network that a search may choose: what its training starts from.

    Attributes:
        key: Its name among all of a search; also that of its folder.
        family: Name of its family.
        record: Record of a run of it.
        network: With its first weights.
        macs: Multiply-accumulate operations of one image.
        parameters: Number of parameters.
        channels: Share of the channels that it keeps of its architecture.
    """

    key: str
    family: str
    record: RunRecord
    network: PrunableNetwork
    macs: int
    parameters: int
    channels: float

    def write(self, folder: Path) -> Run:
        """Write it as a run to start from."""
        return Run.write(folder, self.record, self.network.backbone.state_dict())


class Family:
    """An architecture at one input size: the same network at any width.

    Args:
        name: Name of the architecture, for people.
        record: Record of a run of the whole network.
        network: The whole network: freshly initialized, or the teacher.
        multiple: Layers keep a multiple of this many channels.
        trained: Whether its weights are worth something, so that the channels that matter most are kept.
        fixed: Share of the channels that all of its networks keep, where the width is not to be searched.
    """

    def __init__(
        self,
        name: str,
        record: RunRecord,
        network: PrunableNetwork,
        *,
        multiple: int,
        trained: bool = False,
        fixed: float | None = None,
    ) -> None:
        images = network.preprocessing
        self.fixed = fixed
        sized = record.task in SIZED and not trained
        self.name = f"{name}-{images.height}x{images.width}" if sized else name
        self._record, self._network, self._multiple, self._trained = record, network, multiple, trained
        self.whole_macs = size_of(network)["macs"]

    @classmethod
    def fresh(cls, record: RunRecord, *, multiple: int, seed: int, fixed: float | None = None) -> Family:
        """Return an architecture with first weights.

        Args:
            record: Record of a run of it.
            multiple: Layers keep a multiple of this many channels.
            seed: Seed of the weights.
            fixed: Share of the channels that it keeps in any case.
        """
        torch.manual_seed(seed)
        return cls(record.model.name, record, fresh_network_of(record), multiple=multiple, fixed=fixed)

    @cached_property
    def _units(self) -> list[Unit]:
        try:
            units, left_alone = find_units(self._network.backbone, example_inputs(self._network))
        except ModelError as error:
            _log.info("%s is tried at its full width alone: %s", self.name, error)
            return []
        for name, reason in left_alone.items():
            _log.debug("%s: %s keeps its width: %s", self.name, name, reason)
        return units

    def key(self, channels: float) -> str:
        """Return the name of its network that keeps a share of the channels; networks of the same widths share it."""
        counts = kept_channels(self._units, channels, self._multiple)
        kept, every = sum(counts.values()), sum(unit.channels for unit in self._units)
        return f"{self.name}-{kept}of{every}" if kept < every else self.name

    def at(self, channels: float) -> Student:
        """Return its network that keeps a share of the channels of each layer, rounded to the multiple.

        Args:
            channels: 0 to 1.
        """
        network, units = self._network, self._units
        counts = kept_channels(units, channels, self._multiple)
        if all(counts[unit.name] == unit.channels for unit in units):
            return self._student(1.0, self._record, copy.deepcopy(network))
        backbone = removed(network.backbone, self._choice(counts))
        record = replace(self._record, model=pruned_spec(self._record.model, network.backbone, backbone))
        return self._student(channels, record, with_backbone(network, backbone))

    def of_macs(self, macs: float) -> Student:
        """Return its widest network with at most so many multiply-accumulate operations, or its thinnest one.

        A family of fixed width has one network.

        Args:
            macs: The most.
        """
        if self.fixed is not None:
            return self.at(self.fixed)
        if macs >= self.whole_macs:
            return self.at(1.0)
        return self.at(largest_share(lambda channels: self.at(channels).macs <= macs, _HALVINGS))

    def _choice(self, counts: Mapping[str, int]) -> dict[Unit, set[int]]:
        if not self._trained:
            return any_channels(self._units, counts)
        found = {}
        for unit in self._units:
            score = scores(self._network.backbone, unit, "l2")
            if score is not None:
                found[unit] = lowest(score, unit.parts, unit.channels - counts[unit.name])
        return found

    def _student(self, channels: float, record: RunRecord, network: PrunableNetwork) -> Student:
        size = size_of(network)
        return Student(self.key(channels), self.name, record, network, size["macs"], size["parameters"], channels)
