"""Fixtures of deployment's tests: real digits as files, a network that learned them, and its bundle."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from krl_runtime import Bundle
from krl_train.run import Run


@pytest.fixture(scope="session")
def digits(tmp_path_factory: pytest.TempPathFactory) -> Path:
    from _helpers.digits import write_digits

    return write_digits(tmp_path_factory.mktemp("data") / "digits")


@pytest.fixture(scope="session")
def run(tmp_path_factory: pytest.TempPathFactory, digits: Path) -> Run:
    from _helpers.digits import train_run

    return train_run(tmp_path_factory.mktemp("runs") / "student", digits)


@pytest.fixture(scope="session")
def exported(tmp_path_factory: pytest.TempPathFactory, digits: Path, run: Run) -> Path:
    """A bundle that no test changes."""
    from krl_deploy.config import ExportConfig
    from krl_deploy.exporters.export import export

    path = tmp_path_factory.mktemp("bundles") / "digits.krl"
    export(ExportConfig(run.path, path, data=digits))
    return path


@pytest.fixture
def bundle(tmp_path: Path, exported: Path) -> Bundle:
    """A copy of the exported bundle."""
    shutil.copytree(exported, tmp_path / "digits.krl")
    return Bundle.open(tmp_path / "digits.krl")
