"""Latency profiles: what ``krl-runtime bench --profile`` measured on one machine, in a file that others can read.

A workstation predicts from it how fast a network is on the board that recorded it. So an entry has the network's
record, from which training makes it again, beside its latencies.
"""

from __future__ import annotations

import json
import math
import platform
import re
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, fields, replace
from pathlib import Path
from typing import Any

from krl_runtime.backends.tuning import device, libraries
from krl_runtime.errors import DataError, KrlError, UsageError
from krl_runtime.files import dump_digested, write_atomic
from krl_runtime.images.preprocessing import Preprocessing

from .telemetry import board_state

__all__ = ["Profile", "ProfileEntry", "machine_facts"]

_KIND = "krl latency profile"
_SCHEMA_VERSION = 1  # rises with each change of the format; an older profile is recorded again
_MAX_BYTES = 16 << 20  # an entry has about two kilobytes, that of a pruned network some ten
_SUMMARY = ("p50", "p95", "p99", "mean")
_NAME = "name"


def machine_facts(threads: int | None = None, gpu: int = 0) -> dict[str, Any]:
    """Return the facts of this machine that decide how fast a model runs, as plain JSON types.

    Args:
        threads: CPU threads for one call; ``None`` means one for each physical core.
        gpu: Number of the GPU.

    Returns:
        ``name`` (of the host), ``system``, ``processor``, ``cpus``, ``board``, ``gpus`` (their names), ``gpu`` (the
        number of the one that runs), ``libraries`` (versions by name), ``threads``, and ``power_mode``, which is
        ``None`` where it is not known.
    """
    return {
        _NAME: platform.node() or "localhost",
        **device(),
        "gpu": gpu,
        "libraries": libraries(),
        "threads": threads,
        "power_mode": board_state().get("power_mode"),
    }


@dataclass(frozen=True)
class ProfileEntry:
    """Latency of one variant of a bundle on one backend.

    Attributes:
        bundle: Name of the bundle, without ``.krl``.
        task: Task of the bundle.
        variant: Name of the variant.
        precision: ``"fp32"``, ``"fp16"`` or ``"int8"``.
        backend: The backend that ran it, as ``"onnxruntime-cpu"``.
        batch: Inputs of one run.
        shape: Shape of one input, without the batch.
        sha256: Hash of the ONNX file that ran, or that its engine was built from.
        file_bytes: Size of that file.
        iterations: Runs that were measured.
        latency_ms: ``"p50"``, ``"p95"``, ``"p99"`` and ``"mean"`` of one run of the network alone, in milliseconds.
        pipeline_ms: The same from encoded bytes, or latents, to results.
        network: ``"name"``, ``"num_classes"``, ``"in_channels"`` and ``"arguments"`` of the ``ModelSpec`` that makes
            the network again; ``None`` for a bundle that has none, such as an imported one.
        preprocessing: Of the bundle.
    """

    bundle: str
    task: str
    variant: str
    precision: str
    backend: str
    batch: int
    shape: tuple[int, ...]
    sha256: str
    file_bytes: int
    iterations: int
    latency_ms: Mapping[str, float]
    pipeline_ms: Mapping[str, float]
    network: Mapping[str, Any] | None
    preprocessing: Preprocessing

    def __post_init__(self) -> None:
        """Check every field.

        Raises:
            UsageError: A field is of another type or out of its range.
        """
        _check("entry", {item.name: getattr(self, item.name) for item in fields(self)}, _ENTRY)

    @property
    def key(self) -> tuple[str, str, str, int]:
        """Bundle, variant, backend and batch: an entry with the same ones is replaced."""
        return self.bundle, self.variant, self.backend, self.batch

    def to_dict(self) -> dict[str, Any]:
        """Return the entry as plain JSON types."""
        return {**asdict(self), "shape": list(self.shape), "preprocessing": self.preprocessing.to_dict()}

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> ProfileEntry:
        """Build from plain JSON types.

        Raises:
            UsageError: A value is not accepted.
            TypeError: A key is missing or unknown.
        """
        plain = {**values, "shape": tuple(values["shape"])}
        return cls(**{**plain, "preprocessing": Preprocessing.from_dict(values["preprocessing"])})


