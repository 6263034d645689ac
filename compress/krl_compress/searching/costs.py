"""Costs of a student where it will run: measured of a real bundle, here or on a board, or predicted."""

from __future__ import annotations

import json
import logging
import subprocess
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal, Protocol, TypeAlias

import krl_deploy
from krl_compress.config import MeasuringConfig
from krl_runtime.bundle import Bundle
from krl_runtime.device.profiles import Profile
from krl_runtime.errors import BackendError, KrlError, UsageError
from krl_train.run import Run

from .budgets import Budget, Quantity
from .prediction import from_profile, require_machine

__all__ = [
    "CONVERSIONS",
    "Bench",
    "Cost",
    "Meter",
    "Precision",
    "add_variants",
    "excess",
    "make_bundle",
    "meter_of",
    "run_bench",
]

_log = logging.getLogger("krl")

Precision: TypeAlias = Literal["fp32", "fp16", "int8"]
CONVERSIONS: Mapping[Precision, Callable[..., Any]] = {"fp16": krl_deploy.fp16, "int8": krl_deploy.quantize}
"""By precision, the verb that adds it to a bundle; FP32 is there already."""

# Other work on the machine only ever adds time, so the least of several medians counts.
_REPEATS = 2
_ITERATIONS = 60  # in each: at 1 ms they take less than the start of the process
_ITERATIONS_OF_RESTORERS = 5  # of an image of 640x480 in tiles, which takes a large part of a second
_CALIBRATION = 64  # images: the ranges of a network that is only timed need not be good
_ALL = 100.0  # percentage points: the gate is for students that are trained, and has no say on what they cost


@dataclass(frozen=True)
class Cost:
    """Costs of a student in one precision.

    Attributes:
        macs: Multiply-accumulate operations of one image.
        parameters: Number of parameters.
        size: Bytes of the model file.
        latency: Milliseconds of the network alone for one image, p50; ``None`` where it is not known.
        memory: Bytes of the process at its peak; ``None`` where it is not known.
        predicted: Whether the latency is predicted from a profile, and not measured.
    """

    macs: int
    parameters: int
    size: int
    latency: float | None = None
    memory: float | None = None
    predicted: bool = False

    def of(self, quantity: Quantity) -> float | None:
        """Return the amount of a quantity; ``None`` where it is not known."""
        value: float | None = getattr(self, quantity)
        return value

    def to_dict(self) -> dict[str, Any]:
        """Return the cost as plain JSON types."""
        return asdict(self)


def excess(cost: Cost, budgets: Sequence[Budget]) -> float:
    """Return the largest share of a budget that is used: up to 1 meets all of them.

    Raises:
        BackendError: A quantity is not known of this cost.
    """
    shares = []
    for budget in budgets:
        value = cost.of(budget.quantity)
        if value is None:
            raise BackendError(f"the {budget.quantity} is not known here, so --budget {budget.quantity} says nothing")
        shares.append(value / budget.most)
    return max(shares)


class Meter(Protocol):
    """Tells what a student costs."""

    def __call__(self, run: Run, precision: Precision, macs: int, parameters: int) -> Cost | None:
        """Return the cost of a student that is not trained yet; ``None`` where the precision cannot be had."""
        ...

    def measure(self, bundle: Path, precision: Precision, macs: int, parameters: int, run: Run) -> Cost:
        """Return the cost of one variant of a bundle, which was made of a run."""
        ...


@dataclass(frozen=True)
class Bench:
    """How ``krl-runtime bench`` is run.

    Attributes:
        board: Name of the board to run it on; ``None`` is this machine.
        backend: Backend that has to run it; ``None`` is the first that can.
        threads: CPU threads.
    """

    board: str | None = None
    backend: str | None = None
    threads: int | None = None

    @classmethod
    def of(cls, config: MeasuringConfig) -> Bench:
        """Return it as the options have it."""
        return cls(config.board, config.backend, config.threads)


