from __future__ import annotations

from pathlib import Path

import pytest


@pytest.fixture(scope="session")
def colors(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Images of four classes in color."""
    from _helpers.third_party import write_images

    return write_images(tmp_path_factory.mktemp("colors") / "images")
