"""Copies to and from a board that go on where they stopped."""

from __future__ import annotations

import logging
import re
import shutil
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

from krl_runtime.errors import DataError
from krl_runtime.files import inside, sha256_bytes, sha256_file
from krl_runtime.progress import progress_bar

from .inputs import Input
from .registry import BoardError
from .ssh import BrokenConnectionError, Channel, Connection
from .wheels import LEAST_PYTHON, Needs

__all__ = ["Staged", "collect", "stage"]

_log = logging.getLogger("krl")

_SHA256 = re.compile("[0-9a-f]{64}")
_BLOCK = 1 << 20  # bytes of a read or write, and of a step of the progress bar
_WAITS = (1.0, 2.0, 4.0)  # seconds before each further try: a router that restarts takes longer, and is said
_Value = TypeVar("_Value")


@dataclass(frozen=True)
class Staged:
    """A command's folder on the board.

    Attributes:
        job: Name of the folder.
        python: The Python of krl's environment there.
        modules: Versions of the modules that were asked for; ``None`` where there is none.
        copied: Bytes that the last connection sent.
    """

    job: str
    python: str
    modules: Mapping[str, str | None]
    copied: int


def stage(
    connection: Connection, inputs: Sequence[Input], needs: Needs, links: Mapping[str, Input], outputs: Sequence[str]
) -> Staged:
    """Bring files and krl to the board; what is there already is not sent.

    Args:
        connection: The connection.
        inputs: Files and folders.
        needs: The wheels, and the modules to ask for.
        links: For each name on the command line its input.
        outputs: Names of results.

    Raises:
        BoardError: The board cannot be reached, lacks something, or the connection broke again and again.
        DataError: A file changed while it was copied.
    """
    wheels = {name: sha256_bytes(data) for name, data in needs.wheels.items()}
    sources: dict[str, Path | bytes] = {sha: path for item in inputs for sha, path in item.sources.items()}
    sources |= {wheels[name]: data for name, data in needs.wheels.items()}
    sizes = {sha: size for item in inputs for sha, size in item.sizes.items()}
    sizes |= {wheels[name]: len(data) for name, data in needs.wheels.items()}
    request = {
        "op": "stage",
        "objects": sizes,
        "wheels": wheels,
        "least_python": LEAST_PYTHON,
        "modules": sorted(needs.least),
        "inputs": [item.to_dict() for item in inputs],
        "links": {name: [item.id, item.name] for name, item in links.items()},
        "outputs": list(outputs),
    }
    copied = 0

    def attempt() -> dict[str, Any]:
        nonlocal copied
        with connection.request(request) as channel:
            offsets: dict[str, int] = channel.receive()["offsets"]
            for sha, offset in offsets.items():
                if sha not in sizes or type(offset) is not int or not 0 <= offset <= sizes[sha]:
                    raise BoardError(f"board {connection.board.name} asks for a file that it was not offered")
            copied += _send(channel, offsets, sizes, sources)
            return channel.receive()

    answer = _again(attempt, connection)
    if answer.get("damaged"):
        source = sources.get(answer["damaged"][0], b"")
        name = "a wheel of krl" if isinstance(source, bytes) else source
        raise DataError(
            f"{name} changed while it was copied, or is not as its manifest has it; nothing was run. Check a bundle "
            "with: krl-runtime info NAME.krl"
        )
    return Staged(str(answer["job"]), str(answer["python"]), answer["modules"], copied)


def _again(attempt: Callable[[], _Value], connection: Connection) -> _Value:
    """Try again where a connection breaks."""
    for wait in _WAITS:
        try:
            return attempt()
        except BrokenConnectionError as error:
            _log.warning("%s; trying again in %g s", str(error).partition(";")[0], wait)
            connection.close()
            time.sleep(wait)
    try:
        return attempt()
    except BrokenConnectionError as error:
        raise BrokenConnectionError(f"{error}; the copy goes on where it stopped") from error


