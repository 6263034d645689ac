"""Every error that krl raises on purpose.

::

    KrlError
    ├── UsageError            an argument, a configuration or a combination of them is not acceptable
    ├── ImageError            one image cannot be decoded
    ├── DataError             a data set or folder of images cannot be used
    ├── RunError              a run folder is missing, damaged, or of another schema version
    ├── BundleError           a bundle is missing, damaged, forged, or of another schema version
    ├── BackendError          no backend can run this model on this machine as asked
    ├── ModelError            a network or ONNX graph cannot be built, loaded, converted or exported
    ├── TrainingError         training cannot go on (for instance, the loss is not a number)
    ├── CheckFailedError      a check was run and failed (parity, accuracy gate, self-test)
    └── MissingExtraError     an optional library is not installed; names the extra to install

A message names the item, the given value, what is accepted, and what to do next. The command line prints the message
of a ``KrlError`` and exits with code 2. ``CheckFailedError`` exits with 1, because the command itself worked.
"""

from __future__ import annotations

import importlib
from collections.abc import Sequence
from types import ModuleType
from typing import Any

__all__ = [
    "BackendError",
    "BundleError",
    "CheckFailedError",
    "DataError",
    "ImageError",
    "KrlError",
    "MissingExtraError",
    "ModelError",
    "NotAvailableError",
    "RunError",
    "TrainingError",
    "UsageError",
    "accepted",
    "distribution",
    "install_command",
    "require",
]


_MOST_SHOWN = 40  # names in a message, some four lines of a terminal


class KrlError(Exception):
    """Root of all errors raised on purpose by krl."""

    exit_code = 2


class UsageError(KrlError):
    """An argument, a configuration or a combination of them is not acceptable."""


class ImageError(KrlError):
    """One image cannot be decoded, or is larger than the limit."""


class DataError(KrlError):
    """A data set or folder of images cannot be used."""


class RunError(KrlError):
    """A run folder is missing, damaged, or of another schema version."""


class BundleError(KrlError):
    """A bundle is missing, damaged, forged, or of another schema version."""


class BackendError(KrlError):
    """No backend can run this model on this machine as asked."""


class ModelError(KrlError):
    """A network or an ONNX graph cannot be built, loaded, converted or exported."""


class TrainingError(KrlError):
    """Training cannot go on, for instance because the loss is not a number."""


class CheckFailedError(KrlError):
    """A check was run and failed: parity, an accuracy gate, a self-test."""

    exit_code = 1


class NotAvailableError(BackendError):
    """A backend is not here: its library, its device, or an engine for this machine. Anything else is a failure."""


class MissingExtraError(KrlError):
    """An optional library is not installed."""

    def __init__(self, library: str, extra: str, purpose: str) -> None:
        """Set the missing library, the extra that has it, and its purpose."""
        self.library = library
        self.extra = extra
        command = install_command(extra)
        super().__init__(f"{purpose} needs {library}, which is not installed; install it with: {command}")


def accepted(given: object, known: Sequence[str]) -> str:
    """Return the end of a message about an unknown name: all known ones, or the closest ones if there are many.

    Example:
        >>> accepted("gren", ["", "green", "red"])
        '; accepted: green, red'
    """
    import difflib

    names = [name for name in known if name]
    if len(names) <= _MOST_SHOWN:
        return f"; accepted: {', '.join(names)}"
    close = difflib.get_close_matches(str(given), names, n=5)
    hint = f"; did you mean {' or '.join(close)}?" if close else "."
    return f"{hint} {len(names)} are known: {', '.join(names[:_MOST_SHOWN])} …"


def distribution() -> str:
    """Return the distribution that brought this package: ``krl``, or ``krl-runtime`` on a device."""
    from importlib import metadata

    try:
        return str(metadata.metadata("krl-runtime")["Name"])
    except metadata.PackageNotFoundError:
        return "krl"


def install_command(extra: str) -> str:
    """Return the command that installs an extra from where this package came from: checkout, file, repository or index.

    Args:
        extra: Name of the extra.
    """
    from urllib.parse import unquote, urlsplit

    name = distribution()
    where = _origin(name)
    url = str(where.get("url", ""))
    path = unquote(urlsplit(url).path) if url.startswith("file://") else ""
    if path:
        editable = "-e " if where.get("dir_info", {}).get("editable") else ""
        return f"pip install {editable}'{path}[{extra}]'"
    if url:
        return f"pip install '{name}[{extra}] @ {'git+' if 'vcs_info' in where else ''}{url}'"
    return f"pip install '{name}[{extra}]'"


def _origin(name: str) -> dict[str, Any]:
    """Return pip's record of a distribution's origin (PEP 610); nothing for one from an index."""
    import json
    from importlib import metadata

    try:
        values = json.loads(metadata.distribution(name).read_text("direct_url.json") or "{}")
    except (metadata.PackageNotFoundError, ValueError):
        return {}
    return values if isinstance(values, dict) else {}


def require(module: str, *, extra: str, purpose: str) -> ModuleType:
    """Import an optional library at its first use.

    Args:
        module: Dotted name of the module to import.
        extra: The extra of the ``krl`` distribution that installs it.
        purpose: Purpose, as the beginning of a sentence ("reading the digits data set").

    Raises:
        MissingExtraError: The library itself is not installed.
    """
    try:
        return importlib.import_module(module)
    except ModuleNotFoundError as error:
        library = module.partition(".")[0]
        if error.name is None or error.name.partition(".")[0] != library:
            raise
        raise MissingExtraError(library, extra, purpose) from error
