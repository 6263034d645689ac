"""Options of training on two labelings at once."""

from __future__ import annotations

from dataclasses import dataclass

from krl_runtime.errors import UsageError
from krl_train.custom import Custom, named

__all__ = ["JointConfig"]


@dataclass(frozen=True)
class JointConfig:
    """Training on a target and a source at once: one feature extractor, one head for the labels of each."""

    source_data: Custom | None = None
    """Train on these images and their labels, too, by a second head on the same features; --data is the target."""
    source_weight: float | None = None
    """Weight of the source's loss beside the target's, 1 by default. Given without --source-data, the source is the
    data of the run that the training starts from."""

    def __post_init__(self) -> None:
        """Check the range."""
        object.__setattr__(self, "source_data", named(self.source_data, "--source-data"))
        if self.source_weight is not None and not self.source_weight > 0:
            raise UsageError(f"--source-weight is {self.source_weight}; accepted: above 0")

    @property
    def is_asked(self) -> bool:
        """Whether there is a source."""
        return self.source_data is not None or self.source_weight is not None

    @property
    def weight(self) -> float:
        """Weight of the source's loss."""
        return 1.0 if self.source_weight is None else self.source_weight
