"""Splits of folders: their names in any usual spelling, and stratified ones that are made here."""

import hashlib
import os
import sqlite3
import sys
import time
from collections import Counter

import numpy as np
import pytest
from PIL import Image

from krl_runtime.errors import DataError
from krl_runtime.images import hashes
from krl_runtime.images.folders import open_folder
from krl_runtime.images.hashes import UNREADABLE, decodable, hash_files, remember_decodable
from krl_runtime.images.splits import find_splits, hold_out


def image(path, seed=0):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(np.random.default_rng(seed).integers(0, 256, (4, 4, 3), np.uint8)).save(path)


def folder(root, *parts, classes=("cat", "dog"), count=2):
    for number, part in enumerate(parts):
        for label in classes:
            for index in range(count):
                image(root / part / label / f"{index}.png", seed=number * 10 + index)
    return root


@pytest.mark.parametrize(
    ("train", "val"),
    [
        ("train", "val"), ("Training", "Testing"), ("TRAIN", "TEST"), ("train", "Validation"),
        ("training_set", "test_set"), ("seg_train", "seg_test"), ("train2017", "val2017"),
        ("TrainingSet", "ValidationSet"), ("train-images", "eval-images"), ("Train", "dev"),
        ("trainset", "valset"), ("Train Data", "Test Data"), ("trn", "tst"),
    ],
)  # fmt: skip
def test_splits_in_any_usual_spelling(tmp_path, train, val):
    found = open_folder(folder(tmp_path, train, val))
    assert found.labels == ("cat", "dog")
    assert sorted(found.splits) == ["train", "val"]
    assert {image.path.parent.parent.name for image in found.splits["train"]} == {train}
    assert {image.path.parent.parent.name for image in found.splits["val"]} == {val}


@pytest.mark.parametrize(
    "names",
    [
        ("train", "bus", "car"),
        ("Trainer", "Tester"),
        ("training shoes", "test tubes"),
        ("value", "valley"),
        ("devices", "evals-9x"),
    ],
)
def test_classes_that_sound_alike_are_classes(tmp_path, names):
    for name in names:
        image(tmp_path / name / "0.png")
    assert open_folder(tmp_path).labels == tuple(sorted(names))


def test_an_archive_in_an_archive(tmp_path):
    root = folder(tmp_path, "seg_train/seg_train", "seg_test/seg_test")
    found = open_folder(root)
    assert found.labels == ("cat", "dog")
    assert len(found.splits["val"]) == 4


def test_of_three_splits_one_is_left_aside_with_a_message(tmp_path, caplog):
    with caplog.at_level("INFO", "krl"):
        found = open_folder(folder(tmp_path, "Training", "Validation", "Testing"))
    assert {image.path.parent.parent.name for image in found.splits["val"]} == {"Validation"}
    assert "Testing is left aside; krl-train evaluate RUN --data" in caplog.text


def test_a_single_split_is_looked_into(tmp_path):
    found = open_folder(folder(tmp_path, "Testing"))
    assert (found.labels, sorted(found.splits)) == (("cat", "dog"), ["all"])


@pytest.mark.parametrize(
    ("parts", "message"),
    [
        (("train", "Training", "val"), "train/, which name the same split"),
        (("val", "validation", "train"), "which name the same split"),
        (("Testing", "Validation"), "no train/"),
    ],
)
def test_two_readings_are_refused_and_shown(tmp_path, parts, message):
    with pytest.raises(DataError, match=message) as caught:
        open_folder(folder(tmp_path, *parts))
    assert str(tmp_path) in str(caught.value)


def test_a_class_beside_splits_is_refused(tmp_path):
    root = folder(tmp_path, "train", "test")
    image(root / "bus" / "0.png")
    with pytest.raises(
        DataError, match="can be read in two ways: as the splits test/, train/, which have folders"
    ) as caught:
        open_folder(root)
    assert "or as the classes bus/, test/, train/" in str(caught.value)


def test_other_folders_beside_splits_are_left_alone(tmp_path):
    root = folder(tmp_path, "train", "val")
    (root / "runs" / "events").mkdir(parents=True)
    (root / "notes").mkdir()
    (root / "notes" / "a.txt").write_text("notes")
    assert sorted(open_folder(root).splits) == ["train", "val"]


def test_a_class_may_be_called_train(tmp_path):
    for name in ("train", "bus"):
        image(tmp_path / name / "0.png")
    assert find_splits(tmp_path) == {}


def digests(count, seed):
    return [hashlib.sha256(f"{seed}-{index}".encode()).hexdigest() for index in range(count)]


@pytest.mark.parametrize("share", [0.1, 0.2, 0.5, 0.9])
def test_each_class_has_its_share_held_out(share):
    labels = [0] * 100 + [1] * 10 + [2] * 3 + [3] * 2 + [4]
    held = hold_out(labels, digests(len(labels), 1), share)
    counts = Counter(label for label, out in zip(labels, held, strict=True) if out)
    assert counts[0] == round(share * 100)
    assert counts[1] == min(9, max(1, round(share * 10)))
    for label, total in ((2, 3), (3, 2)):
        assert 1 <= counts[label] < total
    assert counts[4] == 0  # a single image is for training


