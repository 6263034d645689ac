"""Generators as torch's two exporters write them: the bundle's images against torch's own."""

from __future__ import annotations

import contextlib
import io
import warnings
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

from _helpers.images import SHARED_DATA
from krl_deploy.cli import main
from krl_deploy.config import ImportConfig
from krl_deploy.importers.import_onnx import import_onnx
from krl_runtime import Generator, load
from krl_runtime.pipelines.generator import latents_of

WEIGHTS = SHARED_DATA / "models" / "mnist_gan_mlp_G--300.ckpt"


class Decoder(nn.Module):
    """A VAE's decoder: linear, then transposed convolutions of a view, then a sigmoid."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Linear(20, 16 * 4 * 4)
        self.rest = nn.Sequential(
            nn.ConvTranspose2d(16, 8, 3, stride=2, padding=1, output_padding=1),
            nn.BatchNorm2d(8),
            nn.LeakyReLU(0.2),
            nn.Upsample(scale_factor=2),
            nn.Conv2d(8, 3, 3, padding=1),
        )

    def forward(self, z: torch.Tensor) -> torch.Tensor:
        return torch.sigmoid(self.rest(self.first(z).view(-1, 16, 4, 4)))


class Styled(nn.Module):
    """StyleGAN's parts without noise: a normalized latent, a constant, styles, enlarging; no limits at its end."""

    def __init__(self) -> None:
        super().__init__()
        self.mapping = nn.Sequential(nn.Linear(16, 16), nn.LeakyReLU(0.2), nn.Linear(16, 16), nn.LeakyReLU(0.2))
        self.const = nn.Parameter(torch.randn(1, 8, 4, 4))
        self.style = nn.Linear(16, 8)
        self.conv = nn.Conv2d(8, 8, 3, padding=1)
        self.color = nn.Conv2d(8, 3, 1)

    def forward(self, z: torch.Tensor) -> torch.Tensor:
        w = self.mapping(z * torch.rsqrt(z.square().mean(1, keepdim=True) + 1e-8))
        x = self.const.expand(z.shape[0], -1, -1, -1) * (1 + self.style(w))[:, :, None, None]
        x = x * torch.rsqrt(x.square().mean(1, keepdim=True) + 1e-8)
        x = nn.functional.leaky_relu(self.conv(nn.functional.interpolate(x, scale_factor=2.0, mode="bilinear")), 0.2)
        return self.color(x)


def digits() -> nn.Module:
    if not WEIGHTS.is_file():
        pytest.skip(f"no real weights {WEIGHTS}")
    layers: list[nn.Module] = []
    for given, made in ((64, 256), (256, 256), (256, 784)):
        layers += [nn.Linear(given, made), nn.Tanh() if made == 784 else nn.ReLU()]
    net = nn.Sequential(*layers)
    state = torch.load(WEIGHTS, weights_only=True, map_location="cpu")
    net.load_state_dict(dict(zip(net.state_dict(), state.values(), strict=True)))
    return net


NETS = {
    "digits": (digits, 64, {}, lambda made: made.reshape(-1, 1, 28, 28) * 127.5 + 127.5),
    "decoder": (Decoder, 20, {}, lambda made: made * 255),
    "styled": (Styled, 16, {"output_range": "symmetric"}, lambda made: made * 127.5 + 127.5),
}


def exported(net: nn.Module, size: int, path: Path, *, dynamo: bool, opened: bool) -> Path:
    batch = 2 if dynamo and opened else 1
    axes = {}
    if opened:
        axes = {"dynamic_shapes": ({0: torch.export.Dim("n")},)} if dynamo else {"dynamic_axes": {"noise": {0: "n"}}}
    with warnings.catch_warnings(), contextlib.redirect_stdout(io.StringIO()):
        warnings.simplefilter("ignore")
        torch.onnx.export(net, (torch.randn(batch, size),), path, dynamo=dynamo, input_names=["noise"], **axes)
    return path


@pytest.mark.parametrize("opened", [True, False], ids=["open", "fixed"])
@pytest.mark.parametrize("dynamo", [True, False], ids=["dynamo", "torchscript"])
@pytest.mark.parametrize("name", NETS)
def test_images_are_torchs(name: str, dynamo: bool, opened: bool, tmp_path: Path) -> None:
    make, size, options, levels = NETS[name]
    torch.manual_seed(0)
    net = make().eval()
    file = exported(net, size, tmp_path / "net.onnx", dynamo=dynamo, opened=opened)
    import_onnx(ImportConfig(file, tmp_path / "net.krl", task="generation", **options))
    latents = latents_of(5, 20, size)
    with torch.inference_mode():
        expected = levels(net(torch.from_numpy(latents)).numpy())
    assert expected.std() > 5
    with load(tmp_path / "net.krl", Generator, require="cpu", threads=1) as model:
        assert model.bundle.manifest.inputs[0].shape == ("batch", size)
        np.testing.assert_allclose(model.values(latents), expected, atol=0.05)
        pixels = np.stack([image.pixels for image in model.generate(20, seed=5)]).transpose(0, 3, 1, 2)
    assert np.abs(pixels - expected.clip(0, 255)).max() <= 0.55


def test_digits_in_fp16_and_int8(tmp_path: Path) -> None:
    file = exported(digits(), 64, tmp_path / "net.onnx", dynamo=True, opened=False)
    bundle = str(tmp_path / "net.krl")
    assert main(["import", str(file), "-o", bundle, "--task", "generation"]) == 0
    assert main(["fp16", bundle]) == 0
    assert main(["quantize", bundle]) == 0
    with (
        load(bundle, Generator, variant="int8", require="cpu", threads=1) as small,
        load(bundle, Generator, variant="fp32") as model,
    ):
        latents = latents_of(0, 100, 64)
        error = small.values(latents).clip(0, 255) - model.values(latents).clip(0, 255)
    assert 10 * np.log10(255**2 / np.square(error).mean()) > 30
