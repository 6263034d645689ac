from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from types import ModuleType

import pytest

import krl_runtime
from krl_runtime import errors

HEAVY = (
    "accelerate", "concurrent.futures", "cuda", "logging", "onnx", "onnxruntime", "rich", "tensorrt", "torch", "tyro"
)  # fmt: skip


def test_all_is_what_is_public():
    for name in krl_runtime.__all__:
        assert getattr(krl_runtime, name) is not None
    public = [
        name
        for name, value in vars(krl_runtime).items()
        if not name.startswith("_")
        and not isinstance(value, ModuleType)
        and name not in ("Any", "TYPE_CHECKING", "attribute")
    ]
    assert sorted([*public, "__version__"]) == sorted(krl_runtime.__all__)
    assert krl_runtime.__all__ == sorted(krl_runtime.__all__)
    with pytest.raises(AttributeError, match="module 'krl_runtime' has no attribute 'lode'"):
        krl_runtime.lode  # noqa: B018


def test_every_error_is_exported():
    raised = {name for name in errors.__all__ if isinstance(getattr(errors, name), type)}
    assert len(raised) > 10
    assert raised <= set(krl_runtime.__all__)


def loaded_beyond_numpy_and_pillow() -> set[str]:
    code = (
        "import sys, numpy, PIL.Image; before = set(sys.modules); import krl_runtime; print(*set(sys.modules) - before)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    return set(done.stdout.split())


def test_importing_loads_nothing_heavy():
    loaded = loaded_beyond_numpy_and_pillow()
    assert "krl_runtime.bundle" in loaded
    assert loaded.isdisjoint(HEAVY)


def test_importing_loads_no_third_party_module_but_numpy_and_pillow():
    names = {name.partition(".")[0] for name in loaded_beyond_numpy_and_pillow()}
    assert names - sys.stdlib_module_names - {"PIL", "numpy", "org"} == {"krl_runtime"}  # org: pickle looks for Jython


def test_every_help_works_without_optional_libraries(tmp_path: Path):
    blocked = tmp_path / "sitecustomize.py"
    blocked.write_text(
        "import sys\nfor name in ('onnx', 'onnxruntime', 'rich', 'torch', 'tyro', 'yaml'): sys.modules[name] = None\n"
    )
    environment = {**os.environ, "PYTHONPATH": str(tmp_path)}
    for command in ((), ("classify",), ("info",), ("selftest",), ("bench",), ("tune",), ("doctor",)):
        line = [sys.executable, "-m", "krl_runtime", *command, "--help"]
        done = subprocess.run(line, capture_output=True, text=True, env=environment, check=False)
        assert done.returncode == 0, done.stderr
        assert "usage: krl-runtime" in done.stdout
