"""Runs a model for a server: so many requests at once, so many in the queue, no more."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from time import perf_counter
from typing import TYPE_CHECKING, Any, Protocol, TypeVar

import numpy as np

from krl_runtime.backends.base import run_in_parts
from krl_runtime.bundle.tensors import check_inputs
from krl_runtime.errors import BackendError, ImageError, KrlError, UsageError
from krl_runtime.images.formats import open_header
from krl_runtime.images.work import ImageSizeError
from krl_runtime.pipelines.classifier import Classification, Classifier

from . import protocol
from .config import ServeConfig

if TYPE_CHECKING:
    import numpy.typing as npt

    from krl_runtime.pipelines.batching import Batcher

__all__ = ["BusyError", "Observer", "Service", "TooLargeError"]

_log = logging.getLogger("krl")

_T = TypeVar("_T")


class BusyError(KrlError):
    """All workers are at work and the queue is full."""


class TooLargeError(KrlError):
    """A body or an image is larger than the server accepts."""


class Observer(Protocol):
    """Receives the time of each stage; called from several threads."""

    def stage(self, name: str, seconds: float) -> None:
        """Take note of one stage of one request: ``"queue"``, ``"preprocess"`` or ``"inference"``."""
        ...


class _Stopwatch:
    """The stages of one request, in seconds."""

    def __init__(self, observer: Observer) -> None:
        self.seconds: dict[str, float] = {}
        self._observer = observer
        self._last = perf_counter()

    def lap(self, stage: str) -> None:
        """End the stage and begin the next."""
        now = perf_counter()
        self.seconds[stage] = now - self._last
        self._last = now
        self._observer.stage(stage, self.seconds[stage])


class Service:
    """A model and the threads that run it. All methods but ``close`` belong to one event loop.

    Attributes:
        model: The model; it is not closed here.
    """

    def __init__(self, model: Classifier, config: ServeConfig, observer: Observer) -> None:
        self.model = model
        self._config = config
        self._observer = observer
        self._pool = ThreadPoolExecutor(config.workers, thread_name_prefix="krl-serve")
        self._batcher: Batcher[Classification] | None = None
        if config.max_batch > 1:
            self._batcher = model.batched(
                max_batch=config.max_batch,
                max_delay=config.max_delay_seconds,
                max_waiting=config.workers + config.queue,  # so no request waits for a slot
            )
        self._taken = 0
        self._fault: str | None = None

    @property
    def name(self) -> str:
        """Return the model's name for clients."""
        return self._config.name or self.model.bundle.stem

    @property
    def taken(self) -> int:
        """Number of requests that run or wait."""
        return self._taken

    @contextmanager
    def slot(self) -> Iterator[None]:
        """Hold one slot among workers and queue.

        Raises:
            BusyError: There is none.
        """
        slots = self._config.workers + self._config.queue
        if self._taken >= slots:
            raise BusyError(f"{slots} requests run or wait already; try again in a second")
        self._taken += 1
        try:
            yield
        finally:
            self._taken -= 1

    def status(self) -> dict[str, Any]:
        """Return the backend and the reason, for JSON: ``backend`` is the one that runs, not the one asked for."""
        backend = self.model.backend
        return {
            "model": self.name,
            "backend": backend.name,
            "variant": backend.variant,
            "reason": backend.reason,
            "fault": self._fault,
            "workers": self._config.workers,
            "queue": self._config.queue,
            "requests": self._taken,
        }

    async def ready(self) -> bool:
        """Return whether the model runs. After a failure of the device this runs it once to find out."""
        if self._fault is not None:
            try:
                await self._in_thread(self.warm_up)
            except KrlError:
                return False
        return True

    def warm_up(self) -> None:
        """Run the network once, on a black image.

        Raises:
            BackendError: It does not run.
        """
        self._logits(np.zeros((1, *self.model.preprocessing.shape), np.uint8))

    async def classify(self, body: bytes, top_k: int) -> dict[str, Any]:
        """Classify one encoded image.

        Args:
            body: The image as a file holds it.
            top_k: Number of classes in the result.

        Returns:
            Plain JSON types: the result, what ran, and ``time_ms`` for each stage.

        Raises:
            TooLargeError: It has too many pixels.
            ImageError: It cannot be decoded.
            BackendError: The device failed.
            ModelError: A logit is not a finite number.
        """
        watch = _Stopwatch(self._observer)
        batcher = self._batcher
        if batcher is None:
            result = await self._in_thread(lambda: self._classify(body, top_k, watch))
        else:
            waiting = await self._in_thread(lambda: self._submit(batcher, body, top_k, watch))
            with self._noting_faults():
                result = await asyncio.wrap_future(waiting)
            watch.lap("inference")
        values = result.to_dict()
        del values["logits"]
        backend = self.model.backend
        times = {stage: seconds * 1e3 for stage, seconds in watch.seconds.items()}
        where = {"model": self.name, "backend": backend.name, "variant": backend.variant}
        return {**values, **where, "time_ms": {**times, "whole": sum(times.values())}}

    async def infer(self, body: bytes, header_length: int | None) -> tuple[bytes, int | None]:
        """Process one request of the Open Inference Protocol; see ``protocol.parse`` and ``protocol.render``.

        Raises:
            UsageError: The request is malformed, or its arrays are not inputs of the network.
            BackendError: The device failed.
        """
        watch = _Stopwatch(self._observer)
        return await self._in_thread(lambda: self._infer(body, header_length, watch))

    def close(self) -> None:
        """Let the threads end after their work."""
        self._pool.shutdown()
        if self._batcher is not None:
            self._batcher.close()

    async def _in_thread(self, work: Callable[[], _T]) -> _T:
        return await asyncio.get_running_loop().run_in_executor(self._pool, work)

    def _classify(self, body: bytes, top_k: int, watch: _Stopwatch) -> Classification:
        watch.lap("queue")
        self._check_size(body)
        pixels = self.model.preprocessing(body)
        watch.lap("preprocess")
        logits = self._logits(pixels[None])
        watch.lap("inference")
        return self.model.interpret(logits, top_k=top_k)[0]

    def _submit(
        self, batcher: Batcher[Classification], body: bytes, top_k: int, watch: _Stopwatch
    ) -> Future[Classification]:
        watch.lap("queue")
        self._check_size(body)
        waiting = batcher.submit(body, top_k=top_k)
        watch.lap("preprocess")
        return waiting

    def _check_size(self, body: bytes) -> None:
        """Refuse an image by the size that its header tells, before any of it is decoded."""
        try:
            width, height = open_header(body).size
        except ImageSizeError as error:
            raise TooLargeError(str(error)) from error
        except ImageError:  # preprocessing says it again
            return
        if width * height > self._config.max_pixels:
            raise TooLargeError(
                f"the image has {width}x{height} pixels; at most {self._config.max_pixels} are accepted"
            )

    def _infer(self, body: bytes, header_length: int | None, watch: _Stopwatch) -> tuple[bytes, int | None]:
        watch.lap("queue")
        manifest, backend = self.model.bundle.manifest, self.model.backend
        request = protocol.parse(body, header_length, manifest.inputs, manifest.outputs)
        try:
            check_inputs(manifest.inputs, request.inputs)
        except BackendError as error:
            raise UsageError(str(error)) from error
        watch.lap("preprocess")
        outputs = self._run(request.inputs)
        watch.lap("inference")
        where = {"backend": backend.name, "variant": backend.variant}
        return protocol.render(request, outputs, model=self.name, labels=manifest.labels, parameters=where)

    def _logits(self, pixels: npt.NDArray[np.uint8]) -> npt.NDArray[np.float32]:
        manifest = self.model.bundle.manifest
        return self._run({manifest.inputs[0].name: pixels})[manifest.outputs[0].name].astype(np.float32, copy=False)

    def _run(self, inputs: Mapping[str, npt.NDArray[Any]]) -> dict[str, npt.NDArray[Any]]:
        """Run the network in parts of a bounded size."""
        with self._noting_faults():
            return run_in_parts(self.model.backend.run, inputs, self.model.bundle.batch_limit)

    @contextmanager
    def _noting_faults(self) -> Iterator[None]:
        """Remember whether the device failed."""
        try:
            yield
        except BackendError as error:
            self._fault = str(error)
            _log.error("%s", error)
            raise
        self._fault = None
