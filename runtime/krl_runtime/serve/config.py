"""Address and limits of a server."""

from __future__ import annotations

from dataclasses import dataclass

from krl_runtime.errors import UsageError
from krl_runtime.processor import cpu_count

__all__ = ["ServeConfig"]


@dataclass(frozen=True)
class ServeConfig:
    """Address and limits of a server.

    Attributes:
        name: Name of the model for clients; ``None`` takes the bundle's file name without ``.krl``.
        host: Address to listen on; ``"0.0.0.0"`` for all of this machine's.
        port: Port to listen on; 0 for any that is free.
        workers: Requests that are processed at once, each in a thread.
        queue: Requests that may wait for a worker; the response to one more is 503.
        max_batch: Images of several requests that are run together at most; 1 runs each by itself, which suits a CPU.
        max_delay_seconds: How long the first image of a batch waits for others.
        max_body_bytes: Largest body of a request; the response to a larger one is 413.
        max_pixels: Most pixels of an image; the response to a larger one is 413, before it is decoded.
        read_seconds: Time for a request's head, and then for its body, to arrive; after it the response is 408.
        connections: Most connections; one more takes the place of the oldest whose request has not arrived.
        grace_seconds: Time that requests under way get when the server is asked to stop.
    """

    name: str | None = None
    host: str = "127.0.0.1"
    port: int = 8000
    workers: int = cpu_count()
    queue: int = 64
    max_batch: int = 1
    max_delay_seconds: float = 0.002
    max_body_bytes: int = 16 * 1024 * 1024
    max_pixels: int = 50_000_000
    read_seconds: float = 30
    connections: int = 800  # with files and libraries below 1,024, the usual limit of open files of a process
    grace_seconds: int = 10

    def __post_init__(self) -> None:
        """Check the ranges."""
        for name in ("workers", "max_batch", "max_body_bytes", "max_pixels", "read_seconds", "connections"):
            if not getattr(self, name) > 0:
                raise UsageError(f"{name} is {getattr(self, name)}; accepted: above 0")
        for name in ("queue", "max_delay_seconds", "grace_seconds"):
            if getattr(self, name) < 0:
                raise UsageError(f"{name} is {getattr(self, name)}; accepted: 0 or more")
        if not 0 <= self.port < 65536:
            raise UsageError(f"port is {self.port}; accepted: 0 to 65535")
