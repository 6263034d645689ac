"""The work of networks, counted by hand and by loops that look at each product."""

from __future__ import annotations

from itertools import product

import pytest
import torch
from torch import nn

from krl_compress.searching.counting import Workload, workload
from krl_runtime import ModelError, Preprocessing
from krl_train.models import ModelSpec, build_model, count_macs, count_parameters


def test_a_tiny_network_by_hand():
    network = nn.Sequential(
        nn.Conv2d(3, 8, 3, bias=False),  # 6x6 to 4x4
        nn.BatchNorm2d(8),
        nn.ReLU(),
        nn.Conv2d(8, 8, 1, groups=4),
        nn.AvgPool2d(2),  # 4x4 to 2x2
        nn.Flatten(),
        nn.Linear(32, 5),
    )
    weights = 8 * 3 * 9 + 2 * 8 + (8 * 2 + 8) + (32 * 5 + 5)
    moved = (3 * 36 + 8 * 16) + (8 * 16 + 8 * 16) + (8 * 16 + 8 * 4) + (32 + 5)
    assert workload(network, (3, 6, 6)) == Workload(
        layers=4,  # two convolutions, pooling, the linear layer
        dense_macs=16 * 8 * 3 * 9,
        grouped_macs=16 * 8 * 2,
        linear_macs=32 * 5,
        weight_bytes=4 * weights,
        activation_bytes=4 * moved,
    )


class Shortcut(nn.Module):
    """Additions and concatenations are layers, whether they are modules or not; views are none."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        doubled = torch.relu(x + x)
        return torch.cat([doubled.transpose(2, 3)[:, :2], x[:, :2]], 1).flatten(1)


def test_operations_that_are_no_modules():
    assert workload(Shortcut(), (3, 4, 4)) == Workload(2, 0, 0, 0, 0, 4 * (3 * 48 + 2 * 64))


@pytest.mark.parametrize(
    "options",
    [
        {"kernel_size": 3, "padding": 1},
        {"kernel_size": 3, "padding": 1, "stride": 2},
        {"kernel_size": (5, 3), "padding": (4, 0), "dilation": (2, 1), "groups": 2},
        {"kernel_size": 7, "padding": 3, "stride": 3},
    ],
)
@pytest.mark.parametrize("size", [(1, 3), (5, 6)])
def test_products_with_padding_are_not_counted(options, size):
    """Each tap of each output is looked at; the outputs' number is torch's."""
    conv = nn.Conv2d(4, 6, **options)
    pair = {
        name: value if isinstance(value, tuple) else (value, value)
        for name, value in options.items()
        if name != "groups"
    }
    (kh, kw), (ph, pw) = pair["kernel_size"], pair["padding"]
    (sh, sw), (dh, dw) = pair.get("stride", (1, 1)), pair.get("dilation", (1, 1))
    rows, columns = conv(torch.zeros(1, 4, *size)).shape[2:]
    products, used = 0, set()
    for y, x, i, j in product(range(rows), range(columns), range(kh), range(kw)):
        if 0 <= y * sh - ph + i * dh < size[0] and 0 <= x * sw - pw + j * dw < size[1]:
            products += 1
            used.add((i, j))
    each = 6 * (4 // conv.groups)
    found = workload(conv, (4, *size))
    assert (found.dense_macs, found.grouped_macs) == ((0, products * each) if conv.groups > 1 else (products * each, 0))
    assert found.weight_bytes == 4 * (len(used) * each + 6)


def test_a_transposed_convolution_has_a_product_for_each_input_and_tap_that_stays():
    conv = nn.ConvTranspose2d(3, 2, 4, stride=2, padding=1, bias=False)
    size, made = 5, 10
    taps = sum(0 <= 2 * y - 1 + i < made for y in range(size) for i in range(4))
    assert workload(conv, (3, size, size)).dense_macs == taps**2 * 3 * 2


@pytest.mark.parametrize(("name", "side"), [("vit_b_16", 224), ("alexnet", 63)])
def test_matrix_products_are_those_of_torchs_counter(name, side):
    """Without padding, all products are torch's; a vision transformer has none."""
    with torch.device("meta"):
        network = build_model(name, 10, 3).eval()
    found = workload(network, (3, side, side))
    from torch.utils.flop_counter import FlopCounterMode

    with torch.no_grad(), FlopCounterMode(display=False) as counter:
        network(torch.zeros(1, 3, side, side, device="meta"))
    flops = {str(name).rpartition(".")[2]: count for name, count in counter.get_flop_counts()["Global"].items()}
    assert found.linear_macs == sum(count for name, count in flops.items() if name != "convolution") // 2
    assert found.dense_macs <= flops["convolution"] // 2
    assert (found.dense_macs == flops["convolution"] // 2) == (name == "vit_b_16")
    assert found.weight_bytes == 4 * count_parameters(network)


def test_an_input_that_the_network_does_not_take():
    network = nn.Sequential(nn.Dropout(), nn.Conv2d(3, 4, 3))
    with pytest.raises(
        ModelError, match=r"the work of Sequential cannot be counted for an input of \[1, 4, 4\]: Runtime"
    ):
        workload(network, (1, 4, 4))
    assert network[0].training


def test_a_classifier_is_counted_and_stays_as_it_is():
    preprocessing = Preprocessing(32, 32)
    network = ModelSpec("resnet8", 10, 3).build(preprocessing).train()
    before = {name: value.clone() for name, value in network.state_dict().items()}
    found = workload(network, preprocessing.shape)
    assert network.training
    assert all(torch.equal(value, before[name]) for name, value in network.state_dict().items())
    assert found.linear_macs == 64 * 10
    assert found.grouped_macs == 0
    border = 1 - (1 - 2 / 8 / 3) ** 2  # of the products of a 3x3 convolution on 8x8 pixels; larger ones have less
    whole = count_macs(network, preprocessing.shape) - found.linear_macs
    assert (1 - border) * whole < found.dense_macs < whole
