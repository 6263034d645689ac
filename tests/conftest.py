"""One thread a process: the tests' tensors are tiny, and threads that wait for each other slow a busy machine down."""

from __future__ import annotations

import logging
import os
from collections.abc import Iterator

import pytest

os.environ.setdefault("OMP_NUM_THREADS", "1")


@pytest.fixture(autouse=True)
def _user_folders(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> None:
    """Keep what tests remember and set, and engines that they build, out of the user's own folders."""
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path_factory.getbasetemp() / "config"))
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path_factory.getbasetemp() / "cache"))
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path_factory.getbasetemp() / "state"))


@pytest.fixture(autouse=True)
def _logger() -> Iterator[None]:
    """Undo what ``commandline.guard`` does to the logger, which would hide its lines from ``caplog``."""
    yield
    logger = logging.getLogger("krl")
    logger.handlers[:] = []
    logger.propagate = True
    logger.setLevel(logging.NOTSET)
