"""ONNX Runtime on the CPU and on CUDA.

ONNX Runtime falls back to the CPU with only a line in its log. ``get_available_providers()`` names providers that
cannot load, and a session for CUDA may run on the CPU. So krl disables that fallback for a CUDA session, and checks
afterwards where it runs.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from importlib.util import find_spec
from pathlib import Path
from types import FunctionType
from typing import TYPE_CHECKING, Any

import numpy as np

from krl_runtime.bundle import Bundle, TensorSpec
from krl_runtime.bundle.onnx_check import check_onnx, has_float16
from krl_runtime.bundle.tensors import check_inputs
from krl_runtime.errors import BackendError, NotAvailableError, require
from krl_runtime.processor import limited_cpus

from .base import ImageSizes, check_graph
from .binding import Bindings
from .cuda import jetson_release

if TYPE_CHECKING:
    import numpy.typing as npt

__all__ = [
    "CRASHING_IN_FP16",
    "EXACT_INT8",
    "WRONG_OPTIMIZERS",
    "NoCudaProviderError",
    "OnnxRuntimeBackend",
    "computes_fp16_pairs",
    "open_cpu",
    "open_cuda",
    "open_session",
    "tensor_specs",
]

EXACT_INT8 = ("session.x64quantprecision", "1")
"""Option of a session on the CPU. x86 without VNNI adds two products of uint8 and int8 in 16 bits, which saturate. With
this option the weights are uint8 there, and their products are added in 32 bits. Other processors ignore it."""
WRONG_OPTIMIZERS = ["WeightBiasQuantization"]
"""Optimizers of ONNX Runtime that change outputs. This one writes biases as integers in the precision around INT8; in
FP16 those beyond 65504 overflow (seen in 1.31). krl's graph for the CPU has integer biases already."""

CRASHING_IN_FP16 = ["NchwcTransformer"]
"""Optimizers that end the process with a segmentation fault on some graphs with FP16, as of vision transformers (seen
in 1.32). This one speeds up convolutions in FP32, which files without FP16 keep."""

_FIRST_FP16_PAIRS = (1, 30)
"""First version that computes Q/DQ pairs with FP16 scales rightly. On the CPU provider INT8 of a resnet20 has 18 dB of
SNR from 1.23 to 1.29, and 28 dB from 1.30 on; 1.20 cannot open it. Other providers were not measured."""

_ON_JETSON = (
    "build an engine for TensorRT, which JetPack brings: krl-deploy build-engine; for CUDA without an engine install "
    "NVIDIA's wheel of onnxruntime-gpu for this JetPack"
)
_OF_NUMPY_1 = ("_ARRAY_API", "numpy.core.multiarray", "compiled using NumPy 1")
"""Parts of numpy 2's messages to a library that was built for numpy 1, as some wheels for JetPack 6 are
(https://github.com/microsoft/onnxruntime/issues/27562)."""
_NUMPY_1 = "pip install 'numpy<2', as the extra jetson does on JetPack 6"
_CPU = "CPUExecutionProvider"
_CUDA = "CUDAExecutionProvider"
_FATAL = 4  # ONNX Runtime's log level; below it, raised errors are also printed

_DTYPES = {
    "tensor(bool)": "bool",
    "tensor(double)": "float64",
    "tensor(float)": "float32",
    "tensor(float16)": "float16",
    "tensor(int32)": "int32",
    "tensor(int64)": "int64",
    "tensor(int8)": "int8",
    "tensor(uint8)": "uint8",
}


class NoCudaProviderError(NotAvailableError):
    """The ONNX Runtime that is installed was built without CUDA."""


