"""Measurements of ``krl-runtime tune``, kept beside the bundle: ``NAME.krl.device/tune/DEVICE.json``.

It is outside the bundle, whose hashes stay valid, and counts only on the device and for the manifest that it was
measured with. It never stops a bundle from being loaded: a faulty one is skipped with a reason.
"""

from __future__ import annotations

import json
import platform
import re
import sys
from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any

from krl_runtime.bundle import Bundle
from krl_runtime.bundle.sidecar import device_folder
from krl_runtime.errors import KrlError
from krl_runtime.files import dump_digested, dump_json, sha256_bytes, write_atomic
from krl_runtime.processor import cpu_count, processor_name, read_start

__all__ = ["Measurement", "Tuning", "TuningError", "device", "device_key", "libraries", "read_tuning", "tuning_file"]

SCHEMA_VERSION = 3  # of a tuning file; another one is skipped with its reason
_MAX_BYTES = 1 << 20  # a real tuning has some kilobytes
_LIBRARIES = ("onnxruntime", "onnxruntime-gpu", "openvino", "tensorrt", "tensorrt-rtx-cu13")
"""Distributions whose version decides how fast a model runs."""


class TuningError(KrlError):
    """A tuning file cannot be used; the message is the cause."""


@dataclass(frozen=True)
class Measurement:
    """One way to run the bundle on this device.

    Attributes:
        kind: Kind of backend, as ``krl_runtime.load`` takes it.
        variant: Name of the variant.
        threads: Threads for one call; ``None`` where the CPU has no say.
        milliseconds: Median time of one call at batch 1; ``None`` if it was not measured.
        max_abs_error: Largest difference of a golden output; ``None`` where nothing ran.
        cause: Why it was ruled out; empty if it could be chosen.
    """

    kind: str
    variant: str
    threads: int | None = None
    milliseconds: float | None = None
    max_abs_error: float | None = None
    cause: str = ""


@dataclass(frozen=True)
class Tuning:
    """All that was measured on one device.

    Attributes:
        manifest: Digest of the bundle's manifest.
        device: Identity of the device.
        libraries: Versions of the libraries that ran, and of the GPU's driver, by name.
        max_drop: Points of top-1, or dB of PSNR, that a variant was allowed to lose by the bundle's evidence.
        measurements: The best first, those that are out of the question last.
    """

    manifest: str
    device: Mapping[str, Any]
    libraries: Mapping[str, str]
    max_drop: float
    measurements: tuple[Measurement, ...]

    def best(self) -> Measurement | None:
        """Return the best measurement, ``None`` for none."""
        return next((item for item in self.measurements if not item.cause), None)

    def reason_against(self, kind: str) -> str:
        """Return the reason why a kind of backend was not chosen; empty if it was not looked at."""
        own = [item for item in self.measurements if item.kind == kind]
        timed = [item for item in own if item.milliseconds is not None]
        if timed:
            return f"{timed[0].milliseconds:.3g} ms when it was tuned"
        # The cause of the reference's failure stops all of them; other variants may be ruled out before.
        return next((item.cause for item in own if item.variant == "fp32"), "")

    def write(self, path: Path) -> None:
        """Write the file, whole or not at all."""
        write_atomic(path, dump_digested({"schema_version": SCHEMA_VERSION, **asdict(self)}))


def tuning_file(bundle: Bundle) -> Path:
    """Return the path of a bundle's tuning for this device, whether it exists or not."""
    return _folder(bundle) / f"{device_key()}.json"


def _folder(bundle: Bundle) -> Path:
    return device_folder(bundle.path) / "tune"


def read_tuning(bundle: Bundle) -> Tuning | None:
    """Return the measurements of a bundle on this device, ``None`` if there are none.

    Raises:
        TuningError: The file is damaged, of another version, or was measured with another manifest.
    """
    if not _folder(bundle).is_dir():  # most bundles: the device need not be looked at
        return None
    path = tuning_file(bundle)
    if not path.exists():
        return None
    try:
        if path.stat().st_size > _MAX_BYTES:
            raise ValueError(f"it has more than {_MAX_BYTES} bytes")
        tuning = _parse(path.read_bytes())
    except (OSError, ValueError, TypeError, KeyError, AttributeError, RecursionError) as error:
        raise TuningError(
            f"{path.parent.name}/{path.name} is damaged ({error}); krl-runtime tune writes it anew"
        ) from error
    if tuning.manifest != bundle.manifest.digest:
        raise TuningError(
            f"{path.parent.name}/{path.name} is of another state of the bundle; run krl-runtime tune again"
        )
    now = libraries()
    changed = [
        f"{name} {tuning.libraries.get(name, 'absent')} was measured, {now.get(name, 'absent')} is here"
        for name in sorted({*tuning.libraries, *now})
        if tuning.libraries.get(name) != now.get(name)
    ]
    if changed:
        raise TuningError(f"{'; '.join(changed)}; run krl-runtime tune again")
    return tuning


def _parse(data: bytes) -> Tuning:
    values = json.loads(data)
    version = values["schema_version"]
    if version != SCHEMA_VERSION:
        raise ValueError(f"schema version {version}, this krl reads {SCHEMA_VERSION}")
    if dump_digested(values) != data:
        raise ValueError("its digest differs")
    measurements = tuple(Measurement(**item) for item in values["measurements"])
    for item in measurements:
        for entry in fields(item):
            accepted = {"str": str, "int | None": int | None, "float | None": float | None}[str(entry.type)]
            if not isinstance(getattr(item, entry.name), accepted):
                raise TypeError(f"{entry.name} is {getattr(item, entry.name)!r}")
    versions = {str(name): str(version) for name, version in values["libraries"].items()}
    return Tuning(str(values["manifest"]), dict(values["device"]), versions, float(values["max_drop"]), measurements)


def libraries() -> dict[str, str]:
    """Return the versions of what runs models here, by name, without importing any of it."""
    from importlib import metadata

    found = {}
    for name in _LIBRARIES:
        try:
            found[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            continue
    driver = re.search(r"Kernel Module\s+(?:for \S+\s+)?([\d.]+)", read_start(Path("/proc/driver/nvidia/version")))
    return {**found, **({"nvidia-driver": driver[1]} if driver else {})}


def device() -> dict[str, Any]:
    """Return the identity of this device: its processor, CPUs, board and GPUs, found out without any library."""
    gpus = Path("/proc/driver/nvidia/gpus").glob("*/information")
    models = [match[1] for path in sorted(gpus) if (match := re.search(r"Model:\s*(.+)", read_start(path)))]
    return {
        "system": f"{sys.platform}-{platform.machine().lower()}",
        "processor": processor_name(),
        "cpus": cpu_count(),
        "board": read_start(Path("/proc/device-tree/model")).strip("\0\n"),
        "gpus": models,
    }


def device_key() -> str:
    """Return a file name for this device, as ``"linux-x86_64-amd-epyc-2-1f3c9a20"``."""
    values = device()
    name = values["board"] or values["processor"] or "cpu"
    words = re.sub(r"[^a-z0-9_]+", "-", f"{values['system']}-{name}-{values['cpus']}".lower()).strip("-")
    return f"{words[:80]}-{sha256_bytes(dump_json(values))[:8]}"
