from __future__ import annotations

import json
import logging
import os
from pathlib import Path

import pytest
from PIL import Image

from krl_runtime import DataError
from krl_runtime.images import lists
from krl_runtime.images.folders import open_folder


def write(root: Path, text: str | bytes, name: str = "list.csv", images: int = 6) -> Path:
    """Write a list beside ``img/0.png`` and so on, each with other pixels."""
    (root / "img").mkdir(parents=True, exist_ok=True)
    for number in range(images):
        Image.new("L", (4, 4), number).save(root / "img" / f"{number}.png")
    path = root / name
    path.write_bytes(text if isinstance(text, bytes) else text.encode())
    return path


def labels_of(path: Path, split: str = "all") -> list[tuple[str, str]]:
    folder = open_folder(path)
    return [(image.path.name, folder.labels[image.label]) for image in folder.split(split)]


EXPECTED = [("0.png", "cat"), ("1.png", "dog, big")]


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("a.csv", 'image,label\nimg/0.png,cat\nimg/1.png,"dog, big"\n\n'),
        ("a.csv", b'\xef\xbb\xbfFile Name,Class\r\nimg/0.png,cat\r\nimg/1.png,"dog, big"\r\n'),
        ("a.csv", "path;width;class_name\n./img/0.png;7;cat\nimg\\1.png;8;dog, big\n"),
        ("a.csv", "label\tfilename\ncat\timg/0.png\ndog, big\timg/../img/1.png"),
        ("a.tsv", 'image_path\tcategory\n"img/0.png"\tcat\nimg/1.png\tdog, big\n'),
        ("a.json", json.dumps([{"file": "img/0.png", "label": "cat"}, {"label": "dog, big", "file": "img/1.png"}])),
        ("a.jsonl", '{"image": "img/0.png", "label": "cat"}\n\n{"image": "img/1.png", "label": "dog, big"}\n'),
        ("a.JSON", '{"image": "img/0.png", "label": "cat"}\n{"image": "img/1.png", "label": "dog, big"}'),
    ],
)
def test_usual_spellings_are_read(tmp_path: Path, name: str, text: str | bytes):
    path = write(tmp_path, text, name)
    assert labels_of(path) == EXPECTED
    assert not open_folder(path).multi_label
    assert all(image.present is None for image in open_folder(path).split("all"))


def test_names_of_labels_may_be_numbers_in_json(tmp_path: Path):
    path = write(tmp_path, '[{"image": "img/0.png", "label": 7}, {"image": "img/1.png", "label": 10}]', "a.json")
    assert open_folder(path).labels == ("10", "7")


def test_absolute_paths_below_the_list_are_accepted(tmp_path: Path):
    path = write(tmp_path, f"image,label\n{tmp_path}/img/0.png,cat\nimg/1.png,dog\n")
    assert [name for name, _ in labels_of(path)] == ["0.png", "1.png"]


def test_splits_of_a_list(tmp_path: Path, caplog: pytest.LogCaptureFixture):
    rows = [f"img/{number}.png,{'ab'[number % 2]},{('Training', 'valid', 'test')[number // 2]}" for number in range(6)]
    path = write(tmp_path, "image,label,subset\n" + "\n".join(rows))
    with caplog.at_level(logging.INFO, "krl"):
        assert labels_of(path, "train") == [("0.png", "a"), ("1.png", "b")]
    assert "2 images of the split test" in caplog.text
    assert labels_of(path, "val") == [("2.png", "a"), ("3.png", "b")]
    only = write(tmp_path, "\n".join(["image,label,split", *rows[2:4]]), "val.csv")
    assert list(open_folder(only).splits) == ["all"]
    classes = write(tmp_path, "image,label,split\nimg/0.png,a,train\nimg/1.png,b,val\n", "classes.csv")
    with pytest.raises(DataError, match=r"only in train: \['a'\]; only in val: \['b'\]"):
        open_folder(classes)
    assert open_folder(classes, same_classes=False).labels == ("a", "b")


def test_a_list_without_splits_is_split_by_content(tmp_path: Path):
    rows = [f"img/{number}.png,{'ab'[number % 2]}" for number in range(40)]
    path = write(tmp_path, "image,label\n" + "\n".join(rows), images=40)
    backwards = write(tmp_path, "image,label\n" + "\n".join(reversed(rows)), "b.csv", images=40)
    held = {name for name, _ in labels_of(path, "val")}
    assert held == {name for name, _ in labels_of(backwards, "val")}
    assert len(held) == 4
    assert len(labels_of(path, "train")) == 36


