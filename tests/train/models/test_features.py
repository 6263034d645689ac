from __future__ import annotations

import pytest
import torch
from torch import nn

from krl_runtime.images.preprocessing import Preprocessing
from krl_train.models import Network, build_model, native_size
from krl_train.models.features import (
    FeatureMap,
    channels_first,
    has_negative_values,
    list_feature_maps,
    reading,
    run_once,
    stage_outputs,
)

# Names are read off the sources of the networks: the last block of each stage. Channels and sides are those of the
# papers' tables of layers (ResNet, DenseNet, MobileNetV2 and V3, EfficientNet, ShuffleNetV2, ConvNeXt, Swin, ...).
STAGES = {
    "resnet8": "layer1 16x32, layer2 32x16, layer3 64x8",
    "resnet56": "layer1 16x32, layer2 32x16, layer3 64x8",
    "resnet32x4": "layer1 64x32, layer2 128x16, layer3 256x8",
    "resnet20-b": "layer1 16x32, layer2 32x16, layer3 64x8",
    "cifar-resnet18": "layer1 64x32, layer2 128x16, layer3 256x8, layer4 512x4",
    "cifar-resnet34-pooled": "relu 64x32, layer1 64x16, layer2 128x8, layer3 256x4, layer4 512x2",
    "wrn-16-2": "relu1 32x32, relu2 64x16, relu3 128x8",
    "wrn-40-2": "relu1 32x32, relu2 64x16, relu3 128x8",
    "dscnn-0.5": "features.4 32x32, features.8 64x16, features.12 128x8",
    "cifar-vgg8": "features.2 64x32, features.6 128x16, features.10 256x8, features.17 512x4",
    "cifar-vgg13": "features.5 64x32, features.12 128x16, features.19 256x8, features.32 512x4",
    "cifar-mobilenetv2": "features.5 12x16, features.8 16x8, features.15 48x4, features.22 1280x2",
    "cifar-shufflenetv1": "features.2 24x32, features.6 240x16, features.14 480x8, features.18 960x4",
    "cifar-shufflenetv2": "features.2 24x32, features.6 116x16, features.14 232x8, features.21 1024x4",
    "cifar-resnet50": "features.5 256x32, features.9 512x16, features.15 1024x8, features.18 2048x4",
    "lenet5": "convnet.relu1 6x28, convnet.s2 6x14, convnet.relu3 16x10, convnet.s4 16x5",
    "alexnet": "features.1 64x55, features.4 192x27, features.11 256x13, features.12 256x6",
    "vgg16": "features.3 64x224, features.8 128x112, features.15 256x56, features.22 512x28, features.29 512x14, "
    "features.30 512x7",
    "resnet18": "relu 64x112, layer1 64x56, layer2 128x28, layer3 256x14, layer4 512x7",
    "resnet50": "relu 64x112, layer1 256x56, layer2 512x28, layer3 1024x14, layer4 2048x7",
    "wide_resnet50_2": "relu 64x112, layer1 256x56, layer2 512x28, layer3 1024x14, layer4 2048x7",
    "densenet121": "features.relu0 64x112, features.denseblock1 256x56, features.denseblock2 512x28, "
    "features.denseblock3 1024x14, features.norm5 1024x7",
    "googlenet": "conv1 64x112, conv3 192x56, inception3b 480x28, inception4e 832x14, inception5b 1024x7",
    "inception_v3": "Conv2d_1a_3x3 32x111, Conv2d_2b_3x3 64x109, Conv2d_3b_1x1 80x54, Conv2d_4a_3x3 192x52, "
    "Mixed_5d 288x25, Mixed_6e 768x12, Mixed_7c 2048x5",
    "squeezenet1_1": "features.1 64x111, features.4 128x55, features.7 256x27, features.12 512x13",
    "shufflenet_v2_x1_0": "conv1 24x112, maxpool 24x56, stage2 116x28, stage3 232x14, conv5 1024x7",
    "mobilenet_v2": "features.1 16x112, features.3 24x56, features.6 32x28, features.13 96x14, features.18 1280x7",
    "mobilenet_v3_small": "features.0 16x112, features.1 16x56, features.3 24x28, features.8 48x14, features.12 576x7",
    "mnasnet1_0": "layers.7 16x112, layers.8 24x56, layers.9 40x28, layers.11 96x14, layers.16 1280x7",
    "efficientnet_b0": "features.1 16x112, features.2 24x56, features.3 40x28, features.5 112x14, features.8 1280x7",
    "convnext_tiny": "features.1 96x56, features.3 192x28, features.5 384x14, features.7 768x7",
    "maxvit_t": "stem 64x112, blocks.0 64x56, blocks.1 128x28, blocks.2 256x14, blocks.3 512x7",
    "swin_t": "features.1 96x56, features.3 192x28, features.5 384x14, permute 768x7",
    "vit_b_16": "",
}


@pytest.mark.filterwarnings("ignore:The default weight initialization:FutureWarning")
@pytest.mark.parametrize("name", STAGES)
def test_taps_are_the_outputs_of_stages(name: str) -> None:
    size = native_size(name) or 32
    with torch.device("meta"):  # shapes alone
        network = Network(build_model(name, 10, 3), Preprocessing(size, size))
    found = [f"{tap.name} {tap.shape[0]}x{tap.shape[1]}" for tap in stage_outputs(network)]
    assert ", ".join(found) == STAGES[name]


