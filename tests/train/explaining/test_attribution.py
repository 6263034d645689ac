"""Class activation maps and integrated gradients against networks whose maps are computed by hand."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import nn

from krl_runtime.images.preprocessing import Preprocessing
from krl_train.explaining.attribution import Attributor
from krl_train.models.network import Network

SPEC = Preprocessing(6, 6, channels=1, mean=(0.4,), std=(0.2,))


class _ChannelsLast(nn.Module):
    def __init__(self, inner: nn.Module) -> None:
        super().__init__()
        self.inner = inner

    def forward(self, x):
        return self.inner(x).permute(0, 2, 3, 1)


class _Known(nn.Module):
    """A convolution of two channels, ReLU, mean, linear layer; the maps may be put out as [N, H, W, C]."""

    def __init__(self, *, last: bool) -> None:
        super().__init__()
        torch.manual_seed(3)
        convolution = nn.Sequential(nn.Conv2d(1, 2, 3, padding=1, bias=False), nn.ReLU())
        self.features = _ChannelsLast(convolution) if last else convolution
        self.last = last
        if last:
            self.output_fmt = "NHWC"
        self.head = nn.Linear(2, 3, bias=False)

    def forward(self, x):
        maps = self.features(x)
        return self.head(maps.mean((1, 2) if self.last else (2, 3)))


def image() -> torch.Tensor:
    generator = torch.Generator().manual_seed(1)
    return torch.randint(0, 256, (1, 1, 6, 6), generator=generator).to(torch.uint8)


@pytest.mark.parametrize("last", [False, True])
def test_activation_map_is_the_weighted_sum_of_the_maps(last):
    backbone = _Known(last=last).eval()
    network = Network(backbone, SPEC).eval()
    attributor = Attributor(network, 8)
    assert attributor.layer == "features"
    found = attributor.explain(image(), lambda pixels: network(pixels)[:, 1])

    normalized = np.pad((image()[0, 0].numpy() / 255 - 0.4) / 0.2, 1)
    kernel = next(module for module in backbone.modules() if isinstance(module, nn.Conv2d)).weight.detach().numpy()
    maps = np.zeros((2, 6, 6))
    for channel, row, column in np.ndindex(2, 6, 6):
        maps[channel, row, column] = max(0, (normalized[row : row + 3, column : column + 3] * kernel[channel, 0]).sum())
    weights = backbone.head.weight.detach().numpy()[1] / 36  # the gradient of the class's logit, the mean over places
    expected = np.maximum(0, np.einsum("k,khw->hw", weights, maps))
    assert expected.max() > 0
    np.testing.assert_allclose(found.cam, expected, rtol=1e-4, atol=1e-6)


def test_integrated_gradients_of_a_linear_network_are_its_terms():
    backbone = nn.Sequential(nn.Flatten(), nn.Linear(36, 2))
    network = Network(backbone, SPEC).eval()
    attributor = Attributor(network, 4)
    assert attributor.layer is None
    found = attributor.explain(image(), lambda pixels: network(pixels)[:, 0])
    weights = backbone[1].weight.detach().numpy()[0].reshape(6, 6)
    np.testing.assert_allclose(
        found.gradients, weights * (image()[0, 0].numpy() / 255 - 0.4) / 0.2, rtol=1e-3, atol=1e-5
    )
    assert found.cam is None
    assert abs(found.delta) < 1e-4
