"""The layers that are compared: blocks, and what stands between them."""

from __future__ import annotations

import pytest
import torch
from torch import nn
from torchvision.models import VisionTransformer

from krl_train.models import build_model
from krl_train.models.layers import list_layers


@pytest.mark.parametrize(
    ("name", "side", "expected"),
    [
        ("resnet8", 32, ["conv1", "bn1", "layer1.0", "layer2.0", "layer3.0", "linear"]),
        ("lenet5", 32, ["convnet.c1", "convnet.c3", "convnet.c5", "fc.f6", "fc.f7"]),
        (
            "resnet18",
            32,
            ["conv1", "bn1", *(f"layer{stage}.{block}" for stage in (1, 2, 3, 4) for block in (0, 1)), "fc"],
        ),
    ],
)
def test_blocks_are_layers(name, side, expected):
    network = build_model(name, 10, 3).eval()
    assert list_layers(network, lambda: network(torch.zeros(2, 3, side, side))) == expected


def test_blocks_of_a_transformer_are_found_within_its_encoder():
    network = VisionTransformer(32, 8, num_layers=4, num_heads=2, hidden_dim=16, mlp_dim=32, num_classes=10).eval()
    found = list_layers(network, lambda: network(torch.zeros(1, 3, 32, 32)))
    assert found[:3] == ["conv_proj", "encoder.layers.encoder_layer_0", "encoder.layers.encoder_layer_1"]


def test_what_is_not_run_is_no_layer():
    network = nn.ModuleDict({"used": nn.Linear(3, 3), "unused": nn.Linear(3, 3)})
    assert list_layers(network, lambda: network["used"](torch.zeros(2, 3))) == ["used"]
