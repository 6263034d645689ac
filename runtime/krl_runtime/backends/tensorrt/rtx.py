"""The run-time features of TensorRT-RTX alone: kernels compiled on the device, a cache of them, its own CUDA graphs.

An engine of TensorRT-RTX holds no kernels for one GPU. They are compiled when an execution context is made, and may be
kept in a runtime cache, so that the next start is quick. The cache is code: it lies in the user's own cache folder,
readable by the user alone, and one that others may write is not used.

Not measured: no engine of TensorRT-RTX has been run by krl on a GPU yet.
"""

from __future__ import annotations

import logging
import os
import re
import stat
import threading
from pathlib import Path
from typing import TYPE_CHECKING

from krl_runtime.files import cache_folder, write_atomic

from .calls import check
from .library import Library

if TYPE_CHECKING:
    import tensorrt_rtx as trt_rtx

__all__ = ["RuntimeSettings", "cache_file"]

_log = logging.getLogger("krl")

_MAX_CACHE_BYTES = 1 << 30  # kernels of one network take some megabytes; the file is read whole
_PRIVATE = 0o600  # the user alone
_OTHERS = stat.S_IWGRP | stat.S_IWOTH


def cache_file(engine_sha256: str, library: Library, gpu: str) -> Path | None:
    """Return the path of the runtime cache of an engine on a GPU: ``~/.cache/krl/tensorrt-rtx/KEY.cache``.

    See ``cache_folder``. A user without a home folder has no cache.

    Args:
        engine_sha256: Hash of the engine's bytes.
        library: The library; kernels of another version do not fit.
        gpu: Name of the GPU.
    """
    try:
        base = cache_folder()
    except RuntimeError:  # as in a container, for a user whom nobody knows
        return None
    device = re.sub(r"[^A-Za-z0-9]+", "-", gpu).strip("-").lower()
    return base / "tensorrt-rtx" / f"{engine_sha256[:32]}-{library.version}-{device}.cache"


class RuntimeSettings:
    """The settings of all execution contexts of one engine: its CUDA graphs, and its cache of kernels.

    Args:
        library: TensorRT-RTX.
        engine: The engine.
        cache: File of the runtime cache; ``None`` for none.
    """

    def __init__(self, library: Library, engine: trt_rtx.ICudaEngine, cache: Path | None) -> None:
        if TYPE_CHECKING:
            import tensorrt_rtx as trt_rtx
        trt_rtx = library.module
        self._engine = engine
        self._file = cache
        self._lock = threading.Lock()
        self._config = check(engine.create_runtime_config(), "no runtime configuration can be made")
        # The library captures graphs itself: only it knows when its kernels for a shape are ready.
        self._config.cuda_graph_strategy = trt_rtx.CudaGraphStrategy.WHOLE_GRAPH_CAPTURE
        self._cache = check(self._config.create_runtime_cache(), "no runtime cache can be made")
        self._kept = _read(cache)
        if self._kept and not self._cache.deserialize(self._kept):
            _log.info("the cache of kernels %s does not fit; they are compiled again", cache)
            self._kept = b""
            self._cache = check(self._config.create_runtime_cache(), "no new runtime cache can be made")
        check(self._config.set_runtime_cache(self._cache), "the runtime cache cannot be set")

    def context(self) -> trt_rtx.IExecutionContext:
        """Make an execution context; what was compiled for it is kept."""
        context = check(self._engine.create_execution_context(self._config), "no execution context can be made")
        self.keep()
        return context

    def keep(self) -> None:
        """Write the cache, if it has changed. A cache that cannot be written costs time at the next start alone."""
        if self._file is None:
            return
        with self._lock:
            memory = self._cache.serialize()
            data = b"" if memory is None else bytes(memory)
            if not data or data == self._kept:
                return
            try:
                self._file.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
                write_atomic(self._file, data, mode=_PRIVATE)
            except OSError as error:
                _log.info("the cache of kernels cannot be kept: %s", error)
            self._kept = data


def _read(path: Path | None) -> bytes:
    """Return the content of a cache that belongs to the user alone; nothing otherwise."""
    if path is None:
        return b""
    try:
        with path.open("rb") as file:
            status = os.fstat(file.fileno())
            own = not hasattr(os, "getuid") or status.st_uid == os.getuid()
            if own and not status.st_mode & _OTHERS and status.st_size <= _MAX_CACHE_BYTES:
                return file.read()
    except FileNotFoundError:
        return b""
    except OSError as error:
        _log.warning("the cache of kernels cannot be read: %s", error)
        return b""
    _log.warning("%s is not used: others may write it, or it is too large; kernels are compiled again", path)
    return b""
