"""From a bundle to something that answers: one pipeline for each task."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

from krl_runtime.backends.select import Kind, select_backend
from krl_runtime.bundle import Bundle
from krl_runtime.errors import BundleError

from .classifier import Classifier

__all__ = ["load"]

_PIPELINES = {"classification": Classifier}


def load(
    path: str | Path,
    *,
    variant: str | None = None,
    backend: Kind | Literal["auto"] | None = None,
    require: Kind | None = None,
    threads: int | None = None,
) -> Classifier:
    """Load a bundle onto the best backend that this machine has.

    TensorRT is tried first (if the bundle has an engine that matches), then ONNX Runtime on CUDA, then on the CPU.
    ``model.backend.reason`` says which was chosen and why, and one line of the logger ``"krl"`` says the same.

    Args:
        path: The bundle, a folder ``NAME.krl``.
        variant: ``"fp32"``, ``"fp16"`` or ``"int8"``; by default the one that the bundle names for the device,
            and FP32 where it names none.
        backend: ``"tensorrt"``, ``"cuda"`` or ``"cpu"``: where to begin in that order.
        require: The only kind of backend that is acceptable; anything else raises.
        threads: Threads for one call on the CPU; by default one for each physical core. Programs that call the
            model from several threads of their own are fastest with 1.

    Returns:
        The pipeline for the bundle's task.

    Raises:
        BundleError: There is no bundle, it is damaged, forged, of another schema version or of an unknown task.
        BackendError: No backend can run it, or not the one that is required; the message has each cause.
        UsageError: An argument is not one of the accepted values.
    """
    import logging

    bundle = Bundle.open(path)
    pipeline = _PIPELINES.get(bundle.manifest.task)
    if pipeline is None:
        raise BundleError(
            f"bundle {bundle.path} is for the task {bundle.manifest.task!r}; this krl-runtime knows: "
            f"{', '.join(_PIPELINES)}; a newer one may know it"
        )
    pipeline.check(bundle)
    chosen = select_backend(bundle, variant=variant, backend=backend, require=require, threads=threads)
    logging.getLogger("krl").info("%s: %s", bundle.manifest.name, chosen.reason)
    return pipeline(bundle, chosen)
