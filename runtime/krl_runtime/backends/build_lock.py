"""One build of an engine at a time on a machine: a lock file that works on every system."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from krl_runtime.errors import BackendError

__all__ = ["build_lock"]

_POLL = 0.2  # seconds between looks at another process's lock: builds take minutes
_REFRESH = 10.0  # seconds between signs of life of the process that builds
_STALE = 60.0  # seconds without one, after which the process is taken to be gone; several refreshes may be missed


@contextmanager
def build_lock(path: Path, cancelled: Callable[[], bool]) -> Iterator[Callable[[], None]]:
    """Hold a lock file while the block runs, once no other process holds it; yield a function that shows life.

    Args:
        path: The file. It holds the number of the process; its time of change is the last sign of life.
        cancelled: Whether to give up; asked while this waits.

    Raises:
        BackendError: This was cancelled, or the file cannot be written.
    """
    try:
        path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        while not _create(path):
            if _is_stale(path):
                with suppress(OSError):
                    path.unlink()
                continue
            if cancelled():
                raise BackendError("the model was closed")
            time.sleep(_POLL)
    except OSError as error:
        raise BackendError(f"the lock {path} cannot be written: {error.strerror}") from error
    shown = time.monotonic()

    def alive() -> None:
        nonlocal shown
        if time.monotonic() - shown > _REFRESH:
            with suppress(OSError):
                os.utime(path)
            shown = time.monotonic()

    try:
        yield alive
    finally:
        with suppress(OSError):
            path.unlink()


def _create(path: Path) -> bool:
    """Make the file, unless it is there."""
    try:
        descriptor = os.open(path, os.O_CREAT | os.O_EXCL | os.O_WRONLY)
    except FileExistsError:
        return False
    with os.fdopen(descriptor, "w") as file:
        file.write(str(os.getpid()))
    return True


def _is_stale(path: Path) -> bool:
    try:
        return time.time() - path.stat().st_mtime > _STALE
    except OSError:  # it is gone now
        return False
