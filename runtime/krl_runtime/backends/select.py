"""Which backend runs a bundle, which variant of it, and why: nothing falls back silently."""

from __future__ import annotations

import os
from collections.abc import Collection, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Literal, TypeAlias, get_args

from krl_runtime.bundle import Bundle
from krl_runtime.errors import BackendError, MissingExtraError, NotAvailableError, UsageError

from .base import Backend, ImageSizes, check_not_forked

if TYPE_CHECKING:
    import numpy.typing as npt

__all__ = [
    "ALL_KINDS",
    "KINDS",
    "ON_GPU",
    "Kind",
    "SelectedBackend",
    "choose_variant",
    "open_backend",
    "select_backend",
]

Kind: TypeAlias = Literal["tensorrt", "tensorrt-rtx", "cuda", "openvino-bf16", "openvino", "cpu"]
"""An engine of TensorRT or of TensorRT-RTX, ONNX Runtime on CUDA, OpenVINO on the CPU in BF16 or FP32, or ONNX Runtime
on the CPU."""

ALL_KINDS: tuple[Kind, ...] = get_args(Kind)
"""All kinds."""

KINDS: tuple[Kind, ...] = ("tensorrt", "tensorrt-rtx", "cuda", "cpu")
"""Those that are tried without being asked for, in this order; OpenVINO has to be asked for, or chosen by a tuning."""


ON_GPU: tuple[Kind, ...] = ("tensorrt", "tensorrt-rtx", "cuda")
"""Those that run on a GPU, where a number of CPU threads means nothing."""


_NO_ENGINE = {
    "tensorrt": "the bundle has no TensorRT engine; krl-deploy build-engine adds one on the device",
    "tensorrt-rtx": "the bundle has no TensorRT-RTX engine; krl-deploy build-engine --target rtx adds one",
}


@dataclass(frozen=True)
class SelectedBackend:
    """The backend that runs a model, and why it was chosen.

    Attributes:
        backend: The backend that runs the graph.
        variant: The variant that it runs.
        reason: One sentence: what runs, which variant and why, and the cause for each backend that was skipped.
        skipped: The causes by kind of backend.
        summary: The same in one short line, for the log: without advice, and without backends that cannot be here.
    """

    backend: Backend
    variant: str
    reason: str
    skipped: Mapping[str, str]
    summary: str = ""
    _process: int = field(default_factory=os.getpid, init=False, repr=False, compare=False)

    @property
    def name(self) -> str:
        """The backend that runs; see ``Backend.name``."""
        return self.backend.name

    @property
    def image_sizes(self) -> ImageSizes | None:
        """Sizes of images that run; see ``Backend.image_sizes``."""
        return self.backend.image_sizes

    def run(self, inputs: Mapping[str, npt.NDArray[Any]]) -> dict[str, npt.NDArray[Any]]:
        """Run the graph once; see ``Backend.run``."""
        check_not_forked(self._process, "a model")
        return self.backend.run(inputs)

    def close(self) -> None:
        """Free the backend's resources; those of another process, from which this one was forked, stay."""
        if os.getpid() == self._process:
            self.backend.close()


def select_backend(
    bundle: Bundle,
    *,
    variant: str | None = None,
    backend: Kind | Literal["auto"] | None = None,
    require: Kind | None = None,
    threads: int | None = None,
    device: int = 0,
) -> SelectedBackend:
    """Open the first backend that runs a bundle here: TensorRT, TensorRT-RTX, ONNX Runtime on CUDA, then on the CPU.

    Where neither variant nor backend is asked for, and ``krl-runtime tune`` measured this bundle on this device, its
    choice comes before that order.

    Args:
        bundle: The bundle.
        variant: The variant to run; ``None`` takes the bundle's default for the device.
        backend: Where to begin in that order; ``None`` and ``"auto"`` begin with TensorRT.
        require: The only kind of backend that is acceptable.
        threads: Threads for one call on the CPU; ``None`` means one for each physical core.
        device: Number of the GPU, from 0.

    Raises:
        UsageError: An argument is not one of the accepted values.
        BackendError: No backend can run the bundle, or not the one that is required; the message has each cause.
        BundleError: A file that is needed is missing, damaged or changed.
    """
    asked, candidates = _candidates(backend, require)
    if variant is not None and variant not in bundle.manifest.variants:
        raise UsageError(
            f"bundle {bundle.path} has no variant {variant!r}; it has: {', '.join(bundle.manifest.variants)}; "
            "krl-deploy fp16 and krl-deploy quantize make others"
        )
    if threads is not None and threads < 1:
        raise UsageError(f"threads is {threads}; accepted: 1 or more, or nothing for one on each physical core")
    untuned = ""
    if variant is None and require is None and backend in (None, "auto"):
        tuned, untuned = _tuned(bundle, threads, device)
        if tuned is not None:
            return tuned
    before = ALL_KINDS[: ALL_KINDS.index(candidates[0])]
    causes: dict[str, str] = {kind: f"{asked} was asked for" for kind in before if kind in KINDS}
    failed: set[str] = set()
    for kind in candidates:
        name, why = choose_variant(bundle, kind) if variant is None else (variant, "as asked")
        try:
            opened, remark = open_backend(kind, bundle, name, threads, device)
        except (BackendError, MissingExtraError) as error:
            causes[kind] = str(error)
            if not isinstance(error, NotAvailableError | MissingExtraError):
                failed.add(kind)
                if kind != require:
                    import logging

                    logging.getLogger("krl").warning("%s is installed, but failed: %s", kind, error)
            continue
        what = f"{opened.name} runs variant {name} ({'; '.join(filter(None, (why, remark, untuned)))})"
        reason = f"{what}; skipped: {_listed(causes)}" if causes else what
        return SelectedBackend(opened, name, reason, causes, _summary(what, causes, failed))
    if require is not None:
        raise BackendError(f"bundle {bundle.path} cannot run on {require}, which is required: {causes[require]}")
    raise BackendError(
        f"no backend can run bundle {bundle.path}: {_listed(causes)}; run krl-runtime doctor to check this machine"
    )


