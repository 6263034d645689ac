"""Decoded images on disk: the same pixels, made once, found again, bounded, and made anew when damaged."""

from __future__ import annotations

import gc
import hashlib
import logging
import os
import shutil
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from PIL import Image

from _helpers.images import make_folder
from krl_runtime.errors import DataError, UsageError
from krl_runtime.images.folders import ImageFile
from krl_runtime.images.hashes import HashedFile
from krl_runtime.images.preprocessing import Preprocessing
from krl_train.config import AugmentConfig, DataConfig
from krl_train.data import Augmentation, PixelSet, decoded, open_source, reading

RGB16 = Preprocessing(16, 16)
ROW = 16 * 16 * 3
ALL = 2**30


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("KRL_CACHE_DIR", str(tmp_path / "cache"))
    return tmp_path / "cache" / "pixels"


@pytest.fixture
def decodings(monkeypatch: pytest.MonkeyPatch) -> list[Path]:
    """Paths that are decoded from now on."""
    seen: list[Path] = []
    decode = Preprocessing.interleaved

    def count(self: Preprocessing, source: Path | HashedFile, *, margin: int = 0) -> np.ndarray:
        seen.append(Path(source.name) if isinstance(source, HashedFile) else source)
        return decode(self, source, margin=margin)

    monkeypatch.setattr(Preprocessing, "interleaved", count)
    return seen


def files_in(root: Path, name: str = "data", seed: int = 0) -> list[ImageFile]:
    folder = make_folder(root / name, count=10, seed=seed)
    return [ImageFile(path, int(path.parent.name == "dog")) for path in sorted(folder.rglob("*.png"))]


def read(images: list[ImageFile], memory: int = 0, disk: int = ALL, on_bad: str = "refuse", **options) -> PixelSet:
    preprocessing = options.pop("preprocessing", RGB16)
    margin = options.pop("margin", 0)
    return PixelSet.from_images(
        images, preprocessing, margin=margin, on_bad=on_bad, memory_limit=memory, disk_limit=disk
    )


def plain(images: list[ImageFile]) -> np.ndarray:
    """The pixels of images of 16 x 16 by Pillow alone."""
    return np.stack([np.asarray(Image.open(image.path)).transpose(2, 0, 1) for image in images])


def seen(data: PixelSet) -> np.ndarray:
    return data.pixels(np.arange(len(data))).numpy()


def kept(cache: Path) -> list[Path]:
    return sorted(cache.iterdir()) if cache.is_dir() else []


@pytest.mark.parametrize(("memory", "disk"), [(ALL, 0), (0, ALL), (0, 0)])
def test_pixels_are_those_of_the_files_wherever_they_are_kept(tmp_path: Path, memory: int, disk: int) -> None:
    images = files_in(tmp_path)
    expected = plain(images)
    for _ in range(2):  # the second start finds what the first one kept
        data = read(images, memory, disk)
        assert np.array_equal(seen(data), expected)
        chosen = np.array([19, 3, 3, 0])
        assert np.array_equal(data.pixels(chosen).numpy(), expected[chosen])
        assert data.labels.tolist() == [0] * 10 + [1] * 10
    assert data.identity == read(images, ALL, 0).identity
    assert np.array_equal(seen(data.joined(data)), np.concatenate([expected, expected]))


@pytest.mark.parametrize(("memory", "disk", "later"), [(0, ALL, 0), (0, 0, 20), (ALL, ALL, 0)])
def test_each_image_is_decoded_once(
    tmp_path: Path, decodings: list[Path], monkeypatch: pytest.MonkeyPatch, memory: int, disk: int, later: int
) -> None:
    monkeypatch.setattr(reading, "_WORTH_KEEPING", 0)
    images = files_in(tmp_path)
    data = read(images, memory, disk)
    assert sorted(decodings) == sorted(image.path for image in images)
    decodings.clear()
    seen(data)
    assert len(decodings) == later  # an epoch
    decodings.clear()
    again = read(images, memory, disk)
    assert decodings == []  # a second start
    moved = [ImageFile(tmp_path / "moved" / image.path.relative_to(tmp_path / "data"), image.label) for image in images]
    shutil.copytree(tmp_path / "data", tmp_path / "moved")
    assert read(moved, memory, disk).identity == again.identity
    assert decodings == []


def test_few_images_that_fit_in_memory_are_not_kept(tmp_path: Path, cache: Path) -> None:
    read(files_in(tmp_path), ALL)
    assert kept(cache) == []