def test_images_without_labels(tmp_path: Path):
    folder = open_folder(write(tmp_path, "image\nimg/0.png\nimg/1.png\n"))
    assert (folder.labels, folder.multi_label, len(folder.split("all"))) == ((), False, 2)


MULTI = [("0.png", {"cat", "traffic light"}), ("1.png", set()), ("2.png", {"dog"})]


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("a.csv", "image,labels\nimg/0.png,cat|traffic light\nimg/1.png,\nimg/2.png,dog\n"),
        ("a.csv", 'image,Tags\nimg/0.png,"cat, traffic light"\nimg/1.png,\nimg/2.png,dog\n'),
        ("a.csv", "image,classes\nimg/0.png,traffic light; cat;\nimg/1.png,\nimg/2.png,dog\n"),
        ("a.csv", 'image,labels\nimg/0.png,"[""cat"", ""traffic light""]"\nimg/1.png,[]\nimg/2.png,"[""dog""]"\n'),
        ("a.csv", "image,labels\nimg/0.png,\"['cat', 'traffic light']\"\nimg/1.png,[]\nimg/2.png,['dog']\n"),
        ("a.csv", "image,cat,dog,traffic light\nimg/0.png,1,0,1\nimg/1.png,0,0.0,False\nimg/2.png,0,1.0,0\n"),
        (
            "a.json",
            '[{"image": "img/0.png", "labels": ["cat", "traffic light"]}, {"image": "img/1.png", "labels": null}, '
            '{"image": "img/2.png", "labels": ["dog", "dog"]}]',
        ),
        (
            "a.jsonl",
            '{"image": "img/0.png", "label": ["cat", "traffic light"]}\n{"image": "img/1.png", "label": []}\n'
            '{"image": "img/2.png", "label": ["dog"]}\n',
        ),
        (
            "a.jsonl",
            '{"image": "img/0.png", "cat": 1, "dog": 0, "traffic light": true}\n'
            '{"image": "img/1.png", "cat": 0, "dog": 0, "traffic light": 0}\n'
            '{"image": "img/2.png", "cat": 0, "dog": 1, "traffic light": 0}\n',
        ),
    ],
)
def test_several_labels_of_an_image(tmp_path: Path, name: str, text: str):
    folder = open_folder(write(tmp_path, text, name))
    assert folder.multi_label
    assert folder.labels == ("cat", "dog", "traffic light")
    found = [(image.path.name, {folder.labels[each] for each in image.present or ()}) for image in folder.split("all")]
    assert found == MULTI
    assert all(image.label == -1 for image in folder.split("all"))


def test_images_are_divided_by_their_rarest_label(tmp_path: Path):
    rows = [f"img/{number}.png,common{'|rare' * (number < 10)}" for number in range(40)]
    folder = open_folder(write(tmp_path, "image,labels\n" + "\n".join(rows), images=40))
    rare = folder.labels.index("rare")
    parts = {name: folder.split(name, val_fraction=0.2) for name in ("train", "val")}
    assert [sum(image.group == rare for image in part) for part in parts.values()] == [8, 2]
    assert [len(part) for part in parts.values()] == [32, 8]


