from __future__ import annotations

import pytest

from krl_runtime.images.preprocessing import Preprocessing
from krl_train.models import published_input

IMAGENET = {"mean": (0.485, 0.456, 0.406), "std": (0.229, 0.224, 0.225)}


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        # sizes as torchvision's table of weights documents them: central crop and short side before it
        ("resnet18", Preprocessing(224, 224, crop_fraction=224 / 256, **IMAGENET)),
        ("resnet50", Preprocessing(224, 224, crop_fraction=224 / 232, **IMAGENET)),
        ("inception_v3", Preprocessing(299, 299, crop_fraction=299 / 342, **IMAGENET)),
        ("efficientnet_b1", Preprocessing(240, 240, crop_fraction=240 / 255, **IMAGENET)),
        ("swin_t", Preprocessing(224, 224, crop_fraction=224 / 232, interpolation="bicubic", **IMAGENET)),
        (
            "efficientnet_v2_l",
            Preprocessing(480, 480, interpolation="bicubic", mean=(0.5, 0.5, 0.5), std=(0.5, 0.5, 0.5)),
        ),
    ],
)
def test_torchvision_states_the_input_of_its_weights(name: str, expected: Preprocessing) -> None:
    assert published_input(name) == expected


def test_networks_without_published_weights() -> None:
    assert published_input("resnet20") is None


@pytest.mark.parametrize("name", ["vit_tiny_patch16_224", "inception_v3", "beit_base_patch16_224"])
def test_timm_states_the_input_of_its_weights(name: str) -> None:
    timm = pytest.importorskip("timm")
    stated = timm.data.resolve_data_config(timm.get_pretrained_cfg(name).to_dict())
    found = published_input(f"timm/{name}")
    assert found is not None
    assert (found.channels, found.height, found.width) == tuple(stated["input_size"])
    assert (found.mean, found.std) == (tuple(stated["mean"]), tuple(stated["std"]))
    assert (found.crop_fraction, found.interpolation) == (stated["crop_pct"], stated["interpolation"])
