"""An engine that runs: TensorRT 10.3 to 11.x and TensorRT-RTX, through NVIDIA's bindings and ``cuda.bindings``.

Only parts of TensorRT that are the same in all those versions are used here; ``rtx`` has what is not.

Not measured: no engine has been run on a GPU yet. The logic is tested against fakes whose calls are bound to the
signatures of the real bindings.
"""

from __future__ import annotations

import logging
import threading
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

import numpy as np

from krl_runtime.backends.base import ImageSizes
from krl_runtime.backends.cuda import use_gpu
from krl_runtime.bundle import TensorSpec
from krl_runtime.bundle.tensors import check_inputs
from krl_runtime.errors import BackendError

from .calls import attempt, check, layer_profiler, refit_engine, tensorrt_logger
from .interface import read_interface, split
from .lane import Lane
from .library import Library
from .pool import LanePool
from .rtx import RuntimeSettings

if TYPE_CHECKING:
    import numpy.typing as npt
    import tensorrt as trt

__all__ = ["TensorRTBackend"]

_log = logging.getLogger("krl")


class TensorRTBackend:
    """Runs one engine. Several threads may call it at once, each on an execution context of its own.

    Up to four contexts are made, each when it is needed. Beyond that, or without memory for another context, threads
    wait for each other. Batches above the engine's largest are run in several parts.
    """

    def __init__(
        self,
        library: Library,
        plan: bytes,
        *,
        label: str,
        device: int = 0,
        host_code: bool = False,
        dla_core: int | None = None,
        weights: bytes | None = None,
        cache: Path | None = None,
    ) -> None:
        """Load an engine and make its first execution context.

        Args:
            library: The library that built the engine.
            plan: The serialized engine. It is code: only from a source that is trusted.
            label: Name of the engine in messages.
            device: Number of the GPU, from 0.
            host_code: Whether it brings its own runtime, as a version-compatible one does, which is let run.
            dla_core: The DLA core to run it on, if it was built for one.
            weights: The ONNX file that it was built from, if its weights were stripped.
            cache: File for the kernels that TensorRT-RTX compiles; ``None`` for none.

        Raises:
            BackendError: The library refuses the engine, or memory does not suffice.
        """
        if TYPE_CHECKING:
            import tensorrt as trt
        trt = library.module
        self.name: str = library.name
        self._library = library
        self._label = label
        self._lock = threading.Lock()
        self._closed = False
        self._device = device
        with attempt(f"loading engine {label}"):
            use_gpu(device)
            runtime = trt.Runtime(tensorrt_logger(library))
            if host_code:
                runtime.engine_host_code_allowed = True
            if dla_core is not None:
                runtime.DLA_core = dla_core
            engine = check(runtime.deserialize_cuda_engine(plan), "TensorRT does not load it")
            if weights is not None:
                refit_engine(library, engine, weights)
            self._interface = read_interface(library, engine)
            # Any: for type checkers the engine is one of TensorRT, which TensorRT-RTX's is not
            self._settings = RuntimeSettings(library, cast("Any", engine), cache) if library.rtx else None
            self._engine: trt.ICudaEngine | None = engine
            self._lanes = LanePool(self._new_lane, label, graphs=not library.rtx)
        self._specs = self.inputs

    @property
    def inputs(self) -> list[TensorSpec]:
        """Return the engine's inputs, as a bundle describes them."""
        return [tensor.spec for tensor in self._interface.inputs]

    @property
    def outputs(self) -> list[TensorSpec]:
        """Return the engine's outputs, as a bundle describes them."""
        return [tensor.spec for tensor in self._interface.outputs]

    @property
    def image_sizes(self) -> ImageSizes | None:
        """Smallest and largest height and width; see ``Backend.image_sizes``."""
        return self._interface.image_sizes

    def run(self, inputs: Mapping[str, npt.NDArray[Any]]) -> dict[str, npt.NDArray[Any]]:
        """Run the engine once; see ``Backend.run``."""
        if self._closed:
            raise BackendError(f"engine {self._label} is closed; load the bundle again")
        check_inputs(self._specs, inputs)
        sizes = sorted({len(array) for array in inputs.values()})
        if len(sizes) > 1:
            raise BackendError(f"the inputs have different batches: {sizes}")
        profile, parts = split(sizes[0], [item.batches for item in self._interface.profiles])
        self._interface.check_sides(profile, {name: (parts[0], *a.shape[1:]) for name, a in inputs.items()})
        outputs: dict[str, npt.NDArray[Any]] = {}
        start = 0
        first = {name: (parts[0], *array.shape[1:]) for name, array in inputs.items()}
        use_gpu(self._device)
        with attempt(f"running engine {self._label}"), self._lanes.lend(profile, first) as lane:
            for size in parts:
                rows = slice(start, start + size)
                part = {name: array[rows] for name, array in inputs.items()}
                shapes = lane.prepare(profile, {name: array.shape for name, array in part.items()})
                if not outputs:
                    outputs = {
                        tensor.name: np.empty((sizes[0], *shapes[tensor.name][1:]), tensor.dtype)
                        for tensor in self._interface.outputs
                    }
                lane.run(part, {name: array[rows] for name, array in outputs.items()})
                start += size
        return outputs

    def layer_times(self, inputs: Mapping[str, npt.NDArray[Any]], runs: int) -> dict[str, list[float]]:
        """Return the milliseconds of each layer in each run, by TensorRT's profiler, without a CUDA graph.

        Args:
            inputs: Inputs by name ``[N, ...]``, in a batch that a profile takes.
            runs: Number of runs; one before them is not counted.

        Raises:
            BackendError: The engine does not take the batch, or cannot be run.
        """
        use_gpu(self._device)
        shapes = {name: array.shape for name, array in inputs.items()}
        size = len(next(iter(inputs.values())))
        profile, parts = split(size, [item.batches for item in self._interface.profiles])
        if len(parts) > 1:
            raise BackendError(f"a batch of {size} would run in {len(parts)} parts; give one that the engine takes")
        profiler = layer_profiler(self._library)
        with attempt(f"profiling engine {self._label}"):
            lane = self._new_lane(profiler)
            try:
                found = lane.prepare(profile, shapes)
                outputs = {item.name: np.empty(found[item.name], item.dtype) for item in self._interface.outputs}
                for run in range(runs + 1):
                    lane.run(inputs, outputs)
                    if not run:
                        profiler.times.clear()
            finally:
                lane.close()
        return dict(profiler.times)

    def close(self) -> None:
        """Free the contexts and the engine, once the calls that are under way are done."""
        with self._lock:
            if self._closed:
                return
            self._closed = True
        with suppress(BackendError):  # of a GPU that is lost there is nothing to free
            use_gpu(self._device)
        self._lanes.close()
        if self._settings is not None:
            self._settings.keep()
        self._settings = self._engine = None

    def _new_lane(self, profiler: trt.IProfiler | None = None) -> Lane:
        engine = check(self._engine, "it is closed; load the bundle again")
        if self._settings is not None:
            context: trt.IExecutionContext = cast("Any", self._settings.context())
        else:
            context = check(engine.create_execution_context(), "no execution context can be made")
        if profiler is not None:
            context.profiler = profiler
        return Lane(context, self._interface, capture=self._settings is None and profiler is None)
