from __future__ import annotations

import hashlib
import logging
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from krl_runtime import DataError, Preprocessing
from krl_runtime.images.folders import ImageFile, decode, find_images, identity, open_folder, report_bad


def draw(*paths: Path, value: int | None = None) -> None:
    for number, path in enumerate(paths):
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(np.full((5, 4), number if value is None else value, np.uint8)).save(path)


def test_images_are_found_at_any_depth_and_sorted(tmp_path: Path):
    draw(tmp_path / "b.PNG", tmp_path / "a" / "c.jpg", tmp_path / ".hidden" / "x.png", tmp_path / ".y.png")
    (tmp_path / "Thumbs.db").touch()
    assert find_images(tmp_path) == [tmp_path / "b.PNG", tmp_path / "a" / "c.jpg"]


def test_other_files_are_refused_or_skipped(tmp_path: Path, caplog: pytest.LogCaptureFixture):
    draw(tmp_path / "a.png")
    (tmp_path / "notes.txt").touch()
    with pytest.raises(DataError, match=r"1 files cannot be used: .*notes\.txt is not an image.*--on-bad-image skip"):
        find_images(tmp_path)
    with caplog.at_level(logging.WARNING, "krl"):
        assert find_images(tmp_path, on_bad="skip") == [tmp_path / "a.png"]
    assert "notes.txt is not an image" in caplog.text


def test_folders_without_images(tmp_path: Path):
    with pytest.raises(DataError, match=r"holds no images; accepted: \.bmp"):
        find_images(tmp_path)
    with pytest.raises(DataError, match="does not exist"):
        find_images(tmp_path / "none")
    (tmp_path / "file").touch()
    with pytest.raises(DataError, match="is a file, not a folder"):
        find_images(tmp_path / "file")
    with pytest.raises(DataError, match=r"data folder .*none does not exist"):
        open_folder(tmp_path / "none")


def test_splits_and_classes(tmp_path: Path):
    for split in ("train", "valid"):
        draw(tmp_path / split / "dog" / "1.png", tmp_path / split / "cat" / "1.png", tmp_path / split / "cat" / "2.png")
    folder = open_folder(tmp_path)
    assert folder.labels == ("cat", "dog")
    assert [image.label for image in folder.split("val")] == [0, 0, 1]
    assert len(folder.split("all")) == 6
    with pytest.raises(DataError, match="unknown split 'test'; accepted: train, val, all"):
        folder.split("test")


def test_classes_that_differ_between_splits(tmp_path: Path):
    draw(tmp_path / "train" / "cat" / "1.png", tmp_path / "train" / "dog" / "1.png")
    draw(tmp_path / "val" / "cat" / "1.png", tmp_path / "val" / "frog" / "1.png")
    with pytest.raises(DataError, match=r"only in train/: \['dog'\]; only in val/: \['frog'\]"):
        open_folder(tmp_path)


def test_a_folder_is_split_by_content(tmp_path: Path):
    paths = [tmp_path / f"{number:03d}.png" for number in range(200)]
    draw(*paths)
    folder = open_folder(tmp_path)
    assert folder.labels == ()
    parts = {name: {image.path for image in folder.split(name, val_fraction=0.25)} for name in ("train", "val")}
    assert parts["train"] | parts["val"] == set(paths)
    assert not parts["train"] & parts["val"]
    assert parts["val"] == set(sorted(paths, key=lambda path: hashlib.sha256(path.read_bytes()).digest())[:50])
    assert len(folder.split("val", val_fraction=1e-9)) == 1
    draw(tmp_path / "one" / "1.png")
    with pytest.raises(DataError, match="the val split of its 1 images is empty"):
        open_folder(tmp_path / "one").split("val", val_fraction=0.5)


def test_one_split_only(tmp_path: Path):
    draw(tmp_path / "train" / "cat" / "1.png", tmp_path / "train" / "dog" / "1.png", value=3)
    folder = open_folder(tmp_path)
    assert (folder.labels, len(folder.split("all"))) == (("cat", "dog"), 2)


def test_mixed_and_empty_class_folders(tmp_path: Path):
    draw(tmp_path / "cat" / "1.png", tmp_path / "loose.png")
    with pytest.raises(DataError, match=r"mixes class folders \(cat …\) with 1 loose images \(loose\.png …\)"):
        open_folder(tmp_path)
    (tmp_path / "loose.png").unlink()
    (tmp_path / "dog").mkdir()
    with pytest.raises(DataError, match=r"class folder .*dog.*holds no images"):
        open_folder(tmp_path)


def test_decode_stacks_and_names_what_is_bad(tmp_path: Path, caplog: pytest.LogCaptureFixture):
    paths = [tmp_path / name for name in ("0.png", "1.png", "2.png")]
    draw(*paths)
    paths[1].write_bytes(paths[1].read_bytes()[:45])
    spec = Preprocessing(5, 4, channels=1, mean=(0.5,), std=(0.5,))
    chosen = [ImageFile(path, label) for label, path in enumerate(paths)]
    with pytest.raises(DataError, match=r"1 files cannot be used: image .*1\.png is damaged or truncated"):
        decode(chosen, spec)
    with caplog.at_level(logging.WARNING, "krl"):
        pixels, good = decode(chosen, spec, on_bad="skip")
    assert "skipped 1 files: " in caplog.text
    assert [image.label for image in good] == [0, 2]
    assert pixels.shape == (2, 1, 5, 4)
    assert pixels[1].max() == pixels[1].min() == 2
    with pytest.raises(DataError, match="no image is left"):
        decode(chosen[1:2], spec, on_bad="skip")


def test_identity_depends_on_pixels_labels_and_order():
    pixels = np.arange(24, dtype=np.uint8).reshape(2, 1, 3, 4)
    known = {identity(pixels, [0, 1]), identity(pixels, [1, 0]), identity(pixels[::-1], [0, 1])}
    known |= {identity(pixels.reshape(2, 1, 4, 3), [0, 1]), identity(pixels[:0], [])}
    assert len(known) == 5
    assert identity(pixels[::-1], [0, 1]) == identity(pixels[::-1].copy(), np.array([0, 1]))


def test_long_lists_are_cut():
    with pytest.raises(DataError, match="12 files cannot be used: 0; 1; 2; 3; 4; 5; 6; 7; 8; 9; and 2 more"):
        report_bad(range(12), "refuse")
    report_bad([], "refuse")
