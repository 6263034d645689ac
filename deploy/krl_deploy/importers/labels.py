"""Class names of third-party models: from the command line, a text file, or JSON."""

from __future__ import annotations

import codecs
import json
import re
import unicodedata
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from krl_runtime.errors import UsageError

__all__ = ["labels_for"]

_MAX_BYTES = 16 * 1024 * 1024  # 100,000 names take a few megabytes, as in a manifest
_SHOWN = 3  # names in a message; a list of classes would fill the screen


def labels_for(given: Sequence[str], classes: int) -> tuple[str, ...]:
    """Return the class names of a model, in Unicode's composed form (NFC), as the names of class folders are.

    Args:
        given: The names in the order of the model's outputs; or one file: a name on each line, or JSON, with a list of
            names, or an object from index to name or from name to index.
        classes: Number of the model's classes.

    Raises:
        UsageError: The file cannot be read, names are missing or repeated, or there are not as many as classes.
    """
    path = Path(given[0]) if len(given) == 1 else None
    if path is not None and path.is_file():
        what, places = f"labels file {path}", _read(path)
    else:
        what, places = "--labels", [(name, f"position {number}") for number, name in enumerate(given, start=1)]
    named = [(unicodedata.normalize("NFC", name).strip(), place) for name, place in places]
    names = tuple(name for name, _ in named)
    if path is not None and not path.is_file() and path.suffix and classes > 1:
        raise UsageError(f"--labels is {path}, which does not exist; give an existing file, or the {classes} names")
    empty = [place for name, place in named if not name]
    if empty:
        raise UsageError(f"{what} has an empty name at {empty[0]}; each class needs a name")
    if len(names) != classes:
        raise UsageError(
            f"{len(names)} labels were given ({', '.join(names[:_SHOWN])} …), but the model has {classes} outputs; "
            "give one name for each, in their order, or a file with a name on each line, or with JSON"
        )
    _check_distinct(named, what)
    return names


def _check_distinct(named: Iterable[tuple[str, str]], what: str) -> None:
    """Refuse names that are given twice, with the places of each."""
    places: dict[str, list[str]] = {}
    for name, place in named:
        places.setdefault(name, []).append(place)
    repeated = {name: where for name, where in places.items() if len(where) > 1}
    if repeated:
        shown = "; ".join(f"{name!r} at {' and '.join(where)}" for name, where in [*repeated.items()][:_SHOWN])
        raise UsageError(
            f"some labels are the same: {what} has {shown}; {len(repeated)} in all; each class needs a name of its own"
        )


def _read(path: Path) -> list[tuple[str, str]]:
    """Return the names in a file, each with its place in words."""
    if path.stat().st_size > _MAX_BYTES:
        raise UsageError(f"labels file {path} has {path.stat().st_size} bytes; at most {_MAX_BYTES} are accepted")
    data = path.read_bytes()
    wide = data.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE))
    try:
        text = data.decode("utf-16" if wide else "utf-8-sig")
    except UnicodeDecodeError as error:
        raise UsageError(f"labels file {path} is not UTF-8 text: {error}") from error
    if path.suffix.lower() == ".json" or text.lstrip()[:1] in ("[", "{"):
        try:
            return _from_json(json.loads(text, object_pairs_hook=_Pairs), path)
        except (json.JSONDecodeError, RecursionError) as error:
            if path.suffix.lower() == ".json":
                raise UsageError(f"labels file {path} is not JSON: {error}") from error
    lines = enumerate(re.split(r"\r\n|\r|\n", text), start=1)
    return [(line, f"line {number}") for number, line in lines if line.strip()]


class _Pairs(list[tuple[str, Any]]):
    """The entries of a JSON object, in which a key may stand twice."""


def _from_json(content: Any, path: Path) -> list[tuple[str, str]]:
    """Return the names in the order of their indices."""
    if isinstance(content, _Pairs):
        inner = {key: value for key, value in content if isinstance(value, _Pairs)}
        content = inner.get("id2label", inner.get("label2id", content))
        entries = _by_index(content, path)
        indices = [index for index, _ in entries]
        wrong = sorted(set(range(len(entries))) ^ set(indices))
        if wrong or len(set(indices)) != len(indices):
            again = sorted({index for index in indices if indices.count(index) > 1})
            raise UsageError(
                f"labels file {path} has indices that are not 0 to {len(entries) - 1}, each once: "
                + (f"{again[0]} stands twice" if again else f"{wrong[0]} is missing or too large")
            )
        return [(name, f"index {index}") for index, name in sorted(entries)]
    if isinstance(content, list) and all(isinstance(name, str) for name in content):
        return [(name, f"position {number}") for number, name in enumerate(content, start=1)]
    raise UsageError(
        f"labels file {path} has JSON that is no list of names; "
        'accepted: ["cat", …], {"0": "cat", …} and {"cat": 0, …}'
    )


def _by_index(content: Any, path: Path) -> list[tuple[int, str]]:
    """Return index and name of each entry of a JSON object."""
    if all(isinstance(name, str) and re.fullmatch(r"\d{1,9}", key) for key, name in content):
        return [(int(key), name) for key, name in content]
    if all(type(index) is int for _, index in content):
        return [(index, name) for name, index in content]
    key, value = next(
        (key, value) for key, value in content if not (isinstance(value, str) and re.fullmatch(r"\d{1,9}", key))
    )
    raise UsageError(
        f"labels file {path} has {key!r}: {value!r}; accepted are names by index, "
        '{"0": "cat", …}, and indices by name, {"cat": 0, …}'
    )
