"""The stages of networks, against what their authors call so."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from krl_runtime.errors import ModelError
from krl_runtime.images.preprocessing import Preprocessing
from krl_train.models import Network, build_model
from krl_train.models.stages import split_stages


def network(backbone: nn.Module, side: int = 64) -> Network:
    return Network(backbone, Preprocessing(side, side, mean=(0.5,) * 3, std=(0.5,) * 3))


@pytest.mark.parametrize(
    ("name", "side", "prefixes"),
    [
        ("resnet8", 32, [("conv1", "bn1", "layer1"), ("layer2",), ("layer3",), ("linear",)]),
        ("resnet18", 64, [("conv1", "bn1"), ("layer1",), ("layer2",), ("layer3",), ("layer4",), ("fc",)]),
        (
            "convnext_tiny",
            64,
            [
                ("features.0", "features.1"),
                ("features.2", "features.3"),
                ("features.4", "features.5"),
                ("features.6", "features.7"),
                ("classifier.0",),
                ("classifier.2",),
            ],
        ),
        (
            "squeezenet1_1",
            64,
            [
                ("features.0",),
                ("features.3", "features.4"),
                ("features.6", "features.7"),
                ("features.9", "features.10", "features.11", "features.12"),
                ("classifier.1",),
            ],
        ),
        (
            "vit_b_16",
            224,
            [
                ("class_token", "conv_proj", "encoder.pos_embedding", "encoder.layers.encoder_layer_0."),
                *((f"encoder.layers.encoder_layer_{index}.",) for index in range(1, 12)),
                ("encoder.ln",),
                ("heads.head",),
            ],
        ),
    ],
)
def test_weights_are_in_the_stages_of_their_names(name: str, side: int, prefixes: list[tuple[str, ...]]) -> None:
    backbone = build_model(name, 5, 3)
    stages = split_stages(network(backbone, side))
    names = [key for key, _ in backbone.named_parameters()]
    assert [set(stage.parameters) for stage in stages] == [
        {key for key in names if key.startswith(own)} for own in prefixes
    ]


def test_the_blocks_of_tokens_are_stages() -> None:
    pytest.importorskip("timm")
    stages = split_stages(network(build_model("timm/vit_tiny_patch16_224", 5, 3), 224))
    assert [stage.name for stage in stages] == [*(f"blocks.{index}" for index in range(12)), "after blocks.11", "head"]
    assert {"cls_token", "pos_embed", "patch_embed.proj.weight"} < set(stages[0].parameters)


class Plain(nn.Module):
    """Two linear layers: no stages, and a weight that belongs to no layer."""

    def __init__(self) -> None:
        super().__init__()
        self.factor = nn.Parameter(torch.ones(1))
        self.layers = nn.Sequential(nn.Flatten(), nn.Linear(12, 4), nn.BatchNorm1d(4), nn.ReLU(), nn.Linear(4, 2))

    def forward(self, images: Tensor) -> Tensor:
        logits: Tensor = self.layers(self.factor * images)
        return logits


def test_a_network_without_stages_has_a_last_layer_and_the_rest() -> None:
    below, last = split_stages(network(Plain(), 2))
    assert set(below.parameters) == {
        "factor",
        "layers.1.weight",
        "layers.1.bias",
        "layers.2.weight",
        "layers.2.bias",
    }
    assert (last.name, set(last.parameters)) == ("layers.4", {"layers.4.weight", "layers.4.bias"})


def test_a_network_needs_a_last_layer() -> None:
    with pytest.raises(ModelError, match="BatchNorm2d has no linear layer"):
        split_stages(network(nn.BatchNorm2d(3), 2))