class OnnxRuntimeBackend:
    """Runs one ONNX file in one session; several threads may call it at once."""

    image_sizes: ImageSizes | None = None
    """It takes what the graph takes."""

    def __init__(
        self,
        session: Any,
        name: str,
        inputs: Sequence[TensorSpec],
        outputs: Sequence[TensorSpec],
        gpu: int | None = None,
    ) -> None:
        """Run a session.

        Args:
            session: The session.
            name: Of the backend.
            inputs: Of the graph.
            outputs: Of the graph.
            gpu: Number of the GPU that it runs on; ``None`` for the CPU.
        """
        self.name = name
        self._bindings = None if gpu is None else Bindings(session, "cuda", gpu)
        self._session: Any = session
        self._inputs = tuple(inputs)
        self._outputs = [spec.name for spec in outputs]

    def run(self, inputs: Mapping[str, npt.NDArray[Any]]) -> dict[str, npt.NDArray[Any]]:
        """Run the graph once; see ``Backend.run``."""
        session = self._session
        if session is None:
            raise BackendError(f"{self.name} is closed; load the bundle again")
        check_inputs(self._inputs, inputs)
        try:
            bindings = self._bindings
            outputs = session.run(self._outputs, inputs) if bindings is None else bindings.run(self._outputs, inputs)
        except Exception as error:  # ONNX Runtime's own types share no base class but this one
            raise BackendError(f"{self.name} failed: {_plain(error)}") from error
        return dict(zip(self._outputs, outputs, strict=True))

    def close(self) -> None:
        """Release the session. Calls under way in other threads end as usual."""
        self._session = self._bindings = None


def open_cpu(bundle: Bundle, variant: str, threads: int | None = None) -> OnnxRuntimeBackend:
    """Open a variant on ONNX Runtime's CPU provider, with the graph that is fast there.

    Args:
        bundle: The bundle.
        variant: Name of one of its variants.
        threads: Threads for one call; ``None`` leaves it to ONNX Runtime, which takes one for each physical core.

    Raises:
        BundleError: The ONNX file is missing, damaged or changed.
        BackendError: ONNX Runtime cannot run the file, or the graph is not the one that the manifest describes.
        MissingExtraError: ONNX Runtime is not installed.
    """
    chosen = bundle.manifest.variants[variant]
    model = bundle.read(chosen.cpu_file or chosen.file)
    return _backend("onnxruntime-cpu", open_session(model, cuda=False, threads=threads), bundle, variant)


def open_cuda(
    bundle: Bundle, variant: str, threads: int | None = None, *, device: int = 0
) -> tuple[OnnxRuntimeBackend, str]:
    """Open a variant on ONNX Runtime's CUDA provider.

    Args:
        bundle: The bundle.
        variant: Name of one of its variants.
        threads: Threads for nodes that stay on the CPU; see ``open_cpu``.
        device: Number of the GPU, from 0.

    Returns:
        The backend, and which nodes ONNX Runtime keeps on the CPU; empty if none.

    Raises:
        BundleError: The ONNX file is missing, damaged or changed.
        BackendError: There is no CUDA provider, it cannot start here, or it cannot run the file.
        MissingExtraError: ONNX Runtime is not installed.
    """
    chosen = bundle.manifest.variants[variant]
    model = bundle.read(chosen.file if computes_fp16_pairs("gpu") else chosen.fp32_file or chosen.file)
    try:
        session, remark = open_session(model, cuda=True, threads=threads, device=device), ""
    except NoCudaProviderError:
        raise
    except BackendError:
        # Refused for a few nodes that ONNX Runtime puts on the CPU on purpose, such as shapes, or because CUDA is
        # out of order? A session without the strictness shows it.
        session = open_session(model, cuda=True, threads=threads, strict=False, device=device)
        remark = _left_on_cpu(session)
    return _backend("onnxruntime-cuda", session, bundle, variant, gpu=device), remark


def computes_fp16_pairs(extra: str = "cpu") -> bool:
    """Return whether the ONNX Runtime that is installed computes Q/DQ pairs with FP16 scales rightly.

    Args:
        extra: The extra that a message names.

    Raises:
        MissingExtraError: ONNX Runtime is not installed.
    """
    ort = require("onnxruntime", extra=extra, purpose="running a model on ONNX Runtime")
    major, minor, *_ = ort.__version__.split(".")
    return (int(major), int(minor)) >= _FIRST_FP16_PAIRS


