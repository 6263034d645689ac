"""The words of the field, and docstrings that say what a thing is or does."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
PACKAGES = [file for name in ("train", "compress", "deploy", "runtime") for file in sorted((ROOT / name).rglob("*.py"))]
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]


def lines(files: list[Path], pattern: str, flags: int = 0) -> list[str]:
    wanted = re.compile(pattern, flags)
    return [
        f"{file.relative_to(ROOT)}:{number}: {line.strip()}"
        for file in files
        for number, line in enumerate(file.read_text(encoding="utf-8").splitlines(), 1)
        if wanted.search(line)
    ]


@pytest.mark.parametrize(
    ("pattern", "instead"),
    [
        (r"\bpictures?\b", "image"),
        (r"passed over", "skipped"),
        (r"\b(spoken|told)\b", "logged, reported, or another verb"),
        (r"\b(loud|louder) channel", "outlier channel"),
        (r"\bforeign (model|file|network|weights)", "third-party"),
        (r"krl-deploy (adopt|half)\b", "krl-deploy import, krl-deploy fp16"),
    ],
)
def test_words_that_have_a_standard_term(pattern: str, instead: str):
    assert len(PACKAGES) > 200
    assert len(PAGES) > 8
    found = lines([*PACKAGES, *PAGES], pattern, re.IGNORECASE)
    assert not found, f"say {instead}: {found}"


def test_docstrings_do_not_begin_with_what():
    assert not lines(PACKAGES, r'"""(Return )?[Ww]hat ')
    assert lines([Path(__file__)], "Return ")  # the search finds something
