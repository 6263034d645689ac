"""How fast a loaded model results on this device, and where the time goes."""

from __future__ import annotations

import io
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from time import perf_counter
from typing import TYPE_CHECKING, Any, TypeAlias

import numpy as np
from PIL import Image

from krl_runtime.bundle import Bundle
from krl_runtime.bundle.further_inputs import example_sample
from krl_runtime.bundle.golden import golden_arrays
from krl_runtime.bundle.tensors import stacked
from krl_runtime.errors import UsageError
from krl_runtime.images.preprocessing import open_image
from krl_runtime.pipelines import Generator, Restorer
from krl_runtime.pipelines.image import ImagePipeline
from krl_runtime.progress import progress
from krl_runtime.verbs import Result

from .telemetry import board_state

if TYPE_CHECKING:
    import numpy.typing as npt

__all__ = ["BenchResult", "bench", "board_rows", "golden_batch", "golden_image", "peak_memory_mib", "summary"]

Model: TypeAlias = "ImagePipeline[Any] | Restorer | Generator"
"""Models that can be measured; a classifier and an embedding network take images, and give a result for each."""

_SIZE = (640, 480)  # VGA, what a camera at the edge gives; decoding is then part of what is measured


def golden_image(bundle: Bundle) -> bytes:
    """Return a bundle's first golden input as a JPEG of 640×480 pixels, for want of an image of the user's.

    Raises:
        BundleError: There are no golden inputs, or they are damaged.
    """
    pixels = golden_arrays(bundle)[bundle.manifest.inputs[0].name][0]
    image = Image.fromarray(pixels[0] if len(pixels) == 1 else np.ascontiguousarray(pixels.transpose(1, 2, 0)))
    file = io.BytesIO()
    image.resize(_SIZE, Image.Resampling.BICUBIC).save(file, "JPEG", quality=90)
    return file.getvalue()


def golden_batch(bundle: Bundle, batch: int) -> dict[str, npt.NDArray[Any]]:
    """Return golden inputs by name ``[batch, ...]``, repeated where there are fewer.

    Raises:
        BundleError: There are no golden inputs, or they are damaged.
    """
    golden = golden_arrays(bundle)
    return {
        spec.name: np.resize(golden[spec.name], (batch, *golden[spec.name].shape[1:]))
        for spec in bundle.manifest.inputs
    }


@dataclass(frozen=True)
class BenchResult(Result):
    """Latency, throughput and memory of a model on this device.

    Attributes:
        batch: Images for one run of the network.
        warmup: Iterations that were not counted.
        iterations: Iterations that were.
        latency_ms: ``"p50"``, ``"p95"``, ``"p99"`` and ``"mean"`` of one iteration, in milliseconds.
        stages_ms: The same for each stage.
        throughput_per_s: Images per second.
        first_result_ms: Time of the first iteration, before the warm-up.
        peak_memory_mib: Of the process; ``None`` where the system does not report it.
        board: The ``board_state`` ``"before"`` and ``"after"`` the iterations; ``None`` where there is none.
    """

    batch: int
    warmup: int
    iterations: int
    latency_ms: Mapping[str, float]
    stages_ms: Mapping[str, Mapping[str, float]]
    throughput_per_s: float
    first_result_ms: float
    peak_memory_mib: float | None
    board: Mapping[str, Any] | None


