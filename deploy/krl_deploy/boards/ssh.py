"""Connections to a board with OpenSSH's client.

The board's shell sees one fixed command, which reads a program and a request from standard input. So no name, path or
argument of a user is ever quoted for a shell. Host keys are always checked.
"""

from __future__ import annotations

import json
import os
import shlex
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from types import TracebackType
from typing import IO, Any, Literal

from .registry import Board, BoardError

__all__ = ["BrokenConnectionError", "Channel", "Connection"]

_SSH_FAILED = 255  # ssh's own exit code: it could not connect, or the connection ended
_NO_PROGRAM = (126, 127)  # a shell's exit codes: the program cannot be run, or is not there
_CONNECT_SECONDS = 15  # a board that is there answers within seconds, also over a VPN
_ALIVE_SECONDS, _ALIVE_COUNT = 15, 4  # a silent connection ends after a minute, by OpenSSH's own messages
_KEEP_SECONDS = 60  # a shared connection without a command; it is closed at the end in any case
_LONGEST_SOCKET = 80  # characters: operating systems take 104 or 108, and ssh appends 17 for a moment
_LONGEST_LINE = 1 << 28  # bytes of a message: a million files take 200 MB
_CLOSE_SECONDS = 10  # for closing a shared connection, which is a local matter

_BOOTSTRAP = "import sys;f=sys.stdin.buffer;exec(compile(f.read(int(f.readline())),'krl','exec'))"


class BrokenConnectionError(BoardError):
    """The connection ended before the work was done; the same command goes on where it stopped."""


class Channel:
    """One command on the board: a request, and lines of JSON and bytes in both directions."""

    def __init__(self, connection: Connection, process: subprocess.Popen[bytes], errors: IO[bytes] | None) -> None:
        """Hold the process of ssh, and the file of its messages (``None``: they go to standard error)."""
        self._connection = connection
        self._process = process
        self._errors = errors

    def send(self, value: Any) -> None:
        """Send a line of JSON.

        Raises:
            BoardError: The connection ended, or there was none.
        """
        self.write(json.dumps(value).encode() + b"\n")
        self.flush()

    def write(self, data: bytes) -> None:
        """Send bytes.

        Raises:
            BoardError: The connection ended, or there was none.
        """
        assert self._process.stdin is not None  # noqa: S101  for the type checker
        try:
            self._process.stdin.write(data)
        except OSError as error:
            raise self._ended() from error

    def flush(self) -> None:
        """Send what is waiting.

        Raises:
            BoardError: The connection ended, or there was none.
        """
        assert self._process.stdin is not None  # noqa: S101  for the type checker
        try:
            self._process.stdin.flush()
        except OSError as error:
            raise self._ended() from error

    def receive(self) -> dict[str, Any]:
        """Return a line of JSON.

        Raises:
            BoardError: The connection ended, there was none, or the board reports an error.
        """
        assert self._process.stdout is not None  # noqa: S101  for the type checker
        line = self._process.stdout.readline(_LONGEST_LINE)
        try:
            value = json.loads(line)
        except ValueError as error:
            if not line.endswith(b"\n"):
                raise self._ended() from error
            raise BoardError(
                f"board {self._connection.board.name} sends {line[:100]!r}, which is no message of krl; a shell that "
                "prints something at login does that: see that it prints nothing where there is no terminal"
            ) from error
        if not isinstance(value, dict):
            raise BoardError(f"board {self._connection.board.name} sends {line[:100]!r}, which is no message of krl")
        if "error" in value:
            raise BoardError(f"board {self._connection.board.name}: {value['error']}")
        return value

    def read(self, size: int) -> bytes:
        """Return up to ``size`` bytes, at least one.

        Raises:
            BoardError: The connection ended.
        """
        assert self._process.stdout is not None  # noqa: S101  for the type checker
        data = self._process.stdout.read(size)
        if not data:
            raise self._ended()
        return data

    def read_all(self) -> bytes:
        """Return everything until the command ends."""
        assert self._process.stdout is not None  # noqa: S101  for the type checker
        return self._process.stdout.read()

    def wait(self) -> int:
        """Wait for the command, and return its exit code.

        Raises:
            BrokenConnectionError: The connection ended before it.
        """
        code = self._process.wait()
        if code == _SSH_FAILED:
            raise self._ended()
        return code

    def close(self) -> None:
        """End the command, and wait for ssh."""
        with suppress(OSError):
            if self._process.stdin is not None:
                self._process.stdin.close()
        if self._process.stdout is not None:
            self._process.stdout.close()
        try:
            self._process.wait(_CLOSE_SECONDS)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
        if self._errors is not None:
            self._errors.close()

    def _ended(self) -> BoardError:
        code = self._process.wait()
        text = ""
        if self._errors is not None:
            self._errors.seek(0)
            text = self._errors.read().decode(errors="replace")
        return _explained(self._connection.board, text, code)


