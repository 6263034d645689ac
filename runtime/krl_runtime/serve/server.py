"""Listens, says where, and stops cleanly."""

from __future__ import annotations

import contextlib
import logging
import signal
import socket
import threading
from collections.abc import Callable, Iterator
from typing import Any

import uvicorn
from starlette.applications import Starlette

from krl_runtime.bundle.tensors import zeros
from krl_runtime.errors import UsageError
from krl_runtime.pipelines.image import ImagePipeline
from krl_runtime.retrieval.gallery import Index

from .app import make_app
from .config import ServeConfig
from .connections import connection_class

__all__ = ["address", "listen", "make_server", "run"]

_log = logging.getLogger("krl")

_BACKLOG = 1024  # connections that the system takes before the server does; Linux caps it at net.core.somaxconn


def run(
    model: ImagePipeline[Any], config: ServeConfig, started: Callable[[str], None], index: Index | None = None
) -> bool:
    """See ``krl_runtime.serve.serve``."""
    # This run takes the extra time of the first inference. A model that does not run never listens.
    model.run(zeros(model.bundle.manifest.inputs))
    if index is not None:
        index.neighbors(index.vectors[:1], 1)  # loads its graph, if it has one
    listener = listen(config.host, config.port)
    app = make_app(model, config, index)
    server = make_server(app, config)
    with listener, _stops_quietly():
        started(address(listener))
        server.run(sockets=[listener])
    finished: bool = app.state.service.close(0)
    if not finished:
        _log.warning("requests did not end within %d seconds, and are given up", config.grace_seconds)
    _log.info("%s: stopped", model.bundle.manifest.name)
    return finished


def make_server(app: Starlette, config: ServeConfig) -> uvicorn.Server:
    """Return a server that is not running yet; ``should_exit = True`` stops it."""
    return uvicorn.Server(
        uvicorn.Config(
            app,
            log_config=None,
            access_log=False,
            http=connection_class(config.connections, config.read_seconds),
            ws="none",
            loop="asyncio",
            server_header=False,
            backlog=_BACKLOG,
            timeout_graceful_shutdown=config.grace_seconds,
        )
    )


def listen(host: str, port: int) -> socket.socket:
    """Return a socket that listens.

    Raises:
        UsageError: The address is taken, not this machine's, or not allowed.
    """
    try:
        family, kind, number, _, where = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
        listener = socket.socket(family, kind, number)
        try:
            listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            listener.bind(where)
            listener.listen(_BACKLOG)
        except OSError:
            listener.close()
            raise
    except OSError as error:
        raise UsageError(
            f"cannot listen on {host}, port {port}: {error.strerror}; give another --host or --port (0 is any free one)"
        ) from error
    return listener


def address(listener: socket.socket) -> str:
    """Return the address of a listening socket, as ``"http://127.0.0.1:8000"``."""
    host, port = listener.getsockname()[:2]
    return f"http://[{host}]:{port}" if ":" in host else f"http://{host}:{port}"


@contextlib.contextmanager
def _stops_quietly() -> Iterator[None]:
    """Ignore the signals that stop a server after it stopped: uvicorn raises them once more."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = {number: signal.signal(number, lambda *_: None) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
