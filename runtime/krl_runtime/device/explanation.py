"""The file ``explain.json``: what a model looked at and learned, for reports. This module owns its format.

``krl-train explain`` and ``krl-runtime explain`` write it; ``docs/explain.md`` lists its keys.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final

from krl_runtime.errors import DataError, UsageError
from krl_runtime.files import inside, write_atomic

__all__ = ["EXPLANATION", "check_out", "read_explanation", "write_explanation"]

EXPLANATION: Final = "explain.json"
"""Name of the file in the folder of the images that it names."""

_KIND: Final = "krl-explanation"
_SCHEMA: Final = 1  # rises with each change of the format
_LARGEST: Final = 64 << 20  # bytes: a matrix of CKA of a thousand layers each takes 20 MB
_IMAGES: Final = ("sheet", "figure")  # keys whose values are names of files in the folder


def check_out(out: Path, *, overwrite: bool) -> None:
    """Check that a folder can be written: it is not there, or holds an explanation that may be replaced.

    Raises:
        UsageError: It cannot.
    """
    if out.exists() and not (overwrite and (out / EXPLANATION).is_file()):
        what = f"holds no {EXPLANATION}" if overwrite else "exists already"
        raise UsageError(f"--out {out} {what}; give another folder" + ("" if overwrite else ", or --overwrite"))


def write_explanation(folder: Path, values: Mapping[str, Any]) -> None:
    """Write ``explain.json``.

    Args:
        folder: The folder of the images that the values name.
        values: Plain JSON types.
    """
    whole = {"kind": _KIND, "schema_version": _SCHEMA, **values}
    write_atomic(folder / EXPLANATION, json.dumps(whole, indent=1, ensure_ascii=False).encode() + b"\n")


def read_explanation(folder: Path) -> dict[str, Any]:
    """Read ``explain.json``, and check that all files that it names lie in its folder.

    Raises:
        DataError: It is missing, damaged, of another version, or names a file outside of the folder.
    """
    file = folder / EXPLANATION
    try:
        if file.stat().st_size > _LARGEST:
            raise DataError(f"{file} has more than {_LARGEST >> 20} MiB; it was not written by krl")
        values = json.loads(file.read_bytes())
    except (OSError, ValueError, RecursionError) as error:
        raise DataError(f"{file} cannot be read: {error}; make it with krl-train explain") from error
    if not isinstance(values, dict) or values.get("kind") != _KIND:
        raise DataError(f"{file} is not an explanation of krl; make it with krl-train explain")
    if values.get("schema_version") != _SCHEMA:
        version = values.get("schema_version")
        raise DataError(f"{file} has schema version {version}; this krl reads version {_SCHEMA}; make it again")
    _check_names(values, folder, file)
    return values


def _check_names(value: Any, folder: Path, file: Path) -> None:
    if isinstance(value, list):
        for item in value:
            _check_names(item, folder, file)
    elif isinstance(value, dict):
        for key, item in value.items():
            if key in _IMAGES and item is not None:
                try:
                    inside(folder, str(item))
                except ValueError as error:
                    raise DataError(f"{file}: {key}: {error}") from error
            _check_names(item, folder, file)
