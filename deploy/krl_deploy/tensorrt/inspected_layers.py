"""``krl-deploy inspect-engine --layers``: of engines where they run, else of the networks that are built into them."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from krl_runtime.backends.cuda import current_gpu
from krl_runtime.backends.tensorrt.engines import cause_against
from krl_runtime.backends.tensorrt.library import library_of
from krl_runtime.bundle import Bundle
from krl_runtime.errors import NotAvailableError, UsageError

from .ask import parsed_layers
from .config import InspectEngineConfig
from .layers import EngineLayer, engine_layers, layer_table, network_layers, totals

__all__ = ["inspect_layers"]

_log = logging.getLogger("krl")


@dataclass(frozen=True)
class _Listed:
    """Layers, and whose they are."""

    name: str
    source: str
    layers: list[EngineLayer]


def inspect_layers(config: InspectEngineConfig) -> tuple[dict[str, Any], str]:
    """Return the layers of engines or networks as plain JSON types, and tables of them.

    Raises:
        NoTensorRTError: Neither an engine can be loaded nor a parser be asked here.
        KrlError: The file or bundle cannot be used.
    """
    found = list(_of_bundle(config) if config.model.is_dir() else _of_file(config.model, config))
    described = {
        item.name: {"source": item.source, **totals(item.layers), "list": [asdict(layer) for layer in item.layers]}
        for item in found
    }
    shown = "\n\n".join(f"{item.name}: {item.source}\n{layer_table(item.layers)}" for item in found)
    return {"model": str(config.model), "engines": described}, shown


def _of_file(path: Path, config: InspectEngineConfig) -> Iterator[_Listed]:
    if path.suffix != ".onnx":
        raise UsageError(
            f"--layers of {path}: an engine file alone is not loaded, since it is code; give the bundle that has it, "
            "or the ONNX file that it was built from"
        )
    if config.precision is not None:
        raise UsageError("--precision is for bundles; the types of an ONNX file stand in it")
    yield _parsed(path, path.name)


def _of_bundle(config: InspectEngineConfig) -> Iterator[_Listed]:
    bundle = Bundle.open(config.model)
    variants = bundle.manifest.variants
    if config.precision is not None and config.precision not in variants:
        raise UsageError(f"bundle {bundle.path} has no variant {config.precision}; it has: {', '.join(variants)}")
    keys = [key for key, engine in bundle.engines.items() if config.precision in (None, engine.variant)]
    for key in keys:
        yield _of_engine(bundle, key)
    if not keys:
        for name in variants if config.precision is None else (config.precision,):
            yield _parsed(bundle.file(variants[name].file), name)


def _of_engine(bundle: Bundle, key: str) -> _Listed:
    """Return the layers of an engine; where it cannot be loaded, those of its network, and why."""
    engine = bundle.engines[key]
    file = bundle.manifest.variants[engine.variant].file
    try:
        library = library_of(engine.library)
        cause = cause_against(bundle, key, library, current_gpu())
    except NotAvailableError as error:
        cause = str(error)
    if cause is not None:
        _log.warning("engine %s is not loaded here, its network is shown instead: %s", key, cause)
        return _parsed(bundle.file(file), key)
    plan, onnx = bundle.engine_bytes(key), bundle.read(file)
    layers = engine_layers(library, plan, onnx, label=key, stripped=engine.stripped)
    return _Listed(key, f"layers of the engine, by {library.title}", layers)


def _parsed(path: Path, name: str) -> _Listed:
    title, found = parsed_layers(path)
    layers = network_layers(found, path.read_bytes())
    return _Listed(name, f"layers of the network before fusion, by the parser of {title}", layers)
