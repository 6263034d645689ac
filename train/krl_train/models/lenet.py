"""LeNet-5, for digits of 32×32 pixels (LeCun et al., 1998, https://doi.org/10.1109/5.726791)."""

from __future__ import annotations

from collections import OrderedDict

from torch import Tensor, nn

from krl_runtime.errors import ModelError

__all__ = ["LeNet5"]

_SIDE = 32  # pixels a side, as in the paper: 28 and a margin of two


class LeNet5(nn.Module):
    """Three convolutions and two linear layers, with ReLU and max pooling; its layers have the paper's names.

    Args:
        num_classes: Number of logits.
        in_channels: Channels of the input.
        half: Half of the channels and units, as students in the data-free literature have.
    """

    def __init__(self, num_classes: int, in_channels: int, *, half: bool = False) -> None:
        super().__init__()
        c1, c3, c5, f6 = (3, 8, 60, 42) if half else (6, 16, 120, 84)
        self.convnet = nn.Sequential(
            OrderedDict(
                c1=nn.Conv2d(in_channels, c1, 5),
                relu1=nn.ReLU(),
                s2=nn.MaxPool2d(2),
                c3=nn.Conv2d(c1, c3, 5),
                relu3=nn.ReLU(),
                s4=nn.MaxPool2d(2),
                c5=nn.Conv2d(c3, c5, 5),
                relu5=nn.ReLU(),
            )
        )
        self.fc = nn.Sequential(OrderedDict(f6=nn.Linear(c5, f6), relu6=nn.ReLU(), f7=nn.Linear(f6, num_classes)))

    def forward(self, x: Tensor) -> Tensor:
        """Map ``[N, in_channels, 32, 32]`` to logits ``[N, num_classes]``.

        Raises:
            ModelError: The images have another size.
        """
        if tuple(x.shape[-2:]) != (_SIDE, _SIDE):
            raise ModelError(f"lenet5 takes images of 32×32 pixels, not {x.shape[-2]}×{x.shape[-1]}; use --size 32")
        logits: Tensor = self.fc(self.convnet(x).flatten(1))
        return logits