def _send(
    channel: Channel, offsets: Mapping[str, int], sizes: Mapping[str, int], sources: Mapping[str, Path | bytes]
) -> int:
    """Send the rest of each file; return the number of bytes. A file that became shorter is filled up, and refused."""
    total = sum(-(-max(0, sizes[sha] - offset) // _BLOCK) for sha, offset in offsets.items())
    sent = 0
    if not total:
        channel.flush()
        return 0
    with progress_bar("copying to the board", total) as advance:
        for sha, offset in offsets.items():
            for block in _blocks(sources[sha], offset, sizes[sha]):
                channel.write(block)
                sent += len(block)
                advance()
        channel.flush()
    return sent


def _blocks(source: Path | bytes, offset: int, size: int) -> Any:
    """Yield exactly ``size - offset`` bytes."""
    if isinstance(source, bytes):
        for start in range(offset, size, _BLOCK):
            yield source[start : min(start + _BLOCK, size)]
        return
    with source.open("rb") as file:
        file.seek(offset)
        left = size - offset
        while left > 0:
            block = file.read(min(_BLOCK, left)).ljust(min(_BLOCK, left), b"\0")
            yield block
            left -= len(block)


def collect(
    connection: Connection, job: str, inputs: Sequence[Input], target: Callable[[str, str, str], tuple[Path, str]]
) -> list[Path]:
    """Bring back what a command wrote, and remove its folder on the board; return the files that are new here.

    Args:
        connection: The connection.
        job: Name of the folder on the board.
        inputs: The command's inputs; what was added beside them is brought back.
        target: From the kind of place, its key and a name in it to a folder of this machine and a name in that. The
            names come from the board, and none leaves its folder.

    Raises:
        BoardError: The connection broke again and again, or the board sends what it may not send.
    """
    request = {"op": "collect", "job": job, "inputs": [item.to_dict() for item in inputs]}
    written: list[Path] = []

    def attempt() -> None:
        with connection.request(request) as channel:
            wanted: list[tuple[int, Path, Path, int, str]] = []
            for index, (kind, key, name, size, sha) in enumerate(_offered(channel.receive(), connection)):
                path = _local(target(kind, key, name), connection)
                # By the name as well: files with the same bytes can lie in one folder.
                part = path.with_name(
                    f".{sha256_bytes(f'{path.name}/{sha}'.encode(errors='surrogateescape'))[:16]}.part"
                )
                if not (path.is_file() and path.stat().st_size == size and sha256_file(path) == sha):
                    wanted.append((index, path, part, size, sha))
            offsets = [_there(part, size) for _, _, part, size, _ in wanted]
            _check_space(connection, [path for _, path, _, _, _ in wanted], sum(size for *_, size, _ in wanted))
            channel.send([[entry[0], offset] for entry, offset in zip(wanted, offsets, strict=True)])
            total = sum(-(-(entry[3] - offset) // _BLOCK) for entry, offset in zip(wanted, offsets, strict=True))
            with progress_bar("copying from the board", total) as advance:
                for _, path, part, size, sha in wanted:
                    _take(channel, part, size, advance)
                    if sha256_file(part) != sha:
                        part.unlink()
                        raise BrokenConnectionError(f"{path} arrived damaged; run the same command again")
                    part.replace(path)
                    written.append(path)
            channel.send({"whole": True})
            channel.receive()

    _again(attempt, connection)
    return written


def _offered(answer: Mapping[str, Any], connection: Connection) -> list[tuple[str, str, str, int, str]]:
    """Return the files that the board offers: kind of place, its key, name, size in bytes and SHA-256."""
    rows = answer.get("files")
    if isinstance(rows, list) and all(map(_is_file, rows)):
        return [tuple(row) for row in rows]
    raise BoardError(f"board {connection.board.name} sends a list of results that is refused: it is no list of files")


def _is_file(row: Any) -> bool:
    if not isinstance(row, list) or len(row) != 5:  # as _offered names them
        return False
    *place, size, sha = row
    named = all(isinstance(text, str) for text in (*place, sha)) and _SHA256.fullmatch(sha) is not None
    return named and type(size) is int and size >= 0


def _local(place: tuple[Path, str], connection: Connection) -> Path:
    """Return the path of a file that comes from the board, within its folder."""
    folder, name = place
    try:
        return inside(folder, name) if name else folder
    except ValueError as error:
        raise BoardError(f"board {connection.board.name} sends a file that is refused: {error}") from error


def _check_space(connection: Connection, paths: Sequence[Path], size: int) -> None:
    """Refuse results that this machine has no room for."""
    if not paths:
        return
    folder = next(path for path in paths[0].absolute().parents if path.is_dir())
    free = shutil.disk_usage(folder).free
    if size > free:
        raise BoardError(f"board {connection.board.name} has {size} bytes of results, and {folder} has {free} free")


def _there(part: Path, size: int) -> int:
    """Return the number of bytes that an earlier connection brought."""
    found = part.stat().st_size if part.is_file() else 0
    if found > size:
        part.unlink()
    return found if found <= size else 0


def _take(channel: Channel, part: Path, size: int, advance: Callable[[], None]) -> None:
    """Append the rest of a file that comes from the board."""
    part.parent.mkdir(parents=True, exist_ok=True)
    with part.open("ab") as file:
        left = size - file.tell()
        while left > 0:
            block = channel.read(min(_BLOCK, left))
            file.write(block)
            left -= len(block)
            advance()
