"""The user's registry of engines that were built on this machine: a file for each, named by the engine's SHA-256.

An engine is code, and the hashes in a manifest say nothing about who made it. So an engine is loaded if it is in this
registry, or in a bundle with a signature by a trusted key. ``krl-deploy build-engine`` and warm start write here, with
mode 0600 in the user's own folder; an entry that others may write is not used.
"""

from __future__ import annotations

import json
import logging
import os
import stat
from dataclasses import asdict, dataclass
from pathlib import Path

from krl_runtime.errors import BackendError
from krl_runtime.files import dump_json, write_atomic

__all__ = ["BuiltEngine", "find_engine", "register_engine", "registry_folder"]

_log = logging.getLogger("krl")

_PRIVATE_FILE, _PRIVATE_FOLDER = 0o600, 0o700  # the user alone
_OTHERS = stat.S_IWGRP | stat.S_IWOTH
_MAX_BYTES = 1 << 12  # an entry has some hundred bytes


@dataclass(frozen=True)
class BuiltEngine:
    """An engine that was built here.

    Attributes:
        sha256: Of its bytes.
        library: ``"tensorrt"`` or ``"tensorrt-rtx"``; or ``"usearch"``, whose graphs need the same trust.
        version: Version of the library.
        host_code: Whether it brings its own runtime, host code, which TensorRT then lets run.
    """

    sha256: str
    library: str
    version: str
    host_code: bool = False


def registry_folder() -> Path:
    """Return the folder of the registry: ``~/.local/state/krl/engines``; ``XDG_STATE_HOME`` moves ``.local/state``.

    Raises:
        BackendError: The user has no home folder.
    """
    try:
        base = Path(os.environ.get("XDG_STATE_HOME") or Path.home() / ".local" / "state")
    except RuntimeError as error:  # as in a container, for a user whom nobody knows
        raise BackendError("this user has no home folder for the registry of engines; set XDG_STATE_HOME") from error
    return base / "krl" / "engines"


def register_engine(engine: BuiltEngine) -> Path:
    """Enter an engine, and return the entry's file.

    Raises:
        BackendError: The registry cannot be written.
    """
    path = registry_folder() / f"{engine.sha256}.json"
    try:
        path.parent.mkdir(mode=_PRIVATE_FOLDER, parents=True, exist_ok=True)
        write_atomic(path, dump_json(asdict(engine)), mode=_PRIVATE_FILE)
    except OSError as error:
        raise BackendError(
            f"the engine cannot be entered in the registry {path.parent} ({error.strerror}), so that it would not be "
            "loaded; make the folder writable, or set XDG_STATE_HOME"
        ) from error
    return path


def find_engine(sha256: str) -> BuiltEngine | None:
    """Return the entry of an engine; ``None`` if it was not built here by this user, or others may write the entry."""
    try:
        path = registry_folder() / f"{sha256}.json"
        with path.open("rb") as file:
            if not _own(os.fstat(file.fileno())) or not _own(path.parent.stat()):
                _log.warning("%s is not used: it belongs to somebody else, or others may write it", path)
                return None
            found = BuiltEngine(**json.loads(file.read(_MAX_BYTES)))
    except (FileNotFoundError, BackendError):
        return None
    except (OSError, ValueError, TypeError, RecursionError) as error:
        _log.warning("%s is not used: %s; build the engine again", path, error)
        return None
    return found if found.sha256 == sha256 and isinstance(found.host_code, bool) else None


def _own(status: os.stat_result) -> bool:
    """Return whether a file or folder belongs to this user (or root), and nobody else may write it."""
    if not hasattr(os, "getuid"):  # Windows: the user's folder has an access list of its own
        return True
    return status.st_uid in (0, os.getuid()) and not status.st_mode & _OTHERS
