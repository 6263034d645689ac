"""The part of ``krl-deploy on`` that runs on the board. It comes through SSH's standard input, and needs Python alone.

Each connection makes one request: a line of JSON, and after it bytes of files. No word of a request passes a shell. It
runs with Python 3.8 as well, so that an old board is recognized.
"""

from __future__ import annotations

import hashlib
import json
import os
import platform
import shutil
import subprocess
import sys
import threading
import time
from collections.abc import Iterable
from pathlib import Path
from typing import Any, BinaryIO, NoReturn

_BLOCK = 1 << 20  # bytes of a read or write
_WEEK = 7 * 24 * 3600  # seconds after which the folder of a command that broke off is removed
_GRACE = 10  # seconds that an interrupted command has to clean up
_IMPORTS = 300  # seconds: the first import of a large library from an SD card takes a minute
_SHOWN = 1000  # characters of another program's message: pip's reason is at its end
_INTERRUPT = 2  # SIGINT, at which krl's commands clean up
_SSH_FAILED, _FAILED = 255, 1  # ssh's own exit code is not to be a command's
_SIGNALED = 128  # shells add it to the number of a signal

_RECORD = ".sent.json"
_VERSIONS = """
import importlib, json
found = {}
for name in %r:
    try:
        module = importlib.import_module(name)
        found[name] = str(getattr(module, "__version__", getattr(module, "VERSION", "")))
    except Exception as error:
        absent = isinstance(error, ModuleNotFoundError) and name.startswith(str(error.name))
        found[name] = None if absent else f"fails: {error}"
print("\\n" + json.dumps(found))
"""


def main() -> int:
    """Serve the request on standard input, and return the exit code."""
    stdin, stdout = sys.stdin.buffer, sys.stdout.buffer
    request = json.loads(stdin.readline())
    folder = Path.home() / Path(request["folder"]).expanduser()
    handlers = {"facts": _facts, "stage": _stage, "collect": _collect, "install": _install_more, "remove": _remove}
    try:
        if request["op"] == "run":
            _run(folder, request, stdin)
        handlers[request["op"]](folder, request, stdin, stdout)
    except EOFError:  # the connection broke; what arrived stays
        return _FAILED
    except (OSError, ValueError, subprocess.SubprocessError) as error:
        _say(stdout, {"error": str(error)})
    return 0


def _say(stdout: BinaryIO, value: dict[str, Any]) -> None:
    stdout.write(json.dumps(value).encode() + b"\n")
    stdout.flush()


def _inside(folder: Path, relative: str) -> Path:
    """Return ``folder/relative``; a path that leaves the folder is refused."""
    parts = relative.split("/")
    if any(part in ("", ".", "..") or "\0" in part for part in parts):
        raise ValueError(f"path {relative!r} leaves its folder")
    return folder.joinpath(*parts)


def _object(folder: Path, sha256: str) -> Path:
    """Return the place of a file by its hash."""
    return _inside(folder / "store" / sha256[:2], sha256)


def _part(folder: Path, sha256: str) -> Path:
    """Return the place of a file whose end is missing."""
    path = _object(folder, sha256)
    return path.with_name(f"{path.name}.part")


def _sha256(path: Path) -> str:
    digest = hashlib.sha256()
    with path.open("rb") as file:
        for block in iter(lambda: file.read(_BLOCK), b""):
            digest.update(block)
    return digest.hexdigest()


