"""Options of ``krl-compress search``."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal

from krl_runtime.cli.options import Advanced
from krl_runtime.errors import UsageError
from krl_train.config import AugmentConfig, DataConfig, LoopConfig, OptimConfig, OutOption

from .distillation import CacheConfig
from .kinds import Repeated
from .losses import LossConfig
from .measuring import MeasuringConfig

__all__ = ["SEARCH_RECORD", "SearchConfig"]

SEARCH_RECORD = "search.json"
"""Name of the file in a search's folder that holds its state."""


@dataclass(frozen=True, kw_only=True)
class SearchConfig:
    """Options of ``krl-compress search``."""

    teacher: str
    """The run of a classifier, restorer or generator, which teaches the students."""
    budget: Repeated
    """The most that the student may cost: latency=2ms (p50 of the network at batch 1), memory=200MB, size=300KB or
    macs=10M; may be given several times."""
    out: OutOption
    """Folder of the search: winner.krl, the runs, search.json, search.md and search.png."""
    architectures: str = ""
    """Networks to try, by name, separated by commas; each is made as wide as the budget allows, but NAME@0.5 keeps half
    of its channels. Left out: common ones for images of this size."""
    prune_teacher: bool = True
    """Try the teacher itself as well, with channels removed."""
    sizes: tuple[int, ...] = ()
    """Sides of the input to try, in pixels; left out: the teacher's."""
    precisions: tuple[Literal["fp32", "fp16", "int8"], ...] = ()
    """Precisions to try; left out: fp32 and int8, of generators fp32 alone."""
    multiple: Advanced[int] = 8
    """Layers keep a multiple of this many channels."""
    shortlist: int = 12
    """Students to train at most: those with the most operations within the budget."""
    rounds: int = 3
    """Rounds of training; the last one has --epochs, each one before as many less as --reduction says."""
    reduction: Advanced[int] = 3
    """Factor by which a round has fewer students and more epochs than the one before."""
    max_drop: float | None = None
    """Largest accepted accuracy drop of the winner's variant to FP32, as in krl-deploy quantize."""
    time_limit: str | None = None
    """Stop after this time with the best so far, as in 90s, 30m or 2h."""
    resume: bool = False
    """Continue the interrupted search in --out."""
    json: bool = False
    """Print the result as one JSON object."""
    measuring: MeasuringConfig = field(default_factory=MeasuringConfig)
    losses: Advanced[LossConfig] = field(default_factory=LossConfig)
    cache: Advanced[CacheConfig] = field(default_factory=CacheConfig)
    data: DataConfig = field(default_factory=DataConfig)
    augment: AugmentConfig = field(default_factory=AugmentConfig)
    optim: OptimConfig = field(default_factory=OptimConfig)
    loop: LoopConfig = field(default_factory=LoopConfig)

    def __post_init__(self) -> None:
        """Check the ranges."""
        for name, least in (("shortlist", 1), ("rounds", 1), ("reduction", 2), ("multiple", 1)):
            if getattr(self, name) < least:
                raise UsageError(f"--{name} is {getattr(self, name)}; accepted: {least} or more")
        if len(set(self.precisions)) < len(self.precisions):
            raise UsageError("--precisions: accepted: fp32, fp16, int8, each once")
        if any(size < 1 for size in self.sizes):
            raise UsageError(f"--sizes {' '.join(map(str, self.sizes))}: accepted: 1 or more")
