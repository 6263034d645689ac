"""The base of TensorRT: the GPU, and memory, streams and graphs on it.

CUDA is called through ``cuda.bindings`` (cuda-python 12.8 to 13.x), whose calls return ``(error, *results)``; each
one here is checked. GPUs are numbered as CUDA does, among those that ``CUDA_VISIBLE_DEVICES`` leaves.
"""

from __future__ import annotations

import ctypes
import os
import platform
import re
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, ParamSpec

import numpy as np

from krl_runtime.errors import BackendError, NotAvailableError

if TYPE_CHECKING:
    import numpy.typing as npt
    from cuda.bindings import runtime as cudart

__all__ = [
    "Buffer",
    "Gpu",
    "Graph",
    "NoTensorRTError",
    "Stream",
    "call",
    "current_gpu",
    "has_nvidia_gpu",
    "jetson_release",
    "jetson_release_in",
    "platform_key",
    "use_gpu",
    "version_tuple",
]

_P = ParamSpec("_P")

_HINTS = {
    "cudaErrorMemoryAllocation": "the GPU is out of memory",
    "cudaErrorNoDevice": "the driver sees no GPU",
    "cudaErrorInsufficientDriver": "the NVIDIA driver is missing, or older than this cuda-python needs; a driver for "
    "CUDA 12 (for instance JetPack 6) needs: pip install 'cuda-python<13'",
}


class NoTensorRTError(NotAvailableError):
    """TensorRT, cuda-python or a GPU is not there at all; what does not need them can still be done."""


@dataclass(frozen=True)
class Gpu:
    """A GPU.

    Attributes:
        name: Its product name.
        compute_capability: As ``"8.7"``.
        total_bytes: Its memory; on a Jetson the memory that it shares with the CPU.
        free_bytes: Free bytes of that now.
        shares_memory: Whether the CPU uses the same memory, as on a Jetson.
    """

    name: str
    compute_capability: str
    total_bytes: int
    free_bytes: int
    shares_memory: bool = False


def version_tuple(version: str) -> tuple[int, ...]:
    """Return the numbers at the beginning of a version: ``(10, 13, 3, 9)`` of ``"10.13.3.9.post1"``."""
    match = re.match(r"\d+(\.\d+)*", version)
    return tuple(int(part) for part in match.group().split(".")) if match else ()


def platform_key() -> str:
    """Return this machine's operating system and processor as ``"linux-aarch64"``."""
    return f"{sys.platform}-{platform.machine().lower()}"


def jetson_release(path: Path = Path("/etc/nv_tegra_release")) -> str | None:
    """Return the release of Jetson Linux (L4T) as ``"36.4.3"``, or ``None`` on any other machine."""
    try:
        return jetson_release_in(path.read_text(encoding="utf-8", errors="replace"))
    except OSError:
        return None


def jetson_release_in(text: str) -> str | None:
    """Return the release of Jetson Linux in the text of ``/etc/nv_tegra_release``, ``None`` if there is none.

    Example:
        >>> jetson_release_in("# R36 (release), REVISION: 4.3, GCID: 38968081, BOARD: generic, EABI: aarch64")
        '36.4.3'
    """
    match = re.search(r"R(\d+).*?REVISION:\s*([\d.]+)", text)
    return f"{match[1]}.{match[2]}" if match else None


def has_nvidia_gpu() -> bool:
    """Return whether this machine seems to have an NVIDIA GPU, found out without any library.

    Not seen in all containers; a message is then shorter than it might be.
    """
    files = ("/proc/driver/nvidia/version", "/dev/nvidiactl", "/dev/nvhost-ctrl-gpu", "/dev/dxg")
    windows = Path(os.environ.get("SYSTEMROOT", "C:/Windows"), "System32", "nvcuda.dll")
    return any(Path(file).exists() for file in files) or windows.exists() or jetson_release() is not None


def use_gpu(device: int) -> None:
    """Let this thread's calls go to a GPU; each thread has a choice of its own.

    Args:
        device: Its number, from 0.

    Raises:
        BackendError: There is no such GPU.
    """
    from cuda.bindings import runtime as cudart

    call(cudart.cudaSetDevice, device)


def current_gpu(device: int = 0) -> Gpu:
    """Return the GPU that engines run on, which becomes that of this thread.

    Args:
        device: Its number, from 0.

    Raises:
        NoTensorRTError: cuda-python is not installed, or there is no such GPU or no driver that it can use.
    """
    try:
        from cuda.bindings import runtime as cudart
    except ImportError as error:
        raise NoTensorRTError(
            "cuda-python is not installed here; install it with: pip install cuda-python (with CUDA 12, as on "
            "JetPack 6: pip install 'cuda-python>=12.8,<13')"
        ) from error
    try:
        count: int = call(cudart.cudaGetDeviceCount)
        if device >= count:
            raise NoTensorRTError(f"there is no GPU {device} here, {count} are visible; give device 0 to {count - 1}")
        use_gpu(device)
        properties: cudart.cudaDeviceProp = call(cudart.cudaGetDeviceProperties, device)
        free, total = call(cudart.cudaMemGetInfo)
    except NoTensorRTError:
        raise
    except BackendError as error:
        raise NoTensorRTError(f"no NVIDIA GPU can be used here: {error}") from error
    name = properties.name.decode(errors="replace").rstrip("\0")
    return Gpu(name, f"{properties.major}.{properties.minor}", total, free, bool(properties.integrated))


