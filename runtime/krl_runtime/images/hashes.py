"""SHA-256 of many files, and which of them could be decoded: found in parallel, and remembered.

A file that has the size, the times and the number (inode) of before is not read again. One of the times is when the
system last saw it change (ctime), which no program can set back; Windows has none. Where hashes decide about trust, as
in a bundle, they are not taken from here.
"""

from __future__ import annotations

import logging
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing, suppress
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any

from krl_runtime.files import cache_folder, sha256_file
from krl_runtime.processor import cpu_count
from krl_runtime.progress import progress

from .formats import decoder_version

if TYPE_CHECKING:
    import sqlite3

__all__ = ["UNREADABLE", "HashedFile", "decodable", "hash_files", "remember_decodable"]

_log = logging.getLogger("krl")

UNREADABLE = ""
"""Stands for the hash of a file that cannot be read, where that is accepted."""

_NAME = "hashes.sqlite"
_TOGETHER = 500  # values in one query; SQLite takes some thousand parameters
_BLOCK = 64  # files that a thread hashes in turn: small ones take less time than handing them over
_WAIT = 10.0  # seconds for another process that writes; then the hashes are computed and not kept
_LARGEST = 2**63 - 1  # SQLite's integers; some file systems number their files beyond
_Key = tuple[str, int, int, int, int]

_TABLES = (
    "CREATE TABLE IF NOT EXISTS hashes (path TEXT PRIMARY KEY, size INT, modified INT, changed INT, inode INT, "
    "sha256 TEXT)",
    "CREATE TABLE IF NOT EXISTS decodable (sha256 TEXT PRIMARY KEY, decoder TEXT)",
)


class HashedFile:
    """An image file that is hashed as it is decoded, so that the hash is that of the bytes which were decoded.

    To be given to a decoder as a file object. It is read once, from its beginning to its end.

    Args:
        file: The opened file.
        name: Its name in messages.
    """

    def __init__(self, file: IO[bytes], name: str) -> None:
        import hashlib

        self.name = name
        self._file, self._digest = file, hashlib.sha256()

    def read(self, size: int = -1) -> bytes:
        """Return the next bytes, ``size`` at most; all that are left where it is negative."""
        block = self._file.read(size)
        self._digest.update(block)
        return block

    def sha256(self) -> str:
        """Return the hexadecimal SHA-256 of what was read."""
        return self._digest.hexdigest()


def hash_files(files: Sequence[Path], *, accept_unreadable: bool = False) -> list[str]:
    """Return the SHA-256 of each file, in hexadecimal.

    Hashes are kept in ``hashes.sqlite`` in the folder that ``cache_folder`` names. A cache that cannot be used costs
    time alone.

    Args:
        files: The files.
        accept_unreadable: Whether a file that cannot be read has the hash ``UNREADABLE``, rather than raising.

    Raises:
        OSError: A file cannot be read, and that is not accepted.
    """
    folders: dict[Path, str] = {}

    def key_of(path: Path) -> _Key | None:
        try:
            return _key(path, folders)
        except OSError:
            if accept_unreadable:
                return None
            raise

    def hash_of(path: Path) -> str:
        try:
            return sha256_file(path)
        except OSError:
            if accept_unreadable:
                return UNREADABLE
            raise

    keys = [key_of(path) for path in files]
    known = _read_hashes([key for key in keys if key is not None])
    missing = [index for index, key in enumerate(keys) if key is not None and key not in known]
    blocks = [missing[start : start + _BLOCK] for start in range(0, len(missing), _BLOCK)]
    new: dict[_Key, str] = {}
    with ThreadPoolExecutor(cpu_count()) as pool:
        found = pool.map(lambda block: [hash_of(files[index]) for index in block], blocks)
        hashed = (digest for block in found for digest in block)
        for index, digest in zip(progress(missing, "hashing images"), hashed, strict=True):
            new[keys[index]] = digest  # type: ignore[index]  # missing ones have keys
    _write("hashes", [(*key, digest) for key, digest in new.items() if digest != UNREADABLE])
    known |= new
    return [UNREADABLE if key is None else known[key] for key in keys]


def decodable(hashes: Iterable[str]) -> set[str]:
    """Return those of the SHA-256 of files that the decoders of this machine have decoded before."""
    found = _select("SELECT sha256, decoder FROM decodable", "sha256", list(hashes))
    return {digest for digest, decoder in found if decoder == decoder_version()}


def remember_decodable(hashes: Iterable[str]) -> None:
    """Remember the SHA-256 of files that could be decoded."""
    _write("decodable", [(digest, decoder_version()) for digest in hashes if digest != UNREADABLE])


def _key(path: Path, folders: dict[Path, str]) -> _Key:
    """Return path, size, times and inode of a file; ``folders`` keeps real paths, which take longer than the rest."""
    status = path.stat()
    if path.parent not in folders:
        folders[path.parent] = str(path.parent.resolve())
    place = f"{folders[path.parent]}/{path.name}"
    return place, status.st_size, status.st_mtime_ns, status.st_ctime_ns, status.st_ino & _LARGEST


def _database() -> sqlite3.Connection | None:
    """Open the cache; ``None`` where there can be none."""
    import sqlite3

    try:
        folder = cache_folder()
        folder.mkdir(parents=True, exist_ok=True)
        connection = sqlite3.connect(folder / _NAME, timeout=_WAIT)
        for table in _TABLES:
            connection.execute(table)
    except (sqlite3.Error, OSError, RuntimeError) as error:
        _give_up(error)
        return None
    return connection


def _give_up(error: Exception) -> None:
    """Log why the cache is not used. One that is damaged is removed, so that the next use makes it anew."""
    import sqlite3

    if type(error) is not sqlite3.DatabaseError:  # the kinds below it are locks, rights and full disks
        _log.debug("hashes of files are not kept: %s", error)
        return
    path = cache_folder() / _NAME
    _log.warning("the hashes of files in %s are damaged (%s) and are made anew", path, error)
    with suppress(OSError):
        path.unlink()


def _read_hashes(keys: Sequence[_Key]) -> dict[_Key, str]:
    """Return the hashes that are known."""
    columns = "path, size, modified, changed, inode, sha256"
    rows = _select(f"SELECT {columns} FROM hashes", "path", [key[0] for key in keys])  # noqa: S608  names of this module
    known = {tuple(key): digest for *key, digest in rows}
    return {key: known[key] for key in keys if key in known}


def _select(query: str, column: str, values: Sequence[str]) -> list[Any]:
    """Return the rows of a query that have one of the values in a column; none where they cannot be read."""
    import sqlite3

    connection = _database() if values else None
    if connection is None:
        return []
    rows: list[Any] = []
    try:
        with closing(connection):
            for part in _parts(values):
                rows += connection.execute(f"{query} WHERE {column} IN ({','.join('?' * len(part))})", part)
    except sqlite3.Error as error:
        _give_up(error)
        return []
    return rows


def _write(table: str, rows: Sequence[tuple[Any, ...]]) -> None:
    import sqlite3

    connection = _database() if rows else None
    if connection is None:
        return
    try:
        with closing(connection), connection:
            marks = ",".join("?" * len(rows[0]))
            connection.executemany(f"INSERT OR REPLACE INTO {table} VALUES ({marks})", rows)  # noqa: S608  names of this module
    except sqlite3.Error as error:
        _give_up(error)


def _parts(values: Sequence[str]) -> Iterator[Sequence[str]]:
    return (values[start : start + _TOGETHER] for start in range(0, len(values), _TOGETHER))