def _write(path: Path, data: bytes) -> None:
    """Write a whole file, or leave the old one."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{os.urandom(8).hex()}.tmp")
    with temporary.open("wb") as file:
        file.write(data)
        file.flush()
        os.fsync(file.fileno())
    temporary.replace(path)


def _read_json(path: Path) -> Any:
    """Return the content of a JSON file, or nothing where there is none or a damaged one."""
    try:
        return json.loads(path.read_bytes())
    except (OSError, ValueError):
        return {}


def _facts(folder: Path, request: dict[str, Any], stdin: BinaryIO, stdout: BinaryIO) -> None:
    """Say what is on the board."""
    release = Path("/etc/nv_tegra_release")
    there = next(path for path in (folder, *folder.parents) if path.is_dir())
    system = platform.uname()
    _say(
        stdout,
        {
            "python": sys.version.split()[0],
            "machine": system.machine,
            "system": f"{system.system} {system.release}",
            "free_bytes": shutil.disk_usage(there).free,
            "folder": str(folder),
            "tegra_release": release.read_text(errors="replace").partition("\n")[0] if release.is_file() else "",
            "modules": _versions(_environment(folder).get("python", sys.executable), request["modules"]),
        },
    )


def _versions(python: str, modules: list[str]) -> dict[str, Any]:
    """Return the versions of modules in a Python: ``None`` where there is none, the error where one fails."""
    lines = _output([python, "-I", "-c", _VERSIONS % (modules,)]).strip().splitlines()
    found: dict[str, Any] = json.loads(lines[-1])
    return found


def _output(command: list[str], limit: float | None = _IMPORTS) -> str:
    done = subprocess.run(command, capture_output=True, text=True, stdin=subprocess.DEVNULL, timeout=limit)
    if done.returncode:
        raise ValueError(f"{' '.join(command[:4])} … failed: {(done.stderr or done.stdout).strip()[-_SHOWN:]}")
    return done.stdout


def _stage(folder: Path, request: dict[str, Any], stdin: BinaryIO, stdout: BinaryIO) -> None:
    """Take the files that are not here yet, install krl, and lay out a folder for the command."""
    objects: dict[str, int] = request["objects"]
    offsets = {sha: _there(folder, sha, size) for sha, size in objects.items() if not _has(folder, sha, size)}
    needed = sum(objects[sha] - offset for sha, offset in offsets.items())
    folder.mkdir(parents=True, exist_ok=True)
    free = shutil.disk_usage(folder).free
    if needed > free:
        raise OSError(f"{needed} bytes are to be copied, and {folder} has {free} free")
    _say(stdout, {"offsets": offsets})
    damaged = [sha for sha, offset in offsets.items() if not _receive(folder, sha, offset, objects[sha], stdin)]
    if damaged:
        _say(stdout, {"damaged": damaged})
        return
    python = _install(folder, request["wheels"], request["least_python"])
    for item in request["inputs"]:
        _place(folder, item)
    _say(stdout, {"python": python, "modules": _versions(python, request["modules"]), "job": _job(folder, request)})


def _has(folder: Path, sha256: str, size: int) -> bool:
    path = _object(folder, sha256)
    return path.is_file() and path.stat().st_size == size


def _there(folder: Path, sha256: str, size: int) -> int:
    """Return the number of bytes that an earlier connection brought."""
    part = _part(folder, sha256)
    found = part.stat().st_size if part.is_file() else 0
    if found > size:
        part.unlink()
    return found if found <= size else 0


def _receive(folder: Path, sha256: str, offset: int, size: int, stdin: BinaryIO) -> bool:
    """Append the rest of a file; return whether its hash is right. What came before a break stays for the next time.

    Two connections may bring the same file: both write the same bytes to the same positions.
    """
    path, part = _object(folder, sha256), _part(folder, sha256)
    part.parent.mkdir(parents=True, exist_ok=True)
    part.touch()
    with part.open("r+b", buffering=0) as file:
        file.seek(offset)
        left = size - offset
        while left > 0:
            block = stdin.read1(min(_BLOCK, left))  # type: ignore[attr-defined]
            if not block:
                raise EOFError
            file.write(block)
            left -= len(block)
        os.fsync(file.fileno())
    if not part.exists():  # the other connection was first
        return _has(folder, sha256, size)
    if _sha256(part) != sha256:
        part.unlink()
        return False
    part.replace(path)
    return True


def _environment(folder: Path) -> dict[str, Any]:
    """Return the environment that was installed last: its Python, and what it was made from."""
    found: dict[str, Any] = _read_json(folder / "environment.json")
    return found if Path(found.get("python", "")).is_file() else {}


def _install(folder: Path, wheels: dict[str, str], least: list[int]) -> str:
    """Install wheels into an environment that sees the system's packages, once; return its Python."""
    if sys.version_info < tuple(least):
        raise ValueError(
            f"Python there is {sys.version.split()[0]}, and krl needs {'.'.join(map(str, least))}; name a newer one "
            "with: krl-deploy board add NAME HOST --python PATH"
        )
    made_from = {"wheels": wheels, "executable": sys.executable, "version": sys.version}
    if _environment(folder).get("made_from") == made_from:
        return str(_environment(folder)["python"])
    # A new name for each, and then one file that names it: two commands may install at the same time.
    environment = folder / "environments" / os.urandom(8).hex()
    _output([sys.executable, "-m", "venv", "--system-site-packages", "--without-pip", str(environment)])
    python = str(environment / "bin" / "python")
    _see_more(folder, python)
    if _versions(python, ["pip"])["pip"] is None:
        raise ValueError("there is no pip; install it, as with: sudo apt install python3-pip")
    files = [_inside(environment / "wheels", name) for name in sorted(wheels)]
    for file in files:
        _copy(_object(folder, wheels[file.name]), file)
    options = ["--no-index", "--no-deps", "--ignore-installed", "--no-cache-dir", "--disable-pip-version-check"]
    _output([python, "-m", "pip", "install", "--quiet", *options, *map(str, files)])
    _write(folder / "environment.json", json.dumps({"python": python, "made_from": made_from}).encode())
    return python