def bench(
    model: Model,
    image: bytes,
    *,
    batch: int = 1,
    warmup: int = 10,
    iterations: int = 100,
) -> BenchResult:
    """Measure a model from encoded bytes, or latents, to results.

    Args:
        model: The loaded model.
        image: An encoded image; it is decoded anew each time, and once more for each further image. Attributes have
            any values that are accepted. Generators take their golden inputs instead.
        batch: Images for one run of the network; a restorer runs one at a time.
        warmup: Iterations that are not counted.
        iterations: Iterations that are.

    Raises:
        UsageError: ``batch`` or ``iterations`` is less than 1, or ``warmup`` negative; or a restorer gets a
            ``batch``.
        ImageError: The image cannot be decoded.
        BackendError: The network does not take such a batch, or the device failed.
    """
    if batch < 1 or iterations < 1 or warmup < 0:
        raise UsageError(
            f"batch is {batch}, iterations {iterations}, warmup {warmup}; accepted: 1 or more for the first two, "
            "0 or more for the last"
        )
    stages = _stages(model, image, batch)
    first = sum(_iteration(stages))
    for _ in range(warmup):
        _iteration(stages)
    before = board_state()
    rows = [_iteration(stages) for _ in progress(range(iterations), "measuring")]
    after = board_state()
    times = np.asarray(rows) * 1e3
    return BenchResult(
        batch=batch,
        warmup=warmup,
        iterations=iterations,
        latency_ms=summary(times.sum(axis=1)),
        stages_ms={stage: summary(times[:, column]) for column, stage in enumerate(stages)},
        throughput_per_s=batch * iterations / (times.sum() / 1e3),
        first_result_ms=first * 1e3,
        peak_memory_mib=peak_memory_mib(),
        board={"before": before, "after": after} if before or after else None,
    )


def board_rows(board: Mapping[str, Mapping[str, Any]]) -> list[tuple[str, object, object]]:
    """Return the report of ``bench`` on the board as lines of a table: its identity, before, after."""
    flat: list[dict[str, object]] = []
    for state in (board["before"], board["after"]):
        clocks = state.get("clocks_mhz", {}).items()
        flat.append(
            {
                **({"power mode": state["power_mode"]} if "power_mode" in state else {}),
                **{f"{name} °C": f"{degrees:.1f}" for name, degrees in state.get("temperatures_c", {}).items()},
                **{f"{name} MHz": f"{clock['current']:.0f} of {clock['maximum']:.0f}" for name, clock in clocks},
            }
        )
    return [(name, flat[0].get(name), flat[1].get(name)) for name in {**flat[0], **flat[1]}]


def _stages(model: Model, image: bytes, batch: int) -> dict[str, Callable[[Any], Any]]:
    """Return the stages of a model; each gets the output of the one before."""
    if isinstance(model, ImagePipeline):
        one, sample = model, example_sample(model.inputs, image)
        return {
            "preprocess": lambda _: stacked([one.prepare(sample) for _ in range(batch)]),
            "inference": one.run,
            "postprocess": one.interpret_outputs,
        }
    if isinstance(model, Restorer):
        if batch != 1:
            raise UsageError(f"the batch is {batch}, but restoration runs one image at a time; leave it out")
        return {"decode": lambda _: open_image(image, mode=None), "restore": model}
    generator, inputs = model, golden_batch(model.bundle, batch).values()
    return {"inference": lambda _: generator.values(*inputs), "postprocess": generator.interpret}


def _iteration(stages: Mapping[str, Callable[[Any], Any]]) -> list[float]:
    """Return the seconds that each stage took."""
    times, value = [], None
    for stage in stages.values():
        begin = perf_counter()
        value = stage(value)
        times.append(perf_counter() - begin)
    return times


def summary(times: Sequence[float] | np.ndarray) -> dict[str, float]:
    """Return ``"p50"``, ``"p95"``, ``"p99"`` and ``"mean"`` of times."""
    p50, p95, p99 = np.percentile(times, (50, 95, 99))
    return {"p50": float(p50), "p95": float(p95), "p99": float(p99), "mean": float(np.mean(times))}


def peak_memory_mib() -> float | None:
    """Return the largest resident memory of this process so far, in MiB; ``None`` where the system does not report it.

    From ``/proc`` where there is one: what ``getrusage`` tells includes the process that started this one.
    """
    try:
        status = Path("/proc/self/status").read_text(encoding="ascii", errors="replace")
        return int(status.partition("VmHWM:")[2].split()[0]) / 1024
    except (OSError, IndexError, ValueError):
        pass
    peak: float | None = None
    if sys.platform != "win32":
        import resource

        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / (1024 * 1024 if sys.platform == "darwin" else 1024)
    return peak
