"""A network without channels computes what the original does whose channels are silent."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import nn

from krl_compress.pruning.criteria import lowest, scores
from krl_compress.pruning.networks import example_inputs
from krl_compress.pruning.plan import kept_channels, steps_between
from krl_compress.pruning.units import Unit, find_units, removed
from krl_runtime.errors import ModelError
from krl_runtime.images.preprocessing import Preprocessing
from krl_train.models import build_model
from krl_train.models.generators import build_generator
from krl_train.models.restorers import build_restorer
from krl_train.models.spec import ModelSpec
from krl_train.models.widths import set_widths, widths_of

NETWORKS = ["resnet8", "resnet8-b", "dscnn-0.5", "wrn-16-2", "lenet5", "cifar-mobilenetv2", "cifar-vgg8"]
NETWORKS += ["resnet18", "mobilenet_v3_small", "resnext50_32x4d", "mnasnet0_5"]


def made(name: str) -> nn.Module:
    """Return a network whose batch normalization does something."""
    torch.manual_seed(0)
    network = build_model(name, 10, 3).eval()
    for module in network.modules():
        if isinstance(module, nn.BatchNorm2d):
            nn.init.uniform_(module.weight, 0.5, 1.5)
            nn.init.normal_(module.bias, std=0.2)
            nn.init.normal_(module.running_mean, std=0.2)
    return network


def halves(network: nn.Module, units: list[Unit]) -> dict[Unit, set[int]]:
    counts = kept_channels(units, 0.5, 8)
    return {unit: lowest(scores(network, unit, "l2"), unit.parts, unit.channels - counts[unit.name]) for unit in units}


def silenced(network: nn.Module, choice: dict[Unit, set[int]], *inputs: torch.Tensor) -> torch.Tensor:
    """Run the original with the channels set to 0 where a convolution or linear layer reads them."""
    network = copy.deepcopy(network)
    for unit, gone in choice.items():
        for piece in unit.slices:
            layer = network.get_submodule(piece.layer)
            if isinstance(layer, nn.Conv2d | nn.ConvTranspose2d | nn.Linear) and piece.side == "in":
                off = [index for index, root in zip(piece.channels, piece.roots, strict=True) if root in gone]

                def hook(_: nn.Module, given: tuple[torch.Tensor], off: list[int] = off) -> torch.Tensor:
                    quiet = given[0].clone()
                    quiet[:, off] = 0
                    return quiet

                layer.register_forward_pre_hook(hook)
    return network(*inputs)


LABELS = {"kind": "labels", "vocabulary": ["a", "b", "c"], "length": 1, "dim": 6}
TEXT = {"kind": "text", "vocabulary": ["", "a", "b", "c"], "length": 4, "dim": 16}
OTHERS = {
    "edsr-2-16": {"scale": 2},
    "edsr-1-16": {"scale": 4, "published": True},  # enlarges features, by two pixel shuffles
    "espcn-32": {"scale": 3},
    "fsrcnn-16-8-2": {"scale": 2},
    "unet-8-2": {"scale": 1},
    "dcgan-8": {"latent": 5},
    "dcgan-8x2": {"latent": 5, "condition": LABELS},
    "resgan-8": {"latent": 5},
    "resgan-8x2": {"latent": 5, "condition": TEXT},
    "dsgan-8": {"latent": 5, "condition": LABELS},
    "subgan-16": {"latent": 5},
    "mlp-32-16": {"latent": 5},
}
FIXED = {  # layers whose outputs are the images
    "edsr-2-16": {"tail.0"},
    "dcgan-8": {"head"},
    "dcgan-8x2": {"head"},
    "subgan-16": {"head"},
}


@pytest.mark.parametrize("name", OTHERS)
def test_restorers_and_generators_are_cut_where_channels_go_together(name: str) -> None:
    torch.manual_seed(0)
    build = build_generator if "latent" in OTHERS[name] else build_restorer
    network = build(ModelSpec(name, 0, 3, OTHERS[name]), Preprocessing(16, 16, mean=(0.5,) * 3, std=(0.5,) * 3))
    backbone = network.backbone.eval()
    units, _ = find_units(backbone, example_inputs(network))
    with torch.no_grad():
        for parameter in backbone.parameters():
            nn.init.normal_(parameter, std=0.1)
    choice = {unit: lowest(torch.rand(unit.channels), unit.parts, unit.channels // 2) for unit in units}
    inputs = example_inputs(network)
    thin = removed(backbone, choice)
    with torch.no_grad():
        found, expected, whole = thin(*inputs), silenced(backbone, choice, *inputs), backbone(*inputs)
    assert not torch.allclose(whole, expected, rtol=1e-2, atol=1e-3)
    torch.testing.assert_close(found, expected, rtol=1e-3, atol=1e-4)
    fixed = FIXED.get(name, set())
    assert not any(piece.layer in fixed and piece.side == "out" for unit in units for piece in unit.slices)
    written = [layer for layer in backbone.modules() if isinstance(layer, nn.Conv2d | nn.ConvTranspose2d | nn.Linear)]
    cut = {piece.layer for unit in units for piece in unit.slices}
    assert len(cut) >= len(written) / 3
    again = build(ModelSpec(name, 0, 3, OTHERS[name]), network.preprocessing).backbone.eval()
    set_widths(again, {layer: widths_of(module) for layer, module in thin.named_modules() if widths_of(module)})
    again.load_state_dict(thin.state_dict())
    with torch.no_grad():
        assert torch.equal(again(*inputs), found)


def test_numbers_of_a_pixel_shuffle_go_together() -> None:
    network = nn.Sequential(nn.Conv2d(3, 32, 1), nn.ReLU(), nn.PixelShuffle(2), nn.Conv2d(8, 3, 1)).eval()
    (unit,), reasons = find_units(network, [torch.randn(1, 3, 8, 8)])
    assert (unit.channels, reasons) == (8, {})
    thin = removed(network, {unit: {1, 6}})
    kept = [index for index in range(32) if index // 4 not in (1, 6)]
    assert torch.equal(thin[0].weight, network[0].weight[kept])
    assert torch.equal(thin[3].weight, network[3].weight[:, [0, 2, 3, 4, 5, 7]])


@pytest.mark.parametrize("name", NETWORKS)
def test_a_pruned_network_is_the_original_with_silent_channels(name: str) -> None:
    network = made(name)
    units, _ = find_units(network, [torch.randn(1, 3, 32, 32)])
    choice = halves(network, units)
    assert sum(map(len, choice.values())) > 0.3 * sum(unit.channels for unit in units)
    images = torch.randn(2, 3, 32, 32)
    with torch.no_grad():
        found, expected = removed(network, choice)(images), silenced(network, choice, images)
        whole = network(images)
    assert not torch.allclose(whole, expected, rtol=1e-2, atol=1e-3)
    torch.testing.assert_close(found, expected, rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize("name", ["dscnn-0.5", "resnext50_32x4d", "lenet5"])
def test_it_is_made_again_from_its_widths(name: str) -> None:
    network = made(name)
    units, _ = find_units(network, [torch.randn(1, 3, 32, 32)])
    thin = removed(network, halves(network, units))
    again = build_model(name, 10, 3).eval()
    before = {layer: widths_of(module) for layer, module in again.named_modules()}
    set_widths(again, {layer: widths_of(module) for layer, module in thin.named_modules() if widths_of(module)})
    again.load_state_dict(thin.state_dict())
    images = torch.randn(2, 3, 32, 32)
    with torch.no_grad():
        assert torch.equal(again(images), thin(images))
    assert before != {layer: widths_of(module) for layer, module in again.named_modules()}


@pytest.mark.parametrize(
    ("widths", "message"),
    [
        ({"nowhere": {"out_channels": 8}}, "does not have"),
        ({"linear": {"out_channels": 8}}, "in_features of 1 to"),
        ({"linear": {"in_features": 0}}, "in_features=0"),
        ({"linear": {"in_features": 10**6}}, "in_features=1000000"),
        ({"features.0": {"out_channels": 8}}, "accepted: nothing"),
        ({"features.1.0": {"out_channels": 8}}, "groups do not divide"),
        ({"linear": {"in_features": "8"}}, "in_features='8'"),
    ],
)
def test_wrong_widths_are_refused(widths, message) -> None:
    with pytest.raises(ModelError, match=message):
        set_widths(build_model("dscnn-0.5", 10, 3), widths)


def test_option_a_shortcuts_keep_their_channels() -> None:
    units, reasons = find_units(made("resnet8"), [torch.randn(1, 3, 32, 32)])
    assert {unit.name for unit in units} == {f"layer{stage}.0.conv1" for stage in (1, 2, 3)}
    assert list(reasons) == ["conv1"]


def test_groups_stay_equally_wide() -> None:
    network = nn.Sequential(
        nn.Conv2d(3, 24, 1), nn.ReLU(), nn.Conv2d(24, 48, 3, groups=3), nn.ReLU(), nn.Conv2d(48, 5, 1)
    )
    units, reasons = find_units(network, [torch.randn(1, 3, 8, 8)])
    assert [(unit.channels, unit.parts) for unit in units] in ([(24, 3), (48, 3)], [(48, 3), (24, 3)])
    assert not reasons
    counts = kept_channels(units, 0.6, 4)
    assert counts == {"0": 12, "2": 24}  # multiples of 4 and of 3
    choice = {unit: lowest(torch.rand(unit.channels), 3, unit.channels - counts[unit.name]) for unit in units}
    for unit, gone in choice.items():
        each = unit.channels // 3
        assert len({sum(part * each <= index < (part + 1) * each for index in gone) for part in range(3)}) == 1
    thin = removed(network, choice)
    images = torch.randn(2, 3, 8, 8)
    assert thin[2].groups == 3
    assert (thin[2].in_channels, thin[2].out_channels) == (12, 24)
    torch.testing.assert_close(thin(images), silenced(network, choice, images))


class Hidden(nn.Module):
    """Reads channels by numbers of its own, which no graph of layers shows."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.Conv2d(3, 16, 1), nn.Conv2d(16, 16, 1)
        self.last = nn.Conv2d(16, 4, 1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y = self.second(self.first(x).relu())
        return self.last(y.flip(1)).mean((2, 3))


def test_channels_that_are_misread_are_left_alone() -> None:
    units, reasons = find_units(Hidden().eval(), [torch.randn(1, 3, 8, 8)])
    assert [unit.name for unit in units] == ["first"]
    assert list(reasons) == ["second"]


def test_criteria_are_their_formulas() -> None:
    network = nn.Sequential(nn.Conv2d(3, 16, 3), nn.BatchNorm2d(16), nn.ReLU(), nn.Conv2d(16, 4, 1)).eval()
    nn.init.uniform_(network[1].weight, 0.5, 1.5)
    (unit,), _ = find_units(network, [torch.randn(1, 3, 8, 8)])
    made_by, read_by = network[0].weight.detach().double().numpy(), network[3].weight.detach().double().numpy()
    factor = network[1].weight.detach().double().numpy()
    slopes = {name: torch.randn_like(value) for name, value in network.named_parameters()}

    def share(values):
        return values / values.mean()

    parts = {
        "l1": [abs(made_by).sum((1, 2, 3))],
        "l2": [(made_by**2).sum((1, 2, 3)) ** 0.5],
        "bn": [abs(factor)],
        "group": [(made_by**2).sum((1, 2, 3)) ** 0.5, abs(factor), (read_by**2).sum((0, 2, 3)) ** 0.5],
        "taylor": [abs(made_by * slopes["0.weight"].numpy()).sum((1, 2, 3)), abs(factor * slopes["1.weight"].numpy())],
    }
    for criterion, values in parts.items():
        expected = sum(map(share, values)) / len(values)
        torch.testing.assert_close(scores(network, unit, criterion, slopes), torch.from_numpy(expected))


def test_steps_remove_the_same_share() -> None:
    units = [Unit("a", 256, 1, ()), Unit("b", 16, 1, ()), Unit("c", 4, 1, ())]
    assert steps_between(units, kept_channels(units, 0.25, 8), 2, 8) == [
        {"a": 128, "b": 8, "c": 4},
        {"a": 64, "b": 8, "c": 4},
    ]
