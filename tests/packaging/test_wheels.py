"""Both wheels are built and installed into empty environments."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import venv
import zipfile
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from _helpers.bundles import write_bundle

ROOT = Path(__file__).parents[2]
COMMANDS = {
    "krl-train": ("fit", "evaluate", "import", "unpack"),
    "krl-compress": ("distill",),
    "krl-deploy": (
        "export",
        "import",
        "quantize",
        "fp16",
        "check",
        "compare",
        "build-engine",
        "inspect-engine",
        "refit",
        "report",
        "package",
    ),
    "krl-runtime": ("classify", "index", "search", "info", "selftest", "tune", "bench", "serve", "doctor"),
}

pytestmark = pytest.mark.slow


def _build(project: Path, out: Path) -> Path:
    pytest.importorskip("build")
    command = [sys.executable, "-m", "build", "--wheel", "--no-isolation", "--outdir", str(out), str(project)]
    subprocess.run(command, check=True, capture_output=True)
    return next(out.glob("*.whl"))


def _environment(folder: Path, *packages: str) -> Path:
    """Make an environment with these packages; return its folder of programs."""
    venv.create(folder, with_pip=True)
    programs = folder / "bin"
    done = subprocess.run([programs / "pip", "install", "--quiet", *packages], capture_output=True, text=True)
    if done.returncode and "Could not find a version" in done.stderr and "from versions: none" in done.stderr:
        pytest.skip("no package registry can be reached")
    assert done.returncode == 0, done.stderr
    return programs


def _run(program: Path, *arguments: str, cwd: Path) -> subprocess.CompletedProcess[str]:
    env = {name: value for name, value in os.environ.items() if not name.startswith(("PYTHON", "COV"))}
    return subprocess.run([program, *arguments], capture_output=True, text=True, cwd=cwd, env=env)


@pytest.fixture(scope="module")
def wheels(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    return {
        "krl": _build(ROOT, tmp_path_factory.mktemp("krl")),
        "krl-runtime": _build(ROOT / "runtime", tmp_path_factory.mktemp("runtime")),
    }


@pytest.fixture(scope="module")
def base(wheels: dict[str, Path], tmp_path_factory: pytest.TempPathFactory) -> Path:
    return _environment(tmp_path_factory.mktemp("base") / "env", str(wheels["krl"]))


@pytest.fixture(scope="module")
def device(wheels: dict[str, Path], tmp_path_factory: pytest.TempPathFactory) -> Path:
    return _environment(tmp_path_factory.mktemp("device") / "env", str(wheels["krl-runtime"]), "onnxruntime")


def _sources(folder: str) -> set[str]:
    package = f"krl_{folder}"
    files = (ROOT / folder / package).rglob("*")
    return {
        str(path.relative_to(ROOT / folder)) for path in files if path.is_file() and "__pycache__" not in path.parts
    }


def test_wheels_hold_all_of_the_sources_and_nothing_else(wheels: dict[str, Path]) -> None:
    def content(wheel: Path) -> set[str]:
        return {name for name in zipfile.ZipFile(wheel).namelist() if ".dist-info/" not in name}

    everything = set().union(*(_sources(folder) for folder in ("train", "compress", "deploy", "runtime")))
    assert content(wheels["krl"]) == everything
    assert content(wheels["krl-runtime"]) == _sources("runtime")
    assert "krl_runtime/py.typed" in content(wheels["krl-runtime"])
    assert any("LICENSE" in name for name in zipfile.ZipFile(wheels["krl-runtime"]).namelist())
    assert wheels["krl-runtime"].stat().st_size < 360_000  # light: two thirds are docstrings and messages


def test_every_help_works_with_the_base_dependencies_alone(base: Path, tmp_path: Path) -> None:
    listed = _run(base / "pip", "list", "--format=freeze", cwd=tmp_path).stdout.lower()
    assert "krl==" in listed
    assert not any(f"\n{name}==" in listed for name in ("torch", "onnx", "onnxruntime", "accelerate"))
    for program, commands in COMMANDS.items():
        overview = _run(base / program, "--help", cwd=tmp_path)
        assert overview.returncode == 0, overview.stderr
        for command in commands:
            assert command in overview.stdout
            done = _run(base / program, command, "--help", cwd=tmp_path)
            assert done.returncode == 0, f"{program} {command}: {done.stderr}"
            assert "usage" in done.stdout.lower()
        assert _run(base / program, "--version", cwd=tmp_path).stdout.startswith(program)


def test_a_missing_extra_is_named(base: Path, tmp_path: Path) -> None:
    done = _run(base / "krl-train", "fit", "--data", "digits", "--model", "resnet8", "--out", "run", cwd=tmp_path)
    assert done.returncode == 2
    assert "install it with: pip install '" in done.stderr
    assert ".whl[train]'" in done.stderr
    assert "Traceback" not in done.stderr


def test_the_slim_runtime_classifies_without_torch_and_onnx(device: Path, tmp_path: Path) -> None:
    listed = _run(device / "pip", "list", "--format=freeze", cwd=tmp_path).stdout.lower()
    assert "krl-runtime==" in listed
    assert not any(f"\n{name}==" in listed for name in ("torch", "onnx", "tyro", "rich", "krl"))
    bundle = write_bundle(tmp_path / "tiny.krl")
    image = tmp_path / "image.png"
    Image.fromarray(np.random.default_rng(0).integers(0, 256, (40, 30, 3)).astype(np.uint8)).save(image)
    done = _run(device / "krl-runtime", "classify", str(bundle.path), str(image), "--json", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    result = json.loads(done.stdout)
    assert result["results"][0]["label"] in bundle.manifest.labels
    assert _run(device / "krl-runtime", "selftest", str(bundle.path), cwd=tmp_path).returncode == 0
    assert _run(device / "krl-runtime", "doctor", cwd=tmp_path).returncode == 0
    program = "import sys, krl_runtime as k; m = k.load(sys.argv[1]); print(m(sys.argv[2]).label)"
    done = _run(device / "python", "-c", program, str(bundle.path), str(image), cwd=tmp_path)
    assert done.stdout.strip() == result["results"][0]["label"]
