"""The examples in the docstrings of the packages give what they show."""

from __future__ import annotations

import doctest
import importlib
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
FOLDERS = tuple(ROOT / name for name in ("runtime", "train", "compress", "deploy"))
LEAST = 20
"""Functions and classes with examples: a floor, so that the test cannot pass by finding none."""


def with_examples() -> list[str]:
    """Return the names of the modules that have examples."""
    return [
        ".".join(path.relative_to(folder).with_suffix("").parts).removesuffix(".__init__")
        for folder in FOLDERS
        for path in sorted(folder.rglob("*.py"))
        if ">>> " in path.read_text("utf-8")
    ]


@pytest.mark.parametrize("name", with_examples())
def test_the_examples_give_what_they_show(name: str):
    result = doctest.testmod(importlib.import_module(name), optionflags=doctest.ELLIPSIS)
    assert result.attempted
    assert result.failed == 0


def test_there_are_examples():
    finder = doctest.DocTestFinder()
    documented = [
        test.name for name in with_examples() for test in finder.find(importlib.import_module(name)) if test.examples
    ]
    assert len(documented) >= LEAST, documented


def test_a_wrong_example_is_found():
    test = doctest.DocTestParser().get_doctest(">>> 1 + 1\n3\n", {}, "wrong", None, None)
    assert doctest.DocTestRunner(verbose=False).run(test, out=lambda _: None).failed == 1
