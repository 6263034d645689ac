"""TensorRT engines, versions 10.3 to 11.x, through TensorRT's own Python bindings and ``cuda.bindings``.

The runtime uses only parts of TensorRT that are the same in all those versions.

Not measured: no engine has been run on a GPU yet. The logic is tested against fakes whose calls are bound to the
signatures of the real bindings.
"""

from __future__ import annotations

import logging
import queue
import threading
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from krl_runtime.bundle import Bundle, Engine, TensorSpec
from krl_runtime.bundle.tensors import check_inputs
from krl_runtime.errors import BackendError

from .cuda import Buffer, Gpu, Graph, Stream, current_gpu, platform_key, tensorrt_version, version_tuple
from .tensorrt_calls import attempt, check, refit, tensorrt_logger

if TYPE_CHECKING:
    import numpy.typing as npt
    import tensorrt as trt

__all__ = ["TensorRTBackend", "mismatch", "open_engine"]

_log = logging.getLogger("krl")

_CONTEXTS = 4  # calls that run at once; each context has its own activations on the GPU, so more would cost memory
_DTYPES = {
    "BOOL": np.bool_,
    "FLOAT": np.float32,
    "HALF": np.float16,
    "INT8": np.int8,
    "INT32": np.int32,
    "INT64": np.int64,
    "UINT8": np.uint8,
}


def open_engine(bundle: Bundle, variant: str) -> TensorRTBackend:
    """Open the bundle's engine that was built for this machine.

    Args:
        bundle: The bundle. Its engines' hashes are checked before TensorRT loads them, since an engine is code.
        variant: Name of one of its variants.

    Raises:
        BackendError: TensorRT or a GPU is not there, no engine fits (the message has a sentence for each), or
            TensorRT refuses the one that does.
        BundleError: The engine's file is missing, damaged or changed.
    """
    engines = {key: engine for key, engine in bundle.manifest.engines.items() if engine.variant == variant}
    build = f"on this device run: krl-deploy build-engine {bundle.path} --precision {variant}"
    if not engines:
        raise BackendError(f"the bundle has no TensorRT engine of variant {variant}; {build}")
    version, gpu = tensorrt_version(), current_gpu()
    onnx = bundle.manifest.variants[variant].file
    sha256 = bundle.manifest.files[onnx].sha256
    causes = {key: mismatch(engine, version, gpu, sha256) for key, engine in engines.items()}
    fitting = [key for key, cause in causes.items() if cause is None]
    if not fitting:
        raise BackendError(f"{'; '.join(cause for cause in causes.values() if cause)}; {build}")
    # An engine made for this very GPU before a portable one, then the one that takes the largest batches.
    key = max(fitting, key=lambda key: (engines[key].gpu == gpu.name, engines[key].profile[2], key))
    engine = engines[key]
    if engine.gpu != gpu.name:
        _log.warning("engine %s was built on a %s; on this %s it may be slower", key, engine.gpu, gpu.name)
    return TensorRTBackend(
        bundle.file(engine.file).read_bytes(),
        label=key,
        version_compatible=engine.version_compatible,
        dla_core=engine.dla_core,
        weights=bundle.file(onnx).read_bytes() if engine.stripped else None,
    )


def mismatch(engine: Engine, version: str, gpu: Gpu, onnx_sha256: str) -> str | None:
    """Return why an engine does not run here, in one sentence, or ``None`` if it should.

    Args:
        engine: The manifest's entry.
        version: TensorRT's version here.
        gpu: The GPU here.
        onnx_sha256: Hash of the ONNX file of the engine's variant as it is now.
    """
    if engine.onnx_sha256 != onnx_sha256:
        return f"engine {engine.file} was built from an older ONNX file of variant {engine.variant}"
    if engine.platform != platform_key():
        return f"engine built for {engine.platform}, this is {platform_key()}"
    here, built = version_tuple(version), version_tuple(engine.tensorrt)
    same_version = here == built or (engine.version_compatible and here[0] == built[0] and here >= built)
    same_gpu = gpu.compute_capability == engine.compute_capability or (
        engine.hardware_compatibility == "ampere-plus" and version_tuple(gpu.compute_capability) >= (8, 0)
    )
    if same_version and same_gpu:
        return None
    return (
        f"engine built by TensorRT {engine.tensorrt} for {_sm(engine.compute_capability)}, "
        f"this is {version} on {_sm(gpu.compute_capability)}"
    )


