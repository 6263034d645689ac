"""Fixtures of the runtime's tests: a bundle, image files, and the logger as a program finds it."""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from _helpers.bundles import write_bundle
from krl_runtime import Bundle


@pytest.fixture
def without_openvino(monkeypatch: pytest.MonkeyPatch) -> None:
    """A machine that has not installed the optional extra."""
    monkeypatch.setitem(sys.modules, "openvino", None)


@pytest.fixture
def bundle(tmp_path: Path) -> Bundle:
    return write_bundle(tmp_path / "tiny.krl", variants=("fp32", "fp16", "int8"))


@pytest.fixture
def images(tmp_path: Path) -> list[Path]:
    """Three PNG files of different sizes in a folder of their own."""
    rng = np.random.default_rng(7)
    folder = tmp_path / "images"
    folder.mkdir()
    files = [folder / f"{name}.png" for name in "abc"]
    for index, file in enumerate(files):
        Image.fromarray(rng.integers(0, 256, (30 + index, 20, 3), dtype=np.uint8)).save(file)
    return files
