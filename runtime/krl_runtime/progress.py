"""Progress bars with an ETA on standard error, silent where that is no terminal."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterable, Iterator, Sized
from contextlib import contextmanager
from typing import TypeVar

__all__ = ["progress", "progress_bar"]


_Item = TypeVar("_Item")


@contextmanager
def progress_bar(description: str, total: int | None, done: int = 0) -> Iterator[Callable[[], None]]:
    """Show a progress bar with an ETA on standard error, if that is a terminal; yield what advances it by one.

    Args:
        description: What is being done, for people.
        total: Number of items, ``None`` where it is not known.
        done: Number of items that are done already.
    """
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


def progress(items: Iterable[_Item], description: str, total: int | None = None) -> Iterator[_Item]:
    """Yield ``items`` under a progress bar.

    Args:
        items: What to go through.
        description: What is being done, for people.
        total: Number of items, where ``items`` has no length.
    """
    if total is None and isinstance(items, Sized):
        total = len(items)
    with progress_bar(description, total) as advance:
        for item in items:
            yield item
            advance()
