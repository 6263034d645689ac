"""Errors in arguments that can be found before torch is imported, which takes seconds."""

from __future__ import annotations

from pathlib import Path

from krl_runtime.bundle import MANIFEST
from krl_runtime.errors import DataError, RunError, UsageError

from .names import RECORD

__all__ = ["DATA_SETS", "check_data", "check_run", "refuse_shots"]

DATA_SETS = ("digits", "mnist", "fashion-mnist", "cifar10", "cifar100")
"""Data sets by name."""


def check_data(data: object) -> None:
    """Check that there is a data set or folder of a name; ``package.module:name`` is left to those that load it.

    Raises:
        DataError: There is none.
    """
    if not isinstance(data, str) or data in DATA_SETS or Path(data).exists() or ":" in data:
        return
    known = ", ".join(DATA_SETS)
    raise DataError(f"data {data!r} is neither a folder nor a known data set; known: {known}")


def refuse_shots(shots: int | None) -> None:
    """Check that ``--shots`` is not given to a command that trains nothing.

    Raises:
        UsageError: It is.
    """
    if shots is not None:
        raise UsageError("--shots draws images to train on, and nothing is trained here; leave it out")


def check_run(path: str | Path) -> None:
    """Check that a folder holds a run, finished or not.

    Raises:
        RunError: It does not; a bundle is called by its name.
    """
    folder = Path(path)
    if (folder / RECORD).is_file():
        return
    if (folder / MANIFEST).is_file():
        raise RunError(f"{folder} is a bundle, where a run is needed: the folder that krl-train or krl-compress makes")
    what = "holds no run" if folder.is_dir() else "is not a folder" if folder.exists() else "does not exist"
    raise RunError(f"run {folder} {what}; a run is the folder that krl-train fit, import or krl-compress makes")