def test_regnet_has_a_stem_and_four_stages() -> None:
    network = Network(build_model("regnet_y_400mf", 10, 3), Preprocessing(64, 64))  # cannot be made on meta
    found = [(tap.name, tap.shape) for tap in stage_outputs(network)]
    # widths of RegNetY-400MF (Radosavovic et al. 2020)
    expected = [("stem", (32, 32, 32))]
    for stage, (width, side) in enumerate(((48, 16), (104, 8), (208, 4), (440, 2)), 1):
        expected.append((f"trunk_output.block{stage}", (width, side, side)))
    assert found == expected


TIMM = ("resnet18", "mobilenetv2_100", "efficientnet_b0", "densenet121", "regnety_002", "vgg11", "convnext_tiny")


@pytest.mark.parametrize("name", [*TIMM, "swin_tiny_patch4_window7_224", "vit_tiny_patch16_224"])
def test_taps_of_timm_are_those_that_it_names(name: str) -> None:
    pytest.importorskip("timm")
    with torch.device("meta"):
        network = Network(build_model(f"timm/{name}", 10, 3), Preprocessing(224, 224))
    named = [(item["module"], item["num_chs"], 224 // item["reduction"]) for item in network.backbone.feature_info]
    expected = [] if name.startswith("vit") else named  # its stages put out tokens
    assert [(tap.name, tap.shape[0], tap.shape[1]) for tap in stage_outputs(network)] == expected


@pytest.mark.parametrize(
    ("name", "size", "linear"),
    [
        ("resnet8", 32, 0),
        ("wrn-10-2", 32, 0),
        ("cifar-resnet18-pooled", 32, 0),
        ("cifar-shufflenetv1", 32, 0),
        ("cifar-shufflenetv2", 32, 0),
        ("resnet18", 64, 0),
        ("shufflenet_v2_x0_5", 64, 0),
        ("squeezenet1_1", 64, 0),
        ("cifar-mobilenetv2", 32, 3),  # its blocks end without an activation, but for the last convolution
        ("mobilenet_v2", 64, 4),
    ],
)
def test_taps_come_after_the_activation_where_a_stage_has_one(name: str, size: int, linear: int) -> None:
    torch.manual_seed(0)
    network = Network(build_model(name, 4, 3), Preprocessing(size, size))
    signed = [has_negative_values(network, tap.name) for tap in stage_outputs(network)]
    assert signed == [True] * linear + [False] * (len(signed) - linear)


def test_a_wide_network_is_tapped_where_its_stages_end() -> None:
    network = Network(build_model("wrn-16-2", 4, 3), Preprocessing(32, 32)).eval()
    backbone, pixels = network.backbone, torch.randint(0, 256, (2, 3, 32, 32))
    with reading({name: backbone.get_submodule(name) for name in ("relu1", "relu2", "relu3")}) as found:
        network(pixels)
    x = pixels * network.scale + network.offset
    first = backbone.layer1(backbone.conv1(x))
    second = backbone.layer2(first)
    torch.testing.assert_close(found["relu1"], backbone.layer2[0].bn1(first).relu())
    torch.testing.assert_close(found["relu2"], backbone.layer3[0].bn1(second).relu())
    torch.testing.assert_close(found["relu3"], backbone.bn(backbone.layer3(second)).relu())
    assert not [name for name in backbone.state_dict() if "relu" in name or "enter" in name]


class Wrapped(nn.Module):
    """A network of a user's own: stages in a list, behind an attribute of another name, and a convolution as head."""

    def __init__(self) -> None:
        super().__init__()
        self.body = nn.Module()
        self.body.steps = nn.ModuleList([self._stage(3, 8), self._stage(8, 16)])
        self.head = nn.Conv2d(16, 4, 1)

    def _stage(self, channels: int, width: int) -> nn.Module:
        return nn.Sequential(nn.Conv2d(channels, width, 3, 2, 1), nn.ReLU(), nn.Conv2d(width, width, 1), nn.ReLU())

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        for step in self.body.steps:
            x = step(x)
        return self.head(x).mean((2, 3))


def test_stages_of_a_network_of_ones_own_are_found() -> None:
    found = stage_outputs(Network(Wrapped(), Preprocessing(32, 24)))
    assert found == [FeatureMap("body.steps.0", (8, 16, 12)), FeatureMap("body.steps.1", (16, 8, 6))]


def test_maps_with_the_channels_last_are_turned() -> None:
    network = Network(build_model("swin_t", 4, 3), Preprocessing(64, 32)).eval()
    tap = stage_outputs(network)[0]
    assert tap == FeatureMap("features.1", (96, 16, 8), channels_last=True)
    with reading({tap.name: network.backbone.get_submodule(tap.name)}) as found:
        run_once(network)
    assert found[tap.name].shape == (1, 16, 8, 96)
    torch.testing.assert_close(channels_first(found[tap.name], tap)[0, 5, 3, 2], found[tap.name][0, 3, 2, 5])
    assert "features.0.0" in [item.name for item in list_feature_maps(network)]