def _sm(compute_capability: str) -> str:
    return f"sm_{compute_capability.replace('.', '')}"


@dataclass(frozen=True)
class _Tensor:
    """One input or output; ``shape`` is without the batch."""

    name: str
    dtype: np.dtype[Any]
    shape: tuple[int, ...]

    def nbytes(self, batch: int) -> int:
        return batch * int(np.prod(self.shape, dtype=np.int64)) * self.dtype.itemsize


@dataclass(frozen=True)
class _Interface:
    """Inputs, outputs, and for each optimization profile the smallest and largest batch."""

    inputs: tuple[_Tensor, ...]
    outputs: tuple[_Tensor, ...]
    batches: tuple[tuple[int, int], ...]


def _interface(engine: trt.ICudaEngine) -> _Interface:
    """Read an engine's interface.

    Raises:
        BackendError: It has a type that numpy lacks, a dynamic dimension besides the batch, or a tensor on the host.
    """
    import tensorrt as trt

    inputs: list[_Tensor] = []
    outputs: list[_Tensor] = []
    sizes = set()
    for index in range(engine.num_io_tensors):
        name = engine.get_tensor_name(index)
        shape = tuple(engine.get_tensor_shape(name))
        dtype = engine.get_tensor_dtype(name).name
        check(dtype in _DTYPES, f"tensor {name!r} has type {dtype}; accepted: {', '.join(_DTYPES)}")
        check(engine.get_tensor_location(name) == trt.TensorLocation.DEVICE, f"tensor {name!r} lives on the host")
        check(bool(shape) and -1 not in shape[1:], f"tensor {name!r} has shape {list(shape)}; only a batch may vary")
        sizes.add(shape[0])
        is_input = engine.get_tensor_mode(name) == trt.TensorIOMode.INPUT
        (inputs if is_input else outputs).append(_Tensor(name, np.dtype(_DTYPES[dtype]), shape[1:]))
    check(len(sizes) == 1 and bool(inputs), f"its tensors do not share one batch dimension: {sorted(sizes)}")
    fixed = sizes.pop()
    batches = []
    for profile in range(engine.num_optimization_profiles if fixed == -1 else 1):
        ranges = [engine.get_tensor_profile_shape(item.name, profile) for item in inputs] if fixed == -1 else []
        low, high = (max(r[0][0] for r in ranges), min(r[2][0] for r in ranges)) if ranges else (fixed, fixed)
        batches.append((low, high))
    return _Interface(tuple(inputs), tuple(outputs), tuple(batches))


