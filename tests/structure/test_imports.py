"""The import graph of all four packages, lazy and type-checking imports included, has no cycle of modules."""

from __future__ import annotations

from graphlib import CycleError, TopologicalSorter
from pathlib import Path

import grimp
import pytest

PACKAGES = ("krl_train", "krl_compress", "krl_deploy", "krl_runtime")


def cycle_of(*packages: str) -> list[str]:
    """Return the modules of one import cycle, the first one again at the end; empty if there is none."""
    graph = grimp.build_graph(*packages, cache_dir=None, exclude_type_checking_imports=False)
    imports = {module: graph.find_modules_directly_imported_by(module) for module in graph.modules}
    try:
        TopologicalSorter(imports).prepare()
    except CycleError as error:
        return list(error.args[1])
    return []


def test_no_module_imports_itself_through_others():
    assert cycle_of(*PACKAGES) == []


@pytest.mark.parametrize(
    "line",
    [
        "from planted import a",
        "def f():\n    from planted.a import x",
        "from typing import TYPE_CHECKING\nif TYPE_CHECKING:\n    from .a import x",
    ],
)
def test_a_planted_cycle_is_found(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, line: str):
    package = tmp_path / "planted"
    package.mkdir()
    (package / "__init__.py").write_text("")
    (package / "a.py").write_text("from planted import b\nx = 1\n")
    (package / "b.py").write_text(line + "\n")
    monkeypatch.syspath_prepend(tmp_path)
    assert set(cycle_of("planted")) == {"planted.a", "planted.b"}
