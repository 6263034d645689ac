"""Atomic writes of files and folders, hashes, and safe relative paths.

Functions import the standard modules that only writing or hashing needs, so that ``import krl_runtime`` stays fast.
"""

from __future__ import annotations

import errno
import json
import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path, PurePosixPath
from typing import Any

__all__ = [
    "atomic_folder",
    "atomic_path",
    "cache_folder",
    "config_folder",
    "dump_digested",
    "dump_json",
    "inside",
    "sha256_bytes",
    "sha256_file",
    "write_atomic",
]


def dump_json(values: Mapping[str, Any]) -> bytes:
    """Return values as canonical JSON: sorted keys, an indent of one, UTF-8, and a line feed at the end.

    Raises:
        ValueError: A number is not finite. JSON has no such numbers.

    Example:
        >>> print(dump_json({"b": 1, "a": "é"}).decode(), end="")
        {
         "a": "é",
         "b": 1
        }
    """
    return json.dumps(values, indent=1, sort_keys=True, ensure_ascii=False, allow_nan=False).encode() + b"\n"


def dump_digested(values: Mapping[str, Any]) -> bytes:
    """Return values as ``dump_json`` does, with a ``digest``: the SHA-256 of the text with an empty ``digest``.

    To check a file, write the values that were read from it again: other bytes show that the file was changed.

    Example:
        >>> import json
        >>> text = dump_digested({"name": "flowers"})
        >>> dump_digested(json.loads(text)) == text
        True
    """
    return dump_json({**values, "digest": sha256_bytes(dump_json({**values, "digest": ""}))})


def sha256_bytes(data: bytes | memoryview) -> str:
    """Return the hexadecimal SHA-256 of ``data``.

    Example:
        >>> sha256_bytes(b"")[:16]
        'e3b0c44298fc1c14'
    """
    import hashlib

    return hashlib.sha256(data).hexdigest()


def sha256_file(path: Path) -> str:
    """Return the hexadecimal SHA-256 of a file, read in blocks."""
    import hashlib

    digest = hashlib.sha256()
    with path.open("rb") as file:
        while block := file.read(1 << 20):
            digest.update(block)
    return digest.hexdigest()


def cache_folder() -> Path:
    """Return the folder for what may be computed again: ``KRL_CACHE_DIR``, else ``~/.cache/krl``.

    ``XDG_CACHE_HOME`` moves ``~/.cache``.

    Raises:
        RuntimeError: The user has no home folder, as in some containers.
    """
    return _own_folder("KRL_CACHE_DIR", "XDG_CACHE_HOME", ".cache")


def config_folder() -> Path:
    """Return the folder for the user's own settings: ``KRL_CONFIG_DIR``, else ``~/.config/krl``.

    ``XDG_CONFIG_HOME`` moves ``~/.config``.

    Raises:
        RuntimeError: The user has no home folder, as in some containers.
    """
    return _own_folder("KRL_CONFIG_DIR", "XDG_CONFIG_HOME", ".config")


def _own_folder(variable: str, xdg: str, usual: str) -> Path:
    """Return the folder that a variable of krl names, else ``krl`` in that of the desktop's standard."""
    own = os.environ.get(variable)
    return Path(own) if own else Path(os.environ.get(xdg) or Path.home() / usual) / "krl"


def inside(folder: Path, relative: str) -> Path:
    """Return ``folder/relative`` if it stays within ``folder``.

    Raises:
        ValueError: ``relative`` is absolute, has ``..``, a backslash or a drive, leaves the folder by a link, or is a
            name that no file can have.

    Example:
        >>> inside(Path("flowers.krl"), "engines/a.plan").as_posix()
        'flowers.krl/engines/a.plan'
        >>> inside(Path("flowers.krl"), "../other")
        Traceback (most recent call last):
        ValueError: path '../other' leaves its folder
    """
    pure = PurePosixPath(relative)
    unsafe = pure.is_absolute() or ".." in pure.parts or "\\" in relative or ":" in relative or "\0" in relative
    if unsafe or not pure.parts:
        raise ValueError(f"path {relative!r} leaves its folder")
    path = folder.joinpath(*pure.parts)
    try:
        leaves = not path.resolve().is_relative_to(folder.resolve())
    except (OSError, RuntimeError) as error:  # a link to itself, a name that is too long
        raise ValueError(f"path {relative!r} cannot be followed: {error}") from error
    if leaves:
        raise ValueError(f"path {relative!r} leaves its folder through a symbolic link")
    return path


def _sync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    except OSError:  # some file systems cannot sync a folder; the rename is still atomic
        pass
    finally:
        os.close(descriptor)


def _temporary(target: Path) -> Path:
    """Return the name of a new file or folder beside ``target``; no other process has it."""
    import secrets

    target.parent.mkdir(parents=True, exist_ok=True)
    # 50 letters take at most 200 bytes in UTF-8, and file systems take names of 255.
    return target.with_name(f".{target.name[:50]}.{secrets.token_hex(8)}.tmp")


@contextmanager
def atomic_path(target: Path, *, mode: int = 0o666) -> Iterator[Path]:
    """Yield a temporary path beside ``target``, which replaces ``target`` if the block ends without error.

    Args:
        target: The file to make.
        mode: Its permissions, less those that the process's umask takes away.
    """
    temporary = _temporary(target)
    os.close(os.open(temporary, os.O_CREAT | os.O_EXCL | os.O_WRONLY, mode))
    try:
        yield temporary
        _sync(temporary)
        temporary.replace(target)
        _sync(target.parent)
    finally:
        temporary.unlink(missing_ok=True)


def write_atomic(target: Path, data: bytes, *, mode: int = 0o666) -> None:
    """Write a whole file, or leave the old one unchanged; see ``atomic_path``."""
    with atomic_path(target, mode=mode) as temporary:
        temporary.write_bytes(data)


@contextmanager
def atomic_folder(target: Path, *, replace: bool = False) -> Iterator[Path]:
    """Yield a temporary folder beside ``target``, which becomes ``target`` if the block ends without error.

    With ``replace`` an existing folder is moved aside first and removed last, so that it is never lost before the new
    one is complete.

    Raises:
        FileExistsError: ``target`` exists and ``replace`` is false.
    """
    import shutil

    if target.exists() and not replace:
        raise FileExistsError(errno.EEXIST, "it exists already", str(target))
    temporary = _temporary(target)
    temporary.mkdir()
    try:
        yield temporary
        if target.exists():
            old = temporary.with_suffix(".old")
            target.rename(old)
            try:
                temporary.rename(target)
            except BaseException:
                old.rename(target)
                raise
            shutil.rmtree(old, ignore_errors=True)
        else:
            temporary.rename(target)
        _sync(target.parent)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