def _split(batch: int, batches: Sequence[tuple[int, int]]) -> tuple[int, list[int]]:
    """Return the optimization profile for a batch and the parts to run it in: one, unless it is too large.

    Raises:
        BackendError: No profile takes it; nothing is padded.
    """
    fitting = [(high, index) for index, (low, high) in enumerate(batches) if low <= batch <= high]
    if fitting:
        return min(fitting)[1], [batch]
    smaller = [(high, index) for index, (_, high) in enumerate(batches) if high < batch]
    if smaller:
        high, index = max(smaller)
        count = -(-batch // high)
        size, more = divmod(batch, count)
        if size >= batches[index][0]:
            return index, [size + 1] * more + [size] * (count - more)
    accepted = ", ".join(f"{low} to {high}" for low, high in batches)
    raise BackendError(
        f"a batch of {batch} does not fit the engine, which takes {accepted}, and nothing is padded; "
        "build one with: krl-deploy build-engine --profile MIN,OPT,MAX"
    )


class _Lane:
    """One execution context with its stream and buffers: what one call needs, used by one thread at a time."""

    def __init__(self, engine: trt.ICudaEngine, interface: _Interface) -> None:
        self._interface = interface
        self._buffers: dict[str, Buffer] = {}
        self._views: dict[str, npt.NDArray[Any]] = {}
        self._profile, self._batch, self._runs = -1, 0, 0
        self._graph: Graph | None = None
        self._capture = True
        self._context = check(engine.create_execution_context(), "no execution context can be made")
        self._stream = Stream()

    def run(
        self, profile: int, inputs: Mapping[str, npt.NDArray[Any]], outputs: Mapping[str, npt.NDArray[Any]]
    ) -> None:
        """Run one batch, and write into ``outputs``. A shape's second batch is captured as a CUDA graph."""
        batch = len(next(iter(inputs.values())))
        if profile != self._profile:
            self._use_profile(profile)
        if batch != self._batch:
            self._use_batch(batch)
        for tensor in self._interface.inputs:
            np.copyto(self._views[tensor.name], inputs[tensor.name])
        if self._capture and self._graph is None and self._runs == 1:
            self._make_graph()
        if self._graph is None:
            self._enqueue()
        else:
            self._graph.launch(self._stream)
        self._stream.synchronize()
        self._runs += 1
        for tensor in self._interface.outputs:
            np.copyto(outputs[tensor.name], self._views[tensor.name])

    def _use_profile(self, profile: int) -> None:
        self._drop_graph()
        done = self._context.set_optimization_profile_async(profile, int(self._stream))
        check(done, f"optimization profile {profile} cannot be set")
        self._stream.synchronize()
        largest = self._interface.batches[profile][1]
        self._views.clear()
        for tensor in (*self._interface.inputs, *self._interface.outputs):
            buffer = self._buffers.pop(tensor.name, None)
            if buffer is not None and buffer.host.nbytes < tensor.nbytes(largest):
                buffer.close()
                buffer = None
            self._buffers[tensor.name] = buffer or Buffer(tensor.nbytes(largest))
            done = self._context.set_tensor_address(tensor.name, self._buffers[tensor.name].device)
            check(done, f"the address of tensor {tensor.name!r} cannot be set")
        self._profile, self._batch = profile, 0

    def _use_batch(self, batch: int) -> None:
        self._drop_graph()
        self._batch, self._runs = 0, 0
        for tensor in self._interface.inputs:
            done = self._context.set_input_shape(tensor.name, (batch, *tensor.shape))
            check(done, f"the shape of input {tensor.name!r} cannot be set to {[batch, *tensor.shape]}")
        unknown = self._context.infer_shapes()
        check(not unknown, f"shapes are not known: {', '.join(unknown)}")
        for tensor in self._interface.outputs:
            shape = tuple(self._context.get_tensor_shape(tensor.name))
            check(shape == (batch, *tensor.shape), f"output {tensor.name!r} has shape {list(shape)} for batch {batch}")
        for tensor in (*self._interface.inputs, *self._interface.outputs):
            memory = self._buffers[tensor.name].host[: tensor.nbytes(batch)]
            self._views[tensor.name] = memory.view(tensor.dtype).reshape(batch, *tensor.shape)
        self._batch = batch

    def _enqueue(self) -> None:
        for tensor in self._interface.inputs:
            self._buffers[tensor.name].upload(tensor.nbytes(self._batch), self._stream)
        check(self._context.execute_async_v3(int(self._stream)), "the engine cannot be run")
        for tensor in self._interface.outputs:
            self._buffers[tensor.name].download(tensor.nbytes(self._batch), self._stream)

    def _make_graph(self) -> None:
        try:
            self._graph = Graph(self._stream, self._enqueue)
        except BackendError as error:
            self._capture = False
            _log.info("without CUDA graphs, which this engine does not allow: %s", error)

    def _drop_graph(self) -> None:
        graph, self._graph = self._graph, None
        if graph is not None:
            graph.close()

    def close(self) -> None:
        """Free everything. On a lost device there is nothing to free, and nothing is raised."""
        for close in (self._drop_graph, *(buffer.close for buffer in self._buffers.values()), self._stream.close):
            with suppress(BackendError):
                close()
        self._buffers.clear()
        self._views.clear()
        del self._context


class TensorRTBackend:
    """Runs one engine. Several threads may call it at once, each on an execution context of its own.

    Up to four contexts are made, each when it is needed. Beyond that, or without memory for another context, threads
    wait for each other. Batches above the engine's largest are run in several parts.
    """

    name = "tensorrt"

    def __init__(
        self,
        plan: bytes,
        *,
        label: str,
        version_compatible: bool = False,
        dla_core: int | None = None,
        weights: bytes | None = None,
    ) -> None:
        """Load an engine and make its first execution context.

        Args:
            plan: The serialized engine. It is code: only from a source that is trusted.
            label: Name of the engine in messages.
            version_compatible: Whether it was built to be; it brings its own runtime then, which is let run.
            dla_core: The DLA core to run it on, if it was built for one.
            weights: The ONNX file that it was built from, if its weights were stripped.

        Raises:
            BackendError: TensorRT refuses it, or memory does not suffice.
        """
        import tensorrt as trt

        self._label = label
        self._lock = threading.Lock()
        self._slots: queue.LifoQueue[_Lane | None] = queue.LifoQueue()
        self._size, self._closed = _CONTEXTS, False
        with attempt(f"loading engine {label}"):
            runtime = trt.Runtime(tensorrt_logger())
            if version_compatible:
                runtime.engine_host_code_allowed = True
            if dla_core is not None:
                runtime.DLA_core = dla_core
            engine = check(runtime.deserialize_cuda_engine(plan), "TensorRT does not load it")
            if weights is not None:
                refit(engine, weights)
            self._interface = _interface(engine)
            first = _Lane(engine, self._interface)
        self._engine: trt.ICudaEngine | None = engine
        self._specs = [TensorSpec(t.name, t.dtype.name, ("batch", *t.shape)) for t in self._interface.inputs]
        for lane in (*[None] * (_CONTEXTS - 1), first):
            self._slots.put(lane)

    def run(self, inputs: Mapping[str, npt.NDArray[Any]]) -> dict[str, npt.NDArray[Any]]:
        """Run the engine once; see ``Backend.run``."""
        if self._closed:
            raise BackendError(f"engine {self._label} is closed; load the bundle again")
        check_inputs(self._specs, inputs)
        sizes = sorted({len(array) for array in inputs.values()})
        if len(sizes) > 1:
            raise BackendError(f"the inputs have different batches: {sizes}")
        profile, parts = _split(sizes[0], self._interface.batches)
        outputs = {t.name: np.empty((sizes[0], *t.shape), t.dtype) for t in self._interface.outputs}
        start = 0
        with attempt(f"running engine {self._label}"), self._lane() as lane:
            for size in parts:
                rows = slice(start, start + size)
                lane.run(profile, {k: v[rows] for k, v in inputs.items()}, {k: v[rows] for k, v in outputs.items()})
                start += size
        return outputs

    def close(self) -> None:
        """Free the contexts and the engine, once the calls that are under way are done."""
        with self._lock:
            if self._closed:
                return
            self._closed = True
        for _ in range(self._size):
            lane = self._slots.get()
            if lane is not None:
                lane.close()
        self._engine = None
        for _ in range(self._size):
            self._slots.put(None)  # wakes threads that wait for a context; they find the engine closed

    @contextmanager
    def _lane(self) -> Iterator[_Lane]:
        """Yield a context that no other thread uses; a context that failed is closed."""
        lane = self._take()
        kept: _Lane | None = None
        try:
            yield lane
            kept = lane
        except BaseException:
            lane.close()
            raise
        finally:
            self._slots.put(kept)

    def _take(self) -> _Lane:
        while True:
            lane = self._slots.get()
            if lane is not None:
                return lane
            try:
                return _Lane(check(self._engine, "it is closed; load the bundle again"), self._interface)
            except BaseException as error:
                with self._lock:
                    if not isinstance(error, BackendError) or self._closed or self._size == 1:
                        self._slots.put(None)
                        raise
                    self._size -= 1
                _log.warning("engine %s runs at most %d calls at once: %s", self._label, self._size, error)
