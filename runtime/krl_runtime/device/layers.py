"""``bench --layers``: the time of each layer, by TensorRT's profiler on a device and ONNX Runtime's on a CPU."""

from __future__ import annotations

import json
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from time import perf_counter
from typing import TYPE_CHECKING, Any

import numpy as np

from krl_runtime.backends.onnxruntime import open_session
from krl_runtime.backends.select import SelectedBackend
from krl_runtime.backends.tensorrt.backend import TensorRTBackend
from krl_runtime.bundle import Bundle
from krl_runtime.errors import BackendError, UsageError
from krl_runtime.progress import progress

from .bench import golden_batch

if TYPE_CHECKING:
    import numpy.typing as npt

__all__ = ["LayerTime", "LayerTimes", "layer_times"]

_MOST_BYTES = 1 << 28  # of ONNX Runtime's profile: 300 bytes for each layer and run
_MOST_RUNS = 100  # profiled runs: medians do not change after that, and the profile grows


@dataclass(frozen=True)
class LayerTime:
    """The time of one layer.

    Attributes:
        name: Its name, as the library fused it.
        operator: Its operator; empty if the library does not say.
        ms: Median over the runs, in milliseconds.
        share: Of the sum over all layers, 0 to 1.
    """

    name: str
    operator: str
    ms: float
    share: float


@dataclass(frozen=True)
class LayerTimes:
    """The times of all layers.

    Attributes:
        layers: Slowest first.
        runs: Number of profiled runs.
        sum_ms: Sum of the layers' medians.
        network_ms: Median of the whole network without the profiler, in milliseconds.
    """

    layers: tuple[LayerTime, ...]
    runs: int
    sum_ms: float
    network_ms: float

    def to_dict(self) -> dict[str, Any]:
        """Return it as plain JSON types."""
        return asdict(self)


def layer_times(
    selected: SelectedBackend, bundle: Bundle, *, batch: int, iterations: int, threads: int | None
) -> LayerTimes:
    """Measure the layers of a network on its golden inputs.

    Args:
        selected: The backend that runs it.
        bundle: The bundle.
        batch: Inputs for one run.
        iterations: Runs; 100 at most are profiled.
        threads: Threads for one call on the CPU.

    Raises:
        UsageError: The backend has no profiler that says which layer takes how long.
        BackendError: The profiler gives nothing, or the network cannot be run.
        BundleError: There are no golden inputs.
    """
    inputs, runs = golden_batch(bundle, batch), min(iterations, _MOST_RUNS)
    backend = selected.backend
    operators: dict[str, str] = {}
    if isinstance(backend, TensorRTBackend):
        found = backend.layer_times(inputs, runs)
    elif selected.name == "onnxruntime-cpu":
        chosen = bundle.manifest.variants[selected.variant]
        model = bundle.read(chosen.cpu_file or chosen.file)
        found, operators = _of_onnxruntime(model, inputs, runs, threads)
    else:
        raise UsageError(
            f"--layers is not for {selected.name}, which does not say how long each layer takes; accepted: an engine "
            "of TensorRT, or --backend cpu"
        )
    medians = {name: float(np.median(times)) for name, times in found.items()}
    total = sum(medians.values())
    layers = sorted(
        (LayerTime(name, operators.get(name, ""), ms, ms / total if total else 0.0) for name, ms in medians.items()),
        key=lambda item: -item.ms,
    )
    return LayerTimes(tuple(layers), runs, total, _without_profiler(selected, inputs, runs))


def _without_profiler(selected: SelectedBackend, inputs: Mapping[str, npt.NDArray[Any]], runs: int) -> float:
    times = []
    for _ in range(runs):
        begin = perf_counter()
        selected.run(inputs)
        times.append(perf_counter() - begin)
    return float(np.median(times)) * 1e3


def _of_onnxruntime(
    model: bytes, inputs: Mapping[str, npt.NDArray[Any]], runs: int, threads: int | None
) -> tuple[dict[str, list[float]], dict[str, str]]:
    """Return the milliseconds of each node in each run, and its operator."""
    with TemporaryDirectory() as folder:
        session = open_session(model, cuda=False, threads=threads, profile=Path(folder, "layers"))
        for _ in progress(range(runs + 1), "profiling layers"):  # the first run allocates and is left out
            session.run(None, dict(inputs))
        file = Path(session.end_profiling())
        if file.stat().st_size > _MOST_BYTES:
            raise BackendError(f"ONNX Runtime's profile has more than {_MOST_BYTES >> 20} MiB; give fewer --iterations")
        events = json.loads(file.read_bytes())
    return _summed(events, runs)


def _summed(events: Sequence[Any], runs: int) -> tuple[dict[str, list[float]], dict[str, str]]:
    """Return the times of nodes by run, in milliseconds; a node that runs several times in a run is summed."""
    found: dict[str, list[float]] = defaultdict(list)
    operators: dict[str, str] = {}
    for event in events:
        name, _, kind = str(event.get("name", "")).rpartition("_")
        if event.get("cat") != "Node" or kind != "time" or not name.endswith("_kernel"):
            continue
        node = name.removesuffix("_kernel")
        found[node].append(event["dur"] / 1e3)
        operators[node] = str(event.get("args", {}).get("op_name", ""))
    times = {}
    for node, each in found.items():
        if len(each) % (runs + 1) == 0:
            times[node] = [float(total) for total in np.reshape(each, (runs + 1, -1)).sum(axis=1)[1:]]
    if not times:
        raise BackendError("ONNX Runtime's profile names no layers")
    return times, operators
