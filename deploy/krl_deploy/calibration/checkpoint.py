"""The checkpoint of an interrupted calibration: a file beside the bundle, until the calibration is done."""

from __future__ import annotations

import json
import logging
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from krl_runtime.files import atomic_path

from .record import Identity

__all__ = ["Checkpoint"]

_log = logging.getLogger("krl")


class Checkpoint:
    """Counts so far, and the identity of the calibration that they belong to.

    Args:
        path: The file.
        identity: A file of any other identity is not gone on from.
        resume: Whether to continue from an existing file; if not, it is written anew.
    """

    def __init__(self, path: Path, identity: Identity, *, resume: bool) -> None:
        self.path = path
        self.identity = json.dumps(asdict(identity), sort_keys=True)
        self.resume = resume

    def load(self) -> dict[str, npt.NDArray[Any]] | None:
        """Return the saved state; ``None``, with a log message, if there is none that fits."""
        if not self.resume:
            return None
        try:
            with np.load(self.path, allow_pickle=False) as arrays:
                kept = {name: arrays[name] for name in arrays.files}
            if str(kept.pop("identity")) != self.identity:
                _log.warning("the interrupted calibration was of another model, other images or options; starting anew")
                return None
        except FileNotFoundError:
            _log.info("no interrupted calibration to continue; starting anew")
            return None
        except Exception as error:  # zip, zlib and numpy raise types of their own on damaged files
            _log.warning("the interrupted calibration %s cannot be read (%s); starting anew", self.path, error)
            return None
        _log.info("going on after %d images", kept["done"])
        return kept

    def save(self, arrays: Mapping[str, npt.NDArray[Any]]) -> None:
        """Write the counts so far."""
        with atomic_path(self.path) as temporary, temporary.open("wb") as file:
            everything: dict[str, Any] = {"identity": np.asarray(self.identity), **arrays}
            np.savez(file, **everything)

    def remove(self) -> None:
        """Take the file away; the calibration is done."""
        self.path.unlink(missing_ok=True)
