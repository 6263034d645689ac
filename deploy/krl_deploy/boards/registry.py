"""The boards that a user has named: ``boards.json`` in the folder of the user's settings."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any

from krl_runtime.errors import KrlError, UsageError
from krl_runtime.files import config_folder, dump_json, write_atomic

__all__ = ["Board", "BoardError", "add_board", "boards_file", "find_board", "read_boards", "remove_board"]

_SCHEMA_VERSION = 1  # of boards.json; another one is refused
_MAX_BYTES = 1 << 20  # a board takes some hundred bytes
_MAX_PORT = 65535  # TCP's
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}")  # a part of a path on both machines
_HOST = re.compile(r"(?:[A-Za-z0-9_][A-Za-z0-9_.+-]*@)?[A-Za-z0-9_\[][A-Za-z0-9_.:%\]-]*")
_REMOTE_PATH = re.compile(r"[A-Za-z0-9_./~][A-Za-z0-9_./~+ -]*")  # what every shell takes as it is, within quotes


class BoardError(KrlError):
    """A board cannot be reached, or lacks what is needed there."""


@dataclass(frozen=True)
class Board:
    """A machine that is reached over SSH.

    Attributes:
        name: The name that the user gave it.
        host: As OpenSSH takes it: ``user@host``, or a name of its configuration.
        port: Port of its SSH server; ``None`` leaves it to OpenSSH's configuration.
        identity: File of the private key on this machine; ``None`` for OpenSSH's own.
        python: Program of Python on the board.
        folder: Folder for krl's files on the board, below the user's home unless it is absolute.
        ssh_config: Another configuration for OpenSSH than the user's.

    Raises:
        UsageError: A value is not accepted.
    """

    name: str
    host: str
    port: int | None = None
    identity: str | None = None
    python: str = "python3"
    folder: str = ".krl-board"
    ssh_config: str | None = None

    def __post_init__(self) -> None:
        """Check the values: some of them are parts of command lines."""
        for what, value, pattern, accepted in (
            ("the board's name", self.name, _NAME, "up to 64 letters, digits, '.', '_' and '-', a letter first"),
            ("the host", self.host, _HOST, "user@host, host, or a name of OpenSSH's configuration"),
            ("--python", self.python, _REMOTE_PATH, "the name or path of a program, of letters, digits and ./~_+-"),
            ("--folder", self.folder, _REMOTE_PATH, "a path on the board, of letters, digits and ./~_+-"),
        ):
            if not pattern.fullmatch(value):
                raise UsageError(f"{what} is {value!r}; accepted: {accepted}")
        if self.port is not None and not 0 < self.port <= _MAX_PORT:
            raise UsageError(f"--port is {self.port}; accepted: 1 to {_MAX_PORT}")
        if ".." in self.folder.split("/") or not self.folder.strip("/.~ "):
            raise UsageError(f"--folder is {self.folder!r}; accepted: a folder of its own, without '..'")


def boards_file() -> Path:
    """Return the file that holds the boards; see ``krl_runtime.files.config_folder``.

    Raises:
        BoardError: The user has no home folder.
    """
    try:
        return config_folder() / "boards.json"
    except RuntimeError as error:
        raise BoardError("this user has no home folder for settings; set KRL_CONFIG_DIR") from error


def read_boards() -> dict[str, Board]:
    """Return the boards by name; none if there is no file yet.

    Raises:
        BoardError: The file cannot be read, or is not one of boards.
    """
    path = boards_file()
    try:
        with path.open("rb") as file:
            values = json.loads(file.read(_MAX_BYTES))
        if values["schema_version"] != _SCHEMA_VERSION:
            raise ValueError(f"its schema version is {values['schema_version']}, not {_SCHEMA_VERSION}")
        return {name: _board({**item, "name": name}) for name, item in values["boards"].items()}
    except FileNotFoundError:
        return {}
    except (OSError, ValueError, TypeError, KeyError, AttributeError, RecursionError, UsageError) as error:
        raise BoardError(
            f"{path} is not a readable list of boards ({error}); mend it, or remove it and add the boards again"
        ) from error


def _board(values: Mapping[str, Any]) -> Board:
    for item in fields(Board):
        value = values.get(item.name, item.default)
        accepted = (int, type(None)) if item.name == "port" else (str, type(None))
        if not isinstance(value, accepted) or (value is None and item.default is not None):
            raise ValueError(f"{item.name} is {value!r}")
    return Board(**values)


def find_board(name: str) -> Board:
    """Return a board.

    Raises:
        UsageError: There is none of this name.
        BoardError: See ``read_boards``.
    """
    boards = read_boards()
    if name not in boards:
        known = f"known boards: {', '.join(sorted(boards))}" if boards else "no board was added yet"
        raise UsageError(f"board {name!r} is not known; {known}; add it with: krl-deploy board add {name} user@host")
    return boards[name]


def add_board(board: Board) -> None:
    """Keep a board; one of the same name is replaced.

    Raises:
        BoardError: See ``read_boards``.
        OSError: The file cannot be written.
    """
    _write({**read_boards(), board.name: board})


def remove_board(name: str) -> Board:
    """Remove a board, and return it.

    Raises:
        UsageError: There is none of this name.
        BoardError: See ``read_boards``.
        OSError: The file cannot be written.
    """
    removed = find_board(name)
    _write({key: board for key, board in read_boards().items() if key != name})
    return removed


def _write(boards: Mapping[str, Board]) -> None:
    listed = {
        name: {key: value for key, value in asdict(board).items() if key != "name"} for name, board in boards.items()
    }
    write_atomic(boards_file(), dump_json({"schema_version": _SCHEMA_VERSION, "boards": listed}))
