"""A configuration as ``run.json`` has it: plain values, and places that hold in any working directory."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import Any

from krl_runtime.bundle import MANIFEST
from krl_train.custom import CustomName

from .checks import DATA_SETS
from .names import RECORD

__all__ = ["to_plain"]

_FOLDERS = ("data", "data_free")  # options that take a name or a folder
_NAMES = (*DATA_SETS, "teacher")  # names that they take; "teacher" is of data_free


def to_plain(config: Any) -> dict[str, Any]:
    """Return a configuration as plain JSON types, for ``run.json``; paths are absolute."""

    def plain(key: str, value: Any) -> Any:
        if isinstance(value, dict):
            return {name: plain(name, item) for name, item in value.items()}
        if isinstance(value, tuple | list):
            return [plain(key, item) for item in value]
        if isinstance(value, CustomName):
            return str(value)
        if isinstance(value, Path) or (isinstance(value, str) and _is_place(key, value)):
            path = Path(value)
            return str(path if path.parts[:1] == ("~",) else path.absolute())
        return value

    result: dict[str, Any] = plain("", asdict(config))
    return result


def _is_place(key: str, value: str) -> bool:
    """Whether a text names something on disk, where it may also be a name."""
    path = Path(value)
    if key == "map_labels":
        return path.is_file()
    if key in _FOLDERS:
        return value not in _NAMES and path.exists()
    if key == "teacher" and (path.is_file() or (path / MANIFEST).is_file()):  # an ONNX file, a bundle
        return True
    return key in ("teacher", "student", "style_features", "from_") and (path / RECORD).is_file()
