"""A board over a real SSH server on the loopback, and folders of this machine to send to it."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from _helpers.bundles import LABELS
from _helpers.sshd import DEPLOYING, RTX, SLIM, Server, running_sshd, slim_python
from krl_deploy.boards import copying
from krl_deploy.boards.registry import Board, add_board


@pytest.fixture(scope="session")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    with running_sshd(tmp_path_factory.mktemp("board") / "sshd") as running:
        yield running


@pytest.fixture(scope="session")
def slim(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The Python of a board without torch, onnx and tyro."""
    return slim_python(tmp_path_factory.mktemp("slim") / "python", *SLIM)


@pytest.fixture(scope="session")
def deploying(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The Python of a board without torch that runs krl-deploy, and has TensorRT-RTX where that is installed here."""
    return slim_python(tmp_path_factory.mktemp("deploying") / "python", *DEPLOYING, *RTX)


@pytest.fixture
def board(server: Server, slim: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., Board]:
    """Return a function that adds a board of the running server."""
    monkeypatch.setenv("KRL_CONFIG_DIR", str(tmp_path / "config"))
    monkeypatch.setattr(copying, "_WAITS", (0.01, 0.01, 0.01))

    def add(name: str = "jetson", **changes: Any) -> Board:
        values: dict[str, Any] = {
            "host": server.host,
            "port": server.port,
            "identity": str(server.identity),
            "python": str(slim),
            "ssh_config": str(server.config),
        }
        made = Board(name, **{**values, **changes})
        add_board(made)
        return made

    return add


@pytest.fixture
def photos(tmp_path: Path) -> Path:
    """Twelve images of noise in folders of four classes."""
    rng = np.random.default_rng(5)
    for number in range(12):
        file = tmp_path / "photos" / LABELS[number % 4] / f"{number}.png"
        file.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(rng.integers(0, 256, (10, 12, 3), dtype=np.uint8)).save(file)
    return tmp_path / "photos"
