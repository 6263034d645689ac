"""Where a computation runs."""

from __future__ import annotations

from dataclasses import dataclass

import torch

__all__ = ["Placement"]


@dataclass(frozen=True)
class Placement:
    """The device, this process's rank, the number of processes, and whether images are in channels-last layout."""

    device: torch.device
    rank: int = 0
    world: int = 1
    channels_last: bool = False
