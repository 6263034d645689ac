"""The configuration of ``krl-deploy report``."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import tyro

from krl_runtime.errors import UsageError

__all__ = ["MOST_SAMPLES", "ReportConfig"]

MOST_SAMPLES = 24
"""Sample images of a bundle: more make a page that nobody scrolls through, and restored ones are large."""


@dataclass(frozen=True)
class ReportConfig:
    """Options of ``krl-deploy report``."""

    path: tyro.conf.Positional[Path]
    """A bundle NAME.krl, which is shown with the runs and JSON files beside it; or a folder with runs, bundles, latency
    profiles, and files that commands wrote with --json."""
    out: Annotated[Path, tyro.conf.arg(aliases=["-o"])]
    """The page to write, a file NAME.html."""
    data: Path | None = None
    """Folder or list of images whose first ones are shown as samples; left out: the golden inputs."""
    samples: int = 12
    """Images to show of each bundle; 0 runs no network."""
    title: str | None = None
    """Title of the page; left out: the name of the bundle or folder."""
    json: bool = False
    """Print the result as one JSON object."""

    def __post_init__(self) -> None:
        """Check the ranges."""
        if not 0 <= self.samples <= MOST_SAMPLES:
            raise UsageError(f"--samples is {self.samples}; accepted: 0 to {MOST_SAMPLES}")
        if self.out.suffix.lower() not in (".html", ".htm"):
            raise UsageError(f"--out is {self.out}; accepted: a file NAME.html")
