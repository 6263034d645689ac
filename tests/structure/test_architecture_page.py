"""The diagrams of docs/architecture.md are what the import graph says, and its layers are all there are."""

from __future__ import annotations

import re
import runpy
from pathlib import Path

import pytest

DOCS = Path(__file__).parents[2] / "docs"
PACKAGES = {"krl_runtime": "runtime", "krl_deploy": "deploy", "krl_train": "train", "krl_compress": "compress"}


def test_the_diagrams_are_current():
    page = (DOCS / "architecture.md").read_text("utf-8")
    updated = runpy.run_path(str(DOCS / "architecture_diagram.py"))["updated"]
    assert updated(page) == page, "run: python docs/architecture_diagram.py"


def test_an_arrow_that_follows_from_others_is_left_out():
    reduced = runpy.run_path(str(DOCS / "architecture_diagram.py"))["reduced"]
    assert reduced({"a": {"b", "c"}, "b": {"c"}, "c": set()}) == {"a": {"b"}, "b": {"c"}, "c": set()}


@pytest.mark.parametrize("package", PACKAGES)
def test_the_page_names_every_layer(package: str):
    page = (DOCS / "architecture.md").read_text("utf-8")
    section = page.partition(f"### {package}\n")[2].partition("<!-- diagram")[0]
    named = set(re.findall(r"`(\w+)/?`", "".join(line.split("|")[1] for line in section.splitlines() if "|" in line)))
    folder = DOCS.parent / PACKAGES[package] / package
    there = {path.stem for path in folder.iterdir() if path.suffix == ".py" or (path / "__init__.py").is_file()}
    assert there - {"__init__", "__main__", "_version"} <= named
