"""Files of class names as other tools write them."""

from __future__ import annotations

import json
import unicodedata

import pytest

from krl_deploy.importers.labels import labels_for
from krl_runtime.errors import DataError, UsageError
from krl_runtime.images.folders import open_folder

NAMES = ("cat", "dog", "été", "two words")


def written(tmp_path, content, name="labels.txt"):
    path = tmp_path / name
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    return str(path)


LINES = "cat\ndog\nété\ntwo words\n"


@pytest.mark.parametrize(
    "content",
    [
        LINES,
        LINES.encode("utf-8-sig"),
        LINES.encode("utf-16"),
        b"\xfe\xff" + LINES.encode("utf-16-be"),
        LINES.replace("\n", "\r\n"),
        LINES.replace("\n", "\r"),
        unicodedata.normalize("NFD", LINES),
        "\n cat\t\n\ndog  \nété\n\ntwo words",
    ],
)
def test_lines(content, tmp_path):
    assert labels_for([written(tmp_path, content)], 4) == NAMES


@pytest.mark.parametrize(
    "content",
    [
        list(NAMES),
        {str(index): name for index, name in enumerate(NAMES)},
        {str(index): name for index, name in reversed(list(enumerate(NAMES)))},
        {name: index for index, name in reversed(list(enumerate(NAMES)))},
        {"id2label": {str(index): name for index, name in enumerate(NAMES)}, "hidden_size": 8},
        {"label2id": {name: index for index, name in enumerate(NAMES)}, "architectures": ["A"]},
    ],
)
@pytest.mark.parametrize("name", ["labels.json", "labels.txt"])
@pytest.mark.parametrize("mark", [b"", b"\xef\xbb\xbf"])
def test_json(content, name, mark, tmp_path):
    assert labels_for([written(tmp_path, mark + json.dumps(content).encode(), name)], 4) == NAMES


def test_names_that_are_numbers(tmp_path):
    by_index = written(tmp_path, '{"0": "2", "1": "0", "2": "1"}', "a.json")
    by_name = written(tmp_path, '{"2": 0, "0": 1, "1": 2}', "b.json")
    assert labels_for([by_index], 3) == labels_for([by_name], 3) == ("2", "0", "1")


def test_lines_that_only_begin_like_json(tmp_path):
    assert labels_for([written(tmp_path, "[background]\ncat\n")], 2) == ("[background]", "cat")


@pytest.mark.parametrize(
    ("content", "name", "message"),
    [
        ("cat\ndog\n\ncat\n", "a.txt", "'cat' at line 1 and line 4; 1 in all"),
        ("\ufeffété\ndog\n" + unicodedata.normalize("NFD", "été"), "a.txt", "'été' at line 1 and line 3"),
        ('["a", "b", "a"]', "a.json", "'a' at position 1 and position 3"),
        ('{"0": "a", "1": "b", "2": "b"}', "a.json", "'b' at index 1 and index 2"),
        ('{"a": 0, "b": 1, "a": 2}', "a.json", "'a' at index 0 and index 2"),
        ('{"0": "a", "0": "b", "1": "c"}', "a.json", "not 0 to 2, each once: 0 stands twice"),
        ('{"a": 0, "b": 2, "c": 3}', "a.json", "1 is missing or too large"),
        ('{"1": "a", "2": "b", "3": "c"}', "a.json", "0 is missing or too large"),
        ('{"0": ["n01", "a"], "1": ["n02", "b"], "2": ["n03", "c"]}', "a.json", r"'0': \['n01', 'a'\]; accepted"),
        ('{"x": "a", "y": "b", "z": "c"}', "a.json", "'x': 'a'; accepted are names by index"),
        ('["a", 1, null]', "a.json", "no list of names"),
        ('"a"', "a.json", "no list of names"),
        ("a\nb\nc", "a.json", "is not JSON"),
        ('["a", "b", " "]', "a.json", "an empty name at position 3"),
        (b"\xe9t\xe9\n", "a.txt", "is not UTF-8 text"),
        ("a\nb\n", "a.txt", r"2 labels were given \(a, b …\), but the model has 3 outputs"),
    ],
)
def test_what_is_wrong_is_named(content, name, message, tmp_path):
    with pytest.raises(UsageError, match=message):
        labels_for([written(tmp_path, content, name)], 3)


def test_names_on_the_command_line():
    assert labels_for([unicodedata.normalize("NFD", "é"), "b"], 2) == ("é", "b")
    with pytest.raises(UsageError, match="--labels has 'a' at position 1 and position 3"):
        labels_for(["a", "b", "a"], 3)
    with pytest.raises(UsageError, match=r"--labels is none.txt, which does not exist"):
        labels_for(["none.txt"], 3)


def folder_of(tmp_path, names):
    from PIL import Image

    for name in names:
        (tmp_path / name).mkdir()
        Image.new("RGB", (8, 8)).save(tmp_path / name / "1.png")
    return open_folder(tmp_path)


def test_folders_of_any_form_have_the_labels_of_the_file(tmp_path):
    names = [unicodedata.normalize("NFD", "été"), "zebra", "étui"]
    folder = folder_of(tmp_path, names)
    assert folder.labels == ("zebra", "étui", "été")
    found = {folder.labels[image.label]: image.path.parent.name for image in folder.splits["all"]}
    assert found == {"zebra": "zebra", "été": names[0], "étui": "étui"}


def test_folders_that_look_alike_are_refused(tmp_path):
    with pytest.raises(DataError, match="two class folders whose names look alike"):
        folder_of(tmp_path, ["é", unicodedata.normalize("NFD", "é")])
