"""No module at a package's root is named like a public function, which it would replace when it is imported."""

from __future__ import annotations

import importlib
import pkgutil
import subprocess
import sys
from types import ModuleType

import pytest

VERBS = {
    "krl_train": {"fit", "evaluate", "explain", "import_weights", "unpack"},
    "krl_compress": {"distill", "mutual", "joint", "prune", "search", "study", "recipes"},
    "krl_deploy": {
        *{"export", "import_onnx", "fp16", "quantize", "build_engine", "inspect_engine"},
        *{"check", "compare", "report", "package", "sign"},
    },
    "krl_runtime": {
        "load",
        "grid",
        "selftest",
        "evaluate",
        "explain",
        "bench",
        "tune",
        "doctor",
        "classify",
        "generate",
        "restore",
    },
}
"""The public functions of each package, those to come included (the design's section on the Python API)."""


@pytest.mark.parametrize("package", VERBS)
def test_no_root_module_is_named_like_a_public_function(package: str):
    root = importlib.import_module(package)
    assert {item.name for item in pkgutil.iter_modules(root.__path__)} & VERBS[package] == set()


@pytest.mark.parametrize("package", VERBS)
def test_public_names_stay_what_they_are_when_every_module_is_imported(package: str):
    code = f"""
import importlib, pkgutil, types
root = importlib.import_module({package!r})
names = [name for name in getattr(root, "__all__", []) if not name.startswith("__")]
before = {{name: getattr(root, name) for name in names}}
for item in pkgutil.walk_packages(root.__path__, {package + "."!r}):
    if not item.name.endswith("__main__"):
        importlib.import_module(item.name)
assert all(getattr(root, name) is value for name, value in before.items()), before
assert not any(isinstance(getattr(root, name), types.ModuleType) for name in names), names
print(len(names))
"""
    done = subprocess.run([sys.executable, "-W", "ignore", "-c", code], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert int(done.stdout) > 0 or package != "krl_runtime"


def test_load_is_a_function_of_the_runtime():
    runtime = importlib.import_module("krl_runtime")
    assert callable(runtime.load)
    assert not isinstance(runtime.load, ModuleType)
