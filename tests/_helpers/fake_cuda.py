"""A CUDA runtime in host memory, behind the names and signatures of the real ``cuda.bindings.runtime``.

Work on a stream is done when the stream is synchronized, not before, so that a result that is read too early is
seen; a captured graph does nothing until it is launched. Any call can be made to fail.
"""

import ctypes
import inspect
import sys
import threading
from collections import Counter
from types import ModuleType

import pytest

GPU_NAME = "Fake GPU"


class FakeCuda:
    """Install with ``install``; then ``calls``, ``fail`` and ``leaks`` tell and steer.

    Attributes:
        calls: How often each function was called.
        fail: For the name of a function the name of the error that it returns; ``"cudaMalloc@3"`` fails the third call.
    """

    def __init__(self, compute_capability=(9, 0), free=2**30, total=2**31):
        self.real = pytest.importorskip("cuda.bindings.runtime", reason="cuda.bindings is not installed")
        self.calls = Counter()
        self.fail = {}
        self.memory = (free, total)
        self.compute_capability = compute_capability
        self.devices, self.current = 1, []
        self.integrated = False
        self._lock = threading.RLock()
        self._blocks = {}
        self._streams = {}
        self._capturing = {}
        self._graphs = {}
        self._next = 1000

    def install(self, monkeypatch):
        module = _Module(self)
        package = ModuleType("cuda.bindings")
        package.runtime = module
        monkeypatch.setitem(sys.modules, "cuda.bindings", package)
        monkeypatch.setitem(sys.modules, "cuda.bindings.runtime", module)
        return self

    def leaks(self):
        """What is still allocated."""
        return {"memory": len(self._blocks), "streams": len(self._streams), "graphs": len(self._graphs)}

    def call(self, name, arguments):
        with self._lock:
            self.calls[name] += 1
            error = self.fail.get(name) or self.fail.get(f"{name}@{self.calls[name]}")
            if isinstance(error, Exception):
                raise error
            if error is not None and name != "cudaStreamEndCapture":
                return (getattr(self.real.cudaError_t, error), *[None] * (name not in _NO_RESULT))
            results = getattr(self, f"_{name}")(*arguments)
            if error is not None:  # a capture ends even if it fails, but then there is no graph
                del self._graphs[int(results[0])]
            code = getattr(self.real.cudaError_t, error or "cudaSuccess")
            return (code, *[None] * len(results)) if error else (code, *results)

    def enqueue(self, stream, work):
        """Put work on a stream, or into the graph that is being captured from it."""
        with self._lock:
            self._capturing.get(int(stream), self._streams[int(stream)]).append(work)

    def _handle(self):
        self._next += 1
        return self._next

    def _cudaGetDeviceCount(self):
        return (self.devices,)

    def _cudaSetDevice(self, device):
        assert 0 <= device < self.devices
        self.current.append(device)
        return ()

    def _cudaGetDeviceProperties(self, device):
        assert 0 <= device < self.devices
        properties = self.real.cudaDeviceProp()
        properties.name = GPU_NAME.encode().ljust(256, b"\0")
        properties.major, properties.minor = self.compute_capability
        properties.integrated = int(self.integrated)
        return (properties,)

    def _cudaMemGetInfo(self):
        return self.memory

    def _cudaGetLastError(self):
        return ()

    def _cudaMalloc(self, size):
        assert size > 0
        block = ctypes.create_string_buffer(size)
        address = ctypes.addressof(block)
        self._blocks[address] = block
        return (address,)

    _cudaMallocHost = _cudaMalloc

    def _cudaFree(self, address):
        del self._blocks[address]
        return ()

    _cudaFreeHost = _cudaFree

    def _cudaStreamCreateWithFlags(self, flags):
        assert flags == self.real.cudaStreamNonBlocking
        handle = self._handle()
        self._streams[handle] = []
        return (self.real.cudaStream_t(handle),)

    def _cudaStreamDestroy(self, stream):
        del self._streams[int(stream)]
        return ()

    def _cudaStreamSynchronize(self, stream):
        assert int(stream) not in self._capturing, "a stream cannot be synchronized while it is captured"
        work, self._streams[int(stream)] = self._streams[int(stream)], []
        for item in work:
            item()
        return ()

    def _cudaMemcpyAsync(self, dst, src, count, kind, stream):
        for address in (dst, src):
            assert count <= len(self._blocks[address]), "copy out of bounds"
        assert isinstance(kind, self.real.cudaMemcpyKind)
        self.enqueue(stream, lambda: ctypes.memmove(dst, src, count))
        return ()

    def _cudaStreamBeginCapture(self, stream, mode):
        assert mode == self.real.cudaStreamCaptureMode.cudaStreamCaptureModeThreadLocal
        self._capturing[int(stream)] = []
        return ()

    def _cudaStreamEndCapture(self, stream):
        work = self._capturing.pop(int(stream))
        handle = self._handle()
        self._graphs[handle] = work
        return (self.real.cudaGraph_t(handle),)

    def _cudaGraphInstantiate(self, graph, flags):
        assert flags == 0
        handle = self._handle()
        self._graphs[handle] = self._graphs[int(graph)]
        return (self.real.cudaGraphExec_t(handle),)

    def _cudaGraphDestroy(self, graph):
        del self._graphs[int(graph)]
        return ()

    _cudaGraphExecDestroy = _cudaGraphDestroy

    def _cudaGraphLaunch(self, graph, stream):
        self._streams[int(stream)].extend(self._graphs[int(graph)])
        return ()


_NO_RESULT = frozenset(
    {
        "cudaFree",
        "cudaFreeHost",
        "cudaGetLastError",
        "cudaGraphDestroy",
        "cudaGraphExecDestroy",
        "cudaGraphLaunch",
        "cudaMemcpyAsync",
        "cudaStreamBeginCapture",
        "cudaStreamDestroy",
        "cudaStreamSynchronize",
    }
)


class _Module(ModuleType):
    """Looks like ``cuda.bindings.runtime``: what the real one has not is not there either."""

    def __init__(self, fake):
        super().__init__("cuda.bindings.runtime")
        self._fake = fake

    def __getattr__(self, name):
        fake = self.__dict__["_fake"]
        real = getattr(fake.real, name)
        if not callable(real) or isinstance(real, type):
            return real
        signature = inspect.signature(real)

        def function(*args, **kwargs):
            try:
                arguments = signature.bind(*args, **kwargs).args
            except TypeError as error:
                raise AssertionError(f"{name}: {error}") from error
            return fake.call(name, arguments)

        function.__name__ = name
        return function
