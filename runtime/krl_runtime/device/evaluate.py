"""Accuracy of a bundle on real data, as this device runs it: each variant on each backend, with latency and size."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial
from importlib.util import find_spec
from pathlib import Path
from statistics import median
from typing import TYPE_CHECKING, Any, Literal

from krl_runtime.backends.select import KINDS, Kind, SelectedBackend, open_backend
from krl_runtime.backends.tuning import device, libraries
from krl_runtime.bundle import Bundle
from krl_runtime.bundle.golden import golden_arrays
from krl_runtime.bundle.sidecar import add_evaluation
from krl_runtime.errors import BackendError, BundleError, MissingExtraError, ModelError, NotAvailableError, UsageError
from krl_runtime.images.folders import OnBadImage
from krl_runtime.pipelines import pipeline_of
from krl_runtime.verbs import Result

from .measures import Measure, Outputs, measure_of
from .timing import interleaved

if TYPE_CHECKING:
    import numpy.typing as npt

__all__ = ["Evaluation", "Row", "evaluate"]

_ROUNDS = 7  # blocks of calls of which the latency is the median, as krl-runtime tune measures
_ADVICE = {
    "classification": "; give images with labels that the model has",
    "embedding": "; give images with labels, two of each",
}
_REFERENCE = "fp32"  # all other variants are compared with it


@dataclass(frozen=True)
class Row:
    """One variant on one backend of this device.

    Attributes:
        variant: Its name.
        kind: Kind of backend, as ``krl_runtime.load`` takes it.
        state: ``"measured"``, ``"failed"``, or ``"unavailable"`` if this machine has no such backend.
        metrics: The figures. Of classifiers ``count``, ``correct``, ``top1`` (0 to 1) and ``top1_standard_error``,
            ``top5`` (of more than five classes), or of several labels ``map`` (0 to 1) with its error, ``f1_macro`` and
            ``labels``; ``drop`` (points of top-1 or mAP against the reference) and
            ``drop_standard_error``, ``agreement`` (share with the reference's prediction), ``snr_db``, ``recall`` by
            class name and ``confusion`` (``[true][predicted]`` counts), and of bundles that can say "none of these"
            ``refused`` (share of images) and ``top1_of_known`` (of the others); of embedding networks ``recall_at_1``
            and ``recall_at_5`` (0 to 1) with their errors, of ``counted`` images, ``map_at_r``, ``drop`` (points of
            ``recall_at_1``), ``agreement`` (share that is nearest to its own embedding of the reference), ``snr_db``
            and ``mean_cosine``; of restorers ``psnr`` (dB), ``ssim``,
            ``drop`` (dB) and ``images``; of restorers and generators ``psnr_to_fp32`` (dB).
        latency_ms: Median time of one call of the network with one input; ``None`` where it was not measured.
        size_bytes: Size of the file that runs.
        cause: Why it failed or is not available.
    """

    variant: str
    kind: Kind
    state: Literal["measured", "failed", "unavailable"]
    metrics: Mapping[str, Any] = field(default_factory=dict)
    latency_ms: float | None = None
    size_bytes: int | None = None
    cause: str = ""


@dataclass(frozen=True, kw_only=True)
class Evaluation(Result):
    """The accuracy of a bundle on this device.

    Attributes:
        bundle: Its folder.
        manifest: Digest of its manifest.
        task: Its task.
        labels: Class names in the order of the confusion; empty where there are none.
        data: Name of the data.
        identity: Hash of the data.
        unit: Of a drop: ``"points"`` of top-1, mAP or recall@1, or ``"dB"`` of PSNR.
        reference: Variant and backend that the others are compared with; empty if FP32 was not measured.
        remark: What the data says nothing of; empty if there is nothing.
        device: Identity of the device.
        libraries: Versions of the libraries that ran, and of the GPU's driver.
        rows: All variants on all backends, the reference first.
    """

    bundle: Path
    manifest: str
    task: str
    labels: tuple[str, ...]
    data: str
    identity: str
    unit: str
    reference: str
    remark: str
    device: Mapping[str, Any]
    libraries: Mapping[str, str]
    rows: tuple[Row, ...]

    def faults(self, max_drop: float) -> list[str]:
        """Return why a limit on the drop is not kept; empty if every row that was measured keeps it.

        Args:
            max_drop: Largest drop that is accepted, in ``unit``.
        """
        measured = [row for row in self.rows if row.state == "measured"]
        found = [f"{row.variant} on {row.kind} failed: {row.cause}" for row in self.rows if row.state == "failed"]
        if not self.reference:
            return [*found, "fp32 was not measured, so that there is no drop"]
        for row in measured:
            drop = row.metrics.get("drop")
            if drop is None:
                advice = _ADVICE.get(self.task, "")
                return [*found, f"the truth is not known, so that there is no drop{advice}"]
            # A difference of 1 in 100 is 1 point, and not 1.00…09.
            if not round(drop, 9) <= max_drop:
                found.append(f"{row.variant} on {row.kind} drops by {drop:.3g} {self.unit}, accepted: {max_drop:g}")
        return found


def evaluate(
    bundle: Bundle,
    data: str | Path | None = None,
    *,
    split: str = "auto",
    limit: int | None = None,
    variants: Sequence[str] = (),
    backends: Sequence[Kind] = (),
    threads: int | None = None,
    on_bad_image: OnBadImage = "refuse",
    keep: bool = True,
) -> Evaluation:
    """Measure a bundle on real data: each variant on each backend that is here.

    Args:
        bundle: The bundle; it stays as it is.
        data: A folder of images: ``CLASS/*``, or with ``train`` and ``val``; or a list of images, see
            ``krl_runtime.images.lists.read_list``; of a generator ``None``.
        split: ``"auto"`` (``val`` of a folder that has it, else all images), ``"train"``, ``"val"`` or ``"all"``.
        limit: Number of images at most, the same number of each class; ``None`` for all. Of a generator latents, 256.
        variants: Variants to measure beside FP32, which they are compared with; all by default.
        backends: Kinds of backends to measure on; by default TensorRT, TensorRT-RTX, CUDA and the CPU, and OpenVINO
            where it is installed.
        threads: Threads for one call on the CPU; ``None`` means one for each physical core.
        on_bad_image: Action for files that are not readable images.
        keep: Whether to keep the result as evidence beside the bundle.

    Returns:
        All rows, the reference first: FP32 on ONNX Runtime's CPU provider, else on the first backend that runs it.

    Raises:
        UsageError: An argument is not accepted.
        BundleError: A file is damaged.
        DataError: The data cannot be used.
        BackendError: Nothing can run the bundle here.
    """
    unknown = [name for name in variants if name not in bundle.manifest.variants]
    if unknown:
        raise UsageError(
            f"bundle {bundle.path} has no variant {unknown[0]!r}; it has: {', '.join(bundle.manifest.variants)}"
        )
    if limit is not None and limit < 1:
        raise UsageError(f"limit is {limit}; accepted: 1 or more, or nothing for all images")
    bundle.verify()
    pipeline_of(bundle)  # another task than the pipelines know is refused before any work
    measure = measure_of(bundle, None if data is None else Path(data), split=split, limit=limit, on_bad=on_bad_image)
    rows, reference = _rows(bundle, measure, variants, backends, threads)
    if all(row.state != "measured" for row in rows):
        causes = "; ".join(f"{row.variant} on {row.kind} ({row.cause})" for row in rows)
        raise BackendError(f"nothing can run bundle {bundle.path} here: {causes}")
    found = Evaluation(
        bundle=bundle.path,
        manifest=bundle.manifest.digest,
        task=bundle.manifest.task,
        labels=bundle.manifest.labels,
        data=measure.name,
        identity=measure.identity,
        unit=measure.unit,
        reference=reference,
        remark=measure.remark,
        device=device(),
        libraries=libraries(),
        rows=tuple(rows),
    )
    if keep:
        add_evaluation(bundle.path, found.identity, found.to_dict())
    return found


def _rows(
    bundle: Bundle, measure: Measure, variants: Sequence[str], backends: Sequence[Kind], threads: int | None
) -> tuple[list[Row], str]:
    """Measure each variant on each backend, one of them open at a time; return the name of the reference as well."""
    extra: tuple[Kind, ...] = ("openvino", "openvino-bf16") if find_spec("openvino") else ()
    kinds = tuple(backends) or (*KINDS, *extra)
    names = [name for name in bundle.manifest.variants if not variants or name in (*variants, _REFERENCE)]
    pairs = [(name, kind) for name in names for kind in kinds]
    pairs.sort(key=lambda pair: (pair[0] != _REFERENCE, pair[0] == _REFERENCE and pair[1] != "cpu"))
    reference: Outputs | None = None
    name, rows = "", []
    for variant, kind in pairs:
        row, outputs = _row(bundle, measure, variant, kind, threads, reference)
        rows.append(row)
        if reference is None and row.state == "measured":
            reference = outputs
            name = f"{variant} on {kind}" if variant == _REFERENCE else ""
    return (rows if name else [_without_reference(row) for row in rows]), name


def _row(
    bundle: Bundle, measure: Measure, variant: str, kind: Kind, threads: int | None, reference: Outputs | None
) -> tuple[Row, Outputs]:
    try:
        with _opened(bundle, variant, kind, threads) as backend:
            model = pipeline_of(bundle)(bundle, backend)
            metrics, outputs = measure.figures(model, reference, f"{variant} on {kind}")
            latency = _latency(bundle, backend)
    except (MissingExtraError, NotAvailableError) as error:
        return Row(variant, kind, "unavailable", cause=str(error)), []
    except (BackendError, ModelError) as error:
        return Row(variant, kind, "failed", cause=str(error)), []
    return Row(variant, kind, "measured", metrics, latency, _size(bundle, variant, kind)), outputs


@contextmanager
def _opened(bundle: Bundle, variant: str, kind: Kind, threads: int | None) -> Iterator[SelectedBackend]:
    opened, remark = open_backend(kind, bundle, variant, threads)
    backend = SelectedBackend(opened, variant, remark, {})
    try:
        yield backend
    finally:
        backend.close()


def _latency(bundle: Bundle, backend: SelectedBackend) -> float | None:
    """Return the median time of one call with the first golden input, in milliseconds."""
    try:
        golden = golden_arrays(bundle)
    except BundleError:  # there are none
        return None
    feed: dict[str, npt.NDArray[Any]] = {spec.name: golden[spec.name][:1] for spec in bundle.manifest.inputs}
    return median(interleaved({"": partial(backend.run, feed)}, rounds=_ROUNDS)[""])


def _size(bundle: Bundle, variant: str, kind: Kind) -> int | None:
    """Return the bytes of the file that a kind of backend runs."""
    if kind in ("tensorrt", "tensorrt-rtx"):
        sizes = [
            bundle.engine_entry(key).size
            for key, engine in bundle.engines.items()
            if engine.library == kind and engine.variant == variant
        ]
        return max(sizes, default=None)
    files = bundle.manifest.variants[variant]
    own = {"cpu": files.cpu_file, "openvino": files.fp32_file, "openvino-bf16": files.fp32_file}.get(kind)
    return bundle.manifest.files[own or files.file].size


def _without_reference(row: Row) -> Row:
    """Return a row without figures of a comparison with FP32, which was not measured."""
    compared = ("drop", "drop_standard_error", "agreement", "snr_db", "mean_cosine", "psnr_to_fp32")
    kept = {name: value for name, value in row.metrics.items() if name not in compared}
    return Row(row.variant, row.kind, row.state, kept, row.latency_ms, row.size_bytes, row.cause)
