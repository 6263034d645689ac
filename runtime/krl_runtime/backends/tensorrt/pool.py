"""The execution contexts of one engine: each is used by one thread at a time, and keeps its CUDA graph.

NVIDIA advises one context for each captured graph, since a change of the context's shapes makes its graph invalid. So
a call gets the idle context that ran its shapes last, if there is one.
"""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager

from krl_runtime.errors import BackendError

from .lane import Lane

__all__ = ["LanePool"]

_log = logging.getLogger("krl")

_CONTEXTS = 4  # calls that run at once, and graphs that are kept; each context has its own activations on the GPU


class LanePool:
    """Up to four contexts, each made when it is needed. Without memory for another one threads wait for each other.

    Args:
        make: Makes a context, with its stream.
        graphs: Whether contexts keep CUDA graphs; without, any idle one will do.
        label: Name of the engine in messages.

    Raises:
        BackendError: Not even the first one can be made.
    """

    def __init__(self, make: Callable[[], Lane], label: str, *, graphs: bool) -> None:
        self._make, self._label, self._graphs = make, label, graphs
        self._changed = threading.Condition()
        self._idle = [make()]  # the one that was used last comes last
        self._made, self._most, self._closed = 1, _CONTEXTS, False

    @contextmanager
    def lend(self, profile: int, shapes: Mapping[str, tuple[int, ...]]) -> Iterator[Lane]:
        """Yield a context that no other thread uses; one that failed is closed.

        Args:
            profile: The optimization profile of the call.
            shapes: Shapes of its inputs.

        Raises:
            BackendError: The engine is closed.
        """
        lane = self._take(profile, shapes)
        try:
            yield lane
        except BaseException:
            lane.close()
            with self._changed:
                self._made -= 1
                self._changed.notify()
            raise
        with self._changed:
            self._idle.append(lane)
            self._changed.notify()

    def _take(self, profile: int, shapes: Mapping[str, tuple[int, ...]]) -> Lane:
        while True:
            with self._changed:
                while not self._closed and not self._idle and self._made >= self._most:
                    self._changed.wait()
                if self._closed:
                    raise BackendError(f"engine {self._label} is closed; load the bundle again")
                found = next((lane for lane in self._idle if lane.is_ready(profile, shapes)), None)
                found = found or next((lane for lane in self._idle if lane.is_new), None)
                if found is not None:
                    self._idle.remove(found)
                    return found
                if self._idle and not self._graphs:
                    return self._idle.pop()
                if self._made >= self._most:
                    return self._idle.pop(0)  # its graph is the one that was needed longest ago
                self._made += 1
            try:
                return self._make()
            except BaseException as error:
                with self._changed:
                    self._made -= 1
                    self._changed.notify()
                    if not isinstance(error, BackendError) or self._closed or self._made == 0:
                        raise
                    self._most = self._made
                _log.warning("engine %s runs at most %d calls at once: %s", self._label, self._most, error)

    def close(self) -> None:
        """Free the contexts, once the calls that are under way are done; further calls find the engine closed."""
        with self._changed:
            self._closed = True
            self._changed.notify_all()
            while len(self._idle) < self._made:
                self._changed.wait()
            lanes, self._idle, self._made = self._idle, [], 0
        for lane in lanes:
            lane.close()
