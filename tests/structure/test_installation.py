"""The installation table: pip finds versions for each machine's system and Python, without installing anything."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from packaging.requirements import Requirement

from krl_runtime.cli.program import _parser

if sys.version_info >= (3, 11):
    import tomllib
else:
    tomllib = pytest.importorskip("tomli")

ROOT = Path(__file__).parents[2]
ROW = re.compile(
    r"^\| (?P<machine>[^|]+) \| (?P<system>(?:Linux|Windows)[^|]+) \| (?P<python>3\.\d+) \| "
    r"`pip install \"(?P<what>[^`\"]+)\"` \| (?P<resolves>[^|]+) \|$"
)
PAGE = (ROOT / "docs" / "install.md").read_text(encoding="utf-8")
ROWS = [found.groupdict() for found in map(ROW.match, PAGE.splitlines()) if found]


def platforms(system: str) -> list[str]:
    """Return pip's tags of the wheels that a system takes."""
    if system.startswith("Windows"):
        return ["win_amd64"]
    machine = "aarch64" if "aarch64" in system else "x86_64"
    newest = int(system.rpartition("2.")[2])
    return [*(f"manylinux_2_{minor}_{machine}" for minor in range(newest, 16, -1)), f"manylinux2014_{machine}"]


def requirements(what: str, system: str, python: str) -> Iterator[str]:
    """Yield what an extra asks for on a system; pip itself looks at the markers of the Python that runs it."""
    folder, _, extras = what.rstrip("]").partition("[")
    project: dict[str, Any] = tomllib.loads((ROOT / folder / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    environment = {
        "python_version": python,
        "python_full_version": f"{python}.0",
        "sys_platform": "win32" if system.startswith("Windows") else "linux",
        "platform_machine": "aarch64" if "aarch64" in system else "x86_64",
    }
    lines = [*project["dependencies"]]
    waiting = extras.split(",")
    while waiting:
        for line in project["optional-dependencies"][waiting.pop()]:
            own = Requirement(line)
            if own.name == project["name"]:
                waiting += own.extras
            else:
                lines.append(line)
    for line in lines:
        requirement = Requirement(line)
        if requirement.marker is None or requirement.marker.evaluate(environment):
            requirement.marker = None
            yield str(requirement)


def resolve(wanted: list[str], system: str, python: str, target: Path) -> subprocess.CompletedProcess[str]:
    tags = [f"--platform={tag}" for tag in platforms(system)]
    command = [sys.executable, "-m", "pip", "install", "--dry-run", "--ignore-installed", "--only-binary=:all:"]
    command += ["--target", str(target), "--python-version", python, "--implementation", "cp", *tags]
    command += ["--quiet", "--report", "-", *wanted]
    return subprocess.run(command, capture_output=True, text=True, check=False)


@pytest.fixture(scope="module")
def index(tmp_path_factory: pytest.TempPathFactory) -> None:
    """A package index that can be reached."""
    if resolve(["packaging"], "Linux x86-64, glibc 2.28", "3.12", tmp_path_factory.mktemp("none")).returncode:
        pytest.skip("no package index can be reached")


def test_the_table_is_read() -> None:
    assert len(ROWS) == sum(line.count("`pip install ") for line in PAGE.splitlines() if line.startswith("| "))
    assert {row["python"] for row in ROWS} >= {"3.10", "3.12"}


@pytest.mark.xdist_group("package index")
@pytest.mark.parametrize("row", ROWS, ids=lambda row: f"{row['machine']}, {row['system']}, {row['what']}")
def test_each_row_resolves_or_says_why_not(row: dict[str, str], tmp_path: Path, index: None) -> None:
    if row["resolves"] != "yes":
        assert re.match(r"no: \w.{20,}", row["resolves"])
        return
    wanted = list(requirements(row["what"], row["system"], row["python"]))
    found = resolve(wanted, row["system"], row["python"], tmp_path / "none")
    assert found.returncode == 0, found.stderr[-2000:]
    versions = {
        item["metadata"]["name"].lower(): item["metadata"]["version"] for item in json.loads(found.stdout)["install"]
    }
    assert "numpy" in versions
    if "jetson" in row["what"]:
        old = row["python"] == "3.10"
        assert versions["cuda-python"].startswith("12." if old else "13.")
        assert versions["numpy"].startswith("1.") == old
        assert not any(name.startswith("tensorrt") for name in versions)
        assert "torch" not in versions


def test_markers_of_a_jetson_are_those_of_its_python() -> None:
    old = list(requirements("./runtime[jetson]", "Linux aarch64, glibc 2.35", "3.10"))
    assert "numpy<2" in old
    assert "onnxruntime<1.24,>=1.20" in old
    new = list(requirements("./runtime[jetson]", "Linux aarch64, glibc 2.39", "3.12"))
    assert "numpy<2" not in new
    assert "cuda-python>=13" in new


def test_the_examples_for_a_jetson_use_what_there_is() -> None:
    folder = ROOT / "examples" / "jetson"
    unit = (folder / "krl-serve.service").read_text(encoding="utf-8")
    program, *arguments = re.search(r"^ExecStart=(.+)$", unit, re.MULTILINE)[1].split()
    assert program.endswith("/krl-runtime")
    parsed = _parser().parse_args(arguments)
    assert (parsed.host, parsed.port, len(parsed.trust)) == ("127.0.0.1", 8000, 1)
    docker = (folder / "Dockerfile").read_text(encoding="utf-8")
    (extras,) = re.findall(r"/tmp/runtime\[([\w,]+)\]", docker)
    project = tomllib.loads((ROOT / "runtime" / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    assert set(extras.split(",")) <= set(project["optional-dependencies"])
    assert (ROOT / re.search(r"^COPY (\S+)", docker, re.MULTILINE)[1] / "pyproject.toml").is_file()
