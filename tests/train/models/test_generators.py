from __future__ import annotations

import pytest
import torch
from torch import nn

from krl_runtime.errors import ModelError, UsageError
from krl_runtime.images.preprocessing import Preprocessing
from krl_train.models import ModelSpec
from krl_train.models.discriminators import build_discriminator
from krl_train.models.generator_backbones import MapGenerator, Norm, image_sizes
from krl_train.models.generators import build_generator, count_generator_macs, is_generator
from krl_train.models.sampling import generate_pixels, image_grid, sample_latents, spread_tokens

CONDITION = {"kind": "labels", "length": 1, "dim": 5, "vocabulary": ["a", "b", "c"]}


def images(height: int, width: int, channels: int = 1) -> Preprocessing:
    return Preprocessing(height, width, channels=channels, mean=(0.5,) * channels, std=(0.5,) * channels)


def test_resolutions_double_up_to_any_size() -> None:
    assert image_sizes(28, 28) == [(4, 4), (7, 7), (14, 14), (28, 28)]
    assert image_sizes(128, 128)[0] == (4, 4)
    assert image_sizes(33, 65) == [(3, 5), (5, 9), (9, 17), (17, 33), (33, 65)]


@pytest.mark.parametrize(
    "name", ["dcgan-2", "dcgan-2x2", "resgan-2", "resgan-2x2", "dsgan-2", "subgan-2", "subgan-2x2", "mlp-8-8"]
)
@pytest.mark.parametrize(("height", "width", "channels"), [(28, 28, 1), (8, 12, 3), (33, 20, 3)])
def test_every_generator_and_its_discriminator_take_any_size(name: str, height: int, width: int, channels: int) -> None:
    preprocessing = images(height, width, channels)
    generator = build_generator(ModelSpec(name, 0, channels, {"latent": 7}), preprocessing)
    made = generator(torch.randn(3, 7))
    levels = made.detach()
    assert made.shape == (3, channels, height, width)
    assert made.dtype == torch.float32
    assert levels.min() >= 0  # tanh
    assert levels.max() <= 255
    logits = build_discriminator(name, preprocessing)(made)
    assert logits.shape == (3,)
    logits.sum().backward()
    assert all(parameter.grad is not None for parameter in generator.parameters())


@pytest.mark.parametrize("name", ["dcgan-2", "resgan-2", "dsgan-2", "subgan-2"])
def test_a_condition_changes_the_images_and_the_judgment(name: str) -> None:
    torch.manual_seed(0)
    preprocessing = images(16, 16)
    generator = build_generator(ModelSpec(name, 0, 1, {"latent": 4, "condition": CONDITION}), preprocessing).eval()
    latent = torch.randn(1, 4).expand(3, 4)
    made = generator(latent, torch.tensor([[0], [1], [0]]))
    torch.testing.assert_close(made[0], made[2])
    assert not torch.allclose(made[0], made[1])
    judge = build_discriminator(name, preprocessing, CONDITION)
    judge(made, torch.tensor([[0], [1], [0]]))
    judge.eval()
    logits = judge(made[:1].expand(3, -1, -1, -1), torch.tensor([[0], [1], [0]]))
    assert logits.tolist()[0] == pytest.approx(logits.tolist()[2])
    assert abs(logits.tolist()[0] - logits.tolist()[1]) > 1e-4


def test_images_are_the_backbones_in_levels_of_255() -> None:
    generator = build_generator(ModelSpec("mlp-4", 0, 1, {"latent": 2}), images(2, 2)).eval()
    latent = torch.tensor([[0.3, -2.0]])
    hidden = torch.relu(generator.backbone[0](latent))
    expected = (torch.tanh(generator.backbone[2](hidden)).reshape(1, 1, 2, 2) + 1) * 127.5
    torch.testing.assert_close(generator(latent), expected)
    assert count_generator_macs(generator) == 2 * 4 + 4 * 4


def test_conditional_normalization_by_hand() -> None:
    norm = Norm(1, 1).eval()
    assert norm.modulation is not None
    with torch.no_grad():
        norm.modulation.weight.copy_(torch.tensor([[2.0], [3.0]]))
    norm.norm.running_mean = torch.tensor([1.0])
    norm.norm.running_var = torch.tensor([4.0 - norm.norm.eps])
    # (5 - 1) / 2 = 2; scale 1 + 2 · 0.5, shift 3 · 0.5
    assert norm(torch.full((1, 1, 1, 1), 5.0), torch.tensor([[0.5]])).item() == pytest.approx(2 * 2 + 1.5)


def test_spectral_norm_is_on_every_layer_of_a_discriminator() -> None:
    judge = build_discriminator("resgan-4", images(16, 16), CONDITION)
    with torch.no_grad():
        for module in judge.modules():
            if isinstance(module, nn.Conv2d | nn.Linear):
                module.parametrizations.weight.original.mul_(30)
    for _ in range(30):  # power iterations
        judge(torch.rand(2, 1, 16, 16), torch.tensor([[0], [1]]))
    judge.eval()
    for module in judge.modules():
        if isinstance(module, nn.Conv2d | nn.Linear):
            assert float(torch.linalg.matrix_norm(module.weight.detach().flatten(1), 2)) == pytest.approx(1, abs=0.1)


def test_wrong_latents_and_conditions_are_refused() -> None:
    plain = build_generator(ModelSpec("dsgan-2", 0, 1, {"latent": 4}), images(8, 8))
    with pytest.raises(UsageError, match=r"the latent is \[1, 5\]; this generator takes \[N, 4\]"):
        plain(torch.zeros(1, 5))
    with pytest.raises(UsageError, match="trained without one"):
        plain(torch.zeros(1, 4), torch.zeros(1, 1, dtype=torch.int64))
    guided = build_generator(ModelSpec("dsgan-2", 0, 1, {"latent": 4, "condition": CONDITION}), images(8, 8))
    with pytest.raises(UsageError, match=r"the condition is missing; this generator takes tokens \[N, 1\]"):
        guided(torch.zeros(1, 4))


