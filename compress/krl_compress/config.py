"""Configurations of ``krl-compress``; nothing here imports torch, so that ``--help`` works without it."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path

from krl_runtime.errors import UsageError
from krl_train.config import AugmentConfig, DataConfig, InputConfig, LoopConfig, OptimConfig, OutOption

__all__ = ["CacheConfig", "DistillConfig"]


@dataclass(frozen=True)
class CacheConfig:
    """A stored teacher."""

    cache_teacher: bool = False
    """Compute the teacher's logits once for --views fixed views of each picture, store and reuse them."""
    views: int = 1
    """Number of fixed views of each picture, with --cache-teacher; epochs go through them in turn."""
    cache_dir: Path = Path("~/.cache/krl/teachers")
    """Where stored logits lie; students and runs with the same teacher, data and views share them."""

    def __post_init__(self) -> None:
        """Check the ranges."""
        if self.views < 1:
            raise UsageError(f"--views is {self.views}; accepted: 1 or more")


@dataclass(frozen=True)
class DistillConfig:
    """Options of ``krl-compress distill``."""

    teacher: str
    """A run (of krl-train fit, import, or of krl-compress), or a torchvision classifier with --pretrained."""
    student: str
    """A network by name, as in krl-train fit, or a run to start from."""
    out: OutOption
    """The student's run folder."""
    alpha: float = 0.1
    """Weight of the labels: loss = alpha * CE + (1 - alpha) * T^2 * KL."""
    temperature: float = 4.0
    """T, by which both nets' logits are divided."""
    baseline: bool = False
    """Train the same student without the teacher on the same budget as well, and report both."""
    pretrained: bool = False
    """Allow a teacher that is given by name to use its published weights, which may have to be downloaded."""
    resume: bool = False
    """Continue the interrupted run in --out."""
    overwrite: bool = False
    """Replace the run in --out."""
    json: bool = False
    """Print the result as one JSON object."""
    cache: CacheConfig = field(default_factory=CacheConfig)
    data: DataConfig = field(default_factory=DataConfig)
    input: InputConfig = field(default_factory=InputConfig)
    augment: AugmentConfig = field(default_factory=AugmentConfig)
    optim: OptimConfig = field(default_factory=OptimConfig)
    loop: LoopConfig = field(default_factory=LoopConfig)

    def __post_init__(self) -> None:
        """Check the ranges."""
        if not 0 <= self.alpha <= 1:
            raise UsageError(f"--alpha is {self.alpha}; accepted: 0 (teacher alone) to 1 (labels alone)")
        if not self.temperature > 0:
            raise UsageError(f"--temperature is {self.temperature}; accepted: above 0")
