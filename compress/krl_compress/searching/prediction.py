"""The latency of a network on a device, predicted from a profile that ``krl-runtime bench --profile`` recorded there.

The latency is a sum: a constant, and each feature of the workload times a coefficient of the device that is not
negative. So a user can read what a layer or a million products cost there.
"""

from __future__ import annotations

import json
import logging
from collections.abc import Mapping, Sequence
from contextlib import nullcontext
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from krl_runtime.device.profiles import Profile, ProfileEntry, machine_facts
from krl_runtime.errors import KrlError, UsageError
from krl_runtime.images.preprocessing import Preprocessing
from krl_train.custom import is_custom
from krl_train.models import ModelSpec, Network

from .counting import Workload, workload

__all__ = ["LEAST_ENTRIES", "Latency", "LatencyModel", "Predictor", "from_profile", "require_machine"]

_log = logging.getLogger("krl")

_FEATURES = tuple(item.name for item in fields(Workload))

LEAST_ENTRIES = len(_FEATURES) + 2
"""Entries that a fit needs: one for each coefficient, the constant's included, also where one entry is left out."""


@dataclass(frozen=True)
class LatencyModel:
    """Latency as a sum over the features of a workload.

    Attributes:
        coefficients: Milliseconds for one unit of each feature of ``Workload``, by name; 0 or more.
        constant: Milliseconds of a run without any work; 0 or more.
        entries: Number of networks that it was fitted to.
        median_error: Median of the relative errors, as 0.08 for 8 %, of each network when it is left out of the fit.
        largest_error: The largest of them.
        largest: Largest value of each feature among these networks, by name.
    """

    coefficients: Mapping[str, float]
    constant: float
    entries: int
    median_error: float
    largest_error: float
    largest: Mapping[str, int]

    @classmethod
    def fit(cls, samples: Sequence[tuple[Workload, float]]) -> LatencyModel:
        """Fit the coefficients by least squares of the relative error.

        Args:
            samples: Workloads with their latencies in milliseconds, above 0.

        Raises:
            UsageError: There are fewer than ``LEAST_ENTRIES``.
        """
        if len(samples) < LEAST_ENTRIES:
            raise UsageError(
                f"a prediction needs {LEAST_ENTRIES} measured networks at least, of different sizes, and there are "
                f"{len(samples)}; record more on the device: krl-runtime bench A.krl B.krl … --profile FILE"
            )
        rows = np.array([[*work.values, 1] for work, _ in samples], np.float64)
        times = np.array([milliseconds for _, milliseconds in samples], np.float64)
        errors = [abs(_left_out(rows, times, index)) for index in range(len(samples))]
        *coefficients, constant = map(float, _solve(rows, times))
        return cls(
            coefficients=dict(zip(_FEATURES, coefficients, strict=True)),
            constant=constant,
            entries=len(samples),
            median_error=median(errors),
            largest_error=max(errors),
            largest=dict(zip(_FEATURES, map(int, rows[:, :-1].max(0)), strict=True)),
        )

    def predict(self, work: Workload) -> float:
        """Return the latency of a workload in milliseconds."""
        each: dict[str, int] = asdict(work)
        return self.constant + sum(self.coefficients[name] * count for name, count in each.items())

    def beyond(self, work: Workload) -> tuple[str, ...]:
        """Return the features of which a workload has more than any network of the fit."""
        return tuple(name for name, count in asdict(work).items() if count > self.largest[name])


