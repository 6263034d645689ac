"""One of the processes that train or measure."""

from __future__ import annotations

from dataclasses import dataclass

import torch

__all__ = ["Worker"]


@dataclass(frozen=True)
class Worker:
    """One of several processes.

    Attributes:
        device: Its device.
        rank: Its number, from 0.
        world: Number of processes.
        channels_last: Whether images are in channels-last layout.
    """

    device: torch.device
    rank: int = 0
    world: int = 1
    channels_last: bool = False
