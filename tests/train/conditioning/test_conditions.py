"""Conditions of a training set's images, read from files."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from krl_runtime.errors import DataError, UsageError
from krl_runtime.images.preprocessing import Preprocessing
from krl_train.conditioning import Conditions, read_conditions
from krl_train.config import ConditioningConfig, DataConfig
from krl_train.data import open_source
from krl_train.models.conditioners import build_conditioner

NAMES = ("train/one/a.png", "train/one/b.png", "train/two/c.png")

Read = Callable[..., Conditions]


@pytest.fixture
def read(tmp_path: Path) -> Read:
    """Return a function of a kind and a file's content."""
    for name in (*NAMES, "val/one/d.png", "val/two/e.png"):
        file = tmp_path / "data" / name
        file.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(np.zeros((4, 4), np.uint8)).save(file)
    source = open_source(DataConfig(data=str(tmp_path / "data")))
    data = source.read("train", Preprocessing(4, 4, channels=1, mean=(0.5,), std=(0.5,)))

    def call(kind: str, content: str | None = None, suffix: str = "csv", **more: object) -> Conditions:
        file = None
        if content is not None:
            file = tmp_path / f"conditions.{suffix}"
            file.write_text(content, encoding="utf-8")
        config = ConditioningConfig(condition=kind, condition_file=file, condition_dim=8, **more)  # type: ignore[arg-type]
        conditions = read_conditions(config, source, data, seed=0)
        assert conditions is not None
        return conditions

    return call


def table(header: str, *cells: str) -> str:
    return "\n".join([header, *(f"{name},{cell}" for name, cell in zip(NAMES, cells, strict=True))])


def test_labels_are_the_classes(read: Read) -> None:
    conditions = read("labels")
    assert conditions.settings == {"kind": "labels", "length": 1, "dim": 8, "vocabulary": ["one", "two"]}
    assert conditions.draw(torch.tensor([2, 0])).tolist() == [[1], [0]]


def test_nothing_is_read_where_no_condition_is_asked_for() -> None:
    assert read_conditions(ConditioningConfig(), None, None, seed=0) is None  # type: ignore[arg-type]


def test_attributes_by_hand(read: Read) -> None:
    conditions = read("attributes", table("image,size,color", "big,red", "small,", "big,blue"), condition_dropout=0.0)
    vocabulary = ["size=", "size=big", "size=small", "color=", "color=blue", "color=red"]
    assert conditions.settings == {"kind": "attributes", "length": 2, "dim": 8, "vocabulary": vocabulary}
    assert conditions.draw(torch.tensor([0, 1, 2])).tolist() == [[1, 5], [2, 3], [1, 4]]


def test_dropout_leaves_attributes_open(read: Read) -> None:
    conditions = read("attributes", table("image,size,color", "big,red", "big,red", "big,red"), condition_dropout=0.3)
    torch.manual_seed(0)
    drawn = conditions.draw(torch.zeros(4000, dtype=torch.int64))
    for column, (left_open, value) in enumerate(((0, 1), (2, 3))):
        assert set(drawn[:, column].tolist()) == {left_open, value}
        assert float((drawn[:, column] == left_open).double().mean()) == pytest.approx(0.3, abs=0.03)
    torch.manual_seed(0)
    assert torch.equal(drawn, conditions.draw(torch.zeros(4000, dtype=torch.int64)))


def test_a_value_that_no_training_image_has_is_not_known(read: Read) -> None:
    content = table("image,color", "red", "blue", "red") + "\nval/one/d.png,pink\n"
    assert "color=pink" not in read("attributes", content).settings["vocabulary"]


@pytest.mark.parametrize("suffix", ["csv", "jsonl"])
def test_one_of_several_texts_is_drawn(read: Read, suffix: str) -> None:
    rows = [(NAMES[0], "a red one"), (NAMES[1], "One, blue!"), (NAMES[0], "red"), (NAMES[2], "two")]
    content = "image,text\n" + "\n".join(f'{name},"{text}"' for name, text in rows)
    if suffix == "jsonl":
        rows_of = [(NAMES[0], ["a red one", "red"]), (NAMES[1], "One, blue!"), (NAMES[2], "two")]
        content = "\n".join(json.dumps({"image": name, "text": text}) for name, text in rows_of)
    conditions = read("text", content, suffix)
    assert conditions.settings["vocabulary"] == ["", "a", "blue", "one", "red", "two"]
    assert conditions.settings["length"] == 3
    drawn = conditions.draw(torch.tensor([0] * 200 + [1, 2]))
    counts = {tuple(row): int((drawn[:200] == torch.tensor(row)).all(1).sum()) for row in ([1, 4, 3], [4, 0, 0])}
    assert sum(counts.values()) == 200
    assert min(counts.values()) > 50
    assert drawn[200:].tolist() == [[3, 2, 0], [5, 0, 0]]


