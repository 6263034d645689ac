"""Networks that a search may choose from: architectures, each at any width, and the teacher with channels removed."""

from __future__ import annotations

import copy
import logging
from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import cached_property

import torch

from krl_compress.pruning.criteria import lowest, scores
from krl_compress.pruning.plan import any_channels, kept_channels
from krl_compress.pruning.units import Unit, find_units, pruned_spec, removed
from krl_runtime.errors import ModelError
from krl_train.models import Network, count_macs, count_parameters
from krl_train.run import Run, RunRecord

__all__ = ["DEFAULT_ARCHITECTURES", "Family", "Student", "default_architectures"]

_log = logging.getLogger("krl")

DEFAULT_ARCHITECTURES: Mapping[str, tuple[str, ...]] = {
    "small": ("resnet8", "resnet14", "resnet20", "resnet32", "wrn-10-2", "wrn-16-1", "wrn-16-2", "dscnn-1", "dscnn-2"),
    "large": (
        *("resnet18", "mobilenet_v2", "mobilenet_v3_small", "shufflenet_v2_x0_5", "shufflenet_v2_x1_0"),
        *("squeezenet1_1", "mnasnet0_5", "efficientnet_b0"),
    ),
}
"""Architectures by the size of the images, ``"small"`` up to 64 pixels a side; a judgment: common ones of each size."""

_HALVINGS = 8  # of the share of channels: 1/256 is less than a multiple of 8 of up to 2,048 channels
_SMALL_SIDE = 64  # pixels: networks of ImageNet's shape leave hardly an image of a smaller one


def default_architectures(height: int, width: int) -> tuple[str, ...]:
    """Return the architectures for classifiers of images of this size."""
    return DEFAULT_ARCHITECTURES["small" if max(height, width) <= _SMALL_SIDE else "large"]


@dataclass(frozen=True)
class Student:
    """A network that a search may choose: what its training starts from.

    Attributes:
        key: Its name among all of a search; also that of its folder.
        record: Record of a run of it.
        network: With its first weights.
        macs: Multiply-accumulate operations of one image.
        parameters: Number of parameters.
        channels: Share of the channels that it keeps of its architecture.
    """

    key: str
    record: RunRecord
    network: Network
    macs: int
    parameters: int
    channels: float

    def write(self, folder: object) -> Run:
        """Write it as a run to start from."""
        return Run.write(str(folder), self.record, self.network.backbone.state_dict())


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
        network: Network,
        *,
        multiple: int,
        trained: bool = False,
        fixed: float | None = None,
    ) -> None:
        shape = network.preprocessing.shape
        self.fixed = fixed
        self.name = name if trained else f"{name}-{shape[1]}x{shape[2]}"
        self._record, self._network, self._multiple, self._trained = record, network, multiple, trained
        self.whole_macs = count_macs(network, shape)

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
        network = record.model.build(record.preprocessing).eval()
        return cls(record.model.name, record, network, multiple=multiple, fixed=fixed)

    @cached_property
    def _units(self) -> list[Unit]:
        try:
            units, left_alone = find_units(self._network.backbone, self._network.preprocessing.shape)
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
        return self._student(channels, record, Network(backbone, network.preprocessing))

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
        low, high, best = 0.0, 1.0, self.at(0.0)
        for _ in range(_HALVINGS):
            middle = (low + high) / 2
            student = self.at(middle)
            if student.macs <= macs:
                low, best = middle, student
            else:
                high = middle
        return best

    def _choice(self, counts: Mapping[str, int]) -> dict[Unit, set[int]]:
        if not self._trained:
            return any_channels(self._units, counts)
        found = {}
        for unit in self._units:
            score = scores(self._network.backbone, unit, "l2")
            if score is not None:
                found[unit] = lowest(score, unit.parts, unit.channels - counts[unit.name])
        return found

    def _student(self, channels: float, record: RunRecord, network: Network) -> Student:
        shape = network.preprocessing.shape
        size = (count_macs(network, shape), count_parameters(network.backbone))
        return Student(self.key(channels), record, network, *size, channels)
