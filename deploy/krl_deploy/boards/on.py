"""``krl-deploy on BOARD VERB``: a command runs on a board with files of this machine, and its results come back."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from krl_runtime.backends.cuda import version_tuple
from krl_runtime.errors import UsageError

from .arguments import Mapped, Option, map_arguments
from .copying import Staged, collect, stage
from .inputs import Input, read_input
from .registry import Board, BoardError
from .ssh import Connection
from .wheels import Needs, needs_of

__all__ = ["Command", "Outcome", "check_modules", "results_folder", "run_on"]

_log = logging.getLogger("krl")


@dataclass(frozen=True)
class Command:
    """A command line of one of the two programs that run on a board.

    Attributes:
        program: ``"krl-runtime"`` or ``"krl-deploy"``.
        verb: Name of the command.
        arguments: Its arguments, as on this machine.
        options: Its options.
        quiet: Whether to log warnings alone, there as well.
    """

    program: str
    verb: str
    arguments: Sequence[str]
    options: Mapping[str, Option]
    quiet: bool = False


@dataclass(frozen=True)
class Outcome:
    """The end of a command on a board.

    Attributes:
        exit_code: The command's own.
        copied: Bytes that were sent to the board.
        files: Files of this machine that are new or changed.
        output: Its standard output, if it was captured.
    """

    exit_code: int
    copied: int
    files: tuple[Path, ...]
    output: str = ""


def results_folder(path: Path, board: str) -> Path:
    """Return the folder for what a board adds to a bundle or file: ``NAME.krl.boards/BOARD`` beside it."""
    real = path.resolve()
    return real.with_name(f"{real.name}.boards") / board


def run_on(board: Board, command: Command, *, capture: bool = False) -> Outcome:
    """Run a command on a board.

    Args:
        board: The board.
        command: The command.
        capture: Whether to return its standard output, and not to pass it on.

    Raises:
        UsageError: A result would replace a file, or a private key is among the arguments.
        BoardError: The board cannot be reached, lacks something, or the connection broke.
        BundleError: A bundle is damaged.
        DataError: A file cannot be read.
    """
    mapped = map_arguments(command.arguments, command.options)
    _check_outputs(mapped, command.arguments)
    links = {name: read_input(path) for name, path in mapped.inputs.items()}
    inputs = list({item.id: item for item in links.values()}.values())
    needs = needs_of(command.program)
    with Connection(board) as connection:
        staged = stage(connection, inputs, needs, links, list(mapped.outputs))
        check_modules(board, command.program, staged.modules, needs)
        _log.info("%s: %s copied, running %s %s", board.name, _size(staged.copied), command.program, command.verb)
        code, output = _run(connection, command, mapped, staged, capture)
        try:
            files = collect(connection, staged.job, inputs, _Targets(board, mapped, links).of)
        except BoardError as error:
            place = f"{board.folder}/jobs/{staged.job}/work"
            raise BoardError(f"{error}; the results are still on the board, in {place}") from error
    for folder in sorted({str(file.parent) for file in files}):
        _log.info("%s: results are in %s", board.name, folder)
    return Outcome(code, staged.copied, tuple(files), output)


def _check_outputs(mapped: Mapped, arguments: Sequence[str]) -> None:
    """Refuse to replace results before any work is done for them."""
    for path in (path for name, path in mapped.outputs.items() if name not in mapped.inputs):
        if "--overwrite" not in arguments and path.exists() and not (path.is_dir() and not any(path.iterdir())):
            raise UsageError(f"{path} exists already; give another name, or --overwrite to replace files in it")


def check_modules(board: Board, program: str, modules: Mapping[str, str | None], needs: Needs) -> None:
    """Refuse a board that lacks a package that each command of a program needs.

    Raises:
        BoardError: One is missing, fails, or is too old.
    """
    faults = []
    for name, least in needs.least.items():
        found = modules.get(name)
        if found is None:
            faults.append(f"{name} is missing")
        elif found.startswith("fails: "):
            faults.append(f"{name} {found}")
        elif version_tuple(found) < least:
            faults.append(f"{name} is {found}, and {'.'.join(map(str, least))} is needed")
    if faults:
        raise BoardError(
            f"{program} cannot run on board {board.name}: {'; '.join(faults)}. Install it there, or let krl do it from "
            f"the board's package index: krl-deploy board add {board.name} {board.host} --install"
        )


def _run(connection: Connection, command: Command, mapped: Mapped, staged: Staged, capture: bool) -> tuple[int, str]:
    """Run the command; what it prints appears as it is printed."""
    environment = {
        "KRL_KEEP_BUNDLES": "1",
        "KRL_NEXT_PREFIX": f"krl-deploy on {connection.board.name}",
        "PYTHONUNBUFFERED": "1",
        "PYTHONSAFEPATH": "1",
    }
    request: dict[str, Any] = {
        "op": "run",
        "job": staged.job,
        "python": staged.python,
        "program": command.program,
        "arguments": [command.verb, *mapped.arguments, *(["--quiet"] if command.quiet else [])],
        "environment": environment,
    }
    try:
        with connection.request(request, output="captured" if capture else "passed") as channel:
            output = channel.read_all() if capture else b""
            return channel.wait(), output.decode(errors="replace")
    except BoardError as error:
        raise BoardError(
            f"{error}; {command.verb} was interrupted on the board, and its copied files stay there"
        ) from error


@dataclass(frozen=True)
class _Targets:
    """The places on this machine for what a command wrote on the board."""

    board: Board
    mapped: Mapped
    links: Mapping[str, Input]

    def of(self, kind: str, key: str, name: str) -> tuple[Path, str]:
        """Return a folder and the name in it.

        Raises:
            BoardError: The board names a place that does not exist.
        """
        inputs = {item.id: item for item in self.links.values()}
        if kind == "input":
            if key not in inputs:
                raise BoardError(f"board {self.board.name} sends a file of {key!r}, which is no input")
            return results_folder(inputs[key].path, self.board.name), name
        for output, path in self.mapped.outputs.items():
            if name == output or name.startswith(f"{output}/"):
                return path, name[len(output) + 1 :]
        first = next(iter(inputs.values()), None)
        return (
            Path(f"{self.board.name}-results") if first is None else results_folder(first.path, self.board.name)
        ), name


def _size(count: int) -> str:
    return "nothing" if not count else f"{count / 2**20:.1f} MiB"
