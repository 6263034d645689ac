"""A real SSH server on the loopback as the board: its own host key, user key, configuration, and a slim Python."""

from __future__ import annotations

import getpass
import os
import re
import shlex
import shutil
import socket
import subprocess
import sys
import time
import venv
from contextlib import contextmanager
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path

from _helpers.required import absent

SLIM = ("numpy", "pillow", "onnxruntime", "pip")
"""Distributions of a board that runs krl-runtime."""

DEPLOYING = (*SLIM, "tyro", "onnx", "onnx-ir", "onnxscript", "ruamel.yaml", "matplotlib")
"""Distributions of a board that runs krl-deploy as well."""

RTX = ("tensorrt-rtx-cu13-bindings", "tensorrt-rtx-cu13-libs", "cuda-python")
"""Distributions of a board that builds engines of TensorRT-RTX, which needs no GPU."""


@dataclass(frozen=True)
class Server:
    """A running SSH server."""

    folder: Path
    port: int
    process: subprocess.Popen[bytes]

    @property
    def host(self) -> str:
        return f"{getpass.getuser()}@127.0.0.1"

    @property
    def config(self) -> Path:
        """OpenSSH's configuration with the known host key, as ``--ssh-config`` takes it."""
        return self.folder / "ssh_config"

    @property
    def known_hosts(self) -> Path:
        return self.folder / "known_hosts"

    @property
    def identity(self) -> Path:
        return self.folder / "user_key"

    @property
    def log(self) -> str:
        return (self.folder / "sshd.log").read_text(errors="replace")


def make_key(path: Path) -> Path:
    subprocess.run(["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", str(path)], check=True)
    return path


def know(server: Server, host_key: Path) -> None:
    """Let the client know this host key, and no other."""
    public = host_key.with_suffix(".pub").read_text().split()
    server.known_hosts.write_text(f"[127.0.0.1]:{server.port} {public[0]} {public[1]}\n")


@contextmanager
def running_sshd(folder: Path):
    """Yield a server; skip where sshd is not installed or may not run."""
    program = shutil.which("sshd", path=f"{os.environ.get('PATH', '')}{os.pathsep}/usr/sbin{os.pathsep}/usr/local/sbin")
    if program is None or shutil.which("ssh") is None:
        absent("sshd", "OpenSSH's server and client are not installed")
    folder.mkdir(mode=0o700)
    host_key, user_key = make_key(folder / "host_key"), make_key(folder / "user_key")
    shutil.copy(user_key.with_suffix(".pub"), folder / "authorized_keys")
    if os.geteuid() == 0:
        Path("/run/sshd").mkdir(
            mode=0o755, exist_ok=True
        )  # privilege separation needs it; a package's service makes it
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    lines = [
        f"Port {port}",
        "ListenAddress 127.0.0.1",
        f"HostKey {host_key}",
        f"PidFile {folder / 'sshd.pid'}",
        f"AuthorizedKeysFile {folder / 'authorized_keys'}",
        "PasswordAuthentication no",
        "KbdInteractiveAuthentication no",
        "UsePAM no",
        "StrictModes no",
        "PermitRootLogin prohibit-password",
        "MaxStartups 100",
        f"SetEnv HOME={folder / 'home'} XDG_STATE_HOME={folder / 'home' / 'state'} OMP_NUM_THREADS=1",
    ]
    (folder / "home").mkdir()
    (folder / "sshd_config").write_text("\n".join(lines) + "\n")
    with (folder / "sshd.log").open("wb") as log:
        process = subprocess.Popen([program, "-D", "-e", "-f", str(folder / "sshd_config")], stderr=log)
    server = Server(folder, port, process)
    server.config.write_text(f"UserKnownHostsFile {server.known_hosts}\nGlobalKnownHostsFile /dev/null\n")
    know(server, host_key)
    try:
        _wait(server)
        yield server
    finally:
        process.terminate()
        process.wait(10)


def _wait(server: Server) -> None:
    for _ in range(100):
        if server.process.poll() is not None:
            absent("sshd", f"sshd does not start: {server.log}")
        with socket.socket() as client:
            if client.connect_ex(("127.0.0.1", server.port)) == 0:
                return
        time.sleep(0.05)
    absent("sshd", f"sshd does not listen: {server.log}")


def slim_python(folder: Path, *distributions: str) -> Path:
    """Make an environment as a board has it: these distributions of this environment, and what they need."""
    venv.create(folder, with_pip=False, symlinks=True)
    packages = folder / "lib" / f"python{sys.version_info[0]}.{sys.version_info[1]}" / "site-packages"
    for name in _closure(distributions):
        parts = {file.parts[0] for file in metadata.files(name) or [] if file.parts}
        for top in parts - {"..", "__pycache__"}:
            source, target = Path(str(metadata.distribution(name).locate_file(top))), packages / top
            if source.exists() and not target.exists():
                target.symlink_to(source)
    return folder / "bin" / "python"


def _closure(names) -> set[str]:
    """Return the distributions with those that they require, as far as they are installed here."""
    found: set[str] = set()
    left = list(names)
    while left:
        name = re.match(r"[A-Za-z0-9._-]+", left.pop())[0].lower().replace("_", "-").replace(".", "-")
        try:
            required = metadata.requires(name) or []
        except metadata.PackageNotFoundError:
            continue
        if name not in found:
            found.add(name)
            left += [line for line in required if "extra ==" not in line]
    return found


def script(path: Path, *lines: str) -> Path:
    """Write a program of the shell."""
    path.write_text("\n".join(["#!/bin/sh", *lines]) + "\n")
    path.chmod(0o755)
    return path


_BREAKING = """
import os, signal, subprocess, sys
python, count, times, left = sys.argv[1], sys.argv[2], int(sys.argv[3]), int(sys.argv[4])
if os.path.getsize(count) >= times:
    os.execv(python, [python, *sys.argv[5:]])
with open(count, "a") as file:
    file.write("x")
child = subprocess.Popen([python, *sys.argv[5:]], stdin=subprocess.PIPE, bufsize=0)
while left and (block := os.read(0, min(left, 65536))):
    child.stdin.write(block)
    left -= len(block)
child.stdin.close()
child.wait()
os.kill(os.getppid(), signal.SIGKILL)
"""


def breaking_python(path: Path, python: Path, after: int, times: int = 1) -> Path:
    """Write a Python that kills the server's process of its connection after some bytes, the first ``times`` times."""
    count, program = path.with_suffix(".count"), path.with_suffix(".py")
    count.write_text("")
    program.write_text(_BREAKING)
    words = [sys.executable, str(program), str(python), str(count), str(times), str(after)]
    return script(path, f'exec {shlex.join(words)} "$@"')
