"""Replays a bundle's golden inputs on this device: every variant on every backend that is here."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, replace
from importlib.util import find_spec
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

from krl_runtime.backends.base import Backend, check_inputs
from krl_runtime.backends.select import KINDS, Kind, open_backend
from krl_runtime.bundle import Bundle, Manifest, Variant
from krl_runtime.errors import BackendError, BundleError, MissingExtraError
from krl_runtime.images.luma import mean_psnr
from krl_runtime.pipelines.classifier import batch_limit

if TYPE_CHECKING:
    import numpy.typing as npt

__all__ = ["Replay", "compare", "golden_arrays", "makes_pictures", "replay", "selftest"]


@dataclass(frozen=True)
class Replay:
    """The outcome of one variant on one kind of backend.

    Attributes:
        variant: Name of the variant.
        kind: ``"tensorrt"``, ``"cuda"``, ``"cpu"``, or ``"openvino"`` where that is installed.
        state: ``"passed"``, ``"failed"``, or ``"unavailable"`` where this machine has no such backend.
        inputs: Number of golden inputs that were replayed.
        max_abs_error: Largest absolute difference from the golden outputs; ``None`` where nothing ran.
        tolerance: The largest that the bundle accepts.
        agreement: Share, 0 to 1, of the inputs whose top-1 is the golden one; ``None`` where nothing ran, or pictures
            are made.
        required_agreement: The smallest that the bundle accepts.
        psnr: Of pictures, in dB against the golden ones, the mean; ``None`` where nothing ran or there are none.
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


def selftest(bundle: Bundle, *, threads: int | None = None) -> tuple[Replay, ...]:
    """Check every file of a bundle, then run its golden inputs through each variant and backend.

    Args:
        bundle: The bundle.
        threads: Threads for one call on the CPU; ``None`` means one for each physical core.

    Raises:
        BundleError: A file is missing, damaged or changed, or there are no golden inputs.
    """
    bundle.verify()
    golden = golden_arrays(bundle)
    # BF16 is left out: no variant's tolerance is meant for it; krl-runtime tune says what it is held to.
    kinds: tuple[Kind, ...] = (*KINDS, "openvino") if find_spec("openvino") else KINDS
    return tuple(_one(bundle, name, kind, golden, threads) for name in bundle.manifest.variants for kind in kinds)


def golden_arrays(bundle: Bundle) -> dict[str, npt.NDArray[Any]]:
    """Return a bundle's golden inputs and outputs, under their names, each ``[N, ...]`` with the same ``N``.

    Raises:
        BundleError: There are none, the file is damaged, or an array has not the dtype and shape of the manifest.
    """
    golden = bundle.golden()
    # Any number of them, whatever batch size the graph takes.
    graph = (*bundle.manifest.inputs, *bundle.manifest.outputs)
    try:
        check_inputs([replace(spec, shape=("N", *spec.shape[1:])) for spec in graph], golden)
    except BackendError as error:
        raise BundleError(f"bundle {bundle.path}: golden file: {error}; export the bundle again") from error
    if len({len(array) for array in golden.values()}) != 1:
        raise BundleError(f"bundle {bundle.path}: the golden file's arrays differ in length; export the bundle again")
    return golden


def _one(bundle: Bundle, name: str, kind: Kind, golden: Mapping[str, npt.NDArray[Any]], threads: int | None) -> Replay:
    try:
        backend, _ = open_backend(kind, bundle, name, threads)
    except MissingExtraError as error:
        return Replay(name, kind, "unavailable", cause=str(error))
    except BackendError as error:
        # Where they are installed they can run on any CPU: then it is the variant that is at fault.
        return Replay(name, kind, "failed" if kind in ("cpu", "openvino") else "unavailable", cause=str(error))
    try:
        return _judge(bundle, name, kind, backend, golden)
    except BackendError as error:
        return Replay(name, kind, "failed", cause=str(error))
    finally:
        backend.close()


def _judge(bundle: Bundle, name: str, kind: Kind, backend: Backend, golden: Mapping[str, npt.NDArray[Any]]) -> Replay:
    variant: Variant = bundle.manifest.variants[name]
    error, alike, cause = compare(bundle.manifest, variant, replay(bundle, backend, golden), golden)
    pictures = makes_pictures(bundle.manifest)
    return Replay(
        name,
        kind,
        "failed" if cause else "passed",
        inputs=len(golden[bundle.manifest.outputs[0].name]),
        max_abs_error=error,
        tolerance=variant.tolerance,
        agreement=None if pictures else alike,
        required_agreement=None if pictures else variant.agreement,
        psnr=alike if pictures else None,
        required_psnr=variant.psnr if pictures else None,
        cause=cause,
    )


def compare(
    manifest: Manifest,
    variant: Variant,
    outputs: Mapping[str, npt.NDArray[Any]],
    golden: Mapping[str, npt.NDArray[Any]],
) -> tuple[float, float, str]:
    """Compare outputs with the golden ones.

    Args:
        manifest: Names the outputs; the first one has the top-1, or the pictures.
        variant: Says what is accepted.
        outputs: What was computed from the golden inputs, ``[N, ...]`` each.
        golden: What torch computed from them.

    Returns:
        The largest absolute difference of any output; the share, 0 to 1, of inputs whose top-1 is the golden one, or
        the PSNR in dB of pictures; and why that does not pass, empty if it does.
    """
    for spec in manifest.outputs:
        made, wanted = outputs[spec.name].shape, golden[spec.name].shape
        if made != wanted:
            return math.inf, 0.0, f"{spec.name} has shape {list(made)}, the golden one {list(wanted)}"
    errors = [np.abs(outputs[spec.name].astype(np.float64) - golden[spec.name]).max() for spec in manifest.outputs]
    key = manifest.outputs[0].name
    error = float(np.max(errors))  # a NaN in any of them stays a NaN, and passes nothing
    causes = []
    if not error <= variant.tolerance:
        causes.append(f"the largest error {error:.3g} is above the tolerance {variant.tolerance:.3g}")
    if makes_pictures(manifest):
        alike = mean_psnr(outputs[key], golden[key])
        if variant.psnr is not None and not alike >= variant.psnr:
            causes.append(f"the PSNR to the golden pictures is {alike:.1f} dB, required are {variant.psnr:.1f}")
    else:
        alike = float(np.mean(outputs[key].argmax(-1) == golden[key].argmax(-1)))
        if not alike >= variant.agreement:
            causes.append(f"top-1 agrees on {alike:.1%} of the golden inputs, required are {variant.agreement:.1%}")
    return error, alike, "; ".join(causes)


def makes_pictures(manifest: Manifest) -> bool:
    """Return whether a bundle's outputs are pictures, and not logits."""
    return manifest.task != "classification"


def replay(bundle: Bundle, backend: Backend, golden: Mapping[str, npt.NDArray[Any]]) -> dict[str, npt.NDArray[Any]]:
    """Run all golden inputs in batches of a bounded size; return the outputs under their names."""
    inputs = [spec.name for spec in bundle.manifest.inputs]
    limit = batch_limit(bundle)
    parts = [
        backend.run({name: golden[name][start : start + limit] for name in inputs})
        for start in range(0, len(golden[inputs[0]]), limit)
    ]
    return {spec.name: np.concatenate([part[spec.name] for part in parts]) for spec in bundle.manifest.outputs}
