from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from _helpers.images import SHARED_DATA, make_folder, make_split_folder
from krl_runtime.errors import DataError, UsageError
from krl_runtime.images.folders import balanced
from krl_runtime.images.preprocessing import Preprocessing
from krl_train.config import AugmentConfig, DataConfig, InputConfig
from krl_train.data import Augmentation, open_source, preprocessing_for
from krl_train.data.unpacking import unpack

GRAY8 = Preprocessing(8, 8, channels=1, mean=(0.5,), std=(0.5,))
RGB16 = Preprocessing(16, 16)


def test_digits_are_embedded_and_split_for_good() -> None:
    source = open_source(DataConfig(data="digits"))
    train, val = source.read("train", GRAY8), source.read("val", GRAY8)
    assert len(train) + len(val) == len(source.read("all", GRAY8)) == 1797
    assert 0.15 < len(val) / 1797 < 0.25
    assert source.labels == tuple("0123456789")
    assert train.pixels(np.arange(3)).shape == (3, 1, 8, 8)
    assert train.identity == open_source(DataConfig(data="digits")).read("train", GRAY8).identity
    assert train.identity != val.identity


def test_folder_with_splits(tmp_path: Path) -> None:
    source = open_source(DataConfig(data=str(make_split_folder(tmp_path))))
    assert source.labels == ("cat", "dog")
    assert source.size == (16, 16)
    assert source.is_split
    train = source.read("train", RGB16)
    assert train.labels.tolist() == [0] * 12 + [1] * 12
    first = np.asarray(Image.open(tmp_path / "train" / "cat" / "000.png")).transpose(2, 0, 1)
    assert np.array_equal(train.pixels(np.array([0]))[0].numpy(), first)


def test_one_folder_is_split_by_content_not_by_name(tmp_path: Path) -> None:
    root = make_folder(tmp_path / "a", count=60)
    renamed = tmp_path / "b"
    shutil.copytree(root, renamed)
    for index, path in enumerate(sorted((renamed / "cat").iterdir())):
        path.rename(path.with_name(f"x{999 - index}.png"))

    def contents(data: Path, split: str) -> set[bytes]:
        part = open_source(DataConfig(data=str(data))).read(split, RGB16)
        return {item.numpy().tobytes() for item in part.pixels(np.arange(len(part)))}

    assert contents(root, "val") == contents(renamed, "val")
    assert contents(root, "train").isdisjoint(contents(root, "val"))
    assert len(contents(root, "train") | contents(root, "val")) == 120


def test_a_copy_of_an_image_cannot_leak_to_the_other_side(tmp_path: Path) -> None:
    root = make_folder(tmp_path, count=30)
    for path in sorted((root / "cat").iterdir()):
        shutil.copy(path, path.with_name("copy-" + path.name))
    source = open_source(DataConfig(data=str(root)))
    sides = [
        {item.numpy().tobytes() for item in part.pixels(np.arange(len(part)))}
        for part in (source.read("train", RGB16), source.read("val", RGB16))
    ]
    assert sides[0].isdisjoint(sides[1])


def test_gray_images_give_one_channel(tmp_path: Path) -> None:
    for name in ("a", "b"):
        (tmp_path / name).mkdir()
        for index in range(10):
            Image.new("L", (12, 10), index * 20).save(tmp_path / name / f"{index}.png")
    source = open_source(DataConfig(data=str(tmp_path)))
    assert (source.channels, source.size) == (1, (10, 12))
    preprocessing = preprocessing_for(InputConfig(), source, "resnet8")
    assert preprocessing.shape == (1, 10, 12)
    # torchvision's networks take RGB
    assert preprocessing_for(InputConfig(size=(16,)), source, "resnet18").channels == 3


def test_preprocessing_follows_network_and_data(tmp_path: Path) -> None:
    source = open_source(DataConfig(data=str(make_split_folder(tmp_path))))
    small = preprocessing_for(InputConfig(), source, "resnet20")
    large = preprocessing_for(InputConfig(), source, "resnet18", pretrained=True)
    assert small.shape == (3, 16, 16)
    assert small.crop_fraction == 1.0
    assert small.decode_tolerance == 0
    assert preprocessing_for(InputConfig(decode_tolerance=1.5), source, "resnet20").decode_tolerance == 1.5
    assert (large.shape, large.crop_fraction, large.mean) == ((3, 224, 224), 0.875, (0.485, 0.456, 0.406))
    part = source.read("train", small)
    pixels = part.pixels(np.arange(len(part))).double().numpy() / 255
    np.testing.assert_allclose(small.mean, pixels.mean((0, 2, 3)), atol=1e-4)
    np.testing.assert_allclose(small.std, pixels.std((0, 2, 3)), atol=1e-4)


