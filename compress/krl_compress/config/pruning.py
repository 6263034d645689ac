"""Options of ``krl-compress prune``."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Literal, TypeAlias

import tyro

from krl_runtime.cli.options import Advanced, option_name
from krl_runtime.errors import UsageError
from krl_train.config import AugmentConfig, DataConfig, GenerationConfig, LoopConfig, OptimConfig, OutOption

from .distillation import GeneratorStudentConfig
from .kinds import GENERATOR
from .losses import LossConfig
from .measuring import MeasuringConfig

__all__ = ["Criterion", "PruneConfig"]

Criterion: TypeAlias = Literal["l2", "l1", "group", "bn", "taylor"]
"""Which channels matter; see ``krl_compress.pruning.criteria``."""


@dataclass(frozen=True, kw_only=True)
class PruneConfig:
    """Options of ``krl-compress prune``."""

    run: tyro.conf.Positional[Path]
    """The run of a classifier, restorer or generator: it is pruned, and teaches what is left of it."""
    out: OutOption
    """The pruned network's run."""
    keep_channels: float | None = None
    """Share of the channels that each layer keeps, 0 to 1; give this, --macs or --latency."""
    macs: float | None = None
    """Keep as many channels as fit this share of the network's multiply-accumulate operations, 0 to 1."""
    latency: str | None = None
    """Keep as many channels as fit this latency, as in 2ms: p50 of the network at batch 1, measured of bundles."""
    variant: Literal["fp32", "fp16", "int8"] = "fp32"
    """Variant of the bundle that --latency is of."""
    sparsity: Literal["2:4"] | None = None
    """Make two of each four weights along the input channels zero as well, or alone; TensorRT on GPUs from Ampere on
    skips them."""
    criterion: Criterion = "l2"
    """Which channels go: those of the smallest weights (l2, l1), also of what reads them (group), of the smallest
    factors of batch normalization (bn), or that change the loss least (taylor)."""
    multiple: int = 8
    """Layers keep a multiple of this many channels: 8 or 16 for INT8 and FP16 kernels."""
    steps: int = 1
    """Prune in this many steps, with a distillation of --epochs after each."""
    only_prune: bool = False
    """Write the pruned network as it is, without distillation."""
    sensitivity: bool = False
    """Measure how good the network is with a quarter and half of each layer's channels removed alone; writes
    sensitivity.json and sensitivity.png into OUT."""
    resume: bool = False
    """Continue the interrupted run in --out."""
    overwrite: bool = False
    """Replace the run in --out."""
    json: bool = False
    """Print the result as one JSON object."""
    measuring: Advanced[MeasuringConfig] = field(default_factory=MeasuringConfig)
    losses: Advanced[LossConfig] = field(default_factory=LossConfig)
    data: DataConfig = field(default_factory=DataConfig)
    augment: AugmentConfig = field(default_factory=AugmentConfig)
    optim: OptimConfig = field(default_factory=OptimConfig)
    loop: LoopConfig = field(default_factory=LoopConfig)
    generator_student: Annotated[GeneratorStudentConfig, GENERATOR] = field(default_factory=GeneratorStudentConfig)
    generation: Advanced[Annotated[GenerationConfig, GENERATOR]] = field(default_factory=GenerationConfig)

    def __post_init__(self) -> None:
        """Check the ranges."""
        if self.generator_student.online:
            raise UsageError("--online trains a new teacher, and what is pruned was trained before; leave it out")
        ways = ("keep_channels", "macs", "latency")
        given = [option_name(name) for name in ways if getattr(self, name) is not None]
        # The record of a run that --latency was asked for has the share of the channels that it came to.
        if not self.only_sparse and len(given) != 1 and not (self.resume and given == ["--keep-channels", "--latency"]):
            raise UsageError(
                f"{' and '.join(given) or 'nothing'} given that says how much to prune; accepted: one of "
                f"{', '.join(map(option_name, ways))}, as in --keep-channels 0.5, or --sparsity 2:4, or both"
            )
        if self.latency is None and (self.measuring != MeasuringConfig() or self.variant != "fp32"):
            raise UsageError(
                "--board, --backend, --threads, --profile and --variant are for --latency; leave them out, or give it"
            )
        if self.only_sparse and self.steps > 1:
            raise UsageError("--steps are for channels, and --sparsity alone prunes none; leave them out")
        for name in ("keep_channels", "macs"):
            value = getattr(self, name)
            if value is not None and not 0 < value < 1:
                option = option_name(name)
                raise UsageError(f"{option} is {value:g}; accepted: a share between 0 and 1, as in {option} 0.5")
        for name in ("multiple", "steps"):
            if getattr(self, name) < 1:
                raise UsageError(f"--{name} is {getattr(self, name)}; accepted: 1 or more")
        if self.only_prune and self.steps > 1:
            raise UsageError("--steps are for the distillations between them, and --only-prune has none; leave one out")

    @property
    def only_sparse(self) -> bool:
        """Whether no channels are to be pruned."""
        return self.sparsity is not None and (self.keep_channels, self.macs, self.latency) == (None, None, None)
