from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from _helpers.images import make_folder
from krl_runtime.images.preprocessing import Preprocessing
from krl_train.config import AugmentConfig, DataConfig
from krl_train.data import Augmentation, open_source
from krl_train.data.mirroring import keeps_class_mirrored

MNIST = ("0 - zero", "1 - one", "2 - two", "3 - three")  # torchvision's names


@pytest.mark.parametrize(
    ("labels", "expected"),
    [
        (("0", "1", "2"), False),
        (("00000", "00001", "00042"), False),  # GTSRB's folders
        (("zero", "one", "Two"), False),
        (MNIST, False),
        (("A", "B", "q"), False),
        (("digit-left", "cup"), False),
        (("turnLeft", "stop"), False),
        (("keep right", "stop"), False),
        (("cat", "dog"), True),
        (("n01440764", "n01443537"), True),  # ImageNet's
        (("T-shirt/top", "Trouser"), True),
        (("3", "cat"), True),
        (("leftovers", "bright"), True),
        ((), True),
    ],
)
def test_names_say_whether_a_mirrored_image_keeps_its_class(labels: tuple[str, ...], expected: bool) -> None:
    assert keeps_class_mirrored(labels) is expected


@pytest.mark.parametrize(
    ("names", "flip"), [(("0", "1"), "auto"), (("cat", "dog"), "auto"), (("0", "1"), "horizontal")]
)
def test_digits_in_a_folder_are_not_mirrored(tmp_path: Path, names: tuple[str, str], flip: str) -> None:
    source = open_source(DataConfig(data=str(make_folder(tmp_path, names))))
    preprocessing = Preprocessing(16, 16)
    config = AugmentConfig(flip=flip, crop_padding=0)  # type: ignore[arg-type]
    views = Augmentation.resolve(config, preprocessing, flip=source.flip, seed=0)
    image = torch.arange(16).expand(64, 3, 16, 16).to(torch.uint8)
    mirrored = (views(image, np.arange(64), 0)[:, 0, 0, 0] == 15).sum()
    assert (mirrored > 0) == (names == ("cat", "dog") or flip == "horizontal")