@pytest.mark.parametrize(
    ("break_it", "message"),
    [
        (lambda root: shutil.rmtree(root), "neither a folder nor a known data set"),
        (lambda root: [shutil.rmtree(path) for path in root.iterdir()], "holds no images"),
        (lambda root: shutil.rmtree(root / "val" / "dog"), "classes of train/ and val/ differ.*dog"),
        (lambda root: (root / "val" / "dog").rename(root / "val" / "dogs"), "only in val/: .'dogs'"),
        (lambda root: shutil.copy(root / "train/cat/000.png", root / "train"), "mixes class folders"),
        (lambda root: [path.unlink() for path in (root / "train/dog").iterdir()], "holds no images"),
        (lambda root: (root / "train/cat/notes.txt").write_text("x"), "notes.txt is not an image"),
        (lambda root: [shutil.rmtree(root / s / "dog") for s in ("train", "val")], "one class"),
    ],
)
def test_unusable_folders_say_why(tmp_path: Path, break_it, message: str) -> None:
    root = make_split_folder(tmp_path / "data")
    break_it(root)
    with pytest.raises(DataError, match=message):
        open_source(DataConfig(data=str(root)))


@pytest.mark.parametrize("memory_limit_mb", [4096, 0])
def test_bad_images_are_named_and_refused_or_skipped(
    tmp_path: Path, memory_limit_mb: int, caplog: pytest.LogCaptureFixture
) -> None:
    root = make_split_folder(tmp_path)
    broken = root / "train" / "cat" / "003.png"
    broken.write_bytes(broken.read_bytes()[:100])
    (root / "train" / "dog" / "004.png").write_bytes(b"not an image")
    config = DataConfig(data=str(root), memory_limit_mb=memory_limit_mb)
    with pytest.raises(DataError, match=r"2 files cannot be used: .*003\.png.*004\.png.*--on-bad-image skip"):
        open_source(config).read("train", RGB16)
    kept = open_source(DataConfig(data=str(root), memory_limit_mb=memory_limit_mb, on_bad_image="skip")).read(
        "train", RGB16
    )
    assert kept.labels.tolist() == [0] * 11 + [1] * 11
    assert "003.png" in caplog.text


def test_images_on_disk_and_in_memory_are_the_same(tmp_path: Path) -> None:
    root = str(make_split_folder(tmp_path))
    memory = open_source(DataConfig(data=root)).read("train", RGB16, margin=2)
    disk = open_source(DataConfig(data=root, memory_limit_mb=0)).read("train", RGB16, margin=2)
    indices = np.array([5, 0, 23])
    assert torch.equal(memory.pixels(indices), disk.pixels(indices))
    assert torch.equal(memory.labels, disk.labels)


def test_limit_is_balanced_and_deterministic() -> None:
    labels = [0] * 10 + [1] * 3 + [2] * 10
    chosen = balanced(labels, 9)
    assert [labels[index] for index in chosen] == [0, 0, 0, 1, 1, 1, 2, 2, 2]
    assert chosen == [0, 1, 2, 10, 11, 12, 13, 14, 15]
    assert balanced(labels, None) == balanced(labels, 99) == list(range(23))
    assert len(balanced(labels, 11)) == 11


def test_unpack_writes_what_it_reads(tmp_path: Path) -> None:
    source = open_source(DataConfig(data="digits"))
    assert unpack(source, tmp_path) == 1797
    again = open_source(DataConfig(data=str(tmp_path)))
    assert (again.labels, again.channels, again.size) == (source.labels, 1, (8, 8))
    first, second = source.read("val", GRAY8), again.read("val", GRAY8)
    assert sorted(item.numpy().tobytes() for item in first.pixels(np.arange(len(first)))) == sorted(
        item.numpy().tobytes() for item in second.pixels(np.arange(len(second)))
    )
    with pytest.raises(UsageError, match="has its images on disk already"):
        unpack(again, tmp_path / "x")


def test_missing_torchvision_data_asks_for_download(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"mnist is not usable in .*--data-root.*--download"):
        open_source(DataConfig(data="mnist", data_root=tmp_path))


@pytest.mark.skipif(not (SHARED_DATA / "MNIST").is_dir(), reason="the shared data is not here")
def test_mnist_through_torchvision() -> None:
    source = open_source(DataConfig(data="mnist", data_root=SHARED_DATA))
    assert (source.size, source.channels, source.flip, len(source.labels)) == ((28, 28), 1, False, 10)
    part = source.read("val", Preprocessing(28, 28, channels=1, mean=(0.13,), std=(0.31,)), limit=100)
    assert np.bincount(part.labels.numpy()).tolist() == [10] * 10


