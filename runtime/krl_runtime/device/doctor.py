"""Find the backends that this machine can run by opening real sessions, and give advice on the others."""

from __future__ import annotations

import base64
import platform
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from importlib.util import find_spec
from typing import Literal

import numpy as np
import PIL

from krl_runtime._version import __version__
from krl_runtime.backends.cuda import NoTensorRTError, current_gpu, jetson_release, version_tuple
from krl_runtime.backends.onnxruntime import NoCudaProviderError, open_session
from krl_runtime.backends.tensorrt.calls import attempt, check, tensorrt_logger
from krl_runtime.backends.tensorrt.library import MINIMUM_TENSORRT, Library, rtx_library, tensorrt_library
from krl_runtime.errors import BackendError, KrlError, MissingExtraError
from krl_runtime.processor import int8_instructions, int8_sums_saturate

from .platforms import JETPACKS, jetpack_of

__all__ = ["Component", "can_run", "doctor"]

# y = x + x over float32 [n], opset 13: small enough to carry along, and it needs a kernel on the device.
_ONNX = base64.b64decode("CAg6NwoOCgF4CgF4EgF5IgNBZGQSAWdaEAoBeBILCgkIARIFCgMSAW5iEAoBeRILCgkIARIFCgMSAW5CBAoAEA0=")


@dataclass(frozen=True)
class Component:
    """The state of one component: a library, a device or a backend.

    Attributes:
        component: Name of the component.
        state: ``"ok"``; ``"missing"`` if it is not installed; ``"broken"`` if it is installed and does not work.
        detail: Version, device, or the cause.
        advice: What to do; empty if there is nothing to do.
        runs_models: Whether this is a backend, and it ran a model.
    """

    component: str
    state: Literal["ok", "missing", "broken"]
    detail: str
    advice: str = ""
    runs_models: bool = False


def doctor() -> tuple[Component, ...]:
    """Return the state of every component, after a real session on every backend. A broken component never raises."""
    cuda = _cuda()
    return (
        Component("krl", "ok", __version__),
        Component("python", "ok", f"{platform.python_version()} on {platform.system()} {platform.machine()}"),
        Component("numpy", "ok", np.__version__),
        Component("pillow", "ok", PIL.__version__),
        _int8(),
        *_jetson(),
        _session(cuda=False),
        _session(cuda=True),
        *_openvino(),
        cuda,
        _tensorrt("tensorrt", tensorrt_library),
        *_rtx(cuda),
    )


def can_run(components: tuple[Component, ...]) -> bool:
    """Return whether at least one backend ran a model."""
    return any(component.runs_models for component in components)


def _jetson() -> Iterator[Component]:
    """Yield the JetPack of a Jetson; nothing on other machines."""
    release = jetson_release()
    if release is None:
        return
    name, note = _jetpack(release)
    yield Component(
        "jetpack",
        "ok",
        f"{name} (L4T {release}): {note}",
        "make virtual environments with --system-site-packages, so that they find TensorRT, and install the extra "
        "jetson; docs/install.md has the rest",
    )


def _jetpack(release: str) -> tuple[str, str]:
    """Return the name of the JetPack with a release of Jetson Linux, and a note on its TensorRT."""
    found = jetpack_of(release)
    needed = ".".join(map(str, MINIMUM_TENSORRT))
    if found is None:
        return "a JetPack that this krl does not know", f"check its TensorRT; krl needs {needed} or later"
    if version_tuple(found.tensorrt) < MINIMUM_TENSORRT:
        oldest = next(jp for jp in JETPACKS if version_tuple(jp.tensorrt) >= MINIMUM_TENSORRT)
        advice = f"use the CPU, or update to JetPack {oldest.versions[0]} or later"
        return found.name, f"its TensorRT {found.tensorrt} is older than krl needs ({needed}); {advice}"
    return found.name, f"TensorRT {found.tensorrt} and CUDA {found.cuda}, from the system"


