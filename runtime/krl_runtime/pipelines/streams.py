"""Results for streams of images: every image of a folder or an iterable, or the latest frame of a camera."""

from __future__ import annotations

import os
from collections import deque
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from threading import Condition, Thread
from types import TracebackType
from typing import TYPE_CHECKING, Any, Generic, TypeVar

from krl_runtime.backends.base import check_not_forked
from krl_runtime.bundle.further_inputs import IMAGE
from krl_runtime.bundle.tensors import stacked
from krl_runtime.errors import ImageError, KrlError, UsageError
from krl_runtime.processor import cpu_count

if TYPE_CHECKING:
    from krl_runtime.images.preprocessing import ImageSource

    from .base import BatchModel, Sample

__all__ = ["StreamItem", "Watch", "stream"]

_END: Any = object()
_Result = TypeVar("_Result")


@dataclass(frozen=True)
class StreamItem(Generic[_Result]):
    """One image of a stream, with its ``result`` or its ``error``.

    Attributes:
        source: The image, as it was given.
        result: The model's result; ``None`` after an error.
        error: Why the image, or a further input of it, cannot be used; the stream continues.
    """

    source: Any
    result: _Result | None
    error: ImageError | UsageError | None = None

    def __str__(self) -> str:
        """Return the name or the size of the image, and its result or error, in one line."""
        return " ".join(f"{_named(self.source)}: {self.result if self.error is None else self.error}".split())

    def __repr__(self) -> str:
        """Return the same as fields, without the pixels."""
        return f"StreamItem({_named(self.source)!r}, {self.result!r}, {self.error!r})"


def _named(source: object) -> str:
    """Return the name of a source's file, or its size: an array or encoded bytes would fill pages."""
    if isinstance(source, str | os.PathLike):
        return os.fspath(source)
    if isinstance(source, Mapping):
        return _named(source.get(IMAGE))
    if isinstance(source, bytes | bytearray | memoryview):
        return f"{len(source)} bytes"
    if (shape := getattr(source, "shape", None)) is not None:
        return f"array {'x'.join(map(str, shape))}"
    if isinstance(size := getattr(source, "size", None), tuple):
        return f"image {'x'.join(map(str, size))}"
    return str(getattr(source, "name", type(source).__name__))


def stream(
    model: BatchModel[_Result],
    sources: str | Path | Iterable[ImageSource | Sample],
    *,
    top_k: int = 5,
    workers: int | None = None,
) -> Iterator[StreamItem[_Result]]:
    """Yield the result of every image of a folder or an iterable, in order. Threads decode a few images ahead.

    Args:
        model: The model; with ``threads=1`` and as many workers as cores it is fastest.
        sources: A folder, searched at any depth, or any iterable of images, an endless one too.
        top_k: Number of classes in a result.
        workers: Images that are processed at once; by default one for each core.

    Returns:
        One item for each image, with the error if it cannot be used. Closing the iterator stops the work.

    Raises:
        DataError: The folder is missing or holds no image.
        UsageError: ``workers`` or ``top_k`` is less than 1.
        BackendError: The device failed, or the model is closed.
    """
    workers = workers if workers is not None else cpu_count()
    if workers < 1 or top_k < 1:
        raise UsageError(f"workers is {workers}, top_k {top_k}; accepted: 1 or more")
    if isinstance(sources, str | Path):
        from krl_runtime.images.folders import find_images

        sources = find_images(Path(sources), on_bad="skip")
    return _stream(model, sources, top_k, workers)


def _stream(
    model: BatchModel[_Result], sources: Iterable[ImageSource | Sample], top_k: int, workers: int
) -> Iterator[StreamItem[_Result]]:
    from concurrent.futures import Future, ThreadPoolExecutor

    ahead: deque[Future[StreamItem[_Result]]] = deque()
    process = os.getpid()
    pool = ThreadPoolExecutor(workers, thread_name_prefix="krl-stream")
    try:
        for source in sources:
            check_not_forked(process, "a stream")
            ahead.append(pool.submit(_item, model, source, top_k))
            if len(ahead) > 2 * workers:
                yield ahead.popleft().result()
        while ahead:
            check_not_forked(process, "a stream")
            yield ahead.popleft().result()
    finally:
        if os.getpid() == process:
            pool.shutdown(cancel_futures=True)


def _item(model: BatchModel[_Result], source: ImageSource | Sample, top_k: int) -> StreamItem[_Result]:
    try:
        prepared = model.prepare(source)
    except (ImageError, UsageError) as error:
        return StreamItem(source, None, error)
    (result,) = model.run_batch(stacked([prepared]), [top_k])
    if isinstance(result, KrlError):
        raise result
    return StreamItem(source, result)


class Watch(Generic[_Result]):
    """Yields results for the latest frame of a camera.

    A thread takes frames from their iterable as fast as they come. Frames that come while the model is busy are
    dropped and counted. ``Classifier.watch`` makes it. Iterate over it, and close it or use it as a context manager.

    Attributes:
        dropped: How many frames a later one has replaced.
    """

    def __init__(self, model: BatchModel[_Result], frames: Iterable[ImageSource | Sample], *, top_k: int = 5) -> None:
        """Start to take frames.

        Args:
            model: The model; it is not closed with this.
            frames: Anything that yields images, each only when it is there, as a camera does.
            top_k: Number of classes in a result.

        Raises:
            UsageError: ``top_k`` is less than 1.
        """
        if top_k < 1:
            raise UsageError(f"top_k is {top_k}; accepted: 1 or more")
        self._model, self._top_k = model, top_k
        self._condition, self._process = Condition(), os.getpid()
        self._frame: Any = _END
        self._ended = False
        self._error: Exception | None = None
        self.dropped = 0
        self._thread = Thread(target=self._read, args=(iter(frames),), name="krl-watch", daemon=True)
        self._thread.start()

    def __iter__(self) -> Watch[_Result]:
        """Return this."""
        return self

    def __next__(self) -> StreamItem[_Result]:
        """Wait for a new frame, and return the result of the latest one.

        Raises:
            StopIteration: The frames have ended and the last result was returned, or this is closed.
            BackendError: The device failed, or the model is closed.
            Exception: The iterable of frames raised it.
        """
        check_not_forked(self._process, "a watch")
        with self._condition:
            self._condition.wait_for(lambda: self._frame is not _END or self._ended)
            frame, self._frame = self._frame, _END
            if frame is _END:
                error, self._error = self._error, None
                raise error or StopIteration
        return _item(self._model, frame, self._top_k)

    def close(self) -> None:
        """Take no more frames; the thread ends with the frame that it waits for."""
        if os.getpid() != self._process:  # forked: the thread and its lock belong to another process
            return
        with self._condition:
            self._ended, self._frame = True, _END
            self._condition.notify_all()

    def __repr__(self) -> str:
        """Return the model's name and the number of dropped frames."""
        return f"Watch({self._model.bundle.manifest.name!r}, {self.dropped} dropped)"

    def __enter__(self) -> Watch[_Result]:
        """Return this."""
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Close it."""
        self.close()

    def _read(self, frames: Iterator[ImageSource | Sample]) -> None:
        error = None
        try:
            for frame in frames:
                with self._condition:
                    if self._ended:
                        return
                    self.dropped += self._frame is not _END
                    self._frame = frame
                    self._condition.notify_all()
        except Exception as problem:  # it belongs to whoever takes the frames
            error = problem
        with self._condition:
            self._ended, self._error = True, error
            self._condition.notify_all()