@dataclass(frozen=True)
class Profile:
    """Latencies of one machine.

    Attributes:
        machine: Facts of the machine; see ``machine_facts``.
        entries: The measurements.
    """

    machine: Mapping[str, Any]
    entries: tuple[ProfileEntry, ...] = ()

    def __post_init__(self) -> None:
        """Check the facts of the machine.

        Raises:
            UsageError: One is missing, unknown, or of another type.
        """
        _check("machine", self.machine, _MACHINE)

    @property
    def name(self) -> str:
        """Name of the machine."""
        return str(self.machine[_NAME])

    def with_entry(self, entry: ProfileEntry) -> Profile:
        """Return the profile with an entry, in place of one with the same key."""
        others = tuple(item for item in self.entries if item.key != entry.key)
        return replace(self, entries=(*others, entry))

    def differences(self, machine: Mapping[str, Any]) -> tuple[str, ...]:
        """Return the facts in which another machine differs, in words; none for the same one.

        The name is not compared: a container has a new one each time.
        """
        return tuple(
            f"{fact} {self.machine[fact]!r} was recorded, {machine[fact]!r} is here"
            for fact in _MACHINE
            if fact != _NAME and self.machine[fact] != machine[fact]
        )

    def write(self, path: Path) -> None:
        """Write the file, whole or not at all.

        Raises:
            OSError: It cannot be written.
        """
        entries = [entry.to_dict() for entry in self.entries]
        values = {"kind": _KIND, "schema_version": _SCHEMA_VERSION, "machine": dict(self.machine), "entries": entries}
        write_atomic(path, dump_digested(values))

    @classmethod
    def read(cls, path: Path) -> Profile:
        """Read and check a file.

        Raises:
            DataError: It cannot be read, is not a profile, damaged, changed by hand, or of another schema version.
        """
        try:
            with path.open("rb") as file:
                data = file.read(_MAX_BYTES + 1)
        except (OSError, ValueError) as error:
            raise DataError(f"profile {path} cannot be read: {error}") from error
        if len(data) > _MAX_BYTES:
            raise DataError(f"profile {path} has more than {_MAX_BYTES} bytes, which no profile has; {_ANOTHER}")
        try:
            return cls._parse(data)
        except (KeyError, TypeError, ValueError, OverflowError, AttributeError, RecursionError, KrlError) as error:
            reason = f"{error} is missing" if isinstance(error, KeyError) else error
            raise DataError(f"{path} is not a usable latency profile: {reason}; {_ANOTHER}") from error

    @classmethod
    def _parse(cls, data: bytes) -> Profile:
        values = json.loads(data, parse_constant=_no_constant)
        if not isinstance(values, dict) or values.get("kind") != _KIND:
            raise ValueError(f"its kind is not {_KIND!r}")
        if values["schema_version"] != _SCHEMA_VERSION:
            raise ValueError(f"schema version {values['schema_version']!r}, this krl reads {_SCHEMA_VERSION}")
        if dump_digested(values) != data:
            raise ValueError("it was changed after krl wrote it (its digest differs)")
        if not isinstance(values["entries"], list):
            raise TypeError(f"entries are {values['entries']!r}; accepted: a list")
        entries = tuple(ProfileEntry.from_dict(item) for item in values["entries"])
        if len({entry.key for entry in entries}) < len(entries):
            raise ValueError("two entries have the same bundle, variant, backend and batch")
        return cls(values["machine"], entries)


_ANOTHER = "give another file to --profile, or remove this one, and measure again"


def _no_constant(text: str) -> float:
    raise ValueError(f"it has the number {text}, which JSON does not have")


