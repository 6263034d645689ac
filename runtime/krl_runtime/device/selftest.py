"""Replays a bundle's golden inputs on this device: every variant on every backend that is here."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from importlib.util import find_spec
from typing import TYPE_CHECKING, Any, Literal

from krl_runtime.backends.base import Backend
from krl_runtime.backends.replay import replay
from krl_runtime.backends.select import KINDS, Kind, open_backend
from krl_runtime.bundle import Bundle, Variant
from krl_runtime.bundle.golden import golden_arrays
from krl_runtime.errors import BackendError, MissingExtraError, NotAvailableError
from krl_runtime.evaluation.golden import bf16_limits, compare, device_limits, makes_images

if TYPE_CHECKING:
    import numpy.typing as npt

__all__ = ["Replay", "selftest"]


@dataclass(frozen=True)
class Replay:
    """The outcome of one variant on one kind of backend.

    Attributes:
        variant: Name of the variant.
        kind: ``"tensorrt"``, ``"tensorrt-rtx"``, ``"cuda"``, ``"cpu"``, or if OpenVINO is installed ``"openvino"`` and
            ``"openvino-bf16"``.
        state: ``"passed"``, ``"failed"``, or ``"unavailable"`` if this machine has no such backend.
        inputs: Number of golden inputs that were replayed.
        max_abs_error: Largest absolute difference from the golden outputs; ``None`` where nothing ran.
        tolerance: The largest that the bundle accepts.
        agreement: Share, 0 to 1, of the inputs whose top-1 is the golden one; ``None`` where nothing ran, or images
            are made.
        required_agreement: The smallest that the bundle accepts.
        psnr: Of images, in dB against the golden ones, the mean; ``None`` where nothing ran or there are none.
        required_psnr: The smallest that the bundle accepts.
        cause: Why it failed or is not available.
    """

    variant: str
    kind: Kind
    state: Literal["passed", "failed", "unavailable"]
    inputs: int = 0
    max_abs_error: float | None = None
    tolerance: float | None = None
    agreement: float | None = None
    required_agreement: float | None = None
    psnr: float | None = None
    required_psnr: float | None = None
    cause: str = ""


def selftest(bundle: Bundle, *, threads: int | None = None, require: Kind | None = None) -> tuple[Replay, ...]:
    """Check every file of a bundle, then run its golden inputs through each variant and backend.

    A backend that is installed and cannot open the bundle has failed; one that is not here is unavailable.

    Args:
        bundle: The bundle.
        threads: Threads for one call on the CPU; ``None`` means one for each physical core.
        require: The kind of backend to test, alone; where it is not available, it has failed.

    Raises:
        BundleError: A file is missing, damaged or changed, or there are no golden inputs.
    """
    bundle.verify()
    golden = golden_arrays(bundle)
    kinds: tuple[Kind, ...] = (*KINDS, "openvino", "openvino-bf16") if find_spec("openvino") else KINDS
    if require is not None:
        found = [_one(bundle, name, require, golden, threads) for name in bundle.manifest.variants]
        # One variant is enough: an engine is built of one.
        if all(replay.state == "unavailable" for replay in found):
            found = [replace(replay, state="failed") for replay in found]
        return tuple(found)
    return tuple(_one(bundle, name, kind, golden, threads) for name in bundle.manifest.variants for kind in kinds)


def _one(bundle: Bundle, name: str, kind: Kind, golden: Mapping[str, npt.NDArray[Any]], threads: int | None) -> Replay:
    try:
        backend, _ = open_backend(kind, bundle, name, threads)
    except (MissingExtraError, NotAvailableError) as error:
        return Replay(name, kind, "unavailable", cause=str(error))
    except BackendError as error:
        return Replay(name, kind, "failed", cause=str(error))
    try:
        return _judge(bundle, name, kind, backend, golden)
    except BackendError as error:
        return Replay(name, kind, "failed", cause=str(error))
    finally:
        backend.close()


def _judge(bundle: Bundle, name: str, kind: Kind, backend: Backend, golden: Mapping[str, npt.NDArray[Any]]) -> Replay:
    variant: Variant = device_limits(bundle.manifest, name, tf32=_multiplies_in_tf32(bundle, name, kind))
    if kind == "openvino-bf16":
        variant = bf16_limits(variant, golden, bundle.manifest)
    error, alike, cause = compare(bundle.manifest, variant, replay(bundle, backend, golden), golden)
    images = makes_images(bundle.manifest)
    return Replay(
        name,
        kind,
        "failed" if cause else "passed",
        inputs=len(golden[bundle.manifest.outputs[0].name]),
        max_abs_error=error,
        tolerance=variant.tolerance,
        agreement=None if images else alike,
        required_agreement=None if images else variant.agreement,
        psnr=alike if images else None,
        required_psnr=variant.psnr if images else None,
        cause=cause,
    )


def _multiplies_in_tf32(bundle: Bundle, name: str, kind: Kind) -> bool:
    """Return whether a kind of backend may multiply in TF32: ONNX Runtime on CUDA, and engines not built without."""
    return kind == "cuda" or any(
        engine.tf32 for engine in bundle.engines.values() if engine.library == kind and engine.variant == name
    )
