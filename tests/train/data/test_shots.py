"""A few images of each class: which ones, and what a run says of them."""

from __future__ import annotations

import logging
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from _helpers.images import make_folder
from krl_runtime.errors import UsageError
from krl_runtime.images.preprocessing import Preprocessing
from krl_train import evaluate, import_weights, unpack
from krl_train.config import AugmentConfig, DataConfig
from krl_train.data import PixelSet, open_source
from krl_train.data.shots import Shots
from krl_train.data.splits import read_training

GRAY = Preprocessing(8, 8, channels=1, mean=(0.5,), std=(0.25,))
COLOR = Preprocessing(16, 16, mean=(0.5,) * 3, std=(0.25,) * 3)


def images(part: PixelSet) -> set[bytes]:
    return {image.tobytes() for image in part.pixels(np.arange(len(part))).numpy()}


def read(data: object, seed: int, shots: int | None = 3, preprocessing: Preprocessing = COLOR) -> PixelSet:
    return open_source(DataConfig(data=data, shots=shots), seed=seed).read("train", preprocessing)


def test_a_draw_goes_by_seed_and_content_alone() -> None:
    labels = [0, 0, 0, 0, 1, 1, 1, 2]
    hashes = ["a", "b", "c", "d", "e", "f", "e", "g"]
    drawn = Shots(2, 5).draw(labels, hashes)
    assert [labels[index] for index in drawn] == [0, 0, 1, 1, 2]  # two of each, and of the last class all
    assert drawn == sorted(drawn)
    order = np.random.default_rng(0).permutation(len(labels))
    again = Shots(2, 5).draw([labels[index] for index in order], [hashes[index] for index in order])
    assert {hashes[order[index]] for index in again} == {hashes[index] for index in drawn}
    assert {hashes[index] for index in drawn} >= {"e", "f", "g"}  # a copy is no second image
    draws = {tuple(Shots(2, seed).draw(labels, hashes)) for seed in range(20)}
    assert len(draws) > 3


@pytest.mark.parametrize("kind", ["folder", "named", "own"])
def test_all_data_sets_give_the_same_images_for_a_seed_and_others_for_another(kind: str, tmp_path: Path) -> None:
    data: object = "digits"
    if kind == "folder":
        data = str(make_folder(tmp_path / "images", count=20))
    elif kind == "own":
        pixels = np.random.default_rng(0).integers(0, 256, (60, 8, 8)).astype(np.uint8)
        data = [(image, index % 3) for index, image in enumerate(pixels)]
    shape = COLOR if kind == "folder" else GRAY
    first, again, other = (read(data, seed, preprocessing=shape) for seed in (1, 1, 2))
    every = read(data, 0, None, shape)
    classes = sorted(set(every.labels.tolist()))
    assert sorted(first.labels.tolist()) == sorted(classes * 3)
    assert images(first) == images(again) != images(other)
    assert images(first) < images(every)
    source = open_source(DataConfig(data=data, shots=3), seed=1)
    assert images(source.read("val", shape)) == images(open_source(DataConfig(data=data)).read("val", shape))
    assert images(source.read("train", shape, limit=len(classes))) < images(first)  # as the mean is measured


def test_renamed_files_change_nothing(tmp_path: Path) -> None:
    folder = make_folder(tmp_path / "images", count=20)
    before = images(read(str(folder), 1))
    for path in sorted(folder.glob("*/*.png")):
        shutil.move(path, path.with_name(f"{99 - int(path.stem)}-renamed.png"))
    assert images(read(str(folder), 1)) == before


def test_classes_with_fewer_images_are_named(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    folder = make_folder(tmp_path / "train", count=20)
    make_folder(tmp_path / "val", count=4, seed=1)
    for path in sorted((folder / "dog").iterdir())[2:]:
        path.unlink()
    source = open_source(DataConfig(data=str(tmp_path), shots=5), seed=3)
    with caplog.at_level(logging.WARNING, "krl"):
        training = read_training(source, COLOR, AugmentConfig(), 3)
    assert sorted(training.train.labels.tolist()) == [0] * 5 + [1] * 2
    assert "--shots 5: these classes have fewer different images: dog 2" in caplog.text
    assert "cat" not in caplog.text
    described = training.describe()
    assert described["shots"] == {"count": 5, "seed": 3}
    assert described["train"]["count"] == 7
    assert described["train"]["identity"] == training.train.identity
    assert "shots" not in replace(source, shots=None).describe({})


def test_shots_are_for_training_and_not_beside_a_limit(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="--shots and --limit both say how many images"):
        DataConfig(shots=3, limit=3)
    with pytest.raises(UsageError, match="--shots is 0; accepted: 1 or more"):
        DataConfig(shots=0)
    for call in (
        lambda: evaluate(run=tmp_path, data="digits", shots=3),
        lambda: unpack(data="digits", out=tmp_path / "out", shots=3),
        lambda: import_weights(weights="w.pth", model="resnet8", out=tmp_path / "out", data="digits", shots=3),
    ):
        with pytest.raises(UsageError, match="--shots draws images to train on, and nothing is trained here"):
            call()
