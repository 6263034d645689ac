"""Pipelines from inputs to results, one for each task."""

from __future__ import annotations

from collections.abc import Sequence
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, TypeVar, overload

from krl_runtime.backends.select import Kind, select_backend
from krl_runtime.bundle import Bundle
from krl_runtime.errors import BundleError, UsageError

if TYPE_CHECKING:
    from krl_runtime.backends.base import RunningBackend
    from krl_runtime.images.modes import ChannelOrder

    from .classifier import Classification, Classifier
    from .embedder import Embedder, Embedding
    from .generator import Generator
    from .raster import Raster, grid
    from .restorer import Restorer

__all__ = ["Classification", "Classifier", "Embedder", "Embedding", "Generator", "Raster", "Restorer", "grid", "load"]

_MODULES = {
    "Classification": "classifier",
    "Classifier": "classifier",
    "Embedder": "embedder",
    "Embedding": "embedder",
    "Generator": "generator",
    "Raster": "raster",
    "Restorer": "restorer",
    "grid": "raster",
}
"""Where the names of this package stand; a program that classifies does not wait for the others."""
_PIPELINES = {
    "classification": "Classifier",
    "embedding": "Embedder",
    "restoration": "Restorer",
    "generation": "Generator",
}
_COMMANDS = {
    "classification": "krl-runtime classify",
    "embedding": "krl-runtime index and krl-runtime search",
    "restoration": "krl-runtime restore",
    "generation": "krl-runtime generate",
}
_Pipeline = TypeVar("_Pipeline", "Classifier", "Embedder", "Restorer", "Generator")


def __getattr__(name: str) -> Any:
    """Import a pipeline when it is first asked for."""
    if name not in _MODULES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    found = getattr(import_module(f"{__name__}.{_MODULES[name]}"), name)
    globals()[name] = found
    return found


@overload
def load(
    path: str | Path,
    pipeline: type[_Pipeline],
    *,
    variant: str | None = ...,
    backend: Kind | Literal["auto"] | None = ...,
    require: Kind | None = ...,
    threads: int | None = ...,
    device: int = ...,
    trust: str | Path | Sequence[str | Path] | None = ...,
    build: Literal["background"] | None = ...,
    build_command: Sequence[str] | None = ...,
    build_batch: int = ...,
    channel_order: ChannelOrder = ...,
) -> _Pipeline: ...
@overload
def load(
    path: str | Path,
    pipeline: None = ...,
    *,
    variant: str | None = ...,
    backend: Kind | Literal["auto"] | None = ...,
    require: Kind | None = ...,
    threads: int | None = ...,
    device: int = ...,
    trust: str | Path | Sequence[str | Path] | None = ...,
    build: Literal["background"] | None = ...,
    build_command: Sequence[str] | None = ...,
    build_batch: int = ...,
    channel_order: ChannelOrder = ...,
) -> Any: ...


