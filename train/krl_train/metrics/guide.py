"""A frozen classifier that guides a generator: what it sees in a generated image shall be what the condition says."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from krl_runtime.errors import UsageError
from krl_train.models import Network
from krl_train.models.network import fit_images
from krl_train.run import Run

__all__ = ["Guide", "token_classes"]

_IGNORED = -100  # what torch's cross-entropy leaves out by default


def token_classes(settings: Mapping[str, Any], labels: tuple[str, ...]) -> Tensor:
    """Return which class of a classifier each token of a condition names.

    Args:
        settings: The condition's settings.
        labels: The classifier's class names.

    Returns:
        int64 ``[V]``: a class index, or -1 for tokens that name none of the classes.

    Raises:
        UsageError: No token names a class.
    """
    known = {label.lower(): number for number, label in enumerate(labels)}
    names = [token.rpartition("=")[2] for token in settings["vocabulary"]]
    classes = torch.tensor([known.get(name.lower(), -1) for name in names])
    if not (classes >= 0).any():
        raise UsageError(
            f"the guide knows {', '.join(labels[:10])}; none of these is in the conditions' vocabulary: "
            f"{', '.join(filter(None, names[:20]))}"
        )
    return classes


class Guide(nn.Module):
    """Cross-entropy of a frozen classifier on generated images, with the class that their condition names.

    Args:
        network: The classifier; it is frozen and stays in evaluation mode.
        labels: Its class names.
        settings: The condition's settings; tokens are matched with class names, "red" or "color=red" with red.

    Raises:
        UsageError: No token names a class.
    """

    classes: Tensor

    def __init__(self, network: Network, labels: tuple[str, ...], settings: Mapping[str, Any]) -> None:
        super().__init__()
        self.network = network.eval().requires_grad_(False)
        self.register_buffer("classes", token_classes(settings, labels), persistent=False)

    @classmethod
    def of_run(cls, run: Run, settings: Mapping[str, Any]) -> Guide:
        """Make the guide of a classifier's run."""
        return cls(run.network(), run.record.labels, settings)

    def train(self, mode: bool = True) -> Guide:
        """Stay in evaluation mode, whatever is asked for."""
        return super().train(False)

    def targets(self, tokens: Tensor) -> Tensor:
        """Return the class that each condition names, int64 ``[N]``; -100 where it names none, or more than one.

        Args:
            tokens: int64 ``[N, L]``.
        """
        classes = self.classes[tokens]
        named = classes >= 0
        highest = classes.amax(1)
        lowest = torch.where(named, classes, len(self.classes)).amin(1)
        return torch.where(named.any(1) & (highest == lowest), highest, _IGNORED)

    def forward(self, images: Tensor, tokens: Tensor) -> Tensor:
        """Return the mean cross-entropy in nats over the images whose condition names a class; 0 where none does.

        Args:
            images: float32 ``[N, C, H, W]``, 0 to 255; they are resized, and turned to gray or RGB, as the classifier
                needs them.
            tokens: Their conditions, int64 ``[N, L]``.
        """
        targets = self.targets(tokens)
        logits = self.network(fit_images(images, self.network.preprocessing))
        total = F.cross_entropy(logits.float(), targets, ignore_index=_IGNORED, reduction="sum")
        return total / (targets != _IGNORED).sum().clamp(min=1)
