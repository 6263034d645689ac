"""The checkpoint of an interrupted plan: a file beside the bundle, until the plan is made."""

from __future__ import annotations

import json
import logging
from collections.abc import Iterable, Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

from krl_runtime.files import write_atomic

from .search import Attempt

__all__ = ["PlanCheckpoint"]

_log = logging.getLogger("krl")


class PlanCheckpoint:
    """Measurements so far, and the identity of the plan that they belong to. Each one is saved as it comes.

    Args:
        path: The file.
        identity: Everything that the measurements depend on; a file of another identity is not used.
        resume: Whether to continue from an existing file; if not, it is written anew.
    """

    def __init__(self, path: Path, identity: Mapping[str, Any], *, resume: bool) -> None:
        self.path = path
        self.identity = json.loads(json.dumps(identity))  # tuples become lists, as in the file
        self.errors: dict[str, float] = {}
        self.attempts: dict[str, Attempt] = {}
        if resume:
            self._load()

    def _load(self) -> None:
        try:
            values = json.loads(self.path.read_bytes())
            if values["identity"] != self.identity:
                _log.warning("the interrupted plan was of another model, other images or options; starting anew")
                return
            errors = {str(name): float(error) for name, error in values["errors"].items()}
            attempts = {str(key): Attempt(**attempt) for key, attempt in values["attempts"].items()}
        except FileNotFoundError:
            _log.info("no interrupted plan to continue; starting anew")
            return
        except (OSError, ValueError, TypeError, KeyError, AttributeError) as error:
            _log.warning("the interrupted plan %s cannot be read (%s); starting anew", self.path, error)
            return
        self.errors, self.attempts = errors, attempts
        _log.info("going on after %d measured layers and %d attempts", len(errors), len(attempts))

    @staticmethod
    def key(keep: Iterable[str]) -> str:
        """Return the key of the plan that keeps these layers."""
        return json.dumps(sorted(keep))

    def add_error(self, name: str, error: float) -> None:
        """Save the error of the outputs with one group alone in the lower precision."""
        self.errors[name] = error
        self._save()

    def add_attempt(self, key: str, attempt: Attempt) -> None:
        """Save a plan that was tried."""
        self.attempts[key] = attempt
        self._save()

    def _save(self) -> None:
        attempts = {key: asdict(attempt) for key, attempt in self.attempts.items()}
        values = {"identity": self.identity, "errors": self.errors, "attempts": attempts}
        write_atomic(self.path, json.dumps(values, indent=1).encode() + b"\n")

    def remove(self) -> None:
        """Remove the file; the plan is made."""
        self.path.unlink(missing_ok=True)