def test_one_label_on_each_image_is_named(tmp_path: Path, caplog: pytest.LogCaptureFixture):
    path = write(tmp_path, "image,labels\nimg/0.png,a\nimg/1.png,b\n")
    with caplog.at_level(logging.WARNING, "krl"):
        assert open_folder(path).multi_label
    assert "exactly one of the 2 labels" in caplog.text
    assert "'label'" in caplog.text


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "no column with the images' files"),
        ("image,label\n", "lists no images"),
        ("img/0.png,cat\n", r"files; it has: 'img/0\.png', 'cat'; accepted: image, filename"),
        ("image,label\nimg/0.png\n", "line 2 has 1 fields, and the header has 2"),
        ("image,label,label\nimg/0.png,a,b\n", "the column 'label' twice"),
        ("image,file,label\nimg/0.png,a,b\n", "'image', 'file' for the images' files; accepted: one column"),
        ("image,label,labels\nimg/0.png,a,b\n", "the columns 'label' and 'labels'; accepted: one of them"),
        ('image,label\n"img/0.png,a\n', "is not CSV"),
        ("image,label\nimg/0.png,a\n\nimg/1.png,\n", "line 4: the label is empty; accepted: the name of a class"),
        ("image,label\n,a\n", "line 2: the image is empty"),
        ("image,label\nimg/0.png,a\n./img/0.png,b\n", r"twice: \./img/0\.png \(line 2 and line 3\)"),
        ("image,label,split\nimg/0.png,a,train\nimg/1.png,a,7\n", "line 3: the split is '7'; accepted: train"),
        ("image,label,split\nimg/0.png,a,train\nimg/1.png,a,\n", "line 3: the split is ''"),
        ("image,label,split\nimg/0.png,a,test\nimg/1.png,a,val\n", "none to train on"),
        ("image,label\n../a.png,a\n", r"line 2: \.\./a\.png lies outside the list's folder"),
        ("image,label\nimg/../../a.png,a\n", "lies outside the list's folder"),
        ("image,label\n/etc/passwd,a\n", "lies outside the list's folder"),
        ("image,label\nC:\\img\\0.png,a\n", "lies outside the list's folder"),
        ("image,label\n..\\a.png,a\n", "lies outside the list's folder"),
        ("image,label\nimg/9.png,a\nimg/0.png,b\nimg/8.png,b\n", r"2 files cannot be used: .*2: img/9\.png is not in"),
        ("image,cat,age\nimg/0.png,1,41\n", "line 2: column 'age' is '41'"),
        ("image,labels\nimg/0.png,[1\n", r"the labels '\[1' are no JSON list"),
    ],
)
def test_lists_that_cannot_be_used(tmp_path: Path, text: str, message: str):
    with pytest.raises(DataError, match=message):
        open_folder(write(tmp_path, text))


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ('{"image": "a"', "line 1 is not valid JSON"),
        ('{"images": [], "annotations": []}', r"line 1: the image is \[\]; accepted: the path of a file"),
        ("[1]", "item 1 is no JSON object"),
        ("[" * 100_000, "is not valid JSON"),
        ("", "lists no images"),
        ('[{"image": "img/0.png", "label": "a"}, {"image": "img/1.png"}]', "item 2 has no 'label'"),
        ('[{"image": "img/0.png", "label": true}]', "item 1: the label is True"),
        ('[{"image": 3, "label": "a"}]', "item 1: the image is 3"),
        ('[{"image": "img/0.png", "labels": [["a"]]}]', r"item 1: the label is \['a'\]"),
        ('[{"image": "img/0.png", "labels": {"a": 1}}]', "item 1: the labels are"),
    ],
)
def test_json_that_cannot_be_used(tmp_path: Path, text: str, message: str):
    with pytest.raises(DataError, match=message):
        open_folder(write(tmp_path, text, "a.json"))


def test_other_encodings_are_named(tmp_path: Path):
    with pytest.raises(DataError, match="line 2 is not UTF-8"):
        open_folder(write(tmp_path, "image,label\nimg/0.png,Höhe\n".encode("latin-1")))


def test_missing_files_can_be_skipped(tmp_path: Path, caplog: pytest.LogCaptureFixture):
    path = write(tmp_path, "image,label\nimg/9.png,a\nimg/0.png,b\n")
    with caplog.at_level(logging.WARNING, "krl"):
        assert [image.path.name for image in open_folder(path, on_bad="skip").split("all")] == ["0.png"]
    assert "line 2: img/9.png" in caplog.text
    with pytest.raises(DataError, match="none of its images is there"):
        open_folder(write(tmp_path, "image,label\nimg/9.png,a\n"), on_bad="skip")


@pytest.mark.skipif(os.name == "nt", reason="links need rights on Windows")
def test_links_do_not_lead_out_of_the_folder(tmp_path: Path):
    root = tmp_path / "data"
    path = write(root, "image,label\nimg/link.png,a\n")
    Image.new("L", (4, 4)).save(tmp_path / "outside.png")
    (root / "img" / "link.png").symlink_to(tmp_path / "outside.png")
    with pytest.raises(DataError, match="lies outside the list's folder"):
        open_folder(path)
    (root / "inner").symlink_to(root / "img")
    (root / "outer").symlink_to(tmp_path)
    assert open_folder(write(root, "image,label\ninner/0.png,a\n")).labels == ("a",)
    with pytest.raises(DataError, match="lies outside the list's folder"):
        open_folder(write(root, "image,label\nouter/outside.png,a\n"))


