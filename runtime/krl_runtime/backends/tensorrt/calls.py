"""Calls of TensorRT, checked: one that fails returns ``None`` or ``False``, and only TensorRT's log has the reason."""

from __future__ import annotations

import logging
import re
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from types import ModuleType
from typing import TYPE_CHECKING, Any, TypeVar

from krl_runtime.errors import BackendError

from .library import Library

if TYPE_CHECKING:
    import tensorrt as trt

__all__ = ["attempt", "check", "layer_profiler", "refit_engine", "tensorrt_logger"]

_log = logging.getLogger("krl")
_T = TypeVar("_T")

# Patterns of TensorRT's log, and their meaning; the first match is the reason.
_REASONS = (
    (r"out of memory|OutOfMemory|insufficient memory|Requested amount of GPU memory", "the GPU ran out of memory"),
    (r"Could not find any implementation for node (.+?)[.)]*$", "TensorRT has no implementation for node {}"),
    (r"Version tag does not match|expecting library version", "it was built by another version of TensorRT"),
    (r"incompatible device", "it was built for another kind of GPU"),
    (r"Platform specific tag mismatch", "it was built for another operating system or processor"),
    (r"magicTag|[Mm]agic tag", "it is damaged, or not a TensorRT engine"),
    (
        r"Cannot compile operation '(.+?)' for (\w+) \(SM(\d+)\): (.+?) is not supported",
        "there is no {3} on {1} (sm_{2}), which node {0!r} needs; build from another precision, or for other GPUs",
    ),
    (r"Target GPU SM (\d+) is not supported", "this TensorRT does not support this GPU (sm_{})"),
)


_SHOWN = 5  # names in a message


class _Attempt(threading.local):
    """The call of TensorRT that this thread is in, and the errors that were logged meanwhile."""

    doing = "TensorRT"
    said: Sequence[str] = ()


_attempt = _Attempt()
_listeners: dict[int, list[str]] = {}
_loggers: dict[ModuleType, trt.ILogger] = {}


def tensorrt_logger(library: Library) -> trt.ILogger:
    """Return the process's one logger for a library, which keeps the first that it is given and ignores others."""
    if TYPE_CHECKING:
        import tensorrt as trt
    trt = library.module
    if trt not in _loggers:
        severities = trt.ILogger.Severity
        levels = {severities.INTERNAL_ERROR: logging.ERROR, severities.ERROR: logging.ERROR}
        levels[severities.WARNING] = logging.WARNING

        class Log(trt.ILogger):  # type: ignore[misc]
            def __init__(self) -> None:
                trt.ILogger.__init__(self)  # the binding asks for this very call

            def log(self, severity: trt.ILogger.Severity, msg: str) -> None:
                level = levels.get(severity, logging.DEBUG)
                if level == logging.ERROR:
                    for said in list(_listeners.values()):
                        said.append(msg)
                    level = logging.DEBUG  # becomes part of the error that is raised; not logged twice
                _log.log(level, "TensorRT: %s", msg)

        _loggers[trt] = Log()
    return _loggers[trt]


@contextmanager
def attempt(doing: str) -> Iterator[None]:
    """Name an operation of TensorRT for ``check``, and translate the errors of its bindings.

    Raises:
        BackendError: TensorRT's bindings raised an exception; the message has the reason from its log.
    """
    before = _attempt.doing, _attempt.said
    said: list[str] = []
    _attempt.doing, _attempt.said = doing, said
    _listeners[id(said)] = said
    try:
        yield
    except (RuntimeError, TypeError, ValueError, MemoryError) as error:
        raise _refusal(f"TensorRT raised {type(error).__name__}: {error}") from error
    finally:
        del _listeners[id(said)]
        _attempt.doing, _attempt.said = before


def check(result: _T | None, failure: str) -> _T:
    """Return the result of a call of TensorRT, unless it is ``None`` or ``False``.

    Raises:
        BackendError: It is; the message has the attempt, the failure, and the reason from TensorRT's log.
    """
    if result is None or result is False:
        raise _refusal(failure)
    return result


def layer_profiler(library: Library) -> Any:
    """Return a profiler for an execution context; its ``times`` has the milliseconds of each run by layer."""
    if TYPE_CHECKING:
        import tensorrt as trt
    trt = library.module

    class Profiler(trt.IProfiler):  # type: ignore[misc]
        def __init__(self) -> None:
            trt.IProfiler.__init__(self)  # the binding asks for this very call
            self.times: dict[str, list[float]] = {}

        def report_layer_time(self, layer_name: str, ms: float) -> None:
            self.times.setdefault(layer_name, []).append(ms)

    return Profiler()


def refit_engine(library: Library, engine: trt.ICudaEngine, weights: bytes) -> None:
    """Put weights into an engine: into one without them its own, or those of another model of the same graph.

    Args:
        library: The library that loaded the engine.
        engine: The engine.
        weights: The ONNX file that has them.

    Raises:
        BackendError: They do not fit it.
    """
    if TYPE_CHECKING:
        import tensorrt as trt
    trt = library.module
    refitter = trt.Refitter(engine, tensorrt_logger(library))
    parser = trt.OnnxParserRefitter(refitter, tensorrt_logger(library))
    check(parser.refit_from_bytes(weights), "its weights cannot be taken from the ONNX file")
    missing = refitter.get_missing_weights()
    check(not missing, f"the ONNX file lacks {len(missing)} of its weights: {', '.join(missing[:_SHOWN])}")
    check(refitter.refit_cuda_engine(), "the weights cannot be put into it")


def _refusal(failure: str) -> BackendError:
    message = f"{_attempt.doing}: {failure}"
    for pattern, meaning in _REASONS:
        for line in _attempt.said:
            if match := re.search(pattern, line):
                return BackendError(f"{message}: {meaning.format(*match.groups())} (TensorRT: {line.strip()[:500]})")
    return BackendError(f"{message}: {_attempt.said[0].strip()[:500]}" if _attempt.said else message)