def call(function: Callable[_P, tuple[Any, ...]], *args: _P.args, **kwargs: _P.kwargs) -> Any:
    """Call a function of ``cuda.bindings`` and check it.

    Returns:
        The values after the error code: nothing, one value, or a list of several.

    Raises:
        BackendError: The call failed; the message names the call and the error.
        NoTensorRTError: There is no driver to call.
    """
    try:
        error, *results = function(*args, **kwargs)
    except RuntimeError as problem:  # before 12.9 a missing driver is an exception, not an error code
        raise NoTensorRTError(f"no NVIDIA driver can be used here: {problem}") from problem
    _check(function, error)
    return results[0] if len(results) == 1 else results or None


def _check(function: Callable[..., object], error: cudart.cudaError_t) -> None:
    if error != 0:
        hint = _HINTS.get(error.name)
        raise BackendError(f"CUDA call {function.__name__} failed with {error.name}{f': {hint}' if hint else ''}")


class Stream:
    """A CUDA stream of its own, which does not wait for the default one."""

    def __init__(self) -> None:
        from cuda.bindings import runtime as cudart

        self.handle: cudart.cudaStream_t = call(cudart.cudaStreamCreateWithFlags, cudart.cudaStreamNonBlocking)

    def __int__(self) -> int:
        """Return the handle as TensorRT takes it."""
        return int(self.handle)

    def synchronize(self) -> None:
        """Wait until all work on the stream is done; its errors are raised here."""
        from cuda.bindings import runtime as cudart

        call(cudart.cudaStreamSynchronize, self.handle)

    def close(self) -> None:
        """Destroy the stream."""
        from cuda.bindings import runtime as cudart

        call(cudart.cudaStreamDestroy, self.handle)


class Buffer:
    """Device memory, and as much pinned host memory to copy it from and to.

    Attributes:
        device: Address on the GPU.
        host: The pinned memory, uint8 of shape ``[nbytes]``; not to be used after ``close``.
    """

    def __init__(self, nbytes: int) -> None:
        """Allocate ``nbytes`` bytes on both sides."""
        from cuda.bindings import runtime as cudart

        self.device = int(call(cudart.cudaMalloc, nbytes))
        try:
            self._address = int(call(cudart.cudaMallocHost, nbytes))
        except BackendError:
            call(cudart.cudaFree, self.device)
            raise
        memory = (ctypes.c_uint8 * nbytes).from_address(self._address)
        self.host: npt.NDArray[np.uint8] = np.ctypeslib.as_array(memory)

    def upload(self, nbytes: int, stream: Stream) -> None:
        """Put a copy of the first ``nbytes`` bytes from the host to the device on the stream."""
        from cuda.bindings import runtime as cudart

        kind = cudart.cudaMemcpyKind.cudaMemcpyHostToDevice
        call(cudart.cudaMemcpyAsync, self.device, self._address, nbytes, kind, stream.handle)

    def download(self, nbytes: int, stream: Stream) -> None:
        """Put a copy of the first ``nbytes`` bytes from the device to the host on the stream."""
        from cuda.bindings import runtime as cudart

        kind = cudart.cudaMemcpyKind.cudaMemcpyDeviceToHost
        call(cudart.cudaMemcpyAsync, self._address, self.device, nbytes, kind, stream.handle)

    def close(self) -> None:
        """Free both."""
        from cuda.bindings import runtime as cudart

        try:
            call(cudart.cudaFree, self.device)
        finally:
            call(cudart.cudaFreeHost, self._address)


class Graph:
    """A CUDA graph: work that was captured from a stream once, and is launched as a whole."""

    def __init__(self, stream: Stream, enqueue: Callable[[], None]) -> None:
        """Capture the work that ``enqueue`` puts on ``stream``, without running it.

        Raises:
            BackendError: Some of that work cannot be captured. The stream can be used on.
        """
        from cuda.bindings import runtime as cudart

        # Only this thread is watched while it captures: others may allocate memory at the same time.
        mode = cudart.cudaStreamCaptureMode.cudaStreamCaptureModeThreadLocal
        call(cudart.cudaStreamBeginCapture, stream.handle, mode)
        graph = None
        try:
            try:
                enqueue()
            finally:
                error, graph = cudart.cudaStreamEndCapture(stream.handle)
            _check(cudart.cudaStreamEndCapture, error)
            self._executable = call(cudart.cudaGraphInstantiate, graph, 0)
        except BackendError:
            cudart.cudaGetLastError()  # clears it: or the next kernel that is launched would be blamed
            raise
        finally:
            if graph is not None:
                cudart.cudaGraphDestroy(graph)

    def launch(self, stream: Stream) -> None:
        """Put the captured work on the stream."""
        from cuda.bindings import runtime as cudart

        call(cudart.cudaGraphLaunch, self._executable, stream.handle)

    def close(self) -> None:
        """Destroy the graph."""
        from cuda.bindings import runtime as cudart

        call(cudart.cudaGraphExecDestroy, self._executable)