def test_lists_are_bounded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    path = write(tmp_path, "image,label\nimg/0.png,a\nimg/1.png,b\n")
    monkeypatch.setattr(lists, "_MOST_LABELS", 1)
    with pytest.raises(DataError, match="has 2 labels, such as 'a'; accepted: 1 at most"):
        open_folder(path)
    monkeypatch.setattr(lists, "_MOST_BYTES", 10)
    with pytest.raises(DataError, match=r"has more than 0 MiB; divide it"):
        open_folder(path)


def test_other_files_are_no_lists(tmp_path: Path):
    (tmp_path / "notes.txt").write_text("image,label\n")
    with pytest.raises(DataError, match=r"is a file, not a folder; .*\.csv, \.tsv, \.json, \.jsonl"):
        open_folder(tmp_path / "notes.txt")


def test_the_list_itself_may_be_given_by_any_path(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    write(tmp_path / "data", "image,label\nimg/0.png,cat\nimg/1.png,dog\n")
    (tmp_path / "other").mkdir()
    monkeypatch.chdir(tmp_path / "other")
    assert len(open_folder("../data/list.csv").split("all")) == 2
    monkeypatch.chdir(tmp_path / "data")
    assert len(open_folder("list.csv").split("all")) == 2


FURTHER = "image,label,color,right,note\nimg/0.png,cat, red ,img/1.png,\nimg/2.png,dog,blue,img/1.png,x\n"


@pytest.mark.parametrize("labels", [True, False])
def test_further_columns_are_kept_if_they_are_asked_for(tmp_path: Path, labels: bool):
    """Without a label the other columns would be taken for labels."""
    text = FURTHER if labels else "image,color,right\nimg/0.png,red,img/1.png\nimg/2.png,blue,img/1.png\n"
    folder = open_folder(write(tmp_path, text), attributes=["color"], images=["right"])
    right = str(tmp_path / "img" / "1.png")
    assert [image.fields for image in folder.split("all")] == [
        {"color": "red", "right": right},
        {"color": "blue", "right": right},
    ]
    assert folder.labels == (("cat", "dog") if labels else ())
    assert not folder.multi_label


def test_json_has_numbers(tmp_path: Path):
    path = write(tmp_path, '[{"image": "img/0.png", "label": "a", "size": 2.5, "wet": true}]', "a.json")
    (image,) = open_folder(path, attributes=["size", "wet"]).split("all")
    assert image.fields == {"size": "2.5", "wet": "true"}


@pytest.mark.parametrize(
    ("columns", "message"),
    [
        ({"attributes": ["tint"]}, r"'tint' not at all.*it has .*'color', 'right', 'note'"),
        ({"attributes": ["label"]}, "'label' for something else"),
        ({"attributes": ["note"]}, "line 2: column 'note' is empty"),
        ({"images": ["note"]}, "line 2: the image is empty"),
        ({"images": ["color"]}, "red is not in"),
    ],
)
def test_further_columns_that_cannot_be_used_are_refused(tmp_path: Path, columns: dict[str, list[str]], message: str):
    with pytest.raises(DataError, match=message):
        open_folder(write(tmp_path, FURTHER), **columns)


def test_a_further_image_stays_below_the_list(tmp_path: Path):
    inside = tmp_path / "in"
    Image.new("L", (4, 4)).save(tmp_path / "out.png")
    path = write(inside, "image,label,right\nimg/0.png,cat,../out.png\n")
    with pytest.raises(DataError, match=r"line 2: \.\./out\.png lies outside"):
        open_folder(path, images=["right"])


def test_a_row_without_its_further_image_is_skipped_or_refused(tmp_path: Path):
    path = write(tmp_path, "image,label,right\nimg/0.png,cat,img/1.png\nimg/2.png,dog,img/99.png\n")
    with pytest.raises(DataError, match=r"img/99.png is not in"):
        open_folder(path, images=["right"])
    (image,) = open_folder(path, images=["right"], on_bad="skip").split("all")
    assert image.path.name == "0.png"


def test_a_folder_has_no_columns(tmp_path: Path):
    write(tmp_path, "")
    with pytest.raises(DataError, match=r"need the columns 'color'.*give a list of images"):
        open_folder(tmp_path / "img", attributes=["color"])
