"""Two heads on one feature extractor: the labels of a target, and those of a source.

The network's last layer has one output for each class of both, the target's first. Two last layers side by side on the
same features are one layer with the rows of both, so that any classifier has two heads without a change in it.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from itertools import accumulate

from torch import Tensor, nn

from krl_runtime.images.preprocessing import Preprocessing

from .network import Network

__all__ = ["BothHeads", "TwoHeads", "carry_heads", "target_rows"]


class TwoHeads(Network):
    """A classifier that answers in the target's classes, and whose backbone knows those of the source as well.

    Args:
        backbone: Maps normalized ``[N, C, H, W]`` of float32 to logits ``[N, target + source]``.
        preprocessing: Its ``mean`` and ``std`` are applied here.
        target: Number of the target's classes.
        source: Number of the source's classes.
    """

    def __init__(self, backbone: nn.Module, preprocessing: Preprocessing, target: int, source: int) -> None:
        super().__init__(backbone, preprocessing, classes=range(target))
        self.counts = (target, source)

    def both(self, pixels: Tensor) -> tuple[Tensor, Tensor]:
        """Map pixels ``[N, C, H, W]``, 0 to 255, to logits ``[N, target]`` and ``[N, source]``, in one pass."""
        logits: Tensor = self.backbone(self.normalized(pixels))
        target = self.counts[0]
        return logits[:, :target], logits[:, target:]

    def answering(self, classes: Sequence[int]) -> Network:
        """Return the same network, sharing its weights, that answers these of the target's classes in this order."""
        return Network(self.backbone, self.preprocessing, classes=classes)

    def source(self) -> Network:
        """Return the same network, sharing its weights, that answers in the source's classes."""
        target, source = self.counts
        return self.answering(range(target, target + source))


class BothHeads(nn.Module):
    """A network of two heads that returns the outputs of both: what is exported.

    Args:
        network: The network, whose weights are shared.
    """

    def __init__(self, network: TwoHeads) -> None:
        super().__init__()
        self.network = network
        self.backbone = network.backbone

    def forward(self, pixels: Tensor) -> tuple[Tensor, Tensor]:
        """Return logits ``[N, target]`` and ``[N, source]`` of pixels ``[N, C, H, W]``, uint8."""
        return self.network.both(pixels)


def target_rows(theirs: Mapping[str, Tensor], mine: Mapping[str, Tensor], target: int) -> dict[str, Tensor]:
    """Return the weights of a network with two heads, the last layer cut to the rows of the target's head.

    Args:
        theirs: Weights of the network with two heads.
        mine: Of a network that gets them; tensors that have its shapes stay as they are.
        target: Number of the target's classes.
    """
    return {
        name: value[:target] if name in mine and mine[name].shape == (target, *value.shape[1:]) else value
        for name, value in theirs.items()
    }


def carry_heads(
    mine: Mapping[str, Tensor],
    theirs: Mapping[str, Tensor],
    heads: Collection[str],
    my_labels: Sequence[Sequence[str]],
    their_labels: Sequence[Sequence[str]],
) -> dict[str, Tensor]:
    """Return the weights of a network with those of another one: all features, and each head for the same labels.

    Args:
        mine: State of the network that gets weights; its heads keep theirs where the other has none for their labels.
        theirs: State of the other network, of the same architecture.
        heads: Names of the last layer's tensors.
        my_labels: Labels of each head, in the order of the rows of the last layer.
        their_labels: The same of the other one.
    """
    carried = dict(theirs)
    places = _places(their_labels)
    for name in heads:
        carried[name] = mine[name].clone()
        for labels, rows in _places(my_labels).items():
            if labels in places:
                carried[name][rows] = theirs[name][places[labels]]
    return carried


def _places(heads: Sequence[Sequence[str]]) -> dict[tuple[str, ...], slice]:
    """Return the rows of each head by its labels; of two heads with the same labels, the last one's."""
    ends = list(accumulate(len(labels) for labels in heads))
    return {tuple(labels): slice(end - len(labels), end) for labels, end in zip(heads, ends, strict=True)}
