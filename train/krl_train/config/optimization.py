"""How weights are moved, for how long and on what: sections that all commands share which train."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, Literal

from krl_runtime.cli.options import Advanced, Only, option_name
from krl_runtime.errors import UsageError

__all__ = ["LoopConfig", "OptimConfig"]

_CLASSIFIER = Only("classification")
_LABELED = Only("classification", "embedding")
_DECAYED = Only("classification", "embedding", "restoration", "translation", "style")


@dataclass(frozen=True)
class OptimConfig:
    """How weights are moved."""

    optimizer: Annotated[Literal["sgd", "adamw"], _LABELED] = "sgd"
    """SGD with momentum, or AdamW. Tasks from image to image take AdamW, generators Adam."""
    lr: float | None = None
    """Peak learning rate: 0.1 for sgd and 0.001 for adamw, times batch size / 128; 0.001 for restoration."""
    momentum: Advanced[Annotated[float, _LABELED]] = 0.9
    """Momentum of sgd."""
    nesterov: Advanced[Annotated[bool, _LABELED]] = True
    """Nesterov's form of the momentum."""
    weight_decay: Annotated[float, _DECAYED] = 5e-4
    """Weight decay."""
    decay_norms: Advanced[Annotated[bool, _DECAYED]] = True
    """Weight decay on biases and on the parameters of normalization as well, as in the published protocols of small
    images; those of ImageNet leave them out."""
    schedule: Advanced[Literal["cosine", "multistep", "constant"]] = "cosine"
    """How the learning rate falls after the warm-up."""
    milestones: Advanced[tuple[float, ...]] = (0.625, 0.75, 0.875)
    """Shares of the training after which multistep divides the learning rate by ten."""
    warmup: Advanced[float | None] = None
    """Share of the training in which the learning rate rises from 0: 0.05, but 2,000 steps at most."""
    label_smoothing: Advanced[Annotated[float, _CLASSIFIER]] = 0.0
    """Label smoothing of the cross-entropy, 0 to below 1."""
    clip_norm: Advanced[float | None] = None
    """Largest norm of the gradient."""
    ema: float = 0.0
    """Decay of a moving average of the weights, which is kept; 0 is off (generators: 0.999)."""

    def __post_init__(self) -> None:
        """Check the ranges."""
        if self.lr is not None and not self.lr > 0:
            raise UsageError(f"--lr is {self.lr}; accepted: above 0")
        if self.optimizer != "sgd" and (self.momentum != 0.9 or not self.nesterov):
            raise UsageError("--momentum and --no-nesterov are for --optimizer sgd; leave them out")
        if self.schedule != "multistep" and self.milestones != OptimConfig.milestones:
            raise UsageError("--milestones is for --schedule multistep; leave it out")
        for name in ("warmup", "label_smoothing", "ema"):
            value = getattr(self, name)
            if value is not None and not 0 <= value < 1:
                raise UsageError(f"{option_name(name)} is {value}; accepted: 0 to below 1")


@dataclass(frozen=True)
class LoopConfig:
    """How long, how large, on what."""

    epochs: int | None = None
    """Passes over the training images: 30, or more for few images."""
    batch_size: int | None = None
    """Images in one step over all processes: 8 to 128, by their number."""
    accumulate: Advanced[Annotated[int, _CLASSIFIER]] = 1
    """Parts that the images of each step are computed in, one after the other, for less memory: gradients are
    accumulated, and the step is that of all of --batch-size."""
    seed: int = 0
    """Seed of everything that is random."""
    precision: Advanced[Literal["auto", "fp32", "bf16", "fp16"]] = "auto"
    """Mixed precision of the training; auto takes bf16 where the hardware computes in it. Evaluation is in fp32."""
    device: Literal["auto", "cpu", "cuda"] = "auto"
    """Where to train; auto takes a GPU if there is one."""
    sync_bn: Advanced[Annotated[bool, _LABELED]] = False
    """Statistics of batch normalization over all processes, each of which has a GPU, not over each one's images."""
    compile: Advanced[Annotated[bool, _LABELED]] = False
    """Compile the network with torch.compile: minutes at the start, for faster steps on GPUs and long trainings."""
    channels_last: Advanced[bool] = True
    """Memory layout of the images; faster on most hardware."""
    checkpoint_minutes: Advanced[float] = 10.0
    """Longest time between checkpoints; there is one after each epoch, or 30 to 59 in all, in any case."""
    evaluate_every: Advanced[int | None] = None
    """Epochs between evaluations, 1 unless these are of more images than the training; the last epoch is always
    evaluated."""
    balance: Advanced[Annotated[Literal["none", "weights", "sampling"], _CLASSIFIER]] = "none"
    """For classes with unlike numbers of images: weights gives the labels of rare classes more weight; sampling shows
    their images more often."""
    keep: Advanced[Annotated[Literal["best", "last"], _DECAYED]] = "best"
    """Weights that the run keeps: of the epoch that is best on the validation images, or of the last one."""
    early_stopping: Advanced[Annotated[int | None, _DECAYED]] = None
    """Stop after this many evaluations that are no better; left out: never."""

    def __post_init__(self) -> None:
        """Check the ranges."""
        for name in ("epochs", "batch_size", "accumulate", "evaluate_every", "early_stopping"):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise UsageError(f"{option_name(name)} is {value}; accepted: 1 or more")