class Connection:
    """A board that commands are sent to. Where OpenSSH can, all of them share one connection."""

    def __init__(self, board: Board) -> None:
        """Prepare a connection; ``open`` makes it."""
        self.board = board
        self._ssh = shutil.which("ssh")
        if self._ssh is None:
            raise BoardError("ssh is not installed on this machine; install OpenSSH's client")
        self._shared: Path | None = None
        self._agent = Path(__file__).with_name("agent.py").read_bytes()

    def __enter__(self) -> Connection:
        """Return the connection."""
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Close it."""
        self.close()

    @contextmanager
    def request(
        self, request: Mapping[str, Any], *, output: Literal["read", "captured", "passed"] = "read"
    ) -> Iterator[Channel]:
        """Run the board's part of krl with a request.

        Args:
            request: Plain JSON types; ``op`` says what to do.
            output: Place of what it prints: both streams are read here (``"read"``), standard output is
                (``"captured"``), or both are passed on to those of this process.

        Raises:
            BoardError: The board cannot be reached, or the connection ended.
        """
        self._share()
        errors = None if output != "read" else tempfile.TemporaryFile()  # noqa: SIM115  the channel closes it
        process = subprocess.Popen(
            [*self._command(), *self._sharing("no"), "--", self.board.host, self._remote()],
            stdin=subprocess.PIPE,
            stdout=None if output == "passed" else subprocess.PIPE,
            stderr=errors,
        )
        channel = Channel(self, process, errors)
        try:
            channel.write(f"{len(self._agent)}\n".encode() + self._agent)
            channel.send({**request, "folder": self.board.folder})
            yield channel
        finally:
            channel.close()

    def close(self) -> None:
        """Close the shared connection, if there is one."""
        if self._shared is None:
            return
        command = [*self._command(), *self._sharing("no"), "-O", "exit", "--", self.board.host]
        with suppress(subprocess.TimeoutExpired, OSError):
            subprocess.run(command, capture_output=True, stdin=subprocess.DEVNULL, timeout=_CLOSE_SECONDS)
        shutil.rmtree(self._shared.parent, ignore_errors=True)
        self._shared = None

    def _share(self) -> None:
        """Open a connection that all commands share; Windows's OpenSSH has none."""
        if os.name == "nt" or (self._shared is not None and self._shared.exists()):
            return
        if self._shared is not None:
            shutil.rmtree(self._shared.parent, ignore_errors=True)
            self._shared = None
        folder = Path(tempfile.mkdtemp(prefix="krl-"))
        self._shared = folder / "ssh"
        if len(str(self._shared)) > _LONGEST_SOCKET:
            shutil.rmtree(folder)
            self._shared = None
            return
        command = [*self._command(), "-f", "-N", *self._sharing("yes"), "--", self.board.host]
        with tempfile.TemporaryFile() as errors:
            done = subprocess.run(command, stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=errors)
            if done.returncode:
                errors.seek(0)
                text = errors.read().decode(errors="replace")
                shutil.rmtree(folder, ignore_errors=True)
                self._shared = None
                raise _explained(self.board, text, done.returncode)

    def _sharing(self, master: str) -> list[str]:
        if self._shared is None:
            return []
        return [
            "-o",
            f"ControlMaster={master}",
            "-o",
            f"ControlPath={self._shared}",
            "-o",
            f"ControlPersist={_KEEP_SECONDS}",
        ]

    def _command(self) -> list[str]:
        """Return ssh with its options, up to the host. A key that is not known is never accepted by itself."""
        board, terminal = self.board, sys.stdin is not None and sys.stdin.isatty()
        options = {
            "BatchMode": "no" if terminal else "yes",
            "StrictHostKeyChecking": "ask" if terminal else "yes",
            "ConnectTimeout": _CONNECT_SECONDS,
            "ServerAliveInterval": _ALIVE_SECONDS,
            "ServerAliveCountMax": _ALIVE_COUNT,
            "RequestTTY": "no",
            "ForwardAgent": "no",
            "ForwardX11": "no",
            "ClearAllForwardings": "yes",
        }
        command = [str(self._ssh)]
        if board.ssh_config is not None:
            command += ["-F", board.ssh_config]
        for name, value in options.items():
            command += ["-o", f"{name}={value}"]
        if board.port is not None:
            command += ["-p", str(board.port)]
        if board.identity is not None:
            command += ["-i", board.identity, "-o", "IdentitiesOnly=yes"]
        return command

    def _remote(self) -> str:
        """Return the one command that the board's shell sees."""
        python = self.board.python
        home = python.startswith("~/")
        quoted = f'"$HOME"/{shlex.quote(python[2:])}' if home else shlex.quote(python)
        return f"{quoted} -u -c {shlex.quote(_BOOTSTRAP)}"


