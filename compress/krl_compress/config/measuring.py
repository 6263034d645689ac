"""Options of where the cost of a network is measured."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from krl_runtime.cli.options import Advanced
from krl_runtime.errors import UsageError

__all__ = ["MeasuringConfig"]


@dataclass(frozen=True)
class MeasuringConfig:
    """Where the cost of a network is measured, as a bundle."""

    board: str | None = None
    """Measure on this board, which krl-deploy board added; left out: here."""
    backend: Literal["tensorrt", "cuda", "openvino", "cpu"] | None = None
    """Backend that has to run the network; left out: the first that can."""
    threads: int | None = None
    """CPU threads to measure with; left out: one for each physical core."""
    profile: Path | None = None
    """Predict latencies from this file, which krl-runtime bench --profile recorded, and measure nothing."""
    profile_machine: Advanced[str | None] = None
    """Name of the machine that recorded --profile, if it is another one than this."""

    def __post_init__(self) -> None:
        """Check the range, and that there is one way to measure."""
        if self.threads is not None and self.threads < 1:
            raise UsageError(f"--threads is {self.threads}; accepted: 1 or more")
        if self.profile is not None and self.board is not None:
            raise UsageError("--profile predicts and --board measures; leave one of them out")
        if self.profile is None and self.profile_machine is not None:
            raise UsageError("--profile-machine names the machine of --profile; give that as well")