def choose_variant(bundle: Bundle, kind: Kind) -> tuple[str, str]:
    """Return the variant that a kind of backend runs by default, and why, as a phrase."""
    manifest = bundle.manifest
    device = "cuda" if kind in ON_GPU else "cpu"
    if device in manifest.default_variants:
        return manifest.default_variants[device], f"the bundle's default on {device}"
    built = sorted({engine.variant for engine in bundle.engines.values() if engine.library == kind})
    if built and "fp32" not in built:
        return built[0], "the variant that has an engine"
    return "fp32", f"the bundle names no default for {device}"


def open_backend(
    kind: Kind, bundle: Bundle, variant: str, threads: int | None = None, device: int = 0
) -> tuple[Backend, str]:
    """Open one variant on one kind of backend, with nothing to fall back on.

    Args:
        kind: The kind of backend.
        bundle: The bundle.
        variant: Name of one of its variants.
        threads: Threads for one call on the CPU; ``None`` means one for each physical core.
        device: Number of the GPU, from 0.

    Returns:
        The backend, and a remark for people on how it runs there, mostly empty.

    Raises:
        NotAvailableError: The kind of backend is not here; the message is the cause.
        BackendError: It is here, and cannot run this variant.
        MissingExtraError: Its library is not installed.
        BundleError: A file that is needed is missing, damaged or changed.
    """
    if kind in ("tensorrt", "tensorrt-rtx"):
        if all(engine.library != kind for engine in bundle.engines.values()):
            raise NotAvailableError(_NO_ENGINE[kind])
        from .tensorrt.engines import open_engine

        return open_engine(bundle, variant, kind, device), ""
    if kind in ("openvino", "openvino-bf16"):
        from .openvino import open_openvino

        return open_openvino(bundle, variant, threads, bf16=kind == "openvino-bf16"), ""
    from .onnxruntime import open_cpu, open_cuda

    if kind == "cuda":
        return open_cuda(bundle, variant, threads, device=device)
    return open_cpu(bundle, variant, threads), ""


def _candidates(backend: Kind | Literal["auto"] | None, require: Kind | None) -> tuple[str, tuple[Kind, ...]]:
    """Return the request in words, and the kinds to try."""
    for what, value, accepted in (("backend", backend, ("auto", *ALL_KINDS)), ("require", require, ALL_KINDS)):
        if value is not None and value not in accepted:
            raise UsageError(f"{what} is {value!r}; accepted: {', '.join(accepted)}")
    if require is not None:
        if backend not in (None, "auto", require):
            raise UsageError(f"backend is {backend!r} but require is {require!r}; give one of them")
        return f"{require} alone", (require,)
    if backend is None or backend == "auto":
        return "", KINDS
    return f"backend {backend}", (KINDS[KINDS.index(backend) :] if backend in KINDS else (backend, "cpu"))


def _tuned(bundle: Bundle, threads: int | None, device: int) -> tuple[SelectedBackend | None, str]:
    """Open the choice of this device's tuning; return it, or a phrase why an existing tuning is not used."""
    from .tuning import TuningError, read_tuning

    try:
        tuning = read_tuning(bundle)
    except TuningError as error:
        return None, f"without the tuning: {error}"
    if tuning is None:
        return None, ""
    best = tuning.best()
    if best is None:
        return None, "without the tuning: it has no measurement that could be chosen"
    kind = next((kind for kind in ALL_KINDS if kind == best.kind), None)
    if kind is None or best.variant not in bundle.manifest.variants or (best.threads is not None and best.threads < 1):
        return None, f"without the tuning: it names {best.variant} on {best.kind}, which this krl-runtime does not know"
    try:
        opened, remark = open_backend(kind, bundle, best.variant, best.threads if threads is None else threads, device)
    except (BackendError, MissingExtraError) as error:
        return None, f"without the tuning, whose choice {kind} cannot be opened: {error}"
    causes: dict[str, str] = {
        other: reason for other in ALL_KINDS if other != kind and (reason := tuning.reason_against(other))
    }
    count = f" with {best.threads} {'thread' if best.threads == 1 else 'threads'}" if best.threads else ""
    why = f"measured best on this device by krl-runtime tune: {best.milliseconds:.3g} ms{count}"
    what = f"{opened.name} runs variant {best.variant} ({'; '.join(filter(None, (why, remark)))})"
    return SelectedBackend(opened, best.variant, f"{what}; skipped: {_listed(causes)}", causes, what), ""


def _summary(what: str, causes: Mapping[str, str], failed: Collection[str]) -> str:
    """Return one short line: a cause ends where its advice begins, and what cannot be here is not named."""
    from .cuda import has_nvidia_gpu

    possible = has_nvidia_gpu()
    named = {
        kind: cause.partition("; ")[0]
        for kind, cause in causes.items()
        if kind not in failed and (possible or kind not in ON_GPU or "was asked for" in cause)
    }
    return f"{what}; skipped: {_listed(named)}" if named else what


def _listed(causes: Mapping[str, str]) -> str:
    return ", ".join(f"{kind} ({cause})" for kind, cause in causes.items())