def _explained(board: Board, text: str, code: int) -> BoardError:
    """Return the error for ssh's messages: what is wrong, and what to do."""
    lines = [line.strip() for line in text.splitlines() if line.strip() and not line.startswith("Warning: Permanently")]
    said = "; ".join(lines[-3:])
    ssh = " ".join(["ssh", *(["-p", str(board.port)] if board.port else []), board.host])
    if "REMOTE HOST IDENTIFICATION HAS CHANGED" in text:
        return BoardError(
            f"the host key of board {board.name} is not the one that is known, so nothing was sent. If the board was "
            "installed anew, remove the old key with ssh-keygen -R HOST (ssh's message has the whole command), connect "
            f"once with: {ssh}, and compare the fingerprint. Otherwise another machine answers in its place. ssh says: "
            + " ".join(lines)
        )
    if "Host key verification failed" in text:
        return BoardError(
            f"the host key of board {board.name} is not known yet, so nothing was sent; connect once with: {ssh}, and "
            "compare the fingerprint with the board's (ssh-keygen -lf /etc/ssh/ssh_host_ed25519_key.pub there)"
        )
    if "Permission denied" in text:
        return BoardError(
            f"board {board.name} refuses this user ({said}); put your public key there with: ssh-copy-id {board.host}, "
            "or give the right user and --identity with: krl-deploy board add"
        )
    if code in _NO_PROGRAM:
        return BoardError(
            f"board {board.name} has no {board.python} ({said}); give its path with: krl-deploy board add --python PATH"
        )
    if code in (_SSH_FAILED, -13) and _never_connected(text):
        return BoardError(f"board {board.name} cannot be reached: {said}; check it with: {ssh}")
    if code == _SSH_FAILED or code < 0 or not text:
        return BrokenConnectionError(
            f"the connection to board {board.name} broke{f' ({said})' if said else ''}; run the same command again"
        )
    return BoardError(f"{board.python} on board {board.name} failed with exit code {code}: {said}")


def _never_connected(text: str) -> bool:
    signs = (
        "Could not resolve",
        "Connection refused",
        "timed out",
        "No route to host",
        "Bad owner",
        "no such identity",
    )
    return any(
        sign in text for sign in (*signs, "Network is unreachable", "Bad configuration", "Can't open user config")
    )
