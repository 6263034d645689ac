"""One of the processes that train or measure."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
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

    @property
    def layout(self) -> torch.memory_format:
        """How images lie in memory."""
        return torch.channels_last if self.channels_last else torch.contiguous_format

    def share(self, order: npt.NDArray[np.int64], step: int, steps: int, batch_size: int) -> npt.NDArray[np.int64]:
        """Return this process's part of one of the batches that a whole epoch is divided into.

        The last batch has what is left. All processes have the same number of images in each batch, so that up to
        ``world - 1`` images are left for other epochs.

        Args:
            order: All indices, in the order of the epoch.
            step: Number of the batch, from 0.
            steps: Number of batches.
            batch_size: Images in each batch but the last, over all processes.

        Example:
            >>> [Worker(torch.device("cpu")).share(np.arange(10), step, 3, 4).tolist() for step in range(3)]
            [[0, 1, 2, 3], [4, 5, 6, 7], [8, 9]]
        """
        last = step == steps - 1
        end = len(order) - len(order) % self.world if last else (step + 1) * batch_size
        return order[step * batch_size : end][self.rank :: self.world]
