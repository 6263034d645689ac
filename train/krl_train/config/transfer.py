"""Options of transfer learning: the start of a training, and how the weights from there are moved."""

from __future__ import annotations

from dataclasses import dataclass, fields
from typing import Annotated, Literal

import tyro

from krl_runtime.cli.options import Advanced, Only, option_name
from krl_runtime.errors import UsageError

__all__ = ["TransferConfig"]

_LABELED = Only("classification", "embedding")
_UNFREEZE_SHARE = 0.5  # the second half of the training moves all weights, as the last epochs of ULMFiT's do
_PENALTIES = ("l2_sp", "feature_transfer", "relation_transfer")


@dataclass(frozen=True)
class TransferConfig:
    """The start of a training, and how the weights from there are moved."""

    from_: Annotated[str | None, tyro.conf.arg(name="from")] = None
    """Start from a run of the same network, and leave --model out; other labels get a new last layer. Classifiers
    and embeddings: or from published weights, by the network's name, with --pretrained."""
    transfer: Annotated[Literal["full", "linear", "staged"], _LABELED] = "full"
    """Train all weights of the start, the last layer alone, or stage after stage as well, from the last layer down."""
    unfreeze_share: Advanced[Annotated[float | None, _LABELED]] = None
    """staged: share of the training after which all stages are trained, 0.5; each waits equally long for the next."""
    layer_decay: Advanced[Annotated[float, _LABELED]] = 1.0
    """Factor of the learning rate from each stage to the one below it, above 0 to 1."""
    freeze_statistics: Advanced[Annotated[bool, _LABELED]] = False
    """Keep the statistics of batch normalization that the start has, below the last layer."""
    l2_sp: Advanced[Annotated[float, _LABELED]] = 0.0
    """Weight of half the squared distance from the start, in place of --weight-decay, for the weights from there."""
    feature_transfer: Advanced[Annotated[float, _LABELED]] = 0.0
    """Weight of the distance of each stage's features from those of the start, on the images trained on."""
    relation_transfer: Advanced[Annotated[float, _LABELED]] = 0.0
    """Weight of the difference between the distances among a batch's images, here and at the start."""

    def __post_init__(self) -> None:
        """Check the ranges, and that the options go together."""
        for name in _PENALTIES:
            if not getattr(self, name) >= 0:
                raise UsageError(f"{option_name(name)} is {getattr(self, name)}; accepted: 0 or more")
        if not 0 < self.layer_decay <= 1:
            raise UsageError(f"--layer-decay is {self.layer_decay}; accepted: above 0, to 1")
        if self.unfreeze_share is not None and not 0 < self.unfreeze_share <= 1:
            raise UsageError(f"--unfreeze-share is {self.unfreeze_share}; accepted: above 0, to 1")
        if self.from_ is None and self.changed:
            raise UsageError(
                f"{self.changed[0]} is for a network that starts from a run or published weights; give "
                "--from RUN or --from NAME --pretrained, or leave it out"
            )
        if self.unfreeze_share is not None and self.transfer != "staged":
            raise UsageError("--unfreeze-share is for --transfer staged; leave it out")
        beside = [name for name in self.changed if name != "--transfer"]
        if self.transfer == "linear" and beside:
            raise UsageError(
                f"--transfer linear trains the last layer alone, below which nothing moves; leave {beside[0]} out, or "
                "give --transfer full or staged"
            )

    @property
    def changed(self) -> tuple[str, ...]:
        """Return the options that say more than where to start from."""
        own = [item for item in fields(self) if item.name != "from_"]
        return tuple(option_name(item.name) for item in own if getattr(self, item.name) != item.default)

    @property
    def share(self) -> float:
        """Return the share of a staged training after which all stages are trained."""
        return _UNFREEZE_SHARE if self.unfreeze_share is None else self.unfreeze_share