def open_session(
    model: Path | bytes,
    *,
    cuda: bool,
    threads: int | None = None,
    strict: bool = True,
    device: int = 0,
    profile: Path | None = None,
) -> Any:
    """Make an ONNX Runtime session on the requested device.

    Args:
        model: An ONNX file, or its bytes. Weights in further files are refused, since no hash covers them. A file is
            read once: what is checked is what is opened.
        cuda: Whether to run on CUDA; otherwise on the CPU.
        threads: Threads for one call on the CPU; ``None`` means one for each physical core.
        strict: Whether every node has to run on CUDA.
        device: Number of the GPU, from 0.
        profile: Beginning of the path of a file for the times of all nodes, which ``end_profiling`` completes.

    Raises:
        BackendError: The provider is missing or cannot start, or the file is damaged or has unknown operators.
        MissingExtraError: ONNX Runtime is not installed.
    """
    if cuda and jetson_release() is not None and find_spec("onnxruntime") is None:
        raise NoCudaProviderError(f"ONNX Runtime is not installed; {_ON_JETSON}")
    ort = _imported("gpu" if cuda else "cpu")
    options = ort.SessionOptions()
    # Anything less costs a factor of 3 on depthwise networks: the blocked layout comes with the highest level.
    options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_ENABLE_ALL
    # Spinning stays as it is: without it, small networks on two threads take 1.3 to 1.6 times as long. Programs
    # that call from many threads ask for threads=1, which has neither pool nor spinning.
    # Without a number ONNX Runtime takes the machine's physical cores, whatever a container may use of them.
    options.intra_op_num_threads = threads or limited_cpus() or 0
    options.log_severity_level = _FATAL
    if profile is not None:
        options.enable_profiling, options.profile_file_prefix = True, str(profile)
    if cuda:
        _prepare_cuda(ort)
        options.add_session_config_entry("session.disable_cpu_ep_fallback", "1" if strict else "0")
        options.add_session_config_entry("session.record_ep_graph_assignment_info", "1")
    else:
        options.add_session_config_entry(*EXACT_INT8)
    provider = _CUDA if cuda else _CPU
    data = model if isinstance(model, bytes) else model.read_bytes()
    wrong = [*WRONG_OPTIMIZERS, *(CRASHING_IN_FP16 if has_float16(check_onnx(data)) else [])]
    options.add_session_config_entry("session.load_model_format", "ONNX")  # bytes may be taken for another format
    try:
        session = ort.InferenceSession(
            data,
            options,
            providers=[(_CUDA, {"device_id": device}) if cuda else _CPU],
            enable_fallback=0,
            disabled_optimizers=wrong,
        )
    except Exception as error:  # ONNX Runtime's own types share no base class but this one
        raise BackendError(f"ONNX Runtime cannot open the model: {_plain(error)}") from error
    if session.get_providers()[0] != provider:
        raise BackendError(
            "ONNX Runtime's CUDA provider did not start, it would have run on the CPU instead; look with nvidia-smi "
            "whether the driver sees a GPU, and which CUDA it supports"
        )
    return session


def _imported(extra: str) -> Any:
    """Return ONNX Runtime's module.

    Raises:
        MissingExtraError: It is not installed.
        BackendError: It is installed and cannot be imported.
    """
    try:
        return require("onnxruntime", extra=extra, purpose="running a model on ONNX Runtime")
    except (ImportError, AttributeError) as error:  # numpy's C interface raises both
        text = _plain(error)
        cause, advice = text, "reinstall it"
        if any(part in text for part in _OF_NUMPY_1):
            cause, advice = f"it was built for numpy 1, and this is numpy {np.__version__}", _NUMPY_1
        raise BackendError(f"onnxruntime is installed and cannot be imported: {cause}; {advice}") from error


