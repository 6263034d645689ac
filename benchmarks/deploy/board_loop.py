"""The loop with a board: from a bundle on this machine to numbers of the board, in three commands.

The board is a real SSH server on the loopback, with a Python that has NumPy, Pillow and ONNX Runtime, and no torch. It
stands in for a Jetson: the transcript shows the loop, and its latencies are those of this machine.
"""

from __future__ import annotations

import argparse
import os
import re
import subprocess
import sys
import tempfile
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[2] / "tests"))

from _helpers.sshd import SLIM, Server, running_sshd, slim_python


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("bundle", type=Path, help="the bundle NAME.krl of a classifier or restorer")
    parser.add_argument("data", type=Path, help="folder of its images")
    parser.add_argument("--limit", type=int, default=200, metavar="N", help="images at most (default: 200)")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder, running_sshd(Path(folder, "sshd")) as server:
        python = slim_python(Path(folder, "python"), *SLIM)
        desk = Path(folder, "desk")
        desk.mkdir()
        subprocess.run(["cp", "-rL", str(arguments.bundle.resolve()), str(desk / "flowers.krl")], check=True)
        (desk / "photos").symlink_to(arguments.data.resolve())
        commands = [
            ["board", "add", "jetson", server.host],
            ["on", "jetson", "evaluate", "flowers.krl", "photos", "--limit", str(arguments.limit)],
            ["on", "jetson", "bench", "flowers.krl"],
        ]
        codes = [run(command, server, python, desk) for command in commands]
        print("brought back:")
        brought = sorted(path for path in (desk / "flowers.krl.boards").rglob("*") if path.is_file())
        print("\n".join(f"  {path.relative_to(desk)}" for path in brought))
    return max(codes)


def run(command: list[str], server: Server, python: Path, desk: Path) -> int:
    """Run a command of ``krl-deploy``, and print it with its output."""
    print(f"$ krl-deploy {' '.join(command)}", flush=True)
    options = ["--port", str(server.port), "--identity", str(server.identity), "--ssh-config", str(server.config)]
    more = [*options, "--python", str(python)] if command[0] == "board" else []
    begin = time.perf_counter()
    done = subprocess.run(
        [sys.executable, "-m", "krl_deploy", *command, *more],
        cwd=desk,
        env={**os.environ, "KRL_CONFIG_DIR": str(desk / "config")},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )
    # The names of this machine's temporary folders say nothing.
    text = done.stdout.replace(str(server.folder / "home"), "~").replace(f"{desk}{os.sep}", "")
    print(re.sub(r"[ ]+$", "", text, flags=re.MULTILINE).rstrip())
    print(f"(exit code {done.returncode}, {time.perf_counter() - begin:.1f} s)\n", flush=True)
    return done.returncode


if __name__ == "__main__":
    sys.exit(main())
