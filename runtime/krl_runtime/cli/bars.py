"""Progress bars with an ETA on standard error, silent where that is no terminal."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager

__all__ = ["progress_bar"]


@contextmanager
def progress_bar(description: str, total: int | None, done: int = 0) -> Iterator[Callable[[], None]]:
    """Show a progress bar, if standard error is a terminal; see ``krl_runtime.progress.ProgressBar``."""
    if not sys.stderr.isatty():
        yield lambda: None
        return
    try:
        from rich.console import Console
        from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn
        from rich.progress import TimeRemainingColumn as EtaColumn
    except ModuleNotFoundError:  # the slim runtime does not bring rich; nothing but the bar is lost
        yield lambda: None
        return
    text = TextColumn("{task.description}")
    columns = (text, BarColumn(), MofNCompleteColumn(), TimeElapsedColumn(), TextColumn("ETA"), EtaColumn())
    with Progress(*columns, console=Console(stderr=True), transient=True) as bars:
        task = bars.add_task(description, total=total, completed=done)
        yield lambda: bars.advance(task)
