"""The smallest network of each family, with random weights, as the graphs that krl's exporters write."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import onnx
import torch
from torch import nn
from torchvision import models

from krl_deploy.exporters.conversion import to_onnx
from krl_deploy.exporters.generator import generator_graph, settings_of
from krl_deploy.exporters.restorer import restorer_graph
from krl_deploy.tensorrt.options import BuildOptions
from krl_runtime.attributes import AttributeInput, Category, Number
from krl_runtime.bundle.further_inputs import ImageInput
from krl_runtime.images.descriptors import ColorHistogram, DescriptorInput
from krl_runtime.images.preprocessing import Preprocessing
from krl_runtime.pipelines.random_inputs import random_inputs
from krl_train.models import ModelSpec, Network, build_model
from krl_train.models.fusion import WIDTH, Fused, Fusion, FusionNetwork
from krl_train.models.generators import build_generator
from krl_train.models.restorers import build_restorer
from krl_train.tasks.vae import VariationalAutoencoder

OPSET = 20
SIDES = (16, 24, 32)
"""Smallest, best and largest height and width of restorers."""

CONDITIONS: Mapping[str, Mapping[str, Any]] = {
    "labels": {"kind": "labels", "length": 1, "dim": 16, "vocabulary": ["cat", "dog", "frog"]},
    "attributes": {"kind": "attributes", "length": 1, "dim": 16, "vocabulary": ["color=", "color=red", "color=blue"]},
    "text": {"kind": "text", "length": 3, "dim": 16, "vocabulary": ["", "a", "red", "cat"]},
    "graph": {
        "kind": "graph",
        "length": 4,
        "dim": 16,
        "vocabulary": ["", "color", "cat", "red"],
        "relations": ["color"],
        "facts": [["cat", "color", "red"]],
    },
}


@dataclass(frozen=True)
class Case:
    """A network: its graph, made when it is asked for, and the options to build it with."""

    name: str
    make: Callable[[], onnx.ModelProto]
    options: BuildOptions = field(default_factory=BuildOptions)


def classifier(backbone: Callable[[], nn.Module], size: int = 32) -> onnx.ModelProto:
    torch.manual_seed(0)
    return to_onnx(Network(backbone(), Preprocessing(size, size)).eval(), (3, size, size), OPSET)


def generator(name: str, condition: str = "", *, size: int = 16, channels: int = 3) -> onnx.ModelProto:
    torch.manual_seed(0)
    arguments = {"latent": 16, **({"condition": CONDITIONS[condition]} if condition else {})}
    spec = Preprocessing(size, size, channels, mean=(0.5,) * channels, std=(0.5,) * channels)
    network = build_generator(ModelSpec(name, 0, channels, arguments), spec).eval()
    return generator_graph(network, random_inputs(settings_of(network), 2, 0), OPSET)


def vae_decoder() -> onnx.ModelProto:
    torch.manual_seed(0)
    spec = Preprocessing(28, 28, 1, mean=(0.5,), std=(0.5,))
    model = VariationalAutoencoder(build_generator(ModelSpec("dcgan-4", 0, 1, {"latent": 16}), spec)).eval()
    return generator_graph(model.generator, random_inputs(settings_of(model.generator), 2, 0), OPSET)


def restorer(name: str, scale: int, channels: int = 1) -> onnx.ModelProto:
    """Return a graph of open height and width; weights that begin at zero become random ones."""
    torch.manual_seed(0)
    spec = Preprocessing(24, 20, channels, mean=(0.5,) * channels, std=(0.5,) * channels)
    network = build_restorer(ModelSpec(name, 0, channels, {"scale": scale}), spec).eval()
    for parameter in network.parameters():
        if not parameter.any():
            nn.init.normal_(parameter, std=0.1)
    return restorer_graph(network, spec, scale, OPSET)


def mobilenet_v3() -> nn.Module:
    from torchvision.models.mobilenetv3 import InvertedResidualConfig as Block

    blocks = [Block(16, 3, 16, 16, True, "RE", 2, 1, 1), Block(16, 5, 64, 24, True, "HS", 2, 1, 1)]
    return models.MobileNetV3([*blocks, Block(24, 5, 64, 24, True, "HS", 1, 1, 1)], 64, num_classes=10)


def efficientnet() -> nn.Module:
    from torchvision.models.efficientnet import MBConvConfig

    blocks = [MBConvConfig(1, 3, 1, 32, 16, 1, 1, 1), MBConvConfig(6, 5, 2, 16, 24, 2, 1, 1)]
    return models.EfficientNet(blocks, 0.2, num_classes=10, last_channel=64)


def shufflenet() -> nn.Module:
    return models.ShuffleNetV2([2, 2, 2], [24, 32, 64, 128, 128], num_classes=10)


def densenet() -> nn.Module:
    return models.DenseNet(8, (2, 2), 16, num_classes=10)


def regnet() -> nn.Module:
    from torchvision.models.regnet import BlockParams

    return models.RegNet(
        BlockParams.from_init_params(depth=4, w_0=16, w_a=16.0, w_m=2.0, group_width=8), num_classes=10
    )


def inception() -> nn.Module:
    """Branches side by side that are concatenated, as in GoogLeNet."""
    from torchvision.models.googlenet import Inception

    stem = nn.Sequential(nn.Conv2d(3, 32, 3, 2, 1, bias=False), nn.BatchNorm2d(32), nn.ReLU())
    pooled = nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(64, 10))
    return nn.Sequential(stem, Inception(32, 16, 16, 16, 16, 16, 16), pooled)


def vit() -> nn.Module:
    network = models.VisionTransformer(32, 8, num_layers=2, num_heads=2, hidden_dim=32, mlp_dim=64, num_classes=16)
    return _random(network)


def swin() -> nn.Module:
    return _random(models.SwinTransformer([4, 4], 32, [2, 1], [2, 2], [4, 4], num_classes=16))


def convnext() -> nn.Module:
    from torchvision.models.convnext import CNBlockConfig

    return _random(models.ConvNeXt([CNBlockConfig(16, 32, 1), CNBlockConfig(32, None, 1)], num_classes=10))


def _random(network: nn.Module) -> nn.Module:
    """Give biases that begin at zero random values, which no export drops."""
    for parameter in network.parameters():
        if not parameter.any():
            nn.init.normal_(parameter, std=0.1)
    return network


def _named(name: str, classes: int = 10) -> Callable[[], onnx.ModelProto]:
    return partial(classifier, lambda: _random(build_model(name, classes)))


def fused(fusion: Fusion) -> onnx.ModelProto:
    """Return a classifier of two images, attributes and descriptors."""
    torch.manual_seed(0)
    spec = Preprocessing(32, 32)
    inputs = (
        AttributeInput((Category("color", ("blue", "red")), Number("size", 0.0, 9.0, 4.0, 2.0))),
        ImageInput.of("right", spec),
        DescriptorInput((ColorHistogram(8),), (0.1,) * 24, (0.1,) * 24),
    )
    backbone = _random(Fused(build_model("resnet8", WIDTH), inputs, 10, fusion))
    network = FusionNetwork(backbone, spec, inputs).eval()
    return to_onnx(network, spec.shape, OPSET, inputs=inputs)


_OPEN = BuildOptions(height=SIDES, width=SIDES)

ZOO = (
    Case("resnet8", _named("resnet8")),
    Case("resnet8x4, 16 classes", _named("resnet8x4", 16)),
    Case("wrn-10-2", _named("wrn-10-2")),
    Case("dscnn-0.5", _named("dscnn-0.5")),
    Case("lenet5", _named("lenet5")),
    Case("mobilenet_v3", partial(classifier, mobilenet_v3)),
    Case("efficientnet", partial(classifier, efficientnet)),
    Case("shufflenet_v2", partial(classifier, shufflenet)),
    Case("convnext", partial(classifier, convnext)),
    Case("vit", partial(classifier, vit)),
    Case("swin", partial(classifier, swin)),
    *(Case(f"several inputs, {fusion}", partial(fused, fusion)) for fusion in ("late", "gated")),
    Case("mlp generator", partial(generator, "mlp-32-32")),
    Case("dcgan", partial(generator, "dcgan-8")),
    Case("resgan", partial(generator, "resgan-8")),
    Case("dsgan", partial(generator, "dsgan-16")),
    Case("subgan", partial(generator, "subgan-16")),
    *(Case(f"dcgan of {kind}", partial(generator, "dcgan-8", kind)) for kind in CONDITIONS),
    Case("vae decoder", vae_decoder),
    Case("espcn", partial(restorer, "espcn-32", 2), _OPEN),
    Case("fsrcnn", partial(restorer, "fsrcnn-32-16-1", 2), _OPEN),
    Case("edsr", partial(restorer, "edsr-1-16", 2, 3), _OPEN),
    Case("unet", partial(restorer, "unet-16-2", 1), _OPEN),
    Case("style", partial(restorer, "style-8", 1, 3), _OPEN),
)