def _see_more(folder: Path, python: str) -> None:
    """Let an environment see what --install brought, and what the environment has whose Python the board names."""
    where = "import sysconfig; print(sysconfig.get_path('purelib'), sysconfig.get_path('platlib'), sep='\\n')"
    version = f"python{sys.version_info[0]}.{sys.version_info[1]}"
    folders = [str(folder / "packages" / "lib" / version / "site-packages")]
    if sys.prefix != sys.base_prefix:
        folders += _output([sys.executable, "-c", where]).splitlines()
    own = _output([python, "-I", "-c", where]).splitlines()[0]
    lines = [f"import site; site.addsitedir({path!r})\n" for path in dict.fromkeys(folders)]
    _write(Path(own) / "krl_board.pth", "".join(lines).encode())


def _install_more(folder: Path, request: dict[str, Any], stdin: BinaryIO, stdout: BinaryIO) -> None:
    """Install packages from an index; only ``board add --install`` asks for it."""
    python = _environment(folder).get("python", sys.executable)
    # A prefix, and not a target: packages that the system has are not brought a second time.
    options = [
        "--quiet",
        "--disable-pip-version-check",
        "--no-warn-script-location",
        "--prefix",
        str(folder / "packages"),
    ]
    _output([python, "-m", "pip", "install", *options, *request["requirements"]], limit=None)
    _say(stdout, {"modules": _versions(python, request["modules"])})


def _copy(source: Path, target: Path) -> None:
    """Give a stored file another name, without a second copy where the file system can."""
    target.parent.mkdir(parents=True, exist_ok=True)
    try:
        os.link(source, target)
    except OSError:
        shutil.copyfile(source, target)


def _home(folder: Path, key: str) -> Path:
    """Return the place of an input, and of what commands add beside it."""
    return _inside(folder / "inputs", key)


def _place(folder: Path, item: dict[str, Any]) -> None:
    """Lay out an input as it is on the desk, whole or not at all; what commands added beside it stays."""
    home = _home(folder, item["id"])
    target, record = _inside(home, item["name"]), home / _RECORD
    if _read_json(record) == item and target.exists() and not _changed(target, item):
        return
    home.mkdir(parents=True, exist_ok=True)
    temporary = home / f".{os.urandom(8).hex()}.tmp"
    if item["folder"]:
        temporary.mkdir()
    for name, sha in item["files"].items():
        _copy(_object(folder, sha), _inside(temporary, name) if name else temporary)
    old = temporary.with_suffix(".old")
    if target.exists():
        target.rename(old)
    temporary.rename(target)
    if old.is_dir():
        shutil.rmtree(old, ignore_errors=True)
    elif old.exists():
        old.unlink()
    _write(record, json.dumps(item).encode())


def _changed(target: Path, item: dict[str, Any]) -> bool:
    """Return whether a command changed an input. Each change of a bundle writes its manifest or signature."""
    files = ((target / name if name else target, item["files"].get(name)) for name in item["watched"])
    return any((_sha256(path) if path.is_file() else None) != sent for path, sent in files)


