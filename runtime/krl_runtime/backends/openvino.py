"""OpenVINO on x86 CPUs: an optional extra that runs on request, or if ``krl-runtime tune`` chose it.

There are two kinds of it. ``openvino`` computes the graph's floating point in FP32. ``openvino-bf16`` computes it in
BF16 if the CPU has instructions for that. BF16 is up to twice as fast and loses most digits, so only a measurement or
the user chooses it. Both run the INT8 files written for TensorRT at full speed.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from threading import Lock
from typing import TYPE_CHECKING, Any

from krl_runtime.bundle import Bundle, TensorSpec
from krl_runtime.bundle.onnx_check import check_onnx
from krl_runtime.bundle.tensors import check_inputs
from krl_runtime.errors import BackendError, NotAvailableError, require
from krl_runtime.processor import cpu_count, limited_cpus

from .base import ImageSizes, check_graph

if TYPE_CHECKING:
    import numpy.typing as npt

__all__ = ["OpenVinoBackend", "open_openvino"]


class OpenVinoBackend:
    """Runs one ONNX file. Several threads may call it at once, each on an infer request of its own.

    A batch of one runs on a graph compiled for that size, which is faster. Other batches run on a graph for any size,
    which is compiled when the first of them comes.
    """

    image_sizes: ImageSizes | None = None
    """It takes what the graph takes."""

    def __init__(self, model: bytes, name: str, bundle: Bundle, variant: str, settings: Mapping[str, Any]) -> None:
        """Compile the graph for one input.

        Args:
            model: The content of the ONNX file.
            name: Name of the backend.
            bundle: The bundle, whose manifest describes the graph.
            variant: The variant that the file belongs to, for messages.
            settings: OpenVINO's properties.

        Raises:
            BackendError: OpenVINO cannot run the file, or the graph is not the one that the manifest describes.
        """
        ov = require("openvino", extra="openvino", purpose="running a model on OpenVINO")
        self.name = name
        self._inputs, self._outputs = bundle.manifest.inputs, bundle.manifest.outputs
        self._settings, self._core, self._lock = settings, ov.Core(), Lock()
        with self._attempt("cannot open the model"):
            self._graph: Any = self._core.read_model(model)
            check_graph(bundle, variant, _specs(self._graph.inputs), _specs(self._graph.outputs))
            single = self._graph.clone()
            single.reshape({port: [1, *list(port.partial_shape)[1:]] for port in single.inputs})
            self._one: Any = _Requests(self._core.compile_model(single, "CPU", settings))
        self._many: Any = None

    def run(self, inputs: Mapping[str, npt.NDArray[Any]]) -> dict[str, npt.NDArray[Any]]:
        """Run the graph once; see ``Backend.run``."""
        check_inputs(self._inputs, inputs)
        batches = {len(array) for array in inputs.values()}
        with self._attempt("failed"), self._requests(batches == {1}).lend() as request:
            # Outputs are copied, since the request's own are written again by its next call.
            results = request.infer(dict(inputs), share_inputs=True)
            return {spec.name: results[spec.name] for spec in self._outputs}

    def _requests(self, single: bool) -> _Requests:
        with self._lock:
            if self._one is None:
                raise BackendError(f"{self.name} is closed; load the bundle again")
            if single:
                return self._one  # type: ignore[no-any-return]
            if self._many is None:
                self._many = _Requests(self._core.compile_model(self._graph, "CPU", self._settings))
            return self._many  # type: ignore[no-any-return]

    @contextmanager
    def _attempt(self, what: str) -> Iterator[None]:
        try:
            yield
        except RuntimeError as error:  # OpenVINO raises nothing more special
            raise BackendError(f"{self.name} {what}: {_plain(error)}") from error

    def close(self) -> None:
        """Release the compiled graphs. Calls under way in other threads end as usual."""
        with self._lock:
            self._one = self._many = self._graph = None


class _Requests:
    """Infer requests of one compiled graph, each used by one thread at a time."""

    def __init__(self, compiled: Any) -> None:
        self._compiled = compiled
        self._idle: list[Any] = []  # appending to and popping from a list is atomic

    @contextmanager
    def lend(self) -> Iterator[Any]:
        try:
            request = self._idle.pop()
        except IndexError:
            request = self._compiled.create_infer_request()
        yield request  # one that failed is thrown away
        self._idle.append(request)


def open_openvino(bundle: Bundle, variant: str, threads: int | None = None, *, bf16: bool = False) -> OpenVinoBackend:
    """Open a variant on OpenVINO's CPU device.

    Args:
        bundle: The bundle.
        variant: Name of one of its variants; its graph with FP32 around INT8 is run, or else its file for TensorRT.
        threads: Threads for one call; ``None`` means all cores. As many calls run at once as there are cores for.
        bf16: Whether floating point is computed in BF16 rather than FP32.

    Raises:
        BundleError: The ONNX file is missing, damaged or changed.
        BackendError: The CPU has no BF16, or OpenVINO cannot run the file, or it differs from the manifest.
        MissingExtraError: OpenVINO is not installed.
    """
    ov = require("openvino", extra="openvino", purpose="running a model on OpenVINO")
    name = "openvino-bf16" if bf16 else "openvino"
    if bf16 and "BF16" not in ov.Core().get_property("CPU", "OPTIMIZATION_CAPABILITIES"):
        raise NotAvailableError(f"{name}: this CPU has no BF16 instructions; openvino computes in FP32")
    chosen = bundle.manifest.variants[variant]
    model = bundle.read(chosen.fp32_file or chosen.file)
    check_onnx(model)
    streams = max(1, cpu_count() // threads) if threads else 1
    total = threads * streams if threads else limited_cpus()
    settings = {
        "INFERENCE_PRECISION_HINT": "bf16" if bf16 else "f32",
        "NUM_STREAMS": streams,
        "ENABLE_CPU_PINNING": False,  # a pinned thread waits for its core, whoever else is on it
        **({"INFERENCE_NUM_THREADS": total} if total else {}),
    }
    return OpenVinoBackend(model, name, bundle, variant, settings)


def _specs(ports: Sequence[Any]) -> list[TensorSpec]:
    return [
        TensorSpec(
            port.get_any_name(),
            port.get_element_type().to_dtype().name,
            tuple(size.get_length() if size.is_static else "?" for size in port.partial_shape),
        )
        for port in ports
    ]


def _plain(error: Exception) -> str:
    """Return OpenVINO's message without the positions in its source."""
    lines = [line.strip() for line in str(error).splitlines()]
    reasons = [line for line in lines if line and not line.startswith(("Exception from", "Check '"))]
    return " ".join(reasons or lines)[:500]