def test_the_order_and_the_names_do_not_matter():
    labels, values = [0, 1] * 20, digests(40, 2)
    held = hold_out(labels, values, 0.3)
    order = np.random.default_rng(0).permutation(40)
    again = hold_out([labels[i] for i in order], [values[i] for i in order], 0.3)
    assert again == [held[i] for i in order]


def test_copies_stay_together():
    values = digests(10, 3)
    labels = [0] * 20
    held = hold_out(labels, values + values, 0.3)
    assert held[:10] == held[10:]
    assert sum(held) == 6


def test_hashes_are_those_of_hashlib_and_are_remembered(tmp_path, monkeypatch):
    monkeypatch.setenv("KRL_CACHE_DIR", str(tmp_path / "cache"))
    files = [tmp_path / f"{index}.bin" for index in range(1200)]
    for index, file in enumerate(files):
        file.write_bytes(f"content {index}".encode())
    expected = [hashlib.sha256(file.read_bytes()).hexdigest() for file in files]
    assert hash_files(files) == expected
    read = []
    monkeypatch.setattr(
        hashes, "sha256_file", lambda path: read.append(path) or hashlib.sha256(path.read_bytes()).hexdigest()
    )
    assert hash_files(files) == expected
    assert read == []
    files[7].write_bytes(b"another, longer content")
    stat = files[8].stat()
    files[8].write_bytes(b"content X")
    os.utime(files[8], ns=(stat.st_atime_ns, stat.st_mtime_ns + 1))
    made = hash_files(files)
    assert read == [files[7], files[8]]
    assert made[7] == hashlib.sha256(b"another, longer content").hexdigest()
    assert made[8] == hashlib.sha256(b"content X").hexdigest()


@pytest.mark.skipif(sys.platform == "win32", reason="Windows does not say when the content was changed")
def test_a_file_with_other_content_and_the_times_of_before_is_hashed_again(tmp_path, monkeypatch):
    monkeypatch.setenv("KRL_CACHE_DIR", str(tmp_path / "cache"))
    file = tmp_path / "a.png"
    file.write_bytes(b"before")
    before = file.stat()
    assert hash_files([file]) == [hashlib.sha256(b"before").hexdigest()]
    time.sleep(0.02)  # file systems count time in steps of some milliseconds
    file.write_bytes(b"after!")
    os.utime(file, ns=(before.st_atime_ns, before.st_mtime_ns))
    assert (file.stat().st_size, file.stat().st_mtime_ns) == (before.st_size, before.st_mtime_ns)
    assert hash_files([file]) == [hashlib.sha256(b"after!").hexdigest()]


@pytest.mark.parametrize("fault", ["damaged", "folder", "locked", "read-only"])
def test_a_cache_that_cannot_be_used_costs_time_alone(tmp_path, monkeypatch, caplog, fault):
    cache = tmp_path / "cache"
    monkeypatch.setenv("KRL_CACHE_DIR", str(cache))
    monkeypatch.setattr(hashes, "_WAIT", 0.1)
    file = tmp_path / "a.bin"
    file.write_bytes(b"a")
    connection = None
    if fault == "damaged":
        cache.mkdir()
        (cache / "hashes.sqlite").write_bytes(b"no database" * 1000)
    elif fault == "folder":
        (cache / "hashes.sqlite").mkdir(parents=True)
    elif fault == "locked":
        cache.mkdir()
        connection = sqlite3.connect(cache / "hashes.sqlite")
        connection.execute("BEGIN EXCLUSIVE")
    else:
        cache.write_bytes(b"a file where a folder should be")
    assert hash_files([file]) == [hashlib.sha256(b"a").hexdigest()]
    if connection is not None:
        connection.close()
    assert ("hashes.sqlite are damaged" in caplog.text) == (fault == "damaged")
    if fault == "damaged":
        assert hash_files([file]) == [hashlib.sha256(b"a").hexdigest()]
        assert (cache / "hashes.sqlite").read_bytes().startswith(b"SQLite format 3")


def test_files_that_could_be_decoded_are_remembered(tmp_path, monkeypatch):
    monkeypatch.setenv("KRL_CACHE_DIR", str(tmp_path))
    remember_decodable(["a" * 64, "b" * 64, UNREADABLE])
    assert decodable(["a" * 64, "c" * 64, UNREADABLE]) == {"a" * 64}
    monkeypatch.setattr(hashes, "decoder_version", lambda: "another")
    assert decodable(["a" * 64]) == set()


def test_a_file_that_was_replaced_is_hashed_again(tmp_path, monkeypatch):
    """By one of the same size and time, as a copy with its times is: its number is another."""
    monkeypatch.setenv("KRL_CACHE_DIR", str(tmp_path / "cache"))
    file, other = tmp_path / "a.bin", tmp_path / "b.bin"
    file.write_bytes(b"first")
    hash_files([file])
    other.write_bytes(b"other")
    os.utime(other, ns=(file.stat().st_atime_ns, file.stat().st_mtime_ns))
    other.replace(file)
    assert hash_files([file]) == [hashlib.sha256(b"other").hexdigest()]
    with pytest.raises(FileNotFoundError):
        hash_files([tmp_path / "none.bin"])
    assert hash_files([tmp_path / "none.bin", file], accept_unreadable=True)[0] == UNREADABLE
