"""Timing calls in turn, so that other load on the device slows them alike."""

from __future__ import annotations

import random
import time
from collections.abc import Callable, Hashable, Mapping
from typing import TypeVar

__all__ = ["interleaved"]

_BLOCK_SECONDS = 0.03  # of one block: some hundred calls of a small network, and short against changes of the clock
_Key = TypeVar("_Key", bound=Hashable)


def interleaved(
    calls: Mapping[_Key, Callable[[], object]],
    *,
    rounds: int,
    block_seconds: float = _BLOCK_SECONDS,
    clock: Callable[[], float] = time.perf_counter,
) -> dict[_Key, list[float]]:
    """Time each call in blocks, in random order in each round.

    Args:
        calls: The calls by name. Each is called once, untimed, before each of its blocks.
        rounds: Blocks of each.
        block_seconds: Length of a block at least.
        clock: On a busy machine ``time.process_time`` tells the work of one thread better than the wall clock.

    Returns:
        For each the milliseconds of one call, the mean of each of its blocks, in the order of the rounds.
    """
    blocks: dict[_Key, list[float]] = {key: [] for key in calls}
    order = random.Random(0)  # noqa: S311  an order, not a secret
    for _ in range(rounds):
        for key in order.sample(list(calls), len(calls)):
            call = calls[key]
            call()
            count, start = 0, clock()
            while (spent := clock() - start) < block_seconds or not count:
                call()
                count += 1
            blocks[key].append(spent / count * 1e3)
    return blocks
