"""Networks that round as their INT8 graph does, while they are trained."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from krl_runtime.errors import ModelError, RunError
from krl_runtime.images.preprocessing import Preprocessing
from krl_train.models import ModelSpec, Network, build_model
from krl_train.models.quantized import FakeQuantized
from krl_train.models.quantizers import Quantizer, round_weights

SIZE = Preprocessing(16, 16)


def observed(name: str = "resnet8", size: int = 16) -> tuple[nn.Module, FakeQuantized, Tensor]:
    """A float network with statistics that are not those it was made with, its rounding form, and images."""
    torch.manual_seed(0)
    backbone = build_model(name, 4, 3)
    x = torch.rand(8, 3, size, size)
    for _ in range(3):
        backbone(x)
    backbone.eval()
    rounding = FakeQuantized(backbone, (3, size, size))
    with torch.no_grad(), rounding.observing():
        rounding(x)
    return backbone, rounding, x


def test_an_activation_is_rounded_half_to_even_and_clamped():
    quantizer = Quantizer()
    quantizer.scale.data.fill_(0.5)
    x = torch.tensor([0.24, 0.25, 0.75, -0.75, 63.4, 64.0, -64.0, -70.0])
    assert quantizer(x).tolist() == [0.0, 0.0, 1.0, -1.0, 63.5, 63.5, -64.0, -64.0]
    quantizer.mode = "float"
    assert quantizer(x) is x


def test_gradients_are_those_of_learned_step_sizes():
    # Esser et al. (2020), equation 3: q - v inside the range, -128 or 127 outside; scaled by 1 / sqrt(n * 127).
    quantizer = Quantizer()
    quantizer.scale.data.fill_(0.5)
    x = torch.tensor([0.6, -1.3, 100.0, -100.0], requires_grad=True)
    weights = torch.tensor([1.0, 2.0, 3.0, 4.0])
    (quantizer(x) * weights).sum().backward()
    assert x.grad.tolist() == [1.0, 2.0, 0.0, 0.0]
    each = [1 - 1.2, -3 + 2.6, 127, -128]
    expected = sum(w * e for w, e in zip(weights.tolist(), each, strict=True)) / math.sqrt(4 * 127)
    assert quantizer.scale.grad.item() == pytest.approx(expected, rel=1e-5)


@pytest.mark.parametrize(
    ("layer", "axis"),
    [(nn.Conv2d(4, 3, 3), 0), (nn.ConvTranspose2d(3, 4, 2), 1), (nn.Linear(5, 3), 0)],
    ids=["conv", "transposed", "linear"],
)
def test_weights_have_a_scale_for_each_output_channel(layer, axis):
    x = torch.randn(2, 5) if isinstance(layer, nn.Linear) else torch.randn(2, layer.in_channels, 6, 6)
    weight = layer.weight.detach().double().numpy()
    channels = np.moveaxis(weight, axis, 0)
    scale = np.abs(channels).reshape(len(channels), -1).max(axis=1) / 127
    shaped = scale.reshape(-1, *[1] * (channels.ndim - 1))
    rounded = torch.from_numpy(np.moveaxis(np.rint(channels / shaped) * shaped, 0, axis)).float()
    function = {nn.Conv2d: F.conv2d, nn.ConvTranspose2d: F.conv_transpose2d, nn.Linear: F.linear}[type(layer)]
    expected = function(x, rounded, layer.bias)
    round_weights(layer)
    torch.testing.assert_close(layer(x), expected)
    layer(x).sum().backward()
    assert layer.weight.grad.abs().min() > 0  # straight through
    layer.mode = "float"
    assert not torch.equal(layer(x), expected)


def test_a_channel_without_weights_stays_zero():
    layer = nn.Linear(3, 2, bias=False)
    layer.weight.data[0] = 0
    round_weights(layer)
    assert layer(torch.ones(1, 3))[0, 0] == 0


@pytest.mark.parametrize("name", ["resnet8", "resnet8x4", "wrn-16-2", "dscnn-0.5", "mobilenet_v3_small"])
def test_in_floating_point_it_is_the_network(name):
    size = 64 if name.startswith("mobile") else 16
    backbone, rounding, x = observed(name, size)
    with torch.no_grad():
        expected, rounded = backbone(x), rounding(x)
        with rounding.computing("float"):
            torch.testing.assert_close(rounding(x), expected, rtol=1e-4, atol=1e-4 * expected.abs().max().item())
    assert not torch.equal(rounded, expected)
    torch.testing.assert_close(rounded, expected, rtol=0, atol=0.2 * expected.abs().max().item())


def test_scales_are_those_of_the_largest_values():
    quantizer = Quantizer()
    quantizer.mode = "observe"
    for values in ([1.0, -2.54], [0.5, 0.3]):
        quantizer(torch.tensor(values))
    quantizer.set_scale()
    assert quantizer.scale.item() == pytest.approx(0.02)
    quantizer.set_scale()  # nothing was seen since
    assert quantizer.scale.item() == 1.0


def test_where_rounding_stands():
    """resnet8 for 3 channels: 7 convolutions, all wide enough or the first; a classifier of 4; 3 residual branches."""
    _, rounding, _ = observed()
    layers = {name for name, layer in rounding.named_modules() if hasattr(layer, "mode") and hasattr(layer, "weight")}
    assert layers == {
        "graph.conv1",
        *(f"graph.layer{stage}.0.conv{index}" for stage in (1, 2, 3) for index in (1, 2)),
    }
    # Each block reads its input once for its convolution and its branch; two branches are padded, which is a tensor
    # of its own: x, 3 inputs of blocks, 3 between their convolutions, 2 padded.
    assert len(rounding.quantizers()) == 9
    assert not [name for name, _ in rounding.named_modules() if ".bn" in name]


def test_it_stays_frozen_and_in_float32():
    _, rounding, x = observed("wrn-16-2")
    network = Network(rounding, SIZE).train()
    assert not any(module.training for module in rounding.modules())
    before = {name: value.clone() for name, value in rounding.state_dict().items() if "running" in name}
    assert before  # the normalization that stands before its convolution
    with torch.autocast("cpu", dtype=torch.bfloat16):
        mixed = rounding(x)
    assert mixed.dtype == torch.float32
    assert torch.equal(mixed, rounding(x))
    network(torch.randint(0, 256, (4, 3, 16, 16), dtype=torch.uint8)).sum().backward()
    assert all(torch.equal(value, rounding.state_dict()[name]) for name, value in before.items())


def test_a_record_makes_it_again():
    _, rounding, x = observed()
    spec = ModelSpec("resnet8", 4, 3, {"quantize": "int8"})
    made = spec.build(SIZE).backbone
    made.load_state_dict(rounding.state_dict())
    assert torch.equal(made(x), rounding(x))


class Branching(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x if x.sum() > 0 else -x


def test_what_cannot_be_quantized_is_refused():
    with pytest.raises(ModelError, match="cannot be traced for quantization-aware training"):
        FakeQuantized(Branching(), (3, 8, 8))
    with pytest.raises(ModelError, match="no convolution or linear layer of the network has 16 channels"):
        FakeQuantized(nn.Sequential(nn.Flatten(), nn.Linear(12, 4)), (3, 2, 2))


def test_float_weights_do_not_fit(tmp_path):
    from _helpers.digits import PREPROCESSING, record
    from krl_train.run import Run

    spec = ModelSpec("resnet8", 10, 1)
    state = spec.build(PREPROCESSING).backbone.state_dict()
    run = Run.write(tmp_path / "run", record(ModelSpec("resnet8", 10, 1, {"quantize": "int8"})), state)
    with pytest.raises(RunError, match="its weights do not fit resnet8"):
        run.network()


@pytest.mark.parametrize("name", ["resnet8", "dscnn-1"])
def test_loud_channels_are_equalized(name):
    """Planted: two channels a thousand times as large, and as small again in the weights that read them."""
    torch.manual_seed(0)
    backbone = build_model(name, 4, 3)
    x = torch.rand(8, 3, 16, 16)
    for _ in range(3):
        backbone(x)
    backbone.eval()
    if name == "resnet8":
        outlier, reading = backbone.layer2[0].bn1, backbone.layer2[0].conv2.weight
    else:
        outlier, reading = backbone.features[2][1], backbone.features[3][0].weight
    with torch.no_grad():
        outlier.weight[:2] *= 1000
        outlier.bias[:2] *= 1000
        (reading[:, :2] if reading.shape[1] > 1 else reading[:2]).div_(1000)
        expected = backbone(x)
        rounding = FakeQuantized(backbone, (3, 16, 16))
        with rounding.observing():
            rounding(x)
        error = (rounding(x) - expected).abs().max()
        with rounding.computing("float"):
            torch.testing.assert_close(rounding(x), expected, rtol=1e-3, atol=1e-4)
    assert error < 0.1 * expected.abs().max()
    if name != "resnet8":
        return  # with weights that nobody trained, hardly anything depends on the depthwise layer
    # Without it, what is not an outlier is rounded away.
    plain = FakeQuantized(backbone, (3, 16, 16))
    with torch.no_grad():
        plain.set_mode("observe")
        plain(x)
        plain.set_mode("int8")
        for quantizer in plain.quantizers():
            quantizer.set_scale()
        assert (plain(x) - expected).abs().max() > 3 * error