def load(
    path: str | Path,
    pipeline: type[Any] | None = None,
    *,
    variant: str | None = None,
    backend: Kind | Literal["auto"] | None = None,
    require: Kind | None = None,
    threads: int | None = None,
    device: int = 0,
    trust: str | Path | Sequence[str | Path] | None = None,
    build: Literal["background"] | None = None,
    build_command: Sequence[str] | None = None,
    build_batch: int = 1,
    channel_order: ChannelOrder = "rgb",
) -> Any:
    """Load a bundle onto the best backend that this machine has.

    The best result of ``krl-runtime tune`` on this device comes first. Else TensorRT and TensorRT-RTX are
    tried if the bundle has an engine that matches, then ONNX Runtime on CUDA, then on the CPU. OpenVINO runs only on
    request.
    ``model.backend.reason`` has the choice and its reason; the logger ``"krl"`` logs it too.

    Args:
        path: The bundle, a folder ``NAME.krl``.
        pipeline: ``Classifier``, ``Embedder``, ``Restorer`` or ``Generator``. Bundles of other tasks are then
            refused, and type checkers know the result's type.
        variant: ``"fp32"``, ``"fp16"`` or ``"int8"``; by default the bundle's default for the device, else FP32.
        backend: The first backend to try: ``"tensorrt"``, ``"tensorrt-rtx"``, ``"cuda"`` or ``"cpu"``, in that order;
            or ``"openvino"`` or ``"openvino-bf16"``, before the CPU.
        require: The only kind of backend that is acceptable; anything else raises.
        threads: Threads for one call on the CPU; by default one for each physical core. Programs that call the
            model from several threads of their own are fastest with 1.
        device: Number of the GPU, from 0, for TensorRT, TensorRT-RTX and CUDA.
        trust: File of an Ed25519 public key (PEM, or OpenSSH's ``krl-key.pub``), or several. The bundle then has to be
            signed by one of them (``krl-deploy sign``), and its engines are trusted. Without it, only engines that this
            user built on this machine are loaded.
        build: ``"background"``: if TensorRT is installed but no engine matches, run at once on another backend. Build
            the engine in another process, and use it when it has passed the golden inputs. ``model.backend.state``
            has the progress, and ``model.backend.reason`` the reason of a failure.
        build_command: Command that builds the engine and registers it in the bundle; by default
            ``krl-deploy build-engine``.
        build_batch: Largest batch of the engine that is built in the background, 1 or more; larger ones run in parts.
        channel_order: Order of the colors in arrays: ``"rgb"``, or ``"bgr"`` for those of OpenCV. It holds for arrays
            that the model is given, and for the ``pixels`` of images that it makes. Files and Pillow images have none.

    Returns:
        The pipeline for the bundle's task: a ``Classifier``, an ``Embedder``, a ``Restorer`` or a ``Generator``.

    Raises:
        BundleError: There is no bundle, it is damaged, of another schema version or of an unknown task, or it is not
            signed by a trusted key.
        BackendError: No backend can run it, or not the one that is required; the message has each cause.
        UsageError: An argument is not one of the accepted values, a key cannot be used, or the bundle is not for
            ``pipeline``.
        MissingExtraError: ``trust`` is given, and the library that checks signatures is not installed.
    """
    import logging

    if build not in (None, "background"):
        raise UsageError(f"build is {build!r}; accepted: background, or nothing")
    if build is not None and require not in (None, "tensorrt"):
        raise UsageError(f"build is {build!r}, which is for TensorRT, but require is {require!r}; give one of them")
    if device < 0:
        raise UsageError(f"device is {device}; accepted: the number of a GPU, 0 or more")
    if build_batch < 1:
        raise UsageError(f"build_batch is {build_batch}; accepted: 1 or more")
    if channel_order not in ("rgb", "bgr"):
        raise UsageError(f"channel_order is {channel_order!r}; accepted: rgb, or bgr for arrays of OpenCV")
    bundle = Bundle.open(path, trust=_paths(trust))
    task, found = bundle.manifest.task, pipeline_of(bundle)
    if pipeline not in (None, found):
        name = getattr(pipeline, "__name__", repr(pipeline))
        wanted = next((known for known, kind in _PIPELINES.items() if kind == name), name)
        raise UsageError(
            f"bundle {bundle.path} is for the task {task!r}; a bundle for {wanted} is needed here; this one is for "
            f"{_COMMANDS[task]}"
        )
    chosen = select_backend(bundle, variant=variant, backend=backend, require=require, threads=threads, device=device)
    running: RunningBackend = chosen
    if build is not None:
        from krl_runtime.backends.warm import warm_start

        running = warm_start(bundle, chosen, variant, build_command, build_batch)
    log = logging.getLogger("krl")
    log.info("%s: %s", bundle.manifest.name, chosen.summary or chosen.reason)
    log.debug("%s: %s", bundle.manifest.name, running.reason)
    return found(bundle, running, channel_order=channel_order)


def pipeline_of(bundle: Bundle) -> Any:
    """Return the class that runs a bundle, after its check of the manifest.

    Raises:
        BundleError: No pipeline is for the bundle's task, or the bundle does not fit it.
    """
    task = bundle.manifest.task
    if task not in _PIPELINES:
        raise BundleError(
            f"bundle {bundle.path} is for the task {task!r}; this krl-runtime knows: "
            f"{', '.join(_PIPELINES)}; a newer one may know it"
        )
    found = __getattr__(_PIPELINES[task])
    found.check(bundle)
    return found


def _paths(trust: str | Path | Sequence[str | Path] | None) -> tuple[Path, ...]:
    """Return the files of the trusted keys."""
    if trust is None:
        return ()
    keys = (trust,) if isinstance(trust, str | Path) else tuple(trust)
    if not keys:
        raise UsageError("trust names no key; accepted: a file of an Ed25519 public key, several, or None")
    return tuple(Path(key) for key in keys)