def _is_text(value: Any) -> bool:
    return isinstance(value, str)


def _is_name(value: Any) -> bool:
    return isinstance(value, str) and bool(value)


def _is_count(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and value >= 1


def _is_number(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and value >= 0


def _is_texts(value: Any) -> bool:
    return isinstance(value, list) and all(map(_is_text, value))


def _is_versions(value: Any) -> bool:
    return isinstance(value, Mapping) and all(map(_is_text, [*value, *value.values()]))


def _is_shape(value: Any) -> bool:
    return isinstance(value, tuple) and bool(value) and all(map(_is_count, value))


def _is_sha256(value: Any) -> bool:
    return isinstance(value, str) and re.fullmatch("[0-9a-f]{64}", value) is not None


def _is_summary(value: Any) -> bool:
    return isinstance(value, Mapping) and sorted(value) == sorted(_SUMMARY) and all(map(_is_time, value.values()))


def _is_time(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value) and value > 0


def _is_network(value: Any) -> bool:
    if not isinstance(value, Mapping) or set(value) != set(_NETWORK):
        return False
    return all(accepts(value[name]) for name, (accepts, _) in _NETWORK.items())


_Check = tuple[Callable[[Any], bool], str]


def _or_none(check: _Check) -> _Check:
    accepts, words = check
    return lambda value: value is None or accepts(value), f"{words}, or null"


_TEXT: _Check = (_is_text, "text")
_NOT_EMPTY: _Check = (_is_name, "text that is not empty")
_COUNT: _Check = (_is_count, "a whole number from 1 on")
_NUMBER: _Check = (_is_number, "a whole number from 0 on")
_TIMES: _Check = (_is_summary, f"{', '.join(_SUMMARY)}, each a finite number above 0")
_NETWORK: Mapping[str, _Check] = {
    _NAME: _NOT_EMPTY,
    "num_classes": _NUMBER,
    "in_channels": _COUNT,
    "arguments": (lambda value: isinstance(value, Mapping), "an object"),
}
_MACHINE: Mapping[str, _Check] = {
    _NAME: _NOT_EMPTY,
    "system": _TEXT,
    "processor": _TEXT,
    "cpus": _COUNT,
    "board": _TEXT,
    "gpus": (_is_texts, "a list of text"),
    "gpu": _NUMBER,
    "libraries": (_is_versions, "text by name"),
    "threads": _or_none(_COUNT),
    "power_mode": _or_none(_TEXT),
}
_ENTRY: Mapping[str, _Check] = {
    "bundle": _NOT_EMPTY,
    "task": _NOT_EMPTY,
    "variant": _NOT_EMPTY,
    "precision": _NOT_EMPTY,
    "backend": _NOT_EMPTY,
    "batch": _COUNT,
    "shape": (_is_shape, "whole numbers from 1 on"),
    "sha256": (_is_sha256, "64 hexadecimal digits"),
    "file_bytes": _COUNT,
    "iterations": _COUNT,
    "latency_ms": _TIMES,
    "pipeline_ms": _TIMES,
    "network": _or_none((_is_network, f"an object of {', '.join(_NETWORK)}")),
    "preprocessing": (lambda value: isinstance(value, Preprocessing), "a preprocessing"),
}


def _check(owner: str, values: Any, checks: Mapping[str, _Check]) -> None:
    """Check the keys and values of a part of a profile.

    Raises:
        UsageError: A key is missing or unknown, or a value is not accepted.
    """
    if not isinstance(values, Mapping) or set(values) != set(checks):
        given = sorted(map(str, values)) if isinstance(values, Mapping) else values
        raise UsageError(f"{owner} has {given}; accepted: {', '.join(checks)}")
    for name, (accepts, words) in checks.items():
        if not accepts(values[name]):
            raise UsageError(f"{owner}: {name} is {values[name]!r}; accepted: {words}")
