from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from krl_deploy.data.folders import choose, choose_any
from krl_runtime.errors import DataError
from krl_runtime.images.labeled import open_data, with_label_indices


def write(folder: Path, count: int, seed: int = 0) -> None:
    folder.mkdir(parents=True)
    rng = np.random.default_rng(seed)
    for index in range(count):
        Image.fromarray(rng.integers(0, 256, (4, 4), dtype=np.uint8)).save(folder / f"{index:02d}.png")


@pytest.mark.parametrize("name", ["digits", "cifar10"])
def test_a_data_sets_name_gets_the_way_to_a_folder(name, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(DataError, match=f"krl-train unpack --data {name} --out FOLDER"):
        open_data(Path(name), on_bad="refuse")
    write(tmp_path / name / "a", 2)
    write(tmp_path / name / "b", 2, seed=1)
    assert open_data(Path(name), on_bad="refuse").labels == ("a", "b")


def test_a_missing_folder_is_named(tmp_path):
    with pytest.raises(DataError, match="nowhere does not exist"):
        open_data(tmp_path / "nowhere", on_bad="refuse")


def test_choice_is_balanced_and_from_its_split(digits):
    folder = open_data(digits, on_bad="refuse")
    chosen = choose(folder, "train", 25, val_fraction=0.2)
    counts = np.bincount([image.label for image in chosen])
    assert len(chosen) == 25
    assert counts.min() == 2
    assert counts.max() == 3
    assert all("train" in image.path.parts for image in chosen)
    assert all("val" in image.path.parts for image in choose_any(folder, 25))


def test_too_few_images_to_split_are_all_used(tmp_path, caplog):
    write(tmp_path / "flat", 1)
    folder = open_data(tmp_path / "flat", on_bad="refuse")
    both = [choose(folder, split, 10, val_fraction=0.001) for split in ("train", "val")]
    assert [len(part) for part in both] == [1, 1]
    assert "all 1 images are used instead" in caplog.text
    assert len(choose_any(folder, 10)) == 1


def test_labels_are_matched_by_name(tmp_path):
    for index, name in enumerate(("ant", "bee")):
        write(tmp_path / "data" / name, 1, seed=index)
    folder = open_data(tmp_path / "data", on_bad="refuse")
    images = with_label_indices(folder.split("all"), folder, ("cat", "bee", "ant"))
    assert [(image.path.parent.name, image.label) for image in images] == [("ant", 2), ("bee", 1)]


def test_unknown_classes_are_reported_and_not_guessed(tmp_path, caplog):
    for index, name in enumerate(("ant", "wasp")):
        write(tmp_path / "data" / name, 1, seed=index)
    folder = open_data(tmp_path / "data", on_bad="refuse")
    images = with_label_indices(folder.split("all"), folder, tuple("abcdefghij"))
    assert [image.label for image in images] == [-1, -1]
    assert "classes that the model does not: ant, wasp" in caplog.text
    assert "h and 2 more" in caplog.text


def test_images_without_classes_stay_without(tmp_path, caplog):
    write(tmp_path / "flat", 3)
    folder = open_data(tmp_path / "flat", on_bad="refuse")
    assert {image.label for image in with_label_indices(folder.split("all"), folder, ("a",))} == {-1}
    assert caplog.text == ""
