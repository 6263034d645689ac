"""Teachers: what answers for a batch of views."""

from __future__ import annotations

import copy
import logging
from collections.abc import Sequence
from typing import Protocol

import torch
from torch import Tensor

from krl_runtime.errors import ModelError
from krl_train.models import Network
from krl_train.models.fusion import FusionNetwork
from krl_train.models.network import fit_images
from krl_train.tasks import Batch

from .features import FeatureSource, ModuleFeatures
from .fold import fold_batch_norm

__all__ = ["FrozenTeacher", "Teacher"]

_log = logging.getLogger("krl")


class Teacher(Protocol):
    """Answers for the views of a batch."""

    @property
    def features(self) -> FeatureSource | None:
        """Where its features come from; ``None`` where it has logits alone, as a stored teacher and a fused one."""
        ...

    def fold(self) -> None:
        """Make ready for a training that asks for logits alone."""
        ...

    def __call__(self, batch: Batch) -> Tensor:
        """Return logits ``[N, classes]`` of float32, without a gradient."""
        ...


class FrozenTeacher:
    """A trained network that cannot change.

    It is not a module, on purpose: whatever holds it has no parameters of it to train, move, save or share, and no
    ``train()`` of a parent reaches it. Eval mode is restored at each call, whatever anyone did to the network.

    Args:
        network: The teacher; it normalizes in its own way.
        features: Where its features come from; its modules by default.
    """

    def __init__(self, network: Network, features: FeatureSource | None = None) -> None:
        self.network = network.requires_grad_(False).eval()
        self.features: FeatureSource = features or ModuleFeatures(self.network)
        self._folded = False

    def fold(self) -> None:
        """Go on with a copy whose batch normalization is folded away: the same logits but for rounding, sooner.

        For teachers whose logits alone are asked for; where features are taken the network stays as it is.
        """
        if self._folded or isinstance(self.network, FusionNetwork):  # which has inputs that are no image
            return
        self._folded = True
        self.network = copy.deepcopy(self.network).eval()
        device = self.network.device
        generator = torch.Generator().manual_seed(0)
        shape = (2, *self.network.preprocessing.shape)
        example = torch.randint(0, 256, shape, generator=generator, dtype=torch.uint8)
        count = fold_batch_norm(self.network, example.to(device))
        _log.debug("%d batch normalizations of the teacher were folded", count)

    @torch.no_grad()
    def __call__(self, batch: Batch) -> Tensor:
        """Return logits ``[N, classes]`` of float32 for the very views that the student sees."""
        return self.logits(batch.pixels, batch.further)

    @torch.no_grad()
    def logits(self, pixels: Tensor, further: Sequence[Tensor] = ()) -> Tensor:
        """Return logits ``[N, classes]`` of float32 for pixels ``[N, C, H, W]``, 0 to 255, and what is beside them."""
        preprocessing = self.network.preprocessing
        self.network.to(pixels.device).eval()
        beside = [fit_images(value, preprocessing) if value.ndim == pixels.ndim else value for value in further]
        logits = self.network.answer(fit_images(pixels, preprocessing), beside).float()
        # On a GPU this would wait for it at each step; there the loop looks at the loss now and then.
        if logits.device.type == "cpu" and not logits.isfinite().all():
            wrong = int((~logits.isfinite().all(1)).sum())
            raise ModelError(
                f"the teacher answers {wrong} of {len(logits)} images with logits that are not finite numbers; "
                "nothing can be learned from it: train it again, or compute it with --precision fp32"
            )
        return logits
