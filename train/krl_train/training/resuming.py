"""Whether an interrupted run may be continued: with the same options on the same things, wherever these lie now."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from krl_runtime.errors import RunError
from krl_train.data.fingerprints import count_shared
from krl_train.run import JOINT, RunRecord

__all__ = ["check_same"]

# Options that do not change the result. Where the memory limit does, as it does for the order of patches that are read
# from disk, "data" has what follows from it.
_MAY_DIFFER = {
    *("resume", "overwrite", "json", "out", "device", "memory_limit_mb", "disk_cache_mb", "checkpoint_minutes"),
    *("download", "recipe"),  # the options of a recipe are compared
}
# Options that name files or runs: where these lie does not count. Their content does, and the record has its hashes in
# "data", "parent" and "model".
_PLACES = {
    *("data", "data_root", "val_data", "from_", "teacher", "student", "cache_dir", "map_labels", "data_free"),
    *("augment_from", "style_image", "style_features", "condition_file", "guide", "features", "perceptual"),
    *("unlabeled", "source_data", "run"),
}
# In the record: places again, and a network's answers to noise, which other processors round otherwise.
_NOT_COMPARED = {"path", "source", "val_source", "root", "condition_file", "generator", "fingerprints", "probe"}
_SPLITS = ("train", "val", "unlabeled")
_SHOWN = 12  # digits of a hash in a message


def check_same(out: Path, there: RunRecord, record: RunRecord) -> None:
    """Check that a run is the one that is asked for.

    Args:
        out: Its folder.
        there: Its record.
        record: The record of what is asked for.

    Raises:
        RunError: Options, network, data or runs that it started from are others; the message names all of them.
    """
    old, new = _leaves(there.configuration), _leaves(record.configuration)
    changed = [
        f"{name} was {old.get(name)!r}, now {new.get(name)!r}"
        for name in sorted(set(old) | set(new))
        if name not in _MAY_DIFFER | _PLACES and old.get(name) != new.get(name)
    ]
    for old_data, new_data in ((there.data, record.data), _joint(there, record)):
        changed += [text for split in _SPLITS for text in _images(split, old_data, new_data)]
    parts = (("model", vars(there.model), vars(record.model)), ("parent", there.parent, record.parent))
    for part, before, now in (*parts, ("data", _without_splits(there.data), _without_splits(record.data))):
        changed += _differences(part, before, now)
    if changed:
        raise RunError(
            f"run {out} cannot be resumed, it was made otherwise: {'; '.join(changed)}. Give the same options and "
            "data, or --overwrite"
        )


def _joint(there: RunRecord, record: RunRecord) -> tuple[Mapping[str, Any], Mapping[str, Any]]:
    """Return the data of the second head of both records; nothing where there is none."""
    return there.data.get(JOINT, {}), record.data.get(JOINT, {})


def _images(split: str, there: Mapping[str, Any], record: Mapping[str, Any]) -> Iterator[str]:
    """Yield what differs in the images of a split: of its files where it has any, as decoders round otherwise."""
    before, now = there.get(split), record.get(split)
    if before is None or now is None:
        if before != now:
            counts = ["none" if images is None else images["count"] for images in (before, now)]
            yield f"the {split} images are others: {counts[0]} were, now {counts[1]}"
        return
    key = "files" if "files" in before and "files" in now else "identity"
    if before[key] == now[key]:
        return
    text = f"the {split} images are others: {before['count']} were, now {now['count']}"
    shared = count_shared(before, now)
    if shared == before["count"] == now["count"]:
        text += ", the same images in another order or with other labels"
    elif shared is not None:
        text += f", {shared} of them the same"
    yield text


def _without_splits(data: Mapping[str, Any]) -> dict[str, Any]:
    kept = {name: value for name, value in data.items() if name not in _SPLITS}
    return {**kept, JOINT: _without_splits(kept[JOINT])} if JOINT in kept else kept


def _differences(path: str, before: Any, now: Any) -> Iterator[str]:
    """Yield what differs in a part of the records, but for places."""
    before, now = (json.loads(json.dumps(value, default=str)) for value in (before, now))
    if isinstance(before, dict) and isinstance(now, dict):
        for name in sorted(set(before) | set(now)):
            if name not in _NOT_COMPARED:
                yield from _differences(f"{path}.{name}", before.get(name), now.get(name))
    elif isinstance(before, list) and isinstance(now, list) and len(before) == len(now):
        for index, pair in enumerate(zip(before, now, strict=True)):
            yield from _differences(f"{path}[{index}]", *pair)
    elif before != now:
        yield f"{path} was {_short(before)}, now {_short(now)}"


def _short(value: Any) -> str:
    text = repr(value)
    return text if "sha256" in text or len(text) <= 4 * _SHOWN else f"{text[:_SHOWN]}…{text[-1]}"


def _leaves(values: Any) -> dict[str, Any]:
    found: dict[str, Any] = {}
    for name, value in values.items():
        found |= _leaves(value) if isinstance(value, dict) else {name: value}
    return found