def _prepare_cuda(ort: Any) -> None:
    """Load the CUDA libraries that came with Python packages, and say which one is missing."""
    if _CUDA not in ort.get_available_providers():
        advice = (
            "on a machine with an NVIDIA GPU replace it: pip uninstall onnxruntime, then pip install onnxruntime-gpu"
            if jetson_release() is None
            else _ON_JETSON
        )
        raise NoCudaProviderError(f"the onnxruntime {ort.__version__} that is installed has no CUDA provider; {advice}")
    if hasattr(ort, "preload_dlls"):
        _without_print(ort.preload_dlls)()  # it prints missing libraries; these are logged below
    cause = _missing_library(Path(ort.__file__).parent / "capi")
    if cause:
        raise BackendError(
            f"ONNX Runtime's CUDA provider cannot load: {cause}; install the CUDA and cuDNN that onnxruntime-gpu "
            f"{ort.__version__} was built for (pip install 'onnxruntime-gpu[cuda,cudnn]'), and the NVIDIA driver"
        )


def _without_print(function: Callable[[], None]) -> Callable[[], None]:
    """Return a function that prints nothing. Output belongs to the process, so other threads keep theirs."""
    if not isinstance(function, FunctionType):
        return function
    return FunctionType(
        function.__code__,
        {**function.__globals__, "print": lambda *_, **__: None},
        function.__name__,
        function.__defaults__,
        function.__closure__,
    )


def _missing_library(folder: Path) -> str | None:
    """Return the loader's sentence on the first library that the CUDA provider needs and does not find."""
    import ctypes

    for library in folder.glob("libonnxruntime_providers_cuda.so"):
        try:
            ctypes.CDLL(str(library))
        except OSError as error:
            # Symbols of ONNX Runtime itself are not there yet; that is no fault.
            return str(error) if "cannot open shared object" in str(error) else None
    return None


def _left_on_cpu(session: Any) -> str:
    """Return a phrase on the nodes that a CUDA session keeps on the CPU."""
    if not hasattr(session, "get_provider_graph_assignment_info"):  # older versions do not tell
        return "some nodes stay on the CPU"
    nodes = [
        (part.ep_name, node.op_type)
        for part in session.get_provider_graph_assignment_info()
        for node in part.get_nodes()
    ]
    left = Counter(kind for provider, kind in nodes if provider != _CUDA)
    kinds = ", ".join(f"{count} {kind}" for kind, count in left.most_common())
    return f"{left.total()} of {len(nodes)} nodes stay on the CPU: {kinds}"


def _backend(name: str, session: Any, bundle: Bundle, variant: str, gpu: int | None = None) -> OnnxRuntimeBackend:
    manifest = bundle.manifest
    try:
        inputs, outputs = tensor_specs(session.get_inputs()), tensor_specs(session.get_outputs())
    except UnicodeDecodeError as error:  # ONNX Runtime itself does not mind
        raise BackendError(f"the ONNX file is damaged: a name in it is not text ({error})") from error
    check_graph(bundle, variant, inputs, outputs)
    return OnnxRuntimeBackend(session, name, manifest.inputs, manifest.outputs, gpu)


def tensor_specs(nodes: Iterable[Any]) -> list[TensorSpec]:
    """Return the inputs or outputs of a session; a dimension of any size is a string, an unknown dtype ONNX's name."""
    return [
        TensorSpec(node.name, _DTYPES.get(node.type, node.type), tuple("?" if d is None else d for d in node.shape))
        for node in nodes
    ]


def _plain(error: Exception) -> str:
    """Return ONNX Runtime's message without its error codes and line ends."""
    message = " ".join(str(error).split())
    return message.rpartition(" : ")[2] if message.startswith("[ONNXRuntimeError]") else message
