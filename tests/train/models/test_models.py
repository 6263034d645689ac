from __future__ import annotations

import numpy as np
import pytest
import torch

from _helpers.images import SHARED_DATA
from krl_runtime.errors import MissingExtraError, ModelError
from krl_runtime.images.preprocessing import Preprocessing
from krl_train.importers.matching import match_weights
from krl_train.importers.weights import read_weights
from krl_train.models import Network, build_model, cifar_names, count_macs, count_parameters, native_size


@pytest.mark.parametrize(
    ("name", "classes", "parameters"),
    [
        # published sizes: He et al. 2016, table 6, as implemented with option A (269,722 and 853,018)
        ("resnet20", 10, 269_722),
        ("resnet56", 10, 853_018),
        ("resnet110", 10, 1_727_962),
        # sizes of the distillation literature, 100 classes, in thousands: 1,234, 7,434, 703, 2,255
        ("resnet8x4", 100, 1_233_540),
        ("resnet32x4", 100, 7_433_860),
        ("wrn-16-2", 100, 703_284),
        ("wrn-40-2", 100, 2_255_156),
        # and 3,965, 9,462, 813, 949, 1,356 and 23,705
        ("cifar-vgg8", 100, 3_965_028),
        ("cifar-vgg13", 100, 9_462_180),
        ("cifar-mobilenetv2", 100, 812_836),
        ("cifar-shufflenetv1", 100, 949_258),
        ("cifar-shufflenetv2", 100, 1_355_528),
        ("cifar-resnet50", 100, 23_705_252),
    ],
)
def test_sizes_are_the_published_ones(name: str, classes: int, parameters: int) -> None:
    assert count_parameters(build_model(name, classes)) == parameters


SMALL = [name for name in cifar_names() if not name.endswith(("FACTOR", "WIDTH"))]


@pytest.mark.parametrize("name", [*SMALL, "dscnn-0.5", "resnet18", "mobilenet_v3_small"])
@pytest.mark.parametrize("channels", [1, 3])
def test_every_network_maps_images_to_logits(name: str, channels: int) -> None:
    if channels == 1 and native_size(name) is not None:
        with pytest.raises(ModelError, match="takes RGB images"):
            build_model(name, 7, 1)
        return
    model = build_model(name, 7, channels).eval()
    size = 32 if native_size(name) is None else 64
    with torch.no_grad():
        assert model(torch.randn(2, channels, size, size)).shape == (2, 7)


def test_batch_statistics_are_learnt_within_the_steps_of_a_small_data_set() -> None:
    torch.manual_seed(0)
    model = build_model("mobilenet_v3_small", 3)
    model.classifier[2].p = 0.0  # dropout would be a difference of its own
    pixels = torch.randn(16, 3, 32, 32)
    with torch.no_grad():
        for _ in range(160):
            trained = model(pixels)
        model.eval()
        evaluated = model(pixels)
    # With torchvision's own momentum of 0.01 the answers to different images differ by less than 1e-9 here.
    assert evaluated.std(0).mean() > 0.5 * trained.std(0).mean()


def test_timm_networks_come_by_their_prefix() -> None:
    pytest.importorskip("timm")
    assert build_model("timm/resnet18", 3, 1)(torch.zeros(2, 1, 32, 32)).shape == (2, 3)
    with pytest.raises(ModelError, match="timm cannot make it"):
        build_model("timm/no_such_network", 3)


def test_a_missing_timm_names_the_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(__import__("sys").modules, "timm", None)
    with pytest.raises(MissingExtraError, match=r"pip install .*\[timm\]'"):
        build_model("timm/resnet18", 3)


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("resnet57", "did you mean"),
        ("wrn-17-2", "unknown model"),
        ("dscnn-0", "unknown model"),
        ("nonsense", "Accepted: resnet8"),
    ],
)
def test_unknown_names_say_what_is_accepted(name: str, message: str) -> None:
    with pytest.raises(ModelError, match=message):
        build_model(name, 10)


def test_cifar_networks_have_no_pretrained_weights() -> None:
    with pytest.raises(ModelError, match="krl-train import"):
        build_model("resnet20", 10, pretrained=True)


def test_width_multiplier_scales_the_channels() -> None:
    quarter, whole = build_model("dscnn-0.25", 10), build_model("dscnn-1.0", 10)
    assert quarter.linear.in_features == 64
    assert whole.linear.in_features == 256


def test_network_normalizes_as_the_formula_says() -> None:
    preprocessing = Preprocessing(4, 4, mean=(0.1, 0.2, 0.3), std=(0.5, 0.25, 2.0))
    network = Network(torch.nn.Identity(), preprocessing)
    pixels = torch.randint(0, 256, (2, 3, 4, 4), dtype=torch.uint8)
    expected = (pixels.double().numpy() / 255 - np.array([0.1, 0.2, 0.3]).reshape(1, 3, 1, 1)) / np.array(
        [0.5, 0.25, 2.0]
    ).reshape(1, 3, 1, 1)
    np.testing.assert_allclose(network(pixels).numpy(), expected, atol=1e-6)
    assert torch.equal(network(pixels), network(pixels.float()))
    assert not network.state_dict()


def test_macs_are_those_of_a_hand_count() -> None:
    network = Network(build_model("resnet20", 10), Preprocessing(32, 32))
    stem = 3 * 16 * 9 * 32 * 32
    first = 6 * 16 * 16 * 9 * 32 * 32
    second = (16 * 32 + 5 * 32 * 32) * 9 * 16 * 16
    third = (32 * 64 + 5 * 64 * 64) * 9 * 8 * 8
    assert count_macs(network, (3, 32, 32)) == stem + first + second + third + 64 * 10
    assert network.training  # left as it was


@pytest.mark.skipif(not (SHARED_DATA / "models").is_dir(), reason="the shared models are not here")
@pytest.mark.parametrize("name", ["resnet20", "resnet56"])
def test_published_weights_load_and_answer(name: str) -> None:
    from krl_train.config import DataConfig
    from krl_train.data import open_source
    from krl_train.evaluation.evaluate import evaluate_run

    file = next((SHARED_DATA / "models").glob(f"cifar10_{name}-*.th"))
    preprocessing = Preprocessing(32, 32)
    network = Network(build_model(name, 10), preprocessing)
    match_weights(read_weights(file), network.backbone, name)
    source = open_source(DataConfig(data=str(SHARED_DATA / "cifar10")))
    part = source.read("val", preprocessing, limit=200)
    # These weights were trained on these very images.
    assert evaluate_run(network, source.labels, part, "cpu")["top1"] >= 0.99
