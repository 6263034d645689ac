"""Progress of long work, shown if a program sets a bar, as the command lines do."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sized
from contextlib import AbstractContextManager, nullcontext
from typing import Protocol, TypeVar

__all__ = ["ProgressBar", "progress", "progress_bar", "show_with"]


_Item = TypeVar("_Item")


class ProgressBar(Protocol):
    """Shows the progress of a piece of work."""

    def __call__(
        self, description: str, total: int | None, done: int = 0
    ) -> AbstractContextManager[Callable[[], None]]:
        """Show a bar while the context lasts. Its value is a function that advances the bar by one.

        Args:
            description: Text of the bar.
            total: Number of items; ``None`` if it is not known.
            done: Number of items that are done already.
        """
        ...


_bar: ProgressBar | None = None


def show_with(bar: ProgressBar | None) -> None:
    """Show progress with ``bar`` from now on; ``None``, the default, shows none."""
    global _bar
    _bar = bar


def progress_bar(description: str, total: int | None, done: int = 0) -> AbstractContextManager[Callable[[], None]]:
    """Show the progress of a piece of work, if a bar is set; see ``ProgressBar``."""
    return nullcontext(_nothing) if _bar is None else _bar(description, total, done)


def _nothing() -> None:
    """Advance no bar."""


def progress(items: Iterable[_Item], description: str, total: int | None = None) -> Iterator[_Item]:
    """Yield ``items`` under a progress bar.

    Args:
        items: The items of the work.
        description: Text of the bar.
        total: Number of items, if ``items`` has no length.
    """
    if total is None and isinstance(items, Sized):
        total = len(items)
    with progress_bar(description, total) as advance:
        for item in items:
            yield item
            advance()
