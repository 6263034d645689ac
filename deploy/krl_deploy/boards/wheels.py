"""Wheels of the installed code: the slim runtime, and deployment where a command needs it, for boards without an index.

A wheel is an archive of Python files with a description, so that no tool for building is needed. The same code makes
the same bytes, hence a board that has them gets nothing.
"""

from __future__ import annotations

import base64
import hashlib
import io
import re
import zipfile
from collections.abc import Mapping
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path

from krl_runtime import _version
from krl_runtime.backends.cuda import version_tuple

__all__ = ["LEAST_PYTHON", "Needs", "build_wheel", "needs_of"]

LEAST_PYTHON = (3, 10)  # requires-python of both distributions

_MODULES = {"pillow": "PIL", "onnx-ir": "onnx_ir", "ruamel-yaml": "ruamel.yaml"}
"""Modules that are not named like their distribution."""


_PACKAGES = {"krl-runtime": Path(_version.__file__).parent, "krl-deploy": Path(__file__).parents[1]}
"""The folder of each program's package."""


@dataclass(frozen=True)
class Needs:
    """Packages that a program needs on the board.

    Attributes:
        wheels: Wheels of krl by file name.
        least: Distributions that must be there by their module, with the oldest accepted version.
        requirements: What ``board add --install`` installs, as pip takes it, by module.
    """

    wheels: Mapping[str, bytes]
    least: Mapping[str, tuple[int, ...]]
    requirements: Mapping[str, str]


def needs_of(program: str) -> Needs:
    """Return the needs of a program on the board.

    Args:
        program: ``"krl-runtime"`` or ``"krl-deploy"``; the second one needs the first.
    """
    deploys = program == "krl-deploy"
    names = ["krl-runtime", "krl-deploy"] if deploys else ["krl-runtime"]
    base = ("numpy", "pillow", "tyro", "onnx") if deploys else ("numpy", "pillow")
    declared = _requirements()
    least = {_module(name): _least(declared.get(name, "")) for name in base}
    wanted = set(declared) if deploys else {"numpy", "pillow", "onnxruntime"}
    requirements = {_module(name): declared.get(name, name) for name in sorted(wanted | set(base))}
    return Needs(dict(build_wheel(name) for name in names), least, requirements)


def build_wheel(program: str) -> tuple[str, bytes]:
    """Return the file name and the bytes of the wheel with a program's package."""
    package = _PACKAGES[program]
    stem = f"{package.name}-{_version.__version__}"
    files = {
        path.relative_to(package.parent).as_posix(): path.read_bytes()
        for path in sorted(package.rglob("*"))
        if path.is_file() and "__pycache__" not in path.parts
    }
    python = ".".join(map(str, LEAST_PYTHON))
    about = f"Metadata-Version: 2.1\nName: {program}\nVersion: {_version.__version__}\nRequires-Python: >={python}\n"
    files[f"{stem}.dist-info/METADATA"] = about.encode()
    files[f"{stem}.dist-info/WHEEL"] = b"Wheel-Version: 1.0\nGenerator: krl\nRoot-Is-Purelib: true\nTag: py3-none-any\n"
    files[f"{stem}.dist-info/entry_points.txt"] = f"[console_scripts]\n{program} = {package.name}.cli:main\n".encode()
    record = "".join(f"{name},{_digest(data)},{len(data)}\n" for name, data in files.items())
    files[f"{stem}.dist-info/RECORD"] = f"{record}{stem}.dist-info/RECORD,,\n".encode()
    written = io.BytesIO()
    with zipfile.ZipFile(written, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, data in files.items():
            entry = zipfile.ZipInfo(name)  # with the earliest time that the format has
            entry.external_attr = 0o644 << 16  # a readable file, as the format has Unix modes
            archive.writestr(entry, data, zipfile.ZIP_DEFLATED)
    return f"{stem}-py3-none-any.whl", written.getvalue()


def _digest(data: bytes) -> str:
    return "sha256=" + base64.urlsafe_b64encode(hashlib.sha256(data).digest()).rstrip(b"=").decode()


def _requirements() -> dict[str, str]:
    """Return the requirements of deployment on a CPU, by distribution; none where krl is not installed."""
    try:
        declared = metadata.requires("krl") or []
    except metadata.PackageNotFoundError:
        return {}
    found: dict[str, str] = {}
    for line in declared:
        requirement, _, marker = line.partition(";")
        match = re.match(r"[A-Za-z0-9._-]+", requirement.strip())
        if match and (not marker or re.search(r"extra\s*==\s*['\"](cpu|deploy)['\"]", marker)):
            found[match[0].lower().replace("_", "-").replace(".", "-")] = requirement.strip()
    return found


def _module(name: str) -> str:
    return _MODULES.get(name, name)


def _least(requirement: str) -> tuple[int, ...]:
    match = re.search(r">=\s*([0-9.]+)", requirement)
    return version_tuple(match[1]) if match else ()
