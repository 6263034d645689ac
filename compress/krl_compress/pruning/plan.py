"""How many channels each layer keeps: by a share of the channels, or the most that fits a share of the MACs."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence

from krl_runtime.errors import UsageError

from .networks import PrunableNetwork, size_of, with_backbone
from .units import Unit, removed

__all__ = ["Counts", "any_channels", "count_left", "counts_for_macs", "kept_channels", "largest_share", "steps_between"]

Counts = dict[str, int]
"""By the name of a unit, how many channels it keeps."""

_HALVINGS = 10  # of the interval of shares: 2^-10 is less than a channel in layers of up to 1024


def kept_channels(units: Sequence[Unit], keep: float, multiple: int) -> Counts:
    """Return how many channels each unit keeps.

    Args:
        units: What can be pruned.
        keep: Share of the channels, 0 to 1.
        multiple: What is kept is a multiple of it, the nearest one, and at least this many; of units that have fewer,
            all are kept.
    """
    found = {}
    for unit in units:
        step = math.lcm(multiple, unit.parts)
        nearest = max(step, math.floor(keep * unit.channels / step + 0.5) * step)
        found[unit.name] = min(unit.channels, nearest)
    return found


def any_channels(units: Sequence[Unit], counts: Mapping[str, int]) -> dict[Unit, set[int]]:
    """Return for each unit channels to remove so that as many are left as are counted, whichever these are."""
    choice = {}
    for unit in units:
        each, left = unit.channels // unit.parts, counts[unit.name] // unit.parts
        choice[unit] = {part * each + index for part in range(unit.parts) for index in range(left, each)}
    return choice


def count_left(network: PrunableNetwork, units: Sequence[Unit], counts: Mapping[str, int]) -> int:
    """Return the multiply-accumulate operations of a network that keeps so many channels of each unit."""
    return size_of(with_backbone(network, removed(network.backbone, any_channels(units, counts))))["macs"]


def counts_for_macs(network: PrunableNetwork, units: Sequence[Unit], share: float, multiple: int) -> Counts:
    """Return the most channels, the same share of each unit, with which a network has at most a share of its MACs.

    Args:
        network: The network.
        units: What can be pruned.
        share: Of the multiply-accumulate operations of the network, 0 to 1.
        multiple: See ``kept_channels``.

    Raises:
        UsageError: Even the fewest channels are too many; the message has the least share that is possible.
    """
    whole = size_of(network)["macs"]
    least = count_left(network, units, kept_channels(units, 0.0, multiple)) / whole
    if least > share:
        raise UsageError(
            f"--macs {share:g} cannot be reached: the network keeps {math.ceil(least * 1000) / 1000:g} of its MACs "
            f"with {multiple} channels in each layer that can be pruned; give that or more, or a smaller --multiple"
        )

    def fits(channels: float) -> bool:
        return count_left(network, units, kept_channels(units, channels, multiple)) <= share * whole

    return kept_channels(units, largest_share(fits, _HALVINGS), multiple)


def largest_share(fits: Callable[[float], bool], halvings: int) -> float:
    """Return the largest share that fits, by bisection; 0 where none above it does.

    Args:
        fits: Whether a share fits; smaller ones then fit as well.
        halvings: Of the interval from 0 to 1.

    Example:
        >>> largest_share(lambda share: share <= 0.3, 4)
        0.25
    """
    low, high = 0.0, 1.0
    for _ in range(halvings):
        middle = (low + high) / 2
        low, high = (middle, high) if fits(middle) else (low, middle)
    return low


def steps_between(units: Sequence[Unit], last: Counts, steps: int, multiple: int) -> list[Counts]:
    """Return how many channels are kept after each of several steps, each of which removes about the same share.

    Args:
        units: What can be pruned.
        last: What is kept at the end.
        steps: Number of steps.
        multiple: See ``kept_channels``.
    """
    found = []
    for step in range(1, steps):
        counts: Counts = {}
        for unit in units:
            share = (last[unit.name] / unit.channels) ** (step / steps)
            counts |= kept_channels([unit], share, multiple)
            counts[unit.name] = max(counts[unit.name], last[unit.name])
        found.append(counts)
    return [*found, last]
