"""The progress of a build: a bar for each phase on a terminal, and the wish to stop."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor, wait
from typing import TYPE_CHECKING, TypeVar

from krl_runtime.backends.tensorrt.library import Library

if TYPE_CHECKING:
    import tensorrt as trt
    from rich.progress import Progress, TaskID

__all__ = ["BuildProgress", "run_cancellable"]

_T = TypeVar("_T")


class BuildProgress:
    """Progress of TensorRT's builder; it may call from any of its threads.

    Attributes:
        canceled: Why the build is to stop, once it is; empty until then.
    """

    def __init__(self, time_limit: float | None = None) -> None:
        """Start the time limit, in seconds."""
        self.canceled = ""
        self._limit = time_limit
        self._start = time.monotonic()
        self._bars: Progress | None = None
        self._tasks: dict[str, TaskID] = {}

    def __enter__(self) -> BuildProgress:
        """Show the bars, if standard error is a terminal."""
        if sys.stderr.isatty():
            from rich.console import Console
            from rich.progress import Progress

            self._bars = Progress(console=Console(stderr=True), transient=True)
            self._bars.start()
        return self

    def __exit__(self, *_: object) -> None:
        """Take the bars away."""
        if self._bars is not None:
            self._bars.stop()

    def cancel(self, reason: str) -> None:
        """Ask the builder to stop at its next step; the first reason stays."""
        self.canceled = self.canceled or reason

    def phase_start(self, name: str, parent: str | None, steps: int) -> None:
        """Show a bar for a phase; one within another is indented."""
        if self._bars is not None:
            self._tasks[name] = self._bars.add_task(f"  {name}" if parent else name, total=steps)

    def step_complete(self, name: str, step: int) -> bool:
        """Move a phase's bar, and return whether to continue."""
        if self._limit is not None and time.monotonic() - self._start > self._limit:
            self.cancel(f"it took longer than the {self._limit:g} seconds of --time-limit")
        if self._bars is not None and name in self._tasks:
            self._bars.update(self._tasks[name], completed=step + 1)
        return not self.canceled

    def phase_finish(self, name: str) -> None:
        """Take a phase's bar away."""
        task = self._tasks.pop(name, None)
        if self._bars is not None and task is not None:
            self._bars.remove_task(task)

    def monitor(self, library: Library) -> trt.IProgressMonitor:
        """Return this as the builder of a library takes it."""
        if TYPE_CHECKING:
            import tensorrt as trt
        trt = library.module
        progress = self

        class Monitor(trt.IProgressMonitor):  # type: ignore[misc]
            def __init__(self) -> None:
                trt.IProgressMonitor.__init__(self)  # the binding asks for this very call

            def phase_start(self, phase_name: str, parent_phase: str | None, num_steps: int) -> None:
                progress.phase_start(phase_name, parent_phase, num_steps)

            def step_complete(self, phase_name: str, step: int) -> bool:
                return progress.step_complete(phase_name, step)

            def phase_finish(self, phase_name: str) -> None:
                progress.phase_finish(phase_name)

        return Monitor()


def run_cancellable(work: Callable[[], _T], progress: BuildProgress) -> _T:
    """Run a build in a thread of its own, so that Ctrl-C arrives here while TensorRT is at work.

    Raises:
        KeyboardInterrupt: Ctrl-C was pressed; the build has been stopped.
    """
    with ThreadPoolExecutor(1) as pool:
        future = pool.submit(work)
        try:
            return future.result()
        except KeyboardInterrupt:
            progress.cancel("it was interrupted")
            wait([future])
            raise