def _int8() -> Component:
    """Return the processor's instructions for INT8, and what their absence means."""
    found = int8_instructions()
    if found is None:
        detail = "the processor's INT8 instructions are not known on this system"
    elif int8_sums_saturate():
        detail = (
            "no VNNI, AVX-VNNI or AMX: plain sums of INT8 products would saturate in 16 bits; krl runs ONNX Runtime's "
            "exact mode, which is slower"
        )
    elif found:
        detail = f"the processor has {', '.join(found)}: INT8 products are added up in 32 bits"
    else:
        detail = "the processor has neither dot product (asimddp) nor i8mm"
    return Component("int8", "ok", detail)


def _session(*, cuda: bool) -> Component:
    """Open a session on one of ONNX Runtime's providers and run it."""
    component = "onnxruntime-cuda" if cuda else "onnxruntime-cpu"
    try:
        session = open_session(_ONNX, cuda=cuda, threads=1, strict=False)
        (output,) = session.run(None, {"x": np.array([1.5, -2], np.float32)})
        if output.tolist() != [3, -4]:
            raise BackendError(f"1.5 + 1.5 and -2 - 2 gave {output.tolist()}")
    except Exception as error:  # any error of a half-installed library is a result here
        return _fault(component, error, "reinstall onnxruntime")
    import onnxruntime

    return Component(component, "ok", f"onnxruntime {onnxruntime.__version__} ran a model", runs_models=True)


def _openvino() -> Iterator[Component]:
    """Run a model on OpenVINO. Yield nothing if it is not installed, since it is optional."""
    if find_spec("openvino") is None:
        return
    try:
        import openvino

        core = openvino.Core()
        output = core.compile_model(core.read_model(_ONNX), "CPU")([np.array([1.5, -2], np.float32)])[0]
        if output.tolist() != [3, -4]:
            raise BackendError(f"1.5 + 1.5 and -2 - 2 gave {output.tolist()}")
    except Exception as error:  # see _session
        yield _fault("openvino", error, "reinstall openvino")
        return
    can = ", ".join(core.get_property("CPU", "OPTIMIZATION_CAPABILITIES"))
    detail = f"openvino {openvino.__version__.partition('-')[0]} ran a model; this CPU supports {can}"
    yield Component("openvino", "ok", detail, runs_models=True)


def _cuda() -> Component:
    """Return the state of CUDA and its GPU, which TensorRT needs."""
    try:
        gpu = current_gpu()
    except Exception as error:  # see _session
        return _fault("cuda", error, "TensorRT needs an NVIDIA GPU, its driver and cuda-python; check with nvidia-smi")
    memory = f"{gpu.free_bytes / 2**30:.1f} of {gpu.total_bytes / 2**30:.1f} GiB free"
    return Component("cuda", "ok", f"{gpu.name}, compute capability {gpu.compute_capability}, {memory}")


def _tensorrt(component: str, find: Callable[[], Library]) -> Component:
    """Return the state of TensorRT or TensorRT-RTX, after making a runtime, which fails without a GPU."""
    try:
        library = find()
        with attempt("making a TensorRT runtime"):
            check(library.module.Runtime(tensorrt_logger(library)), "TensorRT made none")
    except Exception as error:  # see _session
        return _fault(component, error, "TensorRT needs its own libraries and a GPU; see the component cuda")
    return Component(component, "ok", f"{library.version} made a runtime", runs_models=True)


def _rtx(cuda: Component) -> Iterator[Component]:
    """Yield the state of TensorRT-RTX; nothing if it is not installed, since it is optional."""
    try:
        library = rtx_library()
    except NoTensorRTError:
        return
    except Exception as error:  # see _session
        yield _fault("tensorrt-rtx", error, "install it again")
        return
    if cuda.state == "ok":
        yield _tensorrt("tensorrt-rtx", lambda: library)
    else:  # it builds engines all the same, and on most machines that is what it is installed for
        yield Component("tensorrt-rtx", "ok", f"{library.version} builds engines; running them needs a GPU")


def _fault(component: str, error: Exception, advice: str) -> Component:
    """Return the state of a component that failed. krl's own messages have their advice after the first semicolon."""
    if not isinstance(error, KrlError):
        return Component(component, "broken", f"{type(error).__name__}: {error}", advice)
    missing = isinstance(error, MissingExtraError | NoCudaProviderError | NoTensorRTError)
    cause, _, own = str(error).partition("; ")
    return Component(component, "missing" if missing else "broken", cause, own or advice)
