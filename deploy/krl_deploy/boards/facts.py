"""``krl-deploy board add``, ``list`` and ``remove``: boards by name, and what each of them has."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import tyro

from krl_runtime.backends.cuda import jetson_release_in
from krl_runtime.device.platforms import jetpack_of

from .copying import stage
from .on import check_modules
from .registry import Board, add_board, find_board, read_boards, remove_board
from .ssh import Connection
from .wheels import needs_of

__all__ = ["BoardAddConfig", "BoardListConfig", "BoardRemoveConfig", "add", "facts_of", "listed", "remove"]

_ASKED = ("numpy", "PIL", "onnxruntime", "tensorrt", "krl_runtime", "onnx", "tyro")
"""Modules whose versions are shown."""


@dataclass(frozen=True)
class BoardAddConfig:
    """Options of ``krl-deploy board add``."""

    name: tyro.conf.Positional[str]
    """A name for the board, as in: krl-deploy on NAME."""
    host: tyro.conf.Positional[str]
    """user@host, or a name of OpenSSH's configuration. Its host key must be known: connect once with ssh."""
    port: int | None = None
    """Port of its SSH server; left out: OpenSSH's configuration says."""
    identity: Path | None = None
    """Private key of this machine to log in with; left out: OpenSSH's own."""
    python: str = "python3"
    """Program of Python on the board, 3.10 or later. On a Jetson it is the system's, which sees JetPack's TensorRT."""
    folder: str = ".krl-board"
    """Folder for krl's files on the board, below the home folder."""
    ssh_config: Path | None = None
    """A configuration file for OpenSSH, instead of the user's."""
    install: bool = False
    """Install the packages that are missing on the board, from its own package index; only with this option."""
    json: bool = False
    """Print the result as one JSON object."""


@dataclass(frozen=True)
class BoardListConfig:
    """Options of ``krl-deploy board list``."""

    json: bool = False
    """Print the result as one JSON object."""


@dataclass(frozen=True)
class BoardRemoveConfig:
    """Options of ``krl-deploy board remove``."""

    name: tyro.conf.Positional[str]
    """Name of the board."""
    clean: bool = False
    """Also remove krl's files from the board: copies, engines and evaluations there."""
    json: bool = False
    """Print the result as one JSON object."""


def add(config: BoardAddConfig) -> dict[str, Any]:
    """Connect to a board, say what is there, and keep it under its name.

    Returns:
        Plain JSON types: the board, and what it has.

    Raises:
        UsageError: An option is not accepted.
        BoardError: The board cannot be reached, or with ``install`` a package cannot be installed.
    """
    files = {name: None if path is None else str(path.expanduser().absolute()) for name, path in _paths(config).items()}
    board = Board(config.name, config.host, config.port, python=config.python, folder=config.folder, **files)
    with Connection(board) as connection:
        if config.install:
            _install(connection)
        with connection.request({"op": "facts", "modules": list(_ASKED)}) as channel:
            found = channel.receive()
    add_board(board)
    return {"board": board.name, "host": board.host, **facts_of(found)}


def _paths(config: BoardAddConfig) -> dict[str, Path | None]:
    return {"identity": config.identity, "ssh_config": config.ssh_config}


def facts_of(found: dict[str, Any]) -> dict[str, Any]:
    """Return the facts of a board, with the JetPack by its release of Jetson Linux."""
    release = str(found["tegra_release"])
    jetpack = jetpack_of(jetson_release_in(release) or "")
    facts = {key: found[key] for key in ("python", "machine", "system", "free_bytes", "folder", "modules")}
    return {**facts, "jetson_linux": release, "jetpack": jetpack.name if jetpack else ""}


def _install(connection: Connection) -> None:
    """Install what is missing from the board's package index."""
    needs = needs_of("krl-deploy")
    staged = stage(connection, (), needs, {}, ())
    asked = sorted(needs.requirements)
    with connection.request({"op": "facts", "modules": asked}) as channel:
        modules = channel.receive()["modules"]
    missing = [needs.requirements[name] for name in asked if modules.get(name) is None]
    if missing:
        request = {"op": "install", "requirements": missing, "modules": sorted(needs.least)}
        with connection.request(request) as channel:
            staged_modules = channel.receive()["modules"]
        check_modules(connection.board, "krl-deploy", staged_modules, needs)
    else:
        check_modules(connection.board, "krl-deploy", staged.modules, needs)


def listed(config: BoardListConfig) -> dict[str, Any]:
    """Return the boards, without connecting to them.

    Raises:
        BoardError: The list cannot be read.
    """
    return {"boards": [asdict(board) for _, board in sorted(read_boards().items())]}


def remove(config: BoardRemoveConfig) -> dict[str, Any]:
    """Forget a board; with ``clean`` also remove krl's files there.

    Raises:
        UsageError: There is none of this name.
        BoardError: The board cannot be reached.
    """
    board = find_board(config.name)
    cleaned = ""
    if config.clean:
        with Connection(board) as connection, connection.request({"op": "remove"}) as channel:
            cleaned = str(channel.receive()["removed"])
    remove_board(config.name)
    return {"removed": board.name, "cleaned": cleaned}
