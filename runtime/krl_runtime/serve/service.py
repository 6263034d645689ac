"""Runs a model for a server: so many requests at once, so many in the queue, no more."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from time import perf_counter
from typing import TYPE_CHECKING, Any, Protocol, TypeAlias, TypeVar

import numpy as np

from krl_runtime.backends.base import run_in_parts
from krl_runtime.bundle.tensors import Arrays, check_inputs, rows_of, zeros
from krl_runtime.errors import BackendError, ImageError, KrlError, UsageError
from krl_runtime.images.formats import open_header
from krl_runtime.images.work import ImageSizeError
from krl_runtime.pipelines.batching import Batcher
from krl_runtime.pipelines.image import ImagePipeline

from . import protocol
from .config import ServeConfig
from .encoding import TooLargeError, unpack
from .workers import Workers

if TYPE_CHECKING:
    import numpy.typing as npt

    from krl_runtime.bundle import Bundle

__all__ = ["BusyError", "Interpret", "Observer", "Service"]

_log = logging.getLogger("krl")

_T = TypeVar("_T")

_Outputs: TypeAlias = "dict[str, npt.NDArray[Any]]"

Interpret: TypeAlias = "Callable[[_Outputs], dict[str, Any]]"
"""From the outputs of the network for one image, by name, to plain JSON types."""


class BusyError(KrlError):
    """All workers are at work and the queue is full."""


class Observer(Protocol):
    """Receives the time of each stage; called from several threads."""

    def stage(self, name: str, seconds: float) -> None:
        """Take note of one stage of one request: ``"queue"``, ``"preprocess"`` or ``"inference"``."""
        ...

    def ran(self, images: int) -> None:
        """Take note of one run of the network on so many images."""
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


class _Network:
    """The network as ``Batcher`` runs it: prepared inputs in, all outputs of each out, for both kinds of requests."""

    def __init__(self, model: ImagePipeline[Any], observer: Observer) -> None:
        self._model, self._observer = model, observer
        self.input = model.bundle.manifest.inputs[0].name

    @property
    def bundle(self) -> Bundle:
        return self._model.bundle

    def prepare(self, source: Any) -> Arrays:
        """Return arrays as they are: they were prepared already."""
        return source  # type: ignore[no-any-return]

    def run(self, inputs: Mapping[str, npt.NDArray[Any]]) -> _Outputs:
        """Run the network once."""
        outputs = self._model.backend.run(inputs)
        self._observer.ran(len(next(iter(inputs.values()))))
        return outputs

    def run_batch(self, batch: Arrays, top_k: Sequence[int]) -> Sequence[_Outputs]:
        """Return the outputs by name of each image; ``top_k`` is for the reader of the logits."""
        outputs = self.run(batch if isinstance(batch, Mapping) else {self.input: batch})
        return [{name: array[index] for name, array in outputs.items()} for index in range(len(top_k))]


class Service:
    """A model and the threads that run it. All methods but ``close`` belong to one event loop.

    Attributes:
        model: The model; it is not closed here.
    """

    def __init__(self, model: ImagePipeline[Any], config: ServeConfig, observer: Observer) -> None:
        self.model = model
        self._config = config
        self._observer = observer
        self._pool = Workers(config.workers)
        self._free = asyncio.Semaphore(config.workers)
        self._network = _Network(model, observer)
        self._batcher: Batcher[_Outputs] | None = None
        if config.max_batch > 1:
            self._batcher = Batcher(
                self._network,
                max_batch=config.max_batch,
                max_delay=config.max_delay_seconds,
                # Of each request a batch at most waits, so none finds the queue full.
                max_waiting=(config.workers + config.queue) * config.max_batch,
            )
        self._slots = config.workers + config.queue
        self._here = self._taken = self._held = 0
        self._fault: str | None = None

    @property
    def name(self) -> str:
        """Return the model's name for clients."""
        return self._config.name or self.model.bundle.stem

    @property
    def in_progress(self) -> int:
        """Number of requests that arrive, wait or run."""
        return self._here

    @property
    def fault(self) -> str | None:
        """The last failure of the device; ``None`` after a run that went well."""
        return self._fault

    def refusal(self) -> BusyError | None:
        """Return why no further request is accepted now, if that is so."""
        if self._taken < self._slots:
            return None
        return BusyError(f"{self._slots} requests run or wait already; try again in a second")

    @contextmanager
    def arrival(self) -> Iterator[Callable[[int], bool]]:
        """Count a request while it is here, and the bytes of its body.

        Yields a function that takes note of so many more bytes, and returns whether they may be held: all bodies
        together may have as many bytes as there are slots times the largest body.
        """
        size = 0

        def hold(count: int) -> bool:
            nonlocal size
            if self._held + count > self._slots * self._config.max_body_bytes:
                return False
            self._held += count
            size += count
            return True

        self._here += 1
        try:
            yield hold
        finally:
            self._here -= 1
            self._held -= size

    @contextmanager
    def slot(self) -> Iterator[None]:
        """Hold one slot among workers and queue, for a request that has arrived.

        Raises:
            BusyError: There is none.
        """
        refusal = self.refusal()
        if refusal is not None:
            raise refusal
        self._taken += 1
        try:
            yield
        finally:
            self._taken -= 1

    def status(self) -> dict[str, Any]:
        """Return the backend and the reason, for JSON: ``backend`` is the one that runs, not the one asked for."""
        backend = self.model.backend
        names = [name for each in self.model.inputs for name in each.names]
        return {
            "model": self.name,
            "task": self.model.bundle.manifest.task,
            "backend": backend.name,
            "variant": backend.variant,
            "reason": backend.reason,
            "fault": self._fault,
            "workers": self._config.workers,
            "queue": self._config.queue,
            "requests": self._here,
            **({"further_inputs": names} if names else {}),
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
        self._run(zeros(self.model.bundle.manifest.inputs))

    async def respond(
        self, sample: bytes | Mapping[str, bytes | str], interpret: Interpret, *, long: bool = False
    ) -> dict[str, Any]:
        """Run the network on one encoded image, or a sample with further inputs, and interpret its outputs.

        Args:
            sample: The image as a file holds it; with further inputs images as bytes and values as text, by name.
            interpret: From the outputs ``[1, ...]`` by name to plain JSON types.
            long: Whether that takes more than a moment, so that it must not hold up other requests.

        Returns:
            Plain JSON types: the result, what ran, and ``time_ms`` for each stage.

        Raises:
            TooLargeError: It has too many pixels.
            ImageError: It cannot be decoded.
            UsageError: A further input is missing, unknown or not accepted.
            BackendError: The device failed.
            ModelError: An output is not a finite number.
        """
        watch = _Stopwatch(self._observer)
        if self._batcher is None:
            values = await self._in_thread(lambda: self._respond(sample, interpret, watch))
        else:
            prepared = await self._in_thread(lambda: self._prepare(sample, watch))
            outputs = await self._run_with_others(self._batcher, [prepared])
            watch.lap("inference")
            values = await self._in_thread(lambda: interpret(outputs)) if long else interpret(outputs)
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
        if self._batcher is None:
            return await self._in_thread(lambda: self._infer(body, header_length, watch))
        request = await self._in_thread(lambda: self._parse(body, header_length, watch))
        outputs = await self._run_with_others(self._batcher, rows_of(request.inputs))
        watch.lap("inference")
        return await self._in_thread(lambda: self._render(request, outputs))

    async def unpack(self, body: bytes, encoding: str) -> bytes:
        """Return a body as it was before it was compressed; see ``encoding.unpack``."""
        return await self._in_thread(lambda: unpack(body, encoding, self._config.max_body_bytes))

    def close(self, timeout: float) -> bool:
        """Let the threads end after their work; requests that wait are not run.

        Args:
            timeout: Seconds to wait for them.

        Returns:
            Whether all have ended.
        """
        ended = self._pool.close(timeout)
        return (self._batcher is None or self._batcher.close(drain=False, timeout=timeout)) and ended

    async def _in_thread(self, work: Callable[[], _T]) -> _T:
        """Do the work in a thread. Work that is canceled while it waits is dropped, with all that it holds."""
        await self._free.acquire()
        loop = asyncio.get_running_loop()

        def release(_: object) -> None:
            with suppress(RuntimeError):  # the loop has ended
                loop.call_soon_threadsafe(self._free.release)

        future = self._pool.submit(work)
        future.add_done_callback(release)
        return await asyncio.wrap_future(future)

    def _respond(
        self, sample: bytes | Mapping[str, bytes | str], interpret: Interpret, watch: _Stopwatch
    ) -> dict[str, Any]:
        outputs = self._run({name: array[None] for name, array in self._prepare(sample, watch).items()})
        watch.lap("inference")
        return interpret(outputs)

    def _prepare(self, sample: bytes | Mapping[str, bytes | str], watch: _Stopwatch) -> Mapping[str, npt.NDArray[Any]]:
        """Return the inputs of the graph by name, without a batch dimension."""
        watch.lap("queue")
        for image in sample.values() if isinstance(sample, Mapping) else (sample,):
            if isinstance(image, bytes):
                self._check_size(image)
        prepared = self.model.prepare(sample)
        watch.lap("preprocess")
        return prepared if isinstance(prepared, Mapping) else {self._network.input: prepared}

    async def _run_with_others(self, batcher: Batcher[_Outputs], prepared: Sequence[Arrays]) -> _Outputs:
        """Run the images of one request in batches that images of other requests share."""
        rows: list[_Outputs] = []
        with self._noting_faults():
            for start in range(0, len(prepared), self._config.max_batch):
                part = prepared[start : start + self._config.max_batch]
                waiting = [asyncio.wrap_future(batcher.submit(each, timeout=0)) for each in part]
                rows += await asyncio.gather(*waiting)
        return {name: np.stack([row[name] for row in rows]) for name in rows[0]}

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
        request = self._parse(body, header_length, watch)
        outputs = self._run(request.inputs)
        watch.lap("inference")
        return self._render(request, outputs)

    def _parse(self, body: bytes, header_length: int | None, watch: _Stopwatch) -> protocol.InferRequest:
        watch.lap("queue")
        manifest = self.model.bundle.manifest
        labeled = self.model.labels_of_outputs
        request = protocol.parse(body, header_length, manifest.inputs, manifest.outputs, labeled)
        try:
            check_inputs(manifest.inputs, request.inputs)
        except BackendError as error:
            raise UsageError(str(error)) from error
        watch.lap("preprocess")
        return request

    def _render(self, request: protocol.InferRequest, outputs: _Outputs) -> tuple[bytes, int | None]:
        backend = self.model.backend
        where = {"backend": backend.name, "variant": backend.variant}
        labels = self.model.labels_of_outputs
        return protocol.render(request, outputs, model=self.name, labels=labels, parameters=where)

    def _run(self, inputs: Mapping[str, npt.NDArray[Any]]) -> dict[str, npt.NDArray[Any]]:
        """Run the network in parts of a bounded size."""
        with self._noting_faults():
            return run_in_parts(self._network.run, inputs, self.model.bundle.batch_limit)

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
