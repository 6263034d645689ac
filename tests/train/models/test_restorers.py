"""Restorers: sizes, receptive fields, and that training begins at what Pillow's bicubic filter gives."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from krl_runtime.errors import ModelError
from krl_runtime.images.luma import resize
from krl_train.models import count_parameters
from krl_train.models.restorers import Enlargement, RestorerNetwork, SkipNetwork, build_restorer, receptive_radius
from krl_train.run import ModelSpec
from krl_train.training.restoration import restorer_preprocessing

NAMES = ("espcn", "espcn-8", "fsrcnn", "fsrcnn-8-4-2", "edsr-1-8", "edsr-2-4")


def restorer(name: str, scale: int, channels: int = 1) -> RestorerNetwork:
    torch.manual_seed(0)
    spec = ModelSpec(name, 0, channels, {"scale": scale})
    return build_restorer(spec, restorer_preprocessing(channels, (8, 8))).eval()


def trained(name: str, scale: int, channels: int = 1) -> RestorerNetwork:
    """A restorer whose last layer is not 0 any more."""
    made = restorer(name, scale, channels)
    for parameter in made.backbone.get_submodule("tail").parameters():
        torch.nn.init.normal_(parameter, std=0.1)
    return made


@pytest.mark.parametrize("scale", [2, 3, 4])
def test_the_enlargement_is_pillows_bicubic_away_from_the_edges(scale: int) -> None:
    plane = np.random.default_rng(0).integers(0, 256, (12, 15)).astype(np.float32)
    mine = Enlargement(scale, 1)(torch.from_numpy(plane)[None, None])[0, 0].numpy()
    theirs = resize(plane, 12 * scale, 15 * scale)
    inner = slice(2 * scale, -2 * scale)
    assert mine.shape == theirs.shape
    assert np.abs(mine - theirs)[inner, inner].max() < 1e-3


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize(("scale", "channels"), [(1, 1), (2, 3), (3, 1), (4, 3)])
def test_training_begins_at_the_plain_enlargement(name: str, scale: int, channels: int) -> None:
    pixels = torch.randint(0, 256, (2, channels, 7, 5), dtype=torch.uint8)
    network = restorer(name, scale, channels)
    restored = network(pixels)
    assert restored.shape == (2, channels, 7 * scale, 5 * scale)
    assert restored.dtype == torch.float32
    assert torch.allclose(restored, Enlargement(scale, channels)(pixels.float()), atol=1e-3)
    network.train()
    network(pixels).mean().backward()
    tail = network.backbone.get_submodule("tail")
    assert all(parameter.grad is not None and parameter.grad.abs().sum() > 0 for parameter in tail.parameters())


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("scale", [1, 2, 3, 4])
def test_the_receptive_radius_is_how_far_the_gradient_reaches(name: str, scale: int) -> None:
    network = trained(name, scale).double()
    network.gain, network.offset = network.gain.double(), network.offset.double()
    side = 31
    pixels = torch.rand(1, 1, side, side, dtype=torch.float64).mul(255).requires_grad_()
    middle = side // 2 * scale
    network.backbone(pixels)[0, 0, middle : middle + scale, middle : middle + scale].sum().backward()
    assert pixels.grad is not None
    rows = pixels.grad[0, 0].abs().sum(1).nonzero().flatten()
    reach = max(side // 2 - int(rows.min()), int(rows.max()) - side // 2)
    radius = receptive_radius(name, scale)
    assert reach == radius


def test_sizes_are_those_of_the_papers() -> None:
    # ESPCN: 64 maps of 5x5, 32 of 3x3, 9 of 3x3, with biases.
    assert count_parameters(restorer("espcn", 3)) == 64 * 26 + 32 * (64 * 9 + 1) + 9 * (32 * 9 + 1) == 22729
    # FSRCNN(56, 12, 4) has 12,464 weights by the paper; beside them biases and one slope of PReLU for each channel.
    channels = 56 + 12 + 4 * 12 + 56
    assert count_parameters(restorer("fsrcnn", 3)) == 12464 + 2 * channels + 1
    blocks = 8 * 2 * 32 * (32 * 9 + 1) + 32 * (32 * 9 + 1)
    assert count_parameters(restorer("edsr-8-32", 3)) == 32 * 10 + blocks + 9 * (32 * 9 + 1)


def test_features_come_with_the_same_answer() -> None:
    network = trained("edsr-1-8", 2)
    pixels = torch.randint(0, 256, (2, 1, 6, 6), dtype=torch.uint8)
    restored, features = network.with_features(pixels)
    assert torch.equal(restored, network(pixels))
    assert features.shape == (2, 8, 6, 6)
    assert isinstance(network.backbone, SkipNetwork)


def test_a_network_between_pixels_is_the_same_at_any_normalization() -> None:
    pixels = torch.randint(0, 256, (1, 1, 6, 6), dtype=torch.uint8)
    assert torch.allclose(restorer("espcn-8", 1)(pixels), pixels.float(), atol=1e-3)


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("espcm", "unknown model 'espcm' for restoration; did you mean espcn"),
        ("edsr-0-8", "unknown model 'edsr-0-8'"),
        ("resnet18", "Accepted: espcn, fsrcnn, espcn-WIDTH"),
    ],
)
def test_unknown_names_are_refused(name: str, message: str) -> None:
    with pytest.raises(ModelError, match=message):
        receptive_radius(name, 3)


def test_a_scale_that_is_not_accepted_is_refused() -> None:
    with pytest.raises(ModelError, match="scale is 5; accepted: 1, 2, 3 or 4"):
        restorer("espcn", 5)