def test_a_file_is_for_the_same_images_read_in_the_same_way(tmp_path: Path, cache: Path) -> None:
    images = files_in(tmp_path)
    read(images)
    assert len(kept(cache)) == 1
    read(images, preprocessing=Preprocessing(16, 16, mean=(0.5,) * 3, std=(0.5,) * 3))  # applied by the network
    assert len(kept(cache)) == 1
    nearest = Preprocessing(12, 12, interpolation="nearest")
    for options in ({"margin": 1}, {"preprocessing": Preprocessing(12, 12)}, {"preprocessing": nearest}):
        read(images, **options)
    assert len(kept(cache)) == 4
    Image.new("RGB", (16, 16), (1, 2, 3)).save(images[4].path)
    assert np.array_equal(seen(read(images)), plain(images))
    assert len(kept(cache)) == 5


def test_other_decoders_have_files_of_their_own(tmp_path: Path, cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    images = files_in(tmp_path)
    read(images)
    monkeypatch.setattr(decoded, "decoder_version", lambda: "another")
    read(images)
    assert len(kept(cache)) == 2


@pytest.mark.parametrize("memory", [0, ALL])
def test_an_image_that_is_changed_while_it_is_read_is_not_kept(
    tmp_path: Path, cache: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, memory: int
) -> None:
    monkeypatch.setattr(reading, "_WORTH_KEEPING", 0)
    caplog.set_level(logging.INFO, "krl")
    images = files_in(tmp_path)
    before, expected = images[3].path.read_bytes(), plain(images)
    hash_files = reading.hash_files

    def hash_and_change(paths: list[Path], **options: bool) -> list[str]:
        found = hash_files(paths, **options)
        images[3].path.write_bytes(images[4].path.read_bytes())
        return found

    with monkeypatch.context() as patch:
        patch.setattr(reading, "hash_files", hash_and_change)
        changed = read(images, memory)
    assert kept(cache) == []
    assert f"image {images[3].path} was changed while it was read" in caplog.text
    assert np.array_equal(seen(changed), plain(images))
    digests = [hashlib.sha256(image.path.read_bytes()).hexdigest() for image in images]
    assert changed.file_hashes() == digests
    assert changed.identity == read(images, memory, 0).identity
    images[3].path.write_bytes(before)
    assert np.array_equal(seen(read(images, memory)), expected)


def test_bad_images_are_named_at_each_start(tmp_path: Path, caplog: pytest.LogCaptureFixture, cache: Path) -> None:
    images = files_in(tmp_path)
    images[3].path.write_bytes(images[3].path.read_bytes()[:60])
    images[5].path.unlink()
    with pytest.raises(DataError, match=r"2 files cannot be used: .*003\.png.*005\.png: no such file"):
        read(images)
    assert kept(cache) == []
    good = [image for index, image in enumerate(images) if index not in (3, 5)]
    for disk in (ALL, ALL, 0, 0):
        caplog.clear()
        data = read(images, disk=disk, on_bad="skip")
        assert "003.png" in caplog.text
        assert [path.name for path in data.files] == [image.path.name for image in good]
        assert np.array_equal(seen(data), plain(good))
    with pytest.raises(DataError, match="2 files cannot be used"):
        read(images)
    with pytest.raises(DataError, match="no image is left"):
        read([images[3]], on_bad="skip")


def cut(data: bytearray) -> bytearray:
    return data[:-ROW]


def flip(position: int) -> Callable[[bytearray], bytearray]:
    def change(data: bytearray) -> bytearray:
        data[position] ^= 1
        return data

    return change


@pytest.mark.parametrize(
    ("damage", "anew"),
    [(cut, True), (flip(-1), True), (flip(20 * ROW + 3), True), (lambda _: bytearray(), True), (flip(ROW + 9), False)],
)
def test_a_damaged_file_is_made_anew(
    tmp_path: Path, cache: Path, caplog: pytest.LogCaptureFixture, decodings: list[Path], damage, anew: bool
) -> None:
    images = files_in(tmp_path)
    read(images)
    (path,) = kept(cache)
    whole = path.read_bytes()
    path.write_bytes(damage(bytearray(whole)))
    decodings.clear()
    data = read(images)
    assert np.array_equal(seen(data), plain(images))
    assert f"{path} are damaged" in caplog.text
    assert len(decodings) == (20 if anew else 1)
    assert kept(cache) == [path]
    assert path.read_bytes() == whole


def test_an_interrupted_start_leaves_nothing(tmp_path: Path, cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    images = files_in(tmp_path)
    decode = Preprocessing.interleaved

    def stop(self: Preprocessing, source: HashedFile, *, margin: int = 0) -> np.ndarray:
        if source.name == str(images[17].path):
            raise KeyboardInterrupt
        return decode(self, source, margin=margin)

    with monkeypatch.context() as patch:
        patch.setattr(Preprocessing, "interleaved", stop)
        with pytest.raises(KeyboardInterrupt):
            read(images)
    assert kept(cache) == []
    assert np.array_equal(seen(read(images)), plain(images))


@pytest.fixture
def small_files() -> Iterator[None]:
    """Let the system refuse files of more than 8 KiB, as a full disk does."""
    resource = pytest.importorskip("resource")
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    yield lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (8192, before[1]))
    resource.setrlimit(resource.RLIMIT_FSIZE, before)


def test_a_write_that_fails(
    tmp_path: Path, cache: Path, caplog: pytest.LogCaptureFixture, decodings: list[Path], small_files
) -> None:
    images = files_in(tmp_path)
    read(images, disk=0)  # the hashes, whose file is larger, are kept by now
    decodings.clear()
    small_files()
    data = read(images)
    assert "decoded in each epoch: File too large" in caplog.text
    assert len(decodings) == 20
    assert kept(cache) == []
    assert np.array_equal(seen(data), plain(images))


@pytest.mark.parametrize("memory", [0, ALL])
def test_no_room(
    tmp_path: Path, cache: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch, memory: int
) -> None:
    monkeypatch.setattr(reading, "_WORTH_KEEPING", 0)
    caplog.set_level(logging.INFO)
    images = files_in(tmp_path)
    assert np.array_equal(seen(read(images, memory, disk=2**13)), plain(images))
    assert "1 MiB are needed, and --disk-cache-mb is 0" in caplog.text
    caplog.clear()
    monkeypatch.setattr(decoded.shutil, "disk_usage", lambda _: SimpleNamespace(free=decoded._RESERVE + 2**13))
    assert np.array_equal(seen(read(images, memory)), plain(images))
    assert "1 MiB are needed, and 1 MiB can be used" in caplog.text
    assert caplog.text.count("not kept on disk") == 1
    assert kept(cache) == []


def test_a_cache_folder_that_cannot_be_made(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "file").write_bytes(b"")
    monkeypatch.setenv("KRL_CACHE_DIR", str(tmp_path / "file" / "cache"))
    images = files_in(tmp_path)
    assert np.array_equal(seen(read(images)), plain(images))
    assert "decoded in each epoch: Not a directory" in caplog.text


def test_the_oldest_files_make_room(tmp_path: Path, cache: Path, caplog: pytest.LogCaptureFixture) -> None:
    sets = [files_in(tmp_path, f"data{number}", number) for number in range(4)]
    limit = 3 * 20 * (ROW + 50)  # three sets
    for age, images in zip((300, 100, 200), sets, strict=False):
        before = set(kept(cache))
        read(images, disk=limit)
        (path,) = set(kept(cache)) - before
        os.utime(path, (time.time() - age,) * 2)
    gc.collect()
    read(sets[0], disk=limit)  # used again: no longer the oldest
    oldest = min(kept(cache), key=lambda path: path.stat().st_mtime)
    using = read(sets[3], disk=limit)
    assert not oldest.exists()
    assert len(kept(cache)) == 3
    gc.collect()
    caplog.clear()
    assert np.array_equal(seen(read(sets[2], disk=20 * (ROW + 50))), plain(sets[2]))  # room for one, which is in use
    assert "not kept on disk" in caplog.text
    assert np.array_equal(seen(using), plain(sets[3]))


def test_of_several_readers_one_decodes(
    tmp_path: Path, cache: Path, monkeypatch: pytest.MonkeyPatch, decodings: list[Path]
) -> None:
    started, second, release = (threading.Event() for _ in range(3))
    decode = Preprocessing.interleaved

    def wait(self: Preprocessing, source: HashedFile, *, margin: int = 0) -> np.ndarray:
        (second if started.is_set() else started).set()  # a reader that decodes as well is not to be waited for
        assert release.wait(60)
        return decode(self, source, margin=margin)

    monkeypatch.setattr(Preprocessing, "interleaved", wait)
    monkeypatch.setattr(reading, "_BLOCK", 20)  # one thread, so that the second call is another reader's
    monkeypatch.setattr(decoded, "_POLL", 0.01)
    monkeypatch.setattr(decoded._log, "info", lambda text, *_: second.set() if "waiting for it" in text else None)
    images = files_in(tmp_path)
    with ThreadPoolExecutor(2) as pool:
        try:
            first = pool.submit(read, images)
            assert started.wait(60)
            other = pool.submit(read, images)
            assert second.wait(60)
        finally:
            release.set()
        sets = [first.result(), other.result()]
    assert len(decodings) == 20
    assert [path.suffix for path in kept(cache)] == [".pixels"]
    for data in sets:
        assert np.array_equal(seen(data), plain(images))


def test_readers_that_begin_together_wait_for_the_first(
    tmp_path: Path, cache: Path, monkeypatch: pytest.MonkeyPatch, decodings: list[Path]
) -> None:
    images = files_in(tmp_path)
    read(images)
    (path,) = kept(cache)
    path.rename(path.with_suffix(".tmp"))  # as another reader has it that is not done
    decodings.clear()
    looks = iter([lambda: None, lambda: path.with_suffix(".tmp").rename(path)])  # none is there yet; then it is done
    monkeypatch.setattr(reading, "wait_for_decoded_file", lambda _: next(looks)())
    assert np.array_equal(seen(read(images)), plain(images))
    assert decodings == []
    assert kept(cache) == [path]


def test_a_file_that_a_killed_process_began_is_made_anew(tmp_path: Path, cache: Path) -> None:
    images = files_in(tmp_path)
    read(images)
    (path,) = kept(cache)
    whole = path.read_bytes()
    path.unlink()
    path.with_suffix(".tmp").write_bytes(whole[:1000])
    os.utime(path.with_suffix(".tmp"), (time.time() - 61,) * 2)
    read(images)
    assert kept(cache) == [path]
    assert path.read_bytes() == whole


def test_what_a_killed_process_left_is_removed(tmp_path: Path, cache: Path) -> None:
    cache.mkdir(parents=True)
    old, new = cache / ".a.tmp", cache / ".b.tmp"
    for path in (old, new):
        path.write_bytes(b"pixels")
    os.utime(old, (time.time() - 7200,) * 2)
    read(files_in(tmp_path))
    assert not old.exists()
    assert new.exists()


@pytest.mark.parametrize("name", ["disk_cache_mb", "memory_limit_mb"])
def test_limits_are_checked(name: str) -> None:
    with pytest.raises(UsageError, match=f"--{name.replace('_', '-')} is -1; accepted: 0 or more"):
        DataConfig(**{name: -1})


def test_options_reach_the_images(tmp_path: Path, cache: Path) -> None:
    root = make_folder(tmp_path / "data")
    for disk, count in ((0, 0), (1, 1)):
        open_source(DataConfig(data=str(root), memory_limit_mb=0, disk_cache_mb=disk)).read("all", RGB16)
        assert len(kept(cache)) == count


def test_views_are_windows_of_the_images() -> None:
    """Each view is found among all windows of its image, and of the mirrored image, by plain slicing."""
    preprocessing = Preprocessing(5, 7, crop_fraction=0.5)
    augmentation = Augmentation.resolve(AugmentConfig(crop_padding=2), preprocessing, flip=True, seed=0)
    margin = augmentation.margin
    shape = (40, 3, 5 + 2 * margin, 7 + 2 * margin)
    pixels = np.random.default_rng(0).integers(0, 256, shape).astype(np.uint8)
    views = augmentation(torch.from_numpy(pixels), np.arange(40), 1)
    assert views.is_contiguous(memory_format=torch.channels_last)
    found = set()
    for image, view in zip(np.pad(pixels, ((0, 0), (0, 0), (2, 2), (2, 2))), views.numpy(), strict=True):
        places = [
            (top, left, mirror)
            for top in range(image.shape[1] - 4)
            for left in range(image.shape[2] - 6)
            for mirror in (1, -1)
            if np.array_equal(view, image[:, top : top + 5, left : left + 7][:, :, ::mirror])
        ]
        assert len(places) == 1
        found.update(places)
    assert len(found) > 20
    assert {mirror for *_, mirror in found} == {1, -1}
    where = np.array([0, 3]), np.array([1, 2]), np.array([False, True])
    images = torch.from_numpy(pixels[:2]).permute(0, 2, 3, 1)
    expected = np.stack([images[0, 0:5, 1:8].numpy(), images[1, 3:8, 2:9].numpy()[:, ::-1]])
    assert np.array_equal(augmentation._gathered(images, *where).numpy(), expected)  # as on a GPU
