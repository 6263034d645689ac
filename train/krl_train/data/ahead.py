"""Work ahead of its use, in background threads and bounded memory: decoded images, and the next batches."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Generator
from concurrent.futures import Future, ThreadPoolExecutor
from typing import TypeVar

import numpy as np
import numpy.typing as npt

from krl_runtime.processor import cpu_count

__all__ = ["READ_AHEAD", "pooled_order", "prefetched", "read_ahead"]

READ_AHEAD = 4
"""Images that are read before they are needed: as many threads, of which each holds one image. A judgment: decoding is
then as quick as four CPUs are, and the images that wait take little memory."""

T = TypeVar("T")
_END = object()  # what follows the last item


def prefetched(items: Generator[T, None, None], count: int) -> Generator[T, None, None]:
    """Yield items that a background thread makes before they are asked for.

    Args:
        items: What to yield; it is closed in the end, and what it raises is raised in its place.
        count: Number of finished items that wait at most; 0 makes each one when it is asked for.
    """
    if not count:
        yield from items
        return
    upcoming: deque[Future[T | object]] = deque()
    pool = ThreadPoolExecutor(1, "krl-prefetch")
    try:
        upcoming.extend(pool.submit(next, items, _END) for _ in range(count))
        while (item := upcoming.popleft().result()) is not _END:
            upcoming.append(pool.submit(next, items, _END))
            yield item  # type: ignore[misc]  # it is no _END
    finally:
        pool.shutdown(cancel_futures=True)
        items.close()


def read_ahead(
    read: Callable[[int], T], wanted: npt.NDArray[np.int64], held: int = READ_AHEAD
) -> Generator[T, None, None]:
    """Yield what is read for each of many uses; it is read ahead of the first use and dropped after the last one.

    Args:
        read: Reads one image, given its number; called in background threads.
        wanted: Number of the image of each use, ``[N]``.
        held: Number of images in memory at most, of those that are read or being read. Images whose uses overlap must
            be fewer.
    """
    numbers, first = np.unique(wanted, return_index=True)
    upcoming = deque(numbers[np.argsort(first)].tolist())
    numbers, from_end = np.unique(wanted[::-1], return_index=True)
    last = dict(zip(numbers.tolist(), (len(wanted) - 1 - from_end).tolist(), strict=True))
    there: dict[int, Future[T]] = {}
    pool = ThreadPoolExecutor(min(cpu_count(), READ_AHEAD), "krl-read")
    try:
        for use, number in enumerate(wanted.tolist()):
            while upcoming and len(there) < held:
                following = upcoming.popleft()
                there[following] = pool.submit(read, following)
            future = there.pop(number) if last[number] == use else there[number]
            yield future.result()
            del future
    finally:
        pool.shutdown(cancel_futures=True)


def pooled_order(counts: npt.NDArray[np.int64], size: int, random: np.random.Generator) -> npt.NDArray[np.int64]:
    """Return a random order of the patches of images in which few images are in use at a time.

    The images are taken in random order into a pool, and each patch is a random one of a random image of it. An image
    whose patches are used up makes room for the next one. When no image is left, the remaining patches are shuffled.

    Args:
        counts: Number of patches of each image, ``[N]``, 1 or more each. Patches are numbered through all images.
        size: Number of images in the pool. With ``N`` or more the order is a random permutation.
        random: Source of all randomness.

    Returns:
        Each number of a patch once, ``[sum(counts)]``.
    """
    ends = np.cumsum(counts)
    images = random.permutation(len(counts)).tolist()

    def shuffled(image: int) -> list[int]:
        patches: list[int] = random.permutation(np.arange(ends[image] - counts[image], ends[image])).tolist()
        return patches

    pool = [shuffled(image) for image in images[:size]]
    order: list[int] = []
    slots = iter(random.integers(len(pool), size=int(ends[-1])).tolist())
    for image in images[size:]:
        while True:
            slot = next(slots)
            order.append(pool[slot].pop())
            if not pool[slot]:
                pool[slot] = shuffled(image)
                break
    rest = random.permutation(np.concatenate(pool)).astype(np.int64)
    return np.concatenate([np.array(order, np.int64), rest])
