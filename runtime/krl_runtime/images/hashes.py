"""SHA-256 of many files, computed in parallel and remembered.

A file that has the size and the time of its last change of before is not read again. Where hashes decide about trust,
as in a bundle, they are not taken from here.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from pathlib import Path
from typing import TYPE_CHECKING

from krl_runtime.files import cache_folder, sha256_file
from krl_runtime.processor import cpu_count
from krl_runtime.progress import progress

if TYPE_CHECKING:
    import sqlite3

__all__ = ["hash_files"]

_log = logging.getLogger("krl")

_TOGETHER = 500  # files in one query; SQLite takes some thousand parameters
_WAIT = 10.0  # seconds for another process that writes; then the hashes are computed and not kept
_Key = tuple[str, int, int]


def hash_files(files: Sequence[Path]) -> list[str]:
    """Return the SHA-256 of each file, in hexadecimal.

    Hashes are kept in ``hashes.sqlite`` in the folder that ``cache_folder`` names. A cache that cannot be used costs
    time alone.

    Args:
        files: The files.

    Raises:
        OSError: A file cannot be read.
    """
    keys = [_key(path) for path in files]
    known = _read(keys)
    missing = sorted({index: None for index, key in enumerate(keys) if key not in known})
    new: dict[_Key, str] = {}
    with ThreadPoolExecutor(cpu_count()) as pool:
        found = pool.map(lambda index: sha256_file(files[index]), missing)
        for index, digest in zip(progress(missing, "hashing images"), found, strict=True):
            new[keys[index]] = digest
    _write(new)
    return [known.get(key) or new[key] for key in keys]


def _key(path: Path) -> _Key:
    status = path.stat()
    return str(path.resolve()), status.st_size, status.st_mtime_ns


def _database() -> sqlite3.Connection | None:
    """Open the cache; ``None`` where there can be none."""
    import sqlite3

    try:
        folder = cache_folder()
        folder.mkdir(parents=True, exist_ok=True)
        connection = sqlite3.connect(folder / "hashes.sqlite", timeout=_WAIT)
        connection.execute(
            "CREATE TABLE IF NOT EXISTS hashes (path TEXT PRIMARY KEY, size INT, changed INT, sha256 TEXT)"
        )
    except (sqlite3.Error, OSError, RuntimeError) as error:
        _log.debug("hashes of files are not kept: %s", error)
        return None
    return connection


def _read(keys: Sequence[_Key]) -> dict[_Key, str]:
    """Return the hashes that are known."""
    import sqlite3

    connection = _database()
    if connection is None:
        return {}
    known: dict[_Key, str] = {}
    try:
        with closing(connection):
            for part in _parts(keys):
                marks = ",".join("?" * len(part))
                rows = connection.execute(
                    f"SELECT path, size, changed, sha256 FROM hashes WHERE path IN ({marks})",  # noqa: S608  question marks alone
                    [key[0] for key in part],
                )
                known.update({(path, size, changed): digest for path, size, changed, digest in rows})
    except sqlite3.Error as error:
        _log.debug("the hashes that were kept cannot be read: %s", error)
        return {}
    return {key: known[key] for key in keys if key in known}


def _write(new: dict[_Key, str]) -> None:
    import sqlite3

    connection = _database() if new else None
    if connection is None:
        return
    try:
        with closing(connection), connection:
            rows = [(*key, digest) for key, digest in new.items()]
            connection.executemany("INSERT OR REPLACE INTO hashes VALUES (?, ?, ?, ?)", rows)
    except sqlite3.Error as error:
        _log.debug("hashes of files are not kept: %s", error)


def _parts(keys: Sequence[_Key]) -> Iterator[Sequence[_Key]]:
    return (keys[start : start + _TOGETHER] for start in range(0, len(keys), _TOGETHER))
