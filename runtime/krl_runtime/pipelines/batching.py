"""A micro-batcher: requests of many threads or coroutines are run together.

It pays on a GPU, where a batch costs little more than one image. On a CPU a batch is no faster than its images one
by one; there it only keeps many callers from fighting for the cores.
"""

from __future__ import annotations

import os
import time
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass
from threading import Condition, Lock, Thread
from types import TracebackType
from typing import TYPE_CHECKING, Generic, TypeVar

from krl_runtime.backends.base import check_not_forked
from krl_runtime.bundle.tensors import stacked
from krl_runtime.errors import BackendError, KrlError, UsageError

if TYPE_CHECKING:
    from concurrent.futures import Future

    from krl_runtime.bundle.tensors import Arrays
    from krl_runtime.images.preprocessing import ImageSource

    from .base import BatchModel, Sample

__all__ = ["Batcher", "OverloadedError"]

_Result = TypeVar("_Result")


class OverloadedError(KrlError):
    """The queue of requests is full, and had no free slot within the time-out."""


@dataclass(frozen=True)
class _Request(Generic[_Result]):
    """One image that waits, and since when (seconds of ``time.monotonic``)."""

    prepared: Arrays
    top_k: int
    future: Future[_Result]
    since: float


class Batcher(Generic[_Result]):
    """Runs requests together: at most ``max_batch``, and the first of them waits no longer than ``max_delay``.

    Images are decoded by the caller's thread. At most ``max_waiting`` requests wait in the queue. A
    further one waits for a free slot, or is refused. ``Classifier.batched`` makes it. Close it, or use it as a context
    manager.

    Attributes:
        batches: How many batches were run.
        processed: How many requests were in them.
    """

    def __init__(
        self,
        model: BatchModel[_Result],
        *,
        max_batch: int = 16,
        max_delay: float = 0.002,
        max_waiting: int = 64,
        workers: int = 1,
    ) -> None:
        """Start the threads that run the batches.

        Args:
            model: The model; it is not closed with the batcher.
            max_batch: Most images in a batch; 1 where the bundle's graph takes no more.
            max_delay: Seconds that the first request of a batch waits for others.
            max_waiting: Most requests that wait.
            workers: Batches that run at once: 1 suits a GPU, and a CPU whose model was loaded with all threads.

        Raises:
            UsageError: An argument is out of its range.
        """
        if max_batch < 1 or max_waiting < 1 or workers < 1 or not 0 <= max_delay < 3600:
            raise UsageError(
                f"max_batch is {max_batch}, max_waiting {max_waiting}, workers {workers}, max_delay {max_delay}; "
                "accepted: 1 or more for the first three, 0 to 3600 seconds for the last"
            )
        self._model = model
        self._max_batch = 1 if model.bundle.batch_limit == 1 else max_batch
        self._max_delay, self._max_waiting = max_delay, max_waiting
        self._waiting: deque[_Request[_Result]] = deque()
        self._closed = False
        self._process = os.getpid()
        self.batches = self.processed = 0
        lock = Lock()
        self._came, self._taken = Condition(lock), Condition(lock)
        self._threads = [Thread(target=self._work, name="krl-batcher", daemon=True) for _ in range(workers)]
        for thread in self._threads:
            thread.start()

    def submit(self, source: ImageSource | Sample, *, top_k: int = 5, timeout: float | None = None) -> Future[_Result]:
        """Decode one image here and let it wait for its batch.

        Args:
            source: The image, see ``ImageSource``; with further inputs a sample, see ``Classifier.__call__``.
            top_k: Number of classes in the result.
            timeout: Seconds to wait for a free slot in the queue; 0 does not wait, ``None`` waits without a limit.

        Returns:
            A future of the result. A future that is canceled before its batch begins is not run.

        Raises:
            ImageError: The image cannot be used.
            OverloadedError: The queue had no free slot in time.
            BackendError: The batcher is closed, or was made before this process was forked.
            UsageError: ``top_k`` is less than 1, or a further input is missing or not accepted.
        """
        from concurrent.futures import Future

        check_not_forked(self._process, "a batcher")
        if top_k < 1:
            raise UsageError(f"top_k is {top_k}; accepted: 1 or more")
        prepared = self._model.prepare(source)
        with self._taken:
            if len(self._waiting) >= self._max_waiting:  # canceled ones hold no slot
                self._waiting = deque(request for request in self._waiting if not request.future.cancelled())
            if not self._taken.wait_for(lambda: self._closed or len(self._waiting) < self._max_waiting, timeout):
                raise OverloadedError(
                    f"{self._max_waiting} requests wait already, and none was taken within {timeout:g} s; try again "
                    "later, or allow more with max_waiting"
                )
            if self._closed:
                raise BackendError("the batcher is closed")
            request: _Request[_Result] = _Request(prepared, top_k, Future(), time.monotonic())
            self._waiting.append(request)
            self._came.notify()
        return request.future

    def __call__(self, source: ImageSource | Sample, *, top_k: int = 5) -> _Result:
        """Return the result of one image; see ``submit`` for the exceptions, and ``Classifier.__call__``."""
        return self.submit(source, top_k=top_k).result()

    async def ask(self, source: ImageSource | Sample, *, top_k: int = 5) -> _Result:
        """Return the result of one image without blocking the event loop. Canceling the task cancels the request."""
        import asyncio

        future = await asyncio.to_thread(self.submit, source, top_k=top_k)
        return await asyncio.wrap_future(future)

    def close(self, *, drain: bool = True, timeout: float | None = None) -> bool:
        """Take no more requests, and return when those that were taken are done.

        Args:
            drain: Whether waiting requests are still run; otherwise they are canceled.
            timeout: Seconds to wait for them; ``None`` waits without a limit.

        Returns:
            Whether all are done.
        """
        if os.getpid() != self._process:  # forked: the threads and the lock belong to another process
            return True
        with self._came:
            self._closed = True
            if not drain:
                for request in self._waiting:
                    request.future.cancel()
            self._came.notify_all()
            self._taken.notify_all()
        deadline = None if timeout is None else time.monotonic() + timeout
        for thread in self._threads:
            thread.join(None if deadline is None else max(0.0, deadline - time.monotonic()))
        return not any(thread.is_alive() for thread in self._threads)

    def __enter__(self) -> Batcher[_Result]:
        """Return the batcher."""
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Close it; after an error, requests that still wait are canceled."""
        self.close(drain=error is None)

    def _work(self) -> None:
        while requests := self._take():
            running = [request for request in requests if request.future.set_running_or_notify_cancel()]
            if running:
                self._run(running)

    def _take(self) -> list[_Request[_Result]]:
        """Wait for a batch; an empty one means that the batcher is closed and nothing waits."""
        with self._came:
            while not (self._waiting and self._is_due()):
                if self._closed and not self._waiting:
                    return []
                first = self._waiting[0].since if self._waiting else None
                # Another worker may take what this one waits for: then it waits for the next.
                self._came.wait(None if first is None else first + self._max_delay - time.monotonic())
            taken = [self._waiting.popleft() for _ in range(min(self._max_batch, len(self._waiting)))]
            if self._waiting:
                self._came.notify()
            self._taken.notify(len(taken))
            return taken

    def _is_due(self) -> bool:
        """Return whether the batch is full, has waited long enough, or has nothing more to wait for."""
        late = time.monotonic() >= self._waiting[0].since + self._max_delay
        return late or self._closed or len(self._waiting) >= self._max_batch

    def _run(self, requests: list[_Request[_Result]]) -> None:
        with self._came:
            self.batches += 1
            self.processed += len(requests)
        outcomes: Sequence[_Result | Exception]
        try:
            batch = stacked([request.prepared for request in requests])
            outcomes = self._model.run_batch(batch, [request.top_k for request in requests])
        except Exception as error:  # whatever it is, each request must end
            outcomes = [error] * len(requests)
        for request, outcome in zip(requests, outcomes, strict=True):
            if isinstance(outcome, Exception):
                request.future.set_exception(outcome)
            else:
                request.future.set_result(outcome)
