"""All that a device adds to a bundle that stays as it was shipped: ``NAME.krl.device/``.

A bundle that is signed, or cannot be written, keeps its manifest. Engines that were built here lie beside it, or below
``KRL_CACHE_DIR``, with an index of their own. So does what was measured here on real data, of any bundle.
"""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from krl_runtime.errors import BundleError
from krl_runtime.files import dump_digested, inside, sha256_bytes, write_atomic

from .manifest import Engine, FileEntry, parse_engines

__all__ = ["DeviceEngines", "add_engine", "add_evaluation", "device_folder", "read_engines", "read_evaluations"]

_INDEX = "engines.json"
_SCHEMA_VERSION = 1  # of the index; another one is skipped with its reason
_MAX_INDEX_BYTES = 1 << 20  # an engine's entry has about a kilobyte
_EVALUATIONS = "evaluations.json"
_MAX_EVALUATIONS_BYTES = 1 << 28  # a confusion matrix of 1,000 classes has 2 MB, for each variant and backend


@dataclass(frozen=True)
class DeviceEngines:
    """The engines of one device.

    Attributes:
        folder: Where they are.
        engines: By key.
        files: Size and hash of each, by its name in the folder.
        evidence: Measurements of each build, by key.
    """

    folder: Path
    engines: Mapping[str, Engine] = field(default_factory=dict)
    files: Mapping[str, FileEntry] = field(default_factory=dict)
    evidence: Mapping[str, Any] = field(default_factory=dict)

    def read(self, key: str) -> bytes:
        """Return an engine's bytes after checking their hash.

        Raises:
            BundleError: The file is missing, damaged or changed.
        """
        name = self.engines[key].file
        try:
            data = inside(self.folder, name).read_bytes()
        except (OSError, ValueError) as error:
            raise BundleError(f"engine {self.folder / name} cannot be read: {error}; build it again") from error
        if sha256_bytes(data) != self.files[name].sha256:
            raise BundleError(f"engine {self.folder / name} is damaged or was changed; build it again")
        return data


def device_folder(bundle: Path) -> Path:
    """Return the folder for all that this device adds to a bundle, whether it exists or not.

    It is ``NAME.krl.device`` beside the bundle. If ``KRL_CACHE_DIR`` is set it is in that folder instead, with a hash
    of the bundle's path in its name.
    """
    path, cache = bundle.resolve(), os.environ.get("KRL_CACHE_DIR")
    if not cache:
        return path.with_name(f"{path.name}.device")
    return Path(cache) / f"{path.name}-{sha256_bytes(os.fsencode(path))[:8]}.device"


def read_engines(bundle: Path) -> DeviceEngines:
    """Return the engines that were built here for a bundle; none, with a warning, if their index is faulty."""
    folder = device_folder(bundle)
    path = folder / _INDEX
    try:
        with path.open("rb") as file:
            data = file.read(_MAX_INDEX_BYTES + 1)
    except FileNotFoundError:
        return DeviceEngines(folder)
    except OSError as error:
        return _skipped(folder, error)
    try:
        values = json.loads(data)
        if values["schema_version"] != _SCHEMA_VERSION or dump_digested(values) != data:
            raise ValueError("it was changed, or written by another version of krl")
        engines, files = parse_engines(values["engines"], values["files"])
        evidence = dict(values["evidence"])
        missing = [engine.file for engine in engines.values() if engine.file not in files]
        if missing:
            raise ValueError(f"it does not list {missing[0]}")
    except (ValueError, TypeError, KeyError, AttributeError, RecursionError) as error:
        return _skipped(folder, error)
    return DeviceEngines(folder, engines, files, evidence)


def _skipped(folder: Path, error: Exception) -> DeviceEngines:
    _warn("the engines in %s are skipped: %s; build them again", folder, error)
    return DeviceEngines(folder)


def _warn(message: str, *values: object) -> None:
    import logging  # importing krl_runtime does not wait for it

    logging.getLogger("krl").warning(message, *values)


def add_engine(bundle: Path, key: str, engine: Engine, plan: bytes, evidence: Mapping[str, Any]) -> Path:
    """Keep an engine beside a bundle, and return its file.

    Raises:
        OSError: The folder cannot be written.
    """
    known = read_engines(bundle)
    target = inside(known.folder, engine.file)
    write_atomic(target, plan)
    values = {
        "schema_version": _SCHEMA_VERSION,
        "engines": {name: asdict(item) for name, item in {**known.engines, key: engine}.items()},
        "files": {
            name: asdict(item)
            for name, item in {**known.files, engine.file: FileEntry(sha256_bytes(plan), len(plan))}.items()
        },
        "evidence": {**known.evidence, key: dict(evidence)},
    }
    write_atomic(known.folder / _INDEX, dump_digested(values))
    return target


def read_evaluations(bundle: Path) -> dict[str, Any]:
    """Return the evaluations of this device, by the hash of the data; nothing, with a warning, if the file is faulty.

    An entry counts for the bundle whose manifest has the digest that it names.
    """
    path = device_folder(bundle) / _EVALUATIONS
    try:
        with path.open("rb") as file:
            data = file.read(_MAX_EVALUATIONS_BYTES + 1)
        values = json.loads(data)
        if values["schema_version"] != _SCHEMA_VERSION or dump_digested(values) != data:
            raise ValueError("it was changed, or written by another version of krl")
        return dict(values["evaluations"])
    except FileNotFoundError:
        return {}
    except (OSError, ValueError, TypeError, KeyError, RecursionError) as error:
        _warn("the evaluations in %s are skipped: %s; measure again", path, error)
        return {}


def add_evaluation(bundle: Path, data: str, evaluation: Mapping[str, Any]) -> None:
    """Keep what was measured of a bundle here; where the folder cannot be written, that is a warning.

    Args:
        bundle: The bundle's folder.
        data: Hash of the data.
        evaluation: Plain JSON types.
    """
    path = device_folder(bundle) / _EVALUATIONS
    values = {"schema_version": _SCHEMA_VERSION, "evaluations": {**read_evaluations(bundle), data: dict(evaluation)}}
    try:
        write_atomic(path, dump_digested(values))
    except OSError as error:
        _warn("the evaluation is not kept: %s cannot be written (%s)", path, error.strerror or error)
