"""Find the fastest variant, backend and number of threads on this device, within the bundle's accuracy evidence.

A candidate must pass two checks. By the bundle's evidence, the variant's accuracy drop is at most ``max_drop``, in
points of top-1, or in dB of PSNR if it makes images. On this device, its outputs for the golden inputs are within the
variant's limits. BF16 is not a variant of the bundle, and is judged by its own limits; see
``krl_runtime.evaluation.golden``.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import partial
from statistics import median
from typing import TYPE_CHECKING, Any

from krl_runtime.backends.base import Backend
from krl_runtime.backends.replay import replay
from krl_runtime.backends.select import ALL_KINDS, ON_GPU, Kind, open_backend
from krl_runtime.backends.tuning import Measurement, Tuning, device, libraries, tuning_file
from krl_runtime.bundle import Bundle, Manifest
from krl_runtime.bundle.golden import golden_arrays
from krl_runtime.errors import BackendError, MissingExtraError, UsageError
from krl_runtime.evaluation.golden import bf16_limits, compare, makes_images
from krl_runtime.evaluation.limits import MAX_DROP_DB, MAX_DROP_POINTS, SAME_IMAGE_DB
from krl_runtime.processor import cpu_count
from krl_runtime.progress import progress

if TYPE_CHECKING:
    import numpy.typing as npt

from .timing import interleaved

__all__ = ["tune"]


_PASSES = 2  # there and back: what changes evenly with time cancels out
_ALIKE = 1.05  # times the fastest: within the noise of the measurement, so exactness and fewer threads decide
# The files of a variant that the evidence has scores for, by the kind of backend that runs them.
_SCORES = {"cpu": ("{}.cpu", "{}"), "openvino": ("{}",), "cuda": ("{}.rounded", "{}"), "tensorrt": ("{}.rounded", "{}")}


@dataclass
class _Candidate:
    """One way to run the bundle; its measurement grows."""

    measurement: Measurement


def tune(
    bundle: Bundle,
    *,
    max_drop: float | None = None,
    threads: Sequence[int] = (),
    rounds: int = 7,
    write: bool = True,
) -> Tuning:
    """Measure every variant on every backend that is here, and keep the result for ``krl_runtime.load``.

    Args:
        bundle: The bundle; it stays as it is.
        max_drop: Points of top-1, or dB of PSNR, that a variant may have lost by the bundle's evidence; left out: 1
            point, 0.1 dB.
        threads: Numbers of CPU threads to try; by default 1, 2, 4 … up to the number of CPUs.
        rounds: How often each candidate is measured, all of them in turn.
        write: Whether to keep the result beside the bundle.

    Returns:
        All measurements, the best first: the most exact one among those that are as fast as the fastest, but 5 %.

    Raises:
        UsageError: An argument is out of its range.
        BundleError: A file is damaged, or there are no golden inputs.
        BackendError: Nothing can run the bundle here.
    """
    if max_drop is None:
        max_drop = MAX_DROP_DB if makes_images(bundle.manifest) else MAX_DROP_POINTS
    if max_drop < 0 or rounds < 1 or any(count < 1 for count in threads):
        raise UsageError(f"max_drop is {max_drop}, rounds {rounds}, threads {list(threads)}; accepted: 0, 1, 1 or more")
    bundle.verify()
    golden = golden_arrays(bundle)
    candidates = list(_candidates(bundle, max_drop, list(threads) or _thread_counts()))
    _measure(bundle, candidates, golden, rounds)
    measurements = _ranked([candidate.measurement for candidate in candidates])
    tuning = Tuning(bundle.manifest.digest, device(), libraries(), max_drop, measurements)
    if measurements[0].cause:
        causes = ", ".join(f"{kind} ({tuning.reason_against(kind)})" for kind in ALL_KINDS)
        raise BackendError(f"nothing can run bundle {bundle.path} here: {causes}")
    if write:
        tuning.write(tuning_file(bundle))
    return tuning


def lost(manifest: Manifest, variant: str, kind: str) -> float | None:
    """Return the accuracy drop of a variant by the bundle's evidence, ``None`` without evidence.

    Its unit is points of top-1 or recall@1, or dB of PSNR if the bundle makes images. Without labels, predictions that
    differ from the reference's count as wrong. Without true images, the drop is ``SAME_IMAGE_DB`` less the PSNR to the
    reference.

    Args:
        manifest: The bundle's manifest.
        variant: Name of the variant.
        kind: Kind of backend; some variants have another file for it.
    """
    if variant == "fp32":
        return 0.0
    evidence = manifest.evidence.get(variant)
    scores = evidence.get("scores") if isinstance(evidence, Mapping) else None
    if not isinstance(scores, Mapping):
        return None
    names = [pattern.format(variant) for pattern in _SCORES[kind.partition("-")[0]]]
    measured = next((name for name in names if name in scores), None)
    reference, score = scores.get("fp32"), scores.get(measured)
    if not isinstance(reference, Mapping) or not isinstance(score, Mapping):
        return None
    for key, unit in (("top1", 100), ("map", 100), ("recall_at_1", 100), ("psnr", 1)):
        before, after = reference.get(key), score.get(key)
        if isinstance(before, int | float) and isinstance(after, int | float):
            return (before - after) * unit
    same, psnr = score.get("agreement"), score.get("psnr_to_fp32")
    if isinstance(psnr, int | float):
        return max(0.0, SAME_IMAGE_DB - psnr)
    return (1 - same) * 100 if isinstance(same, int | float) else None


def _thread_counts() -> list[int]:
    cpus = cpu_count()
    return sorted({1 << power for power in range(cpus.bit_length())} | {cpus})


def _candidates(bundle: Bundle, max_drop: float, threads: Sequence[int]) -> Iterator[_Candidate]:
    """Yield the candidates; those that the evidence rules out have a cause."""
    unit = "dB" if makes_images(bundle.manifest) else "points"
    for kind in ALL_KINDS:
        for variant in bundle.manifest.variants:
            points = lost(bundle.manifest, variant, kind)
            cause = ""
            if points is None:
                cause = f"the bundle has no accuracy evidence for variant {variant}"
            elif not points <= max_drop:
                drop = f"{points:.2f} {unit}"
                cause = f"variant {variant} drops by {drop} by the bundle's evidence, accepted: {max_drop:g}"
            counts: Sequence[int | None] = [None] if cause or kind in ON_GPU else threads
            for count in counts:
                yield _Candidate(Measurement(kind, variant, count, cause=cause))


def _check(bundle: Bundle, candidate: _Candidate, golden: Mapping[str, npt.NDArray[Any]]) -> None:
    """Replay the golden inputs on a candidate; one that fails gets its cause."""
    found = candidate.measurement
    if found.cause:
        return
    error, cause = None, ""
    try:
        with _opened(bundle, found) as backend:
            accepted = bundle.manifest.variants[found.variant]
            if found.kind == "openvino-bf16":
                accepted = bf16_limits(accepted, golden, bundle.manifest)
            error, _, cause = compare(bundle.manifest, accepted, replay(bundle, backend, golden), golden)
    except (BackendError, MissingExtraError) as problem:
        cause = str(problem)
    candidate.measurement = replace(found, max_abs_error=error, cause=cause)


def _measure(
    bundle: Bundle, candidates: Sequence[_Candidate], golden: Mapping[str, npt.NDArray[Any]], rounds: int
) -> None:
    """Check each candidate and time one call of it at batch 1, with one of them open at a time.

    They are opened twice, the second time in reverse order, so that a clock or a load that changes slowly counts alike
    for all. More of them open at once would be compared more exactly, and do not fit the memory of a small board.
    """
    feed = {spec.name: golden[spec.name][:1] for spec in bundle.manifest.inputs}
    times: dict[int, list[float]] = {index: [] for index in range(len(candidates))}
    passes = min(_PASSES, rounds)
    steps = [(number, index) for number in range(passes) for index in (times if number % 2 == 0 else reversed(times))]
    for number, index in progress(steps, "measuring"):
        candidate = candidates[index]
        if number == 0:
            _check(bundle, candidate, golden)
        if not candidate.measurement.cause:
            times[index] += _time(bundle, candidate, feed, -(-rounds // passes))
    for candidate, each in zip(candidates, times.values(), strict=True):
        if each and not candidate.measurement.cause:
            candidate.measurement = replace(candidate.measurement, milliseconds=median(each))


def _time(bundle: Bundle, candidate: _Candidate, feed: Mapping[str, npt.NDArray[Any]], rounds: int) -> list[float]:
    """Return the milliseconds of one call, of each round; a candidate that fails now gets its cause."""
    found = candidate.measurement
    try:
        with _opened(bundle, found) as backend:
            return interleaved({"": partial(backend.run, feed)}, rounds=rounds)[""]
    except BackendError as problem:
        candidate.measurement = replace(found, cause=str(problem))
        return []


@contextmanager
def _opened(bundle: Bundle, found: Measurement) -> Iterator[Backend]:
    kind: Kind = found.kind  # type: ignore[assignment]
    backend, _ = open_backend(kind, bundle, found.variant, found.threads)
    try:
        yield backend
    finally:
        backend.close()


def _ranked(measurements: Sequence[Measurement]) -> tuple[Measurement, ...]:
    """Put the choice first, then by time; among those as fast as the fastest the most exact with the fewest threads."""
    timed = [(item.milliseconds, item) for item in measurements if item.milliseconds is not None]
    ordered = [item for _, item in sorted(timed, key=lambda pair: pair[0])]
    if ordered:
        alike = [item for item in ordered if (item.milliseconds or 0) <= _ALIKE * (ordered[0].milliseconds or 0)]
        choice = min(alike, key=lambda item: (item.max_abs_error or 0, item.threads or 0))
        ordered.remove(choice)
        ordered.insert(0, choice)
    return (*ordered, *(item for item in measurements if item.milliseconds is None))