@pytest.mark.parametrize(
    ("name", "arguments", "message"),
    [
        ("stylegan-3", {"latent": 4}, "unknown generator 'stylegan-3'; accepted: dcgan-W"),
        ("dcgan-0", {"latent": 4}, "unknown generator"),
        ("dcgan-4", {}, "the latent's size is None; accepted: 1 or more"),
        ("dcgan-4", {"latent": 4, "depth": 2}, r"unknown arguments \['depth'\]"),
        ("mlp-4", {"latent": 4, "condition": CONDITION}, "takes no condition"),
    ],
)
def test_what_cannot_be_built_is_refused(name: str, arguments: dict, message: str) -> None:
    with pytest.raises(ModelError, match=message):
        build_generator(ModelSpec(name, 0, 1, arguments), images(8, 8))


@pytest.mark.parametrize("name", ["dcgan-2", "resgan-2", "dsgan-2", "subgan-2", "mlp-4"])
def test_a_traced_graph_takes_any_number_of_latents(name: str) -> None:
    condition = None if name == "mlp-4" else CONDITION
    arguments = {"latent": 3} if condition is None else {"latent": 3, "condition": condition}
    generator = build_generator(ModelSpec(name, 0, 1, arguments), images(7, 7)).eval()
    inputs = (torch.randn(2, 3),) if condition is None else (torch.randn(2, 3), torch.tensor([[0], [2]]))
    many = torch.export.Dim("batch")
    graph = torch.export.export(generator, inputs, dynamic_shapes=[{0: many} for _ in inputs]).module()
    latent, tokens = torch.randn(5, 3), torch.tensor([[0], [1], [2], [1], [0]])
    more = (latent,) if condition is None else (latent, tokens)
    torch.testing.assert_close(graph(*more), generator(*more))


def test_the_levels_of_a_backbone_are_the_sizes_of_its_maps() -> None:
    expected = {
        "dcgan-2": [(9, 5), (17, 9)],  # the lowest, 5×3, has no block
        "subgan-2": [(9, 5)],
    }
    for name, levels in expected.items():
        backbone = build_generator(ModelSpec(name, 0, 1, {"latent": 3}), images(17, 9)).backbone
        assert isinstance(backbone, MapGenerator)
        maps, made = backbone.features(torch.randn(2, 3))
        assert backbone.levels == levels == [tuple(each.shape[2:]) for each in maps]
        assert made.shape == (2, 1, 17, 9)


def test_a_sub_pixel_generator_step_by_step() -> None:
    """The same, written out: 28 pixels from a map of 7 and one of 14."""
    torch.manual_seed(0)
    backbone = build_generator(ModelSpec("subgan-28", 0, 1, {"latent": 64}), images(28, 28)).backbone.eval()
    assert sum(parameter.numel() for parameter in backbone.parameters()) == 28_276
    latent = torch.randn(2, 64)
    x = backbone.stem[2](torch.relu(backbone.stem[0](latent))).reshape(2, 4, 7, 7)
    x = torch.relu(backbone.norm(backbone.widen(x), None))
    low, (up, high) = backbone.stages[0][0], backbone.stages[1]
    x = x + torch.relu(low.norm(low.pointwise(low.depthwise(x)), None))
    x = x.repeat_interleave(2, 2).repeat_interleave(2, 3)
    x = torch.relu(up.norm(up.pointwise(up.depthwise(x)), None))
    x = x + torch.relu(high.norm(high.pointwise(high.depthwise(x)), None))
    made = backbone.head(x).reshape(2, 2, 2, 14, 14).permute(0, 3, 1, 4, 2).reshape(2, 1, 28, 28)
    torch.testing.assert_close(backbone(latent), torch.tanh(made))


def test_a_sub_pixel_generator_needs_two_pixels() -> None:
    with pytest.raises(ModelError, match="subgan-2 makes images of 2 pixels a side or more; these have 1"):
        build_generator(ModelSpec("subgan-2", 0, 1, {"latent": 3}), images(1, 4))


def test_names_of_generators() -> None:
    assert is_generator("mlp-256-256")
    assert is_generator("resgan-16x2")
    assert not is_generator("resnet18")


def test_a_grid_has_the_images_in_rows() -> None:
    pixels = torch.arange(5, dtype=torch.uint8).reshape(5, 1, 1, 1).expand(5, 1, 2, 3)
    grid = image_grid(pixels, columns=2)
    assert grid.shape == (4, 6, 1)
    assert grid[::2, ::3, 0].tolist() == [[0, 1], [2, 3]]
    tokens = spread_tokens(torch.tensor([[2], [0], [2], [1]]), rows=3)
    assert tokens[:, 0].tolist() == [0] * 8 + [1] * 8 + [2] * 8


def test_the_same_seed_gives_the_same_images_in_whole_levels() -> None:
    generator = build_generator(ModelSpec("dsgan-2", 0, 1, {"latent": 4}), images(8, 8)).eval()
    latents = sample_latents(300, 4, seed=3)
    assert torch.equal(latents, sample_latents(300, 4, seed=3))
    assert not torch.equal(latents, sample_latents(300, 4, seed=4))
    pixels = generate_pixels(generator, latents)
    assert pixels.shape == (300, 1, 8, 8)
    expected = generator(latents[299:]).detach().clamp(0, 255)
    assert float((pixels[299:].float() - expected).abs().max()) <= 0.5 + 1e-3
