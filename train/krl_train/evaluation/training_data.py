"""Images that a run was trained on: named beside a measurement, kept out of it, and counted where they are in it."""

from __future__ import annotations

import logging
from collections.abc import Sequence

from krl_train.data.fingerprints import count_known
from krl_train.run import RunRecord

__all__ = ["UNKNOWN", "count_trained", "is_imported", "trained_on", "warn_of_trained"]

_log = logging.getLogger("krl")

UNKNOWN = "not known: the weights were imported"
"""Said of imported weights, whose training nobody recorded."""


def is_imported(record: RunRecord) -> bool:
    """Whether a run's weights were imported, so that its data is what they were measured on."""
    return record.command == "krl-train import"


def trained_on(record: RunRecord) -> str:
    """Return the data that a run was trained on, for people."""
    if is_imported(record):
        return UNKNOWN
    if "source" not in record.data:
        return "not known: a bundle does not say"
    count = record.data.get("train", {}).get("count")
    return f"{record.data['source']}" + ("" if count is None else f" (train, {count} images)")


def count_trained(record: RunRecord, hashes: Sequence[str]) -> int | None:
    """Return how many of some images a run was trained on, ``None`` where that is not known.

    Args:
        record: The run's record.
        hashes: SHA-256 of each image, as the run's record has them; none for images that are not in files.
    """
    if is_imported(record) or not hashes:
        return None
    parts = [count_known(record.data.get(name, {}), hashes) for name in ("train", "unlabeled")]
    known = [count for count in parts if count is not None]
    return sum(known) if known else None


def warn_of_trained(trained: int | None, count: int) -> None:
    """Log a warning where images are measured that a run was trained on."""
    if trained:
        _log.warning(
            "%d of the %d measured images are among those that the run was trained on: the result is better than on "
            "new images; give others with --data, or --split val",
            trained,
            count,
        )
