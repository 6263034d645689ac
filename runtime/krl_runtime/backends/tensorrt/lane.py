"""One execution context of an engine, with its stream, its buffers and its CUDA graph."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from contextlib import suppress
from typing import TYPE_CHECKING, Any

import numpy as np

from krl_runtime.backends.cuda import Buffer, Graph, Stream
from krl_runtime.errors import BackendError

from .calls import check
from .interface import Interface, Tensor

if TYPE_CHECKING:
    import numpy.typing as npt
    import tensorrt as trt

__all__ = ["Lane"]

_log = logging.getLogger("krl")


class Lane:
    """The resources of one call, used by one thread at a time.

    Args:
        context: The execution context; the lane owns it.
        interface: Inputs and outputs of the engine.
        capture: Capture the second run of a shape as a CUDA graph; without, the library does so itself.
    """

    def __init__(self, context: trt.IExecutionContext, interface: Interface, *, capture: bool) -> None:
        self._interface = interface
        self._buffers: dict[str, Buffer] = {}
        self._views: dict[str, npt.NDArray[Any]] = {}
        self._shapes: dict[str, tuple[int, ...]] = {}
        self._profile, self._runs = -1, 0
        self._graph: Graph | None = None
        self._capture = capture
        self._context = context
        self._stream = Stream()

    def prepare(self, profile: int, shapes: Mapping[str, tuple[int, ...]]) -> dict[str, tuple[int, ...]]:
        """Get ready for inputs of these shapes.

        Args:
            profile: The optimization profile to use.
            shapes: Shapes of the inputs by name.

        Returns:
            Shapes of the outputs by name.
        """
        if profile != self._profile:
            self._use_profile(profile)
        if any(self._shapes.get(name) != shape for name, shape in shapes.items()):
            self._use_shapes(shapes)
        return {tensor.name: self._shapes[tensor.name] for tensor in self._interface.outputs}

    @property
    def is_new(self) -> bool:
        """Whether it has run nothing yet."""
        return not self._shapes

    def is_ready(self, profile: int, shapes: Mapping[str, tuple[int, ...]]) -> bool:
        """Return whether it ran inputs of these shapes last, so that its CUDA graph can be used again."""
        return profile == self._profile and all(self._shapes.get(name) == shape for name, shape in shapes.items())

    def run(self, inputs: Mapping[str, npt.NDArray[Any]], outputs: Mapping[str, npt.NDArray[Any]]) -> None:
        """Run one batch of the prepared shapes, and write into ``outputs``."""
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
        self._profile = profile
        self._shapes.clear()

    def _use_shapes(self, shapes: Mapping[str, tuple[int, ...]]) -> None:
        self._drop_graph()
        self._shapes.clear()
        self._runs = 0
        found = dict(shapes)
        for tensor in self._interface.inputs:
            done = self._context.set_input_shape(tensor.name, shapes[tensor.name])
            check(done, f"the shape of input {tensor.name!r} cannot be set to {list(shapes[tensor.name])}")
        unknown = self._context.infer_shapes()
        check(not unknown, f"shapes are not known: {', '.join(unknown)}")
        batch = next(iter(shapes.values()))[0]
        for tensor in self._interface.outputs:
            shape = tuple(self._context.get_tensor_shape(tensor.name))
            fits = len(shape) == 1 + len(tensor.shape) and all(
                size == given or (size == -1 and given > 0)
                for size, given in zip((batch, *tensor.shape), shape, strict=True)
            )
            check(fits, f"output {tensor.name!r} has shape {list(shape)} for batch {batch}")
            found[tensor.name] = shape
        for tensor in (*self._interface.inputs, *self._interface.outputs):
            self._views[tensor.name] = self._memory(tensor, found[tensor.name])
        self._shapes = found

    def _memory(self, tensor: Tensor, shape: tuple[int, ...]) -> npt.NDArray[Any]:
        """Return pinned memory for a tensor; a buffer only grows."""
        nbytes = int(np.prod(shape, dtype=np.int64)) * tensor.dtype.itemsize
        buffer = self._buffers.get(tensor.name)
        if buffer is None or buffer.host.nbytes < nbytes:
            self._views.pop(tensor.name, None)
            if buffer is not None:
                del self._buffers[tensor.name]
                buffer.close()
            buffer = self._buffers[tensor.name] = Buffer(nbytes)
            done = self._context.set_tensor_address(tensor.name, buffer.device)
            check(done, f"the address of tensor {tensor.name!r} cannot be set")
        return buffer.host[:nbytes].view(tensor.dtype).reshape(shape)

    def _enqueue(self) -> None:
        for tensor in self._interface.inputs:
            self._buffers[tensor.name].upload(self._views[tensor.name].nbytes, self._stream)
        check(self._context.execute_async_v3(int(self._stream)), "the engine cannot be run")
        for tensor in self._interface.outputs:
            self._buffers[tensor.name].download(self._views[tensor.name].nbytes, self._stream)

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