def _job(folder: Path, request: dict[str, Any]) -> str:
    """Make the folder in which a command runs, with links to its inputs under the names of the command line."""
    jobs = folder / "jobs"
    jobs.mkdir(exist_ok=True)
    for old in jobs.iterdir():
        if time.time() - old.stat().st_mtime > _WEEK:
            shutil.rmtree(old, ignore_errors=True)
    name = os.urandom(8).hex()
    work = jobs / name / "work"
    work.mkdir(parents=True)
    for link, (key, base) in request["links"].items():
        path = _inside(work, link)
        path.parent.mkdir(parents=True, exist_ok=True)
        path.symlink_to(_inside(_home(folder, key), base))
    for link in request["outputs"]:
        _inside(work, link).parent.mkdir(parents=True, exist_ok=True)
    return name


def _run(folder: Path, request: dict[str, Any], stdin: BinaryIO) -> NoReturn:
    """Run a command; its streams are those of this connection. It is interrupted when the connection ends."""
    work = _inside(folder / "jobs", request["job"]) / "work"
    program = str(Path(request["python"]).with_name(request["program"]))
    environment = {name: value for name, value in os.environ.items() if name != "KRL_CACHE_DIR"}
    environment.update(request["environment"])
    child = subprocess.Popen([program, *request["arguments"]], cwd=work, env=environment, stdin=subprocess.DEVNULL)

    def watch() -> None:
        while stdin.read1(_BLOCK):  # type: ignore[attr-defined]
            pass
        if child.poll() is None:
            child.send_signal(_INTERRUPT)
            try:
                child.wait(_GRACE)
            except subprocess.TimeoutExpired:
                child.kill()

    threading.Thread(target=watch, daemon=True).start()
    code = child.wait()
    code = _SIGNALED - code if code < 0 else code
    os._exit(_FAILED if code == _SSH_FAILED else code)  # the thread still waits for standard input


def _collect(folder: Path, request: dict[str, Any], stdin: BinaryIO, stdout: BinaryIO) -> None:
    """List what a command wrote, and send the files that are asked for."""
    job = _inside(folder / "jobs", request["job"])
    found = [("job", "", name, path) for name, path in _files(job / "work")]
    for item in request["inputs"]:
        home = _home(folder, item["id"])
        changed = _changed(_inside(home, item["name"]), item)
        added = (child for child in sorted(home.iterdir()) if changed or child.name != item["name"])
        for child in added:
            if not child.name.startswith("."):
                found += [("input", item["id"], name, path) for name, path in _files(child, home)]
    _say(stdout, {"files": [[*entry[:3], entry[3].stat().st_size, _sha256(entry[3])] for entry in found]})
    for index, offset in json.loads(stdin.readline() or b"[]"):
        with found[index][3].open("rb") as file:
            file.seek(offset)
            shutil.copyfileobj(file, stdout, _BLOCK)
    stdout.flush()
    if json.loads(stdin.readline() or b"{}").get("whole"):
        shutil.rmtree(job, ignore_errors=True)
        _say(stdout, {"done": True})


def _files(path: Path, folder: Path | None = None) -> Iterable[tuple[str, Path]]:
    """Return regular files, by their names in a folder; links lead elsewhere and are left out."""
    folder = folder or path
    files = (
        [path] if path.is_file() else sorted(Path(where, name) for where, _, names in os.walk(path) for name in names)
    )
    return [(file.relative_to(folder).as_posix(), file) for file in files if file.is_file() and not file.is_symlink()]


def _remove(folder: Path, request: dict[str, Any], stdin: BinaryIO, stdout: BinaryIO) -> None:
    """Remove all that krl keeps on the board."""
    for name in ("store", "inputs", "jobs", "environments", "packages"):
        shutil.rmtree(folder / name, ignore_errors=True)
    record = folder / "environment.json"
    if record.exists():
        record.unlink()
    if folder.is_dir() and not any(folder.iterdir()):
        folder.rmdir()
    _say(stdout, {"removed": str(folder)})


if __name__ == "__main__":
    sys.exit(main())