def _augmentation(**changes) -> Augmentation:
    preprocessing = Preprocessing(16, 16)
    return Augmentation.resolve(AugmentConfig(**changes), preprocessing, flip=True, seed=3)


def test_views_depend_on_image_and_view_alone() -> None:
    augmentation = _augmentation(rotate=10, zoom=1.3)
    pixels = torch.randint(0, 256, (6, 3, 16, 16), dtype=torch.uint8)
    indices = np.array([4, 8, 15, 16, 23, 42])
    whole = augmentation(pixels, indices, 2)
    part = augmentation(pixels[2:4], indices[2:4], 2)
    torch.testing.assert_close(whole[2:4], part, rtol=0, atol=0)
    assert not torch.equal(whole, augmentation(pixels, indices, 3))
    assert whole.min() >= 0
    assert whole.max() <= 255


def test_shifts_and_mirrors_are_those_of_a_plain_loop() -> None:
    augmentation = _augmentation(crop_padding=2)
    pixels = torch.randint(1, 256, (64, 3, 16, 16), dtype=torch.uint8)
    views = augmentation(pixels, np.arange(64), 0)
    assert views.dtype == torch.uint8
    padded = np.pad(pixels.numpy(), ((0, 0), (0, 0), (2, 2), (2, 2)))
    found = []
    for image, view in zip(padded, views.numpy(), strict=True):
        matches = [
            (row, column, mirrored)
            for row in range(5)
            for column in range(5)
            for mirrored in (False, True)
            if np.array_equal(view, image[:, row : row + 16, column : column + 16][:, :, :: -1 if mirrored else 1])
        ]
        assert len(matches) == 1
        found.append(matches[0])
    # every shift and both orientations occur, about equally often
    assert {row for row, *_ in found} == {column for _, column, _ in found} == set(range(5))
    assert 20 <= sum(mirrored for *_, mirrored in found) <= 44


def test_without_augmentation_views_are_what_evaluation_sees() -> None:
    preprocessing = Preprocessing(112, 112, crop_fraction=0.875)
    plain = Augmentation.resolve(AugmentConfig(augment=False), preprocessing, flip=True, seed=0)
    random = Augmentation.resolve(AugmentConfig(), preprocessing, flip=True, seed=0)
    assert (plain.margin, random.margin, random.padding) == (0, 8, 0)
    image = np.random.default_rng(0).integers(0, 256, (150, 190, 3)).astype(np.uint8)
    pixels = torch.from_numpy(preprocessing(image))[None]
    assert torch.equal(plain(pixels, np.array([0]), 0), pixels)
    wide = torch.from_numpy(preprocessing(image, margin=random.margin))[None]
    assert random(wide, np.array([0]), 0).shape == (1, 3, 112, 112)
    # the center of the larger image is the same part of the scene, up to resampling
    assert (random.center(wide).float() - pixels.float()).abs().mean() < 2


def test_turning_by_nothing_changes_nothing() -> None:
    augmentation = _augmentation(flip="none", crop_padding=0, zoom=1.000001)
    pixels = torch.randint(0, 256, (4, 3, 16, 16), dtype=torch.uint8)
    assert (augmentation(pixels, np.arange(4), 0) - pixels.float()).abs().max() < 0.05


def test_rotation_turns_by_at_most_the_angle() -> None:
    augmentation = _augmentation(flip="none", crop_padding=0, rotate=30)
    bar = torch.zeros(200, 3, 16, 16, dtype=torch.uint8)
    bar[:, :, 7:9, :] = 255  # a horizontal bar through the center
    views = augmentation(bar, np.arange(200), 0)[:, 0].numpy()
    rows, columns = np.mgrid[0:16, 0:16] - 7.5
    angles = []
    for view in views:
        weight = view * ((rows**2 + columns**2) < 49)
        moments = (weight * rows * columns).sum(), (weight * columns**2).sum(), (weight * rows**2).sum()
        angles.append(np.degrees(0.5 * np.arctan2(2 * moments[0], moments[1] - moments[2])))
    assert max(np.abs(angles)) < 33
    assert np.std(angles) > 10  # uniform in ±30 has 17
    assert abs(np.mean(angles)) < 5


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: DataConfig(val_fraction=1.0), "--val-fraction is 1.0"),
        (lambda: DataConfig(limit=0), "--limit is 0"),
        (lambda: AugmentConfig(zoom=0.5), "--zoom is 0.5"),
        (lambda: InputConfig(size=(1, 2, 3)), "--size has 3 numbers"),
        (lambda: _augmentation(crop_padding=16), "below the side"),
        (lambda: open_source(DataConfig()), "no data is named"),
    ],
)
def test_out_of_range_values_are_refused(make, message: str) -> None:
    with pytest.raises(UsageError, match=message):
        make()