def _solve(rows: npt.NDArray[np.float64], times: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
    """Return the coefficients, none negative, that minimize the squared relative errors."""
    from sklearn.linear_model import LinearRegression

    scale = np.maximum(rows.max(0), 1)  # features of 1 and of 1e9 in one system of equations
    weighted = rows / scale / times[:, None]
    fitted = LinearRegression(positive=True, fit_intercept=False).fit(weighted, np.ones(len(times)))
    coefficients: npt.NDArray[np.float64] = fitted.coef_ / scale
    return coefficients


def _left_out(rows: npt.NDArray[np.float64], times: npt.NDArray[np.float64], index: int) -> float:
    """Return the relative error of one row when it is predicted from the others."""
    others = np.arange(len(times)) != index
    return float(rows[index] @ _solve(rows[others], times[others]) / times[index] - 1)


@dataclass(frozen=True)
class Latency:
    """Latency of a network on the profile's machine.

    Attributes:
        milliseconds: Median of one run of the network alone, at batch 1.
        measured: Whether this very network was measured; otherwise the latency is predicted.
        reason: Where the number comes from, in one phrase.
    """

    milliseconds: float
    measured: bool
    reason: str


@dataclass(frozen=True)
class Predictor:
    """Latencies of one precision on one backend of a machine.

    Attributes:
        profile: The profile.
        precision: ``"fp32"``, ``"fp16"`` or ``"int8"``.
        backend: Name of the backend, as ``"onnxruntime-cpu"``.
        model: The fit to the profile's entries.
        entries: Those entries, of batch 1.
    """

    profile: Profile
    precision: str
    backend: str
    model: LatencyModel
    entries: tuple[ProfileEntry, ...]

    def latency(self, spec: ModelSpec, preprocessing: Preprocessing, network: Network | None = None) -> Latency:
        """Return the latency of a classifier: measured where the profile has it, else predicted.

        Args:
            spec: The record of its network.
            preprocessing: Its height, width and channels count.
            network: The network, where it is at hand, or its name is that of the user's own code.

        Raises:
            ModelError: The network cannot be made, or its work not counted.
        """
        wanted = _identity(asdict(spec), preprocessing.shape)
        same = [item for item in self.entries if _identity(item.network, item.shape) == wanted]
        if same:
            names = ", ".join(item.bundle for item in same)
            time = median(item.latency_ms["p50"] for item in same)
            return Latency(time, True, f"measured on {self.profile.name} ({names})")
        work = workload(network or _build(spec, preprocessing), preprocessing.shape)
        beyond = self.model.beyond(work)
        more = f"; it has more {', '.join(beyond)} than each of them" if beyond else ""
        reason = (
            f"predicted from {self.model.entries} networks measured on {self.profile.name}, errors of "
            f"{self.model.median_error:.0%} (median) and {self.model.largest_error:.0%} (largest){more}"
        )
        return Latency(self.model.predict(work), False, reason)


def from_profile(path: str | Path, *, precision: str, backend: str | None = None) -> Predictor:
    """Fit a prediction to the classifiers of a profile, at batch 1.

    Networks of the user's own code are not imported because a file names them; such entries are skipped, with a
    warning, as are those that cannot be made again.

    Args:
        path: The file.
        precision: ``"fp32"``, ``"fp16"`` or ``"int8"``.
        backend: Name of the backend in the profile; may be left out where it has one alone.

    Raises:
        DataError: The file is not a usable profile.
        UsageError: It has too few entries, or none of such a precision and backend, or several backends and none is
            named.
    """
    profile = Profile.read(Path(path))
    alike = [item for item in profile.entries if item.precision == precision and item.batch == 1]
    backends = sorted({item.backend for item in alike})
    chosen = backends[0] if backend is None and len(backends) == 1 else backend
    if chosen not in backends:
        has = sorted({f"{item.precision} on {item.backend}" for item in profile.entries if item.batch == 1})
        raise UsageError(
            f"profile {path}: {precision} on {chosen or 'a backend that is not named'} was asked for; it has, at batch "
            f"1: {', '.join(has) or 'nothing'}"
        )
    entries = tuple(item for item in alike if item.backend == chosen)
    samples = []
    for item in entries:
        try:
            samples.append((_workload_of(item), item.latency_ms["p50"]))
        except (KrlError, TypeError, ValueError, RuntimeError, AttributeError) as error:  # torch's own as well
            _log.warning("profile %s: %s is skipped: %s", path, item.bundle, error)
    try:
        model = LatencyModel.fit(samples)
    except UsageError as error:
        raise UsageError(f"profile {path}, {precision} on {chosen}: {error}") from error
    return Predictor(profile, precision, str(chosen), model, entries)


def _workload_of(entry: ProfileEntry) -> Workload:
    """Return the workload of an entry's network.

    Raises:
        UsageError: The entry has none that may be made here.
        ModelError: It cannot be made.
    """
    if entry.task != "classification" or entry.network is None:
        raise UsageError(f"its task is {entry.task} and it has {'no' if entry.network is None else 'a'} network record")
    spec = ModelSpec(**entry.network)
    if is_custom(spec.name):
        raise UsageError(f"{spec.name} is code of the user's own, which is not run because a file names it")
    return workload(_build(spec, entry.preprocessing), entry.preprocessing.shape)


def _build(spec: ModelSpec, preprocessing: Preprocessing) -> Network:
    """Return the network without values; of one that was trained as its INT8 graph the float network."""
    arguments = {name: value for name, value in spec.arguments.items() if name != "quantize"}
    with nullcontext() if is_custom(spec.name) else torch.device("meta"):  # the user's own code may need values
        return ModelSpec(spec.name, spec.num_classes, spec.in_channels, arguments).build(preprocessing).eval()


def _identity(network: Mapping[str, Any] | None, shape: Sequence[int]) -> str:
    """Return text that is the same for the same network and input."""
    return json.dumps([network, list(shape)], sort_keys=True)


def require_machine(profile: Profile, named: str | None = None, machine: Mapping[str, Any] | None = None) -> None:
    """Refuse a profile of another machine, unless the caller named that one.

    Args:
        profile: The profile.
        named: Name of the machine whose latency counts; ``None`` for this one.
        machine: Facts of this machine; by default those of ``machine_facts``, with the profile's threads and GPU.

    Raises:
        UsageError: The profile is of another machine.
    """
    if named is not None:
        if named != profile.name:
            raise UsageError(f"the profile was recorded on {profile.name}, and {named} was named; name {profile.name}")
        return
    here = machine_facts(profile.machine["threads"], profile.machine["gpu"]) if machine is None else machine
    different = profile.differences(here)
    if different:
        raise UsageError(
            f"the profile was recorded on {profile.name}, and this is {here['name']}: {'; '.join(different)}; name "
            f"{profile.name} if its latency is wanted, or record a profile here: krl-runtime bench … --profile FILE"
        )
