"""``krl-deploy inspect-engine``: what an engine was built with, and for what."""

from __future__ import annotations

import json
import logging
from dataclasses import asdict
from pathlib import Path
from typing import Any

from krl_runtime.bundle import Bundle, Engine
from krl_runtime.cli.tables import table
from krl_runtime.errors import UsageError
from krl_runtime.files import sha256_file

from .config import InspectEngineConfig
from .inspected_layers import inspect_layers
from .plan import plan_version, version_of

__all__ = ["inspect_engine"]

_log = logging.getLogger("krl")


def inspect_engine(config: InspectEngineConfig) -> tuple[dict[str, Any], str]:
    """Return how and for what an engine was built, without TensorRT, and a table of it for people.

    Raises:
        KrlError: The bundle cannot be opened, the file is not an engine, or its layers cannot be listed.
    """
    if config.layers:
        return inspect_layers(config)
    if config.precision is not None:
        raise UsageError("--precision chooses the variant whose layers are shown; give --layers as well")
    if config.model.is_dir():
        bundle = Bundle.open(config.model)
        found = {key: _entry(bundle, key, engine) for key, engine in bundle.engines.items()}
    else:
        found = {config.model.name: _file(config.model)}
    known = ("variant", "library", "version", "gpu", "compute_capabilities", "profiles", "height", "width", "bytes")
    columns = tuple(name for name in known if any(_for_people(name, entry) for entry in found.values()))
    rows = [(key, *(_for_people(column, entry) for column in columns)) for key, entry in found.items()]
    shown = table(("engine", *columns), rows) if rows else f"{config.model} has no engines"
    return {"model": str(config.model), "engines": found}, shown


def _for_people(column: str, entry: dict[str, Any]) -> object:
    """Return one cell of the table."""
    value = entry.get(column)
    if column == "compute_capabilities" and not value and entry.get("library") == "tensorrt-rtx":
        return "8.6 and later"
    if column == "profiles" and value:
        return " ".join(",".join(map(str, sizes)) for sizes in value)
    return ",".join(map(str, value)) if isinstance(value, list | tuple) else value


def _entry(bundle: Bundle, key: str, engine: Engine) -> dict[str, Any]:
    plan = bundle.engine_bytes(key)
    return {**asdict(engine), "plan_version": version_of(plan, key)[1], "bytes": len(plan)}


def _file(path: Path) -> dict[str, Any]:
    """Describe an engine file. The record beside it counts only if it has the file's hash."""
    library, version = plan_version(path)
    entry: dict[str, Any] = {"library": library, "version": version}
    entry |= {"bytes": path.stat().st_size, "sha256": sha256_file(path)}
    try:
        beside = json.loads(path.with_name(path.name + ".json").read_bytes())
    except (OSError, ValueError):
        return entry
    if not isinstance(beside, dict) or beside.get("sha256") != entry["sha256"]:
        _log.warning("%s.json does not belong to this engine (another SHA-256)", path)
        return entry
    options = beside.get("options", {})
    sizes = {name: options.get(name) for name in ("profiles", "height", "width")}
    return {**beside, **sizes, "plan_version": version}