def run_bench(bundle: Path, variant: str, how: Bench) -> dict[str, Any]:
    """Run ``krl-runtime bench`` in a process of its own, or on a board, and return what it printed.

    Raises:
        BackendError: It failed; its message is passed on.
    """
    restores = Bundle.open(bundle).manifest.task == "restoration"
    count = _ITERATIONS_OF_RESTORERS if restores else _ITERATIONS
    command = ["bench", str(bundle), "--json", "--variant", variant]
    command += ["--iterations", str(count), "--warmup", str(count // 5)]
    if how.backend is not None:
        command += ["--require", how.backend]
    if how.threads is not None:
        command += ["--threads", str(how.threads)]
    found: dict[str, Any] = json.loads(_run("krl_runtime", command, how.board))
    return found


def build_engine(bundle: Path, variant: str, how: Bench) -> None:
    """Build the engine of a variant where it will run.

    Raises:
        BackendError: It failed; its message is passed on.
    """
    _run("krl_deploy", ["build-engine", str(bundle), "--precision", variant], how.board)


def _run(module: str, command: Sequence[str], board: str | None) -> str:
    """Return the standard output of a command, of this machine or of a board."""
    if board is not None:
        done = krl_deploy.on(board, command)
        code, output, message = done.exit_code, done.output, f"the message of board {board} stands above"
    else:
        process = subprocess.run([sys.executable, "-m", module, *command], capture_output=True, text=True)
        code, output, message = process.returncode, process.stdout, process.stderr.strip()
    if code:
        raise BackendError(f"{' '.join(command[:2])} failed with exit code {code}: {message}")
    return output


class BenchMeter:
    """Measures a student: makes a bundle of it, and runs ``krl-runtime bench``.

    Args:
        images: Folder of images, for golden inputs and calibration; generators have none.
        how: How to run it.
        bench: Runs ``krl-runtime bench``.
        build: Builds an engine, where TensorRT is to run it.
    """

    def __init__(
        self,
        images: Path | None,
        how: Bench,
        bench: Callable[[Path, str, Bench], dict[str, Any]] = run_bench,
        build: Callable[[Path, str, Bench], None] = build_engine,
    ) -> None:
        self._images, self._how = images, how
        self._bench, self._build = bench, build

    def __call__(self, run: Run, precision: Precision, macs: int, parameters: int) -> Cost | None:
        """Return the cost of a student; a precision that cannot be had is logged with the reason."""
        with _untrained_bundle(run, self._images, precision) as bundle:
            return None if bundle is None else self.measure(bundle, precision, macs, parameters, run)

    def measure(self, bundle: Path, precision: Precision, macs: int, parameters: int, run: Run) -> Cost:
        """Return the cost of one variant of a bundle, which was made of a run."""
        del run
        if self._how.backend == "tensorrt":
            self._build(bundle, precision, self._how)
        found = [self._bench(bundle, precision, self._how) for _ in range(_REPEATS)]
        latency = min(_network_ms(each["stages_ms"]) for each in found)
        peaks = [each["peak_memory_mib"] for each in found if each["peak_memory_mib"] is not None]
        memory = min(peaks) * 2**20 if peaks else None
        return Cost(macs, parameters, _file_size(bundle, precision, found[0]["backend"]), latency, memory)


class ProfileMeter:
    """Predicts the latency of a student from a profile; its size is that of a real bundle, its memory is not known.

    Args:
        profile: File that ``krl-runtime bench --profile`` recorded.
        machine: Name of the machine that recorded it, if it is another one than this.
        images: Folder of images, for golden inputs and calibration; generators have none.
        precisions: The precisions that are asked for.
        backend: Backend in the profile; ``None`` where it has one alone.

    Raises:
        DataError: The file is not a profile.
        UsageError: It was recorded on another machine, or has too few networks in a precision.
    """

    def __init__(
        self,
        profile: Path,
        machine: str | None,
        images: Path | None,
        precisions: Sequence[Precision],
        backend: str | None,
    ) -> None:
        require_machine(Profile.read(profile), machine)
        self._images = images
        self._predictors = {
            precision: from_profile(profile, precision=precision, backend=_backend_name(backend))
            for precision in precisions
        }

    def __call__(self, run: Run, precision: Precision, macs: int, parameters: int) -> Cost | None:
        """Return the cost of a student; a precision that cannot be had is logged with the reason."""
        with _untrained_bundle(run, self._images, precision) as bundle:
            return None if bundle is None else self.measure(bundle, precision, macs, parameters, run)

    def measure(self, bundle: Path, precision: Precision, macs: int, parameters: int, run: Run) -> Cost:
        """Return the cost of one variant of a bundle, which was made of a run."""
        predictor, record = self._predictors[precision], run.record
        if record.task != "classification":
            raise UsageError(
                f"--profile predicts classifiers, and {run.path} is of the task {record.task}; leave it out"
            )
        latency = predictor.latency(record.model, record.preprocessing, run.network())
        size = _file_size(bundle, precision, predictor.backend)
        return Cost(macs, parameters, size, latency.milliseconds, predicted=not latency.measured)


@contextmanager
def _untrained_bundle(run: Run, images: Path | None, precision: Precision) -> Iterator[Path | None]:
    """Yield a bundle of a network that is not trained, with one variant; ``None`` where that cannot be had."""
    import tempfile

    with tempfile.TemporaryDirectory() as folder:
        with _errors_only():
            bundle = make_bundle(run, Path(folder) / "student.krl", images)
            failed = add_variants(bundle, images, [precision])
        for name, reason in failed.items():
            _log.info("%s: no %s: %s", run.path.name, name, reason)
        yield None if failed else bundle


@contextmanager
def _errors_only() -> Iterator[None]:
    """Keep warnings to itself that mean nothing for a network which is not trained."""
    level = _log.level
    _log.setLevel(logging.ERROR)
    try:
        yield
    finally:
        _log.setLevel(level)


def _network_ms(stages: Mapping[str, Mapping[str, float]]) -> float:
    """Return the milliseconds of the network alone; restorers cut and join tiles in the same stage."""
    return stages["inference" if "inference" in stages else "restore"]["p50"]


def _file_size(bundle: Path, precision: Precision, backend: str) -> int:
    """Return the bytes of the file that a backend loads."""
    manifest = Bundle.open(bundle).manifest
    variant = manifest.variants[precision]
    own = {"onnxruntime-cpu": variant.cpu_file, "openvino": variant.fp32_file}.get(backend)
    return manifest.files[own or variant.file].size


def _backend_name(backend: str | None) -> str | None:
    """Return the name that results have for a backend."""
    return f"onnxruntime-{backend}" if backend in ("cpu", "cuda") else backend


def meter_of(config: MeasuringConfig, images: Path | None, precisions: Sequence[Precision]) -> Meter:
    """Return the meter that the options ask for.

    Raises:
        KrlError: The profile cannot be used.
    """
    if config.profile is not None:
        return ProfileMeter(config.profile, config.profile_machine, images, precisions, config.backend)
    return BenchMeter(images, Bench.of(config))


def make_bundle(run: Run, out: Path, images: Path | None) -> Path:
    """Export a run.

    Raises:
        KrlError: It cannot be exported.
    """
    return krl_deploy.export(run=run.path, out=out, data=images, overwrite=True).bundle


def _limits(bundle: Path) -> dict[str, Any]:
    """Return the limits of the accuracy gate that let everything pass."""
    task = Bundle.open(bundle).manifest.task
    own = {"generation": {"min_psnr": 0.0}, "restoration": {"max_drop": _ALL}}
    return {"accept_unmeasured": True, **own.get(task, {"max_drop": _ALL, "max_recall_drop": _ALL})}


def add_variants(
    bundle: Path, images: Path | None, precisions: Sequence[Precision], *, count: int = _CALIBRATION
) -> dict[Precision, str]:
    """Add variants to a bundle that are only timed, or measured without a gate.

    Args:
        bundle: The bundle.
        images: Folder of images; generators have none.
        precisions: Those to add.
        count: Images to calibrate and to measure on, at most.

    Returns:
        For each that cannot be had, the reason.
    """
    failed: dict[Precision, str] = {}
    for precision in precisions:
        if precision not in CONVERSIONS:
            continue
        more = {"limit": count} if precision == "int8" else {}
        limits = _limits(bundle)
        try:
            CONVERSIONS[precision](bundle=bundle, data=images, val_limit=count, **more, **limits)
        except KrlError as error:
            failed[precision] = str(error)
    return failed
