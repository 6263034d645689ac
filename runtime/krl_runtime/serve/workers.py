"""Threads that run requests, and that never keep the process from ending."""

from __future__ import annotations

import time
from collections.abc import Callable
from concurrent.futures import Future
from queue import SimpleQueue
from threading import Thread
from typing import Any, TypeVar

__all__ = ["Workers"]

_T = TypeVar("_T")


class Workers:
    """A fixed number of daemon threads. Those of ``ThreadPoolExecutor`` are waited for when the process ends."""

    def __init__(self, count: int) -> None:
        """Start ``count`` threads."""
        self._work: SimpleQueue[tuple[Future[Any], Callable[[], Any]] | None] = SimpleQueue()
        self._threads = [Thread(target=self._run, name=f"krl-serve-{index}", daemon=True) for index in range(count)]
        for thread in self._threads:
            thread.start()

    def submit(self, work: Callable[[], _T]) -> Future[_T]:
        """Let a thread do the work; a future that is canceled before it begins is not run."""
        future: Future[_T] = Future()
        self._work.put((future, work))
        return future

    def close(self, timeout: float) -> bool:
        """Let the threads end after their work, and wait for them.

        Args:
            timeout: Seconds to wait at most.

        Returns:
            Whether all have ended.
        """
        for _ in self._threads:
            self._work.put(None)
        deadline = time.monotonic() + timeout
        for thread in self._threads:
            thread.join(max(0.0, deadline - time.monotonic()))
        return not any(thread.is_alive() for thread in self._threads)

    def _run(self) -> None:
        while (item := self._work.get()) is not None:
            future, work = item
            if future.set_running_or_notify_cancel():
                try:
                    result = work()
                except BaseException as error:  # whoever waits receives it
                    future.set_exception(error)
                else:
                    future.set_result(result)
                    del result
            del item, future, work  # a thread that waits for work keeps no request