def test_facts_of_the_classes(read: Read) -> None:
    triples = "head,relation,tail\none,color,red\none,size,big\ntwo,color,blue\nthree,color,red"
    conditions = read("graph", triples, condition_dropout=0.0)
    vocabulary = ["", "color", "size", "big", "blue", "one", "red", "three", "two"]
    assert conditions.settings["vocabulary"] == vocabulary
    assert conditions.draw(torch.tensor([0, 2])).tolist() == [[1, 6, 2, 3], [1, 4, 0, 0]]
    conditioner = build_conditioner(conditions.settings)
    conditions.initialize(conditioner)
    learned = conditioner.get_submodule("embedding").weight[3:]  # type: ignore[index]
    torch.testing.assert_close(learned.norm(dim=1), torch.full((6,), 8**0.5))  # TransE's entities are unit vectors


def test_facts_are_left_out_but_not_all(read: Read) -> None:
    conditions = read("graph", "one,color,red\none,size,big\ntwo,color,blue", condition_dropout=0.5)
    drawn = {tuple(row) for row in conditions.draw(torch.zeros(200, dtype=torch.int64)).tolist()}
    names = conditions.settings["vocabulary"]
    written = {tuple(names[token] for token in row) for row in drawn}
    assert written == {("color", "red", "size", "big"), ("color", "red", "", ""), ("", "", "size", "big")}


@pytest.mark.parametrize(
    ("kind", "content", "message"),
    [
        ("attributes", "", "conditions.csv is empty"),
        ("attributes", "image,color\n", "has no rows"),
        ("attributes", "name,color\na,b", "columns are name, color; expected image and different attributes"),
        ("attributes", "image\na", "expected image and different attributes"),
        ("attributes", "image,a=b\nx,y", "an attribute's name has neither '=' nor ','"),
        ("attributes", "image,color\na.png", "line 2 has 1 columns; the first line has 2"),
        ("attributes", 'image,color\na.png,"x,y"', "line 2: a value has a comma"),
        ("attributes", "image,color\na.png,x\na.png,y", "line 3: image 'a.png' comes for the second time"),
        ("attributes", f"image,color\n{NAMES[0]},x", r"no row for 2 \(train/one/b.png, train/two/c.png\) of the 3"),
        ("attributes", table("image,c", "x", "y", "z") + "\nzz.png,x", r"names 1 \(zz.png\), not found in"),
        ("attributes", 'image,color\n"a', "is not CSV"),
        ("text", "image,words\na,b", "columns are image, words; expected image,text"),
        ("text", "image,text\na,b,c", "line 2 has 3 columns, expected 2; quote a text with commas"),
        ("text", table("image,text", "red", "...", "blue"), "'...' has 0 words"),
        ("graph", "one,color", "line 1 is 'one,color'; expected three entries"),
        ("graph", "one,,red", "expected three entries"),
        ("graph", "head,relation,tail\n", "has no facts"),
        ("graph", "one,color,red\none,red,two", "'red' is an entity and a relation"),
        ("graph", "one,a=b,red", "a name has ',' or '='"),
        ("graph", "one,color,red", r"has no fact about 1 \(two\)"),
        ("graph", "\n".join(f"one,r{index},x" for index in range(17)) + "\ntwo,r1,x", "an entity has 17 facts"),
    ],
)
def test_what_cannot_be_used_is_named(read: Read, kind: str, content: str, message: str) -> None:
    with pytest.raises(DataError, match=message):
        read(kind, content)


@pytest.mark.parametrize(
    "line", ["[1]", "{", '{"image": "a"}', '{"image": "a", "text": []}', '{"image": 1, "text": "a"}']
)
def test_lines_that_are_not_descriptions(read: Read, line: str) -> None:
    with pytest.raises(DataError, match="line 1"):
        read("text", line, "jsonl")


def test_a_file_that_is_not_there(tmp_path: Path) -> None:
    from krl_train.conditioning.tables import read_triples

    with pytest.raises(DataError, match=r"missing.csv cannot be read"):
        read_triples(tmp_path / "missing.csv")


def test_a_named_data_set_has_no_files_to_name(tmp_path: Path) -> None:
    source = open_source(DataConfig(data="digits"))
    data = source.read("train", Preprocessing(8, 8, channels=1, mean=(0.5,), std=(0.5,)))
    config = ConditioningConfig(condition="text", condition_file=tmp_path / "x.csv")
    with pytest.raises(UsageError, match="digits has no files that a table could name; write it as a folder"):
        read_conditions(config, source, data, seed=0)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"condition": "text"}, "--condition text needs --condition-file"),
        ({"condition": "labels", "condition_file": Path("x")}, "labels takes no --condition-file"),
        ({"condition": "labels", "sentence_model": Path("x")}, "--sentence-model is for --condition text"),
        ({"condition": "text", "condition_file": Path("x"), "more_words": Path("x")}, "--more-words needs --sentence"),
        ({"guide": Path("x")}, "--guide needs --condition"),
        ({"condition_dim": 0}, "--condition-dim is 0"),
        ({"condition_dropout": 1.0}, "--condition-dropout is 1.0"),
        ({"condition": "labels", "guide": Path("x"), "guide_weight": 0.0}, "--guide-weight is 0.0"),
    ],
)
def test_options_out_of_range(options: dict[str, object], message: str) -> None:
    with pytest.raises(UsageError, match=message):
        ConditioningConfig(**options)  # type: ignore[arg-type]
