"""The folder of a run that is being made: made anew, or continued."""

from __future__ import annotations

import logging
import os
import shutil
from dataclasses import replace
from pathlib import Path

from krl_runtime.errors import RunError, UsageError
from krl_runtime.files import write_atomic
from krl_train.config import DISCRIMINATOR
from krl_train.custom import warn_of_change
from krl_train.loop import CHECKPOINT
from krl_train.run import RECORD, WEIGHTS, Run, RunRecord, package_versions

from .resuming import check_same

__all__ = ["prepare_out"]

_log = logging.getLogger("krl")


def prepare_out(out: Path, record: RunRecord, *, resume: bool, overwrite: bool) -> Run | None:
    """Make the folder of a new run, or check that an interrupted one can be continued.

    Args:
        out: The run's folder.
        record: What the run will be; while it is not finished, this is its ``run.json``.
        resume: Whether to continue what is there.
        overwrite: Whether to replace what is there.

    Returns:
        The run, if it is finished already and to be resumed: there is nothing left to do, and the log says so.

    Raises:
        RunError: There is a run and neither flag is given, or it was made otherwise; see ``check_same``.
        UsageError: Both flags are given, or the folder holds something that is not a run.
    """
    if resume and overwrite:
        raise UsageError("--resume and --overwrite exclude each other")
    file = out / RECORD
    main = os.environ.get("RANK", "0") == "0"  # of several processes one prepares the folder
    if file.is_file() and resume:
        there = RunRecord.read(file)
        check_same(out, there, record)
        for item in record.sources:
            warn_of_change(there.sources, item["use"], item["name"], f"run {out}")
        if not there.weights_sha256:
            return None
        finished = Run.open(out)
        _log.info("run %s is finished already", out)
        return finished
    if not main:
        return None
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        if not file.is_file():
            raise UsageError(f"{out} exists and is not a run; give another --out")
        if not overwrite and _has_something_to_lose(out):
            raise RunError(f"run {out} exists already; continue it with --resume, or replace it with --overwrite")
        for name in (RECORD, WEIGHTS, DISCRIMINATOR):
            (out / name).unlink(missing_ok=True)
        for name in (CHECKPOINT.parent.name, "events", "samples"):
            shutil.rmtree(out / name, ignore_errors=True)
    write_atomic(file, replace(record, versions=package_versions()).to_bytes())
    return None


def _has_something_to_lose(out: Path) -> bool:
    """Whether a run got as far as its first checkpoint; one that was refused before that has only its record."""
    return (out / WEIGHTS).exists() or (out / CHECKPOINT).exists()
