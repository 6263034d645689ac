"""What words mean by a sentence-embedding model: a real one of the library, with vectors made here."""

from __future__ import annotations

import json
import shutil
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

from _helpers.digits import write_digits
from _helpers.words import write_sentence_model
from krl_runtime.conditions import encode
from krl_runtime.errors import DataError, MissingExtraError, UsageError
from krl_train.conditioning.generator_data import read_data
from krl_train.conditioning.word_vectors import place_words, word_vectors
from krl_train.config import (
    ConditioningConfig,
    DataConfig,
    EvaluateConfig,
    FitConfig,
    GenerationConfig,
    InputConfig,
    LoopConfig,
)
from krl_train.training.fit import fit

pytest.importorskip("sentence_transformers")

MEANINGS = {
    "red": [1.0, 0.0, 0.0, 0.1],
    "blue": [0.0, 1.0, 0.0, 0.1],
    "digit": [0.0, 0.0, 1.0, 0.1],
    "crimson": [0.9, 0.1, 0.0, 0.9],
    "navy": [0.1, 0.8, 0.1, -0.9],
}


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return the folder of a model that knows five words."""
    return write_sentence_model(tmp_path_factory.mktemp("words") / "model", MEANINGS)


def test_words_are_placed_where_the_trained_ones_differ() -> None:
    meanings = torch.tensor(list(MEANINGS.values()))
    placed = place_words(meanings, 3).double()
    assert placed.shape == (5, 2)  # three words span a plane; the fourth axis, where they do not differ, is left out
    torch.testing.assert_close(placed.norm(dim=1), torch.full((5,), 2**0.5, dtype=torch.float64))
    unit = torch.nn.functional.normalize(meanings.double(), dim=1)
    away = unit - unit[:3].mean(0)
    onto = torch.linalg.pinv(away[:3]) @ away[:3]  # the projection on their span, by another way
    expected = torch.nn.functional.normalize(away @ onto, dim=1)
    torch.testing.assert_close(placed @ placed.T / 2, expected @ expected.T, atol=1e-6, rtol=0)
    red, blue, digit, crimson, navy = placed
    assert crimson @ red > 1.5
    assert navy @ blue > 1.5
    assert torch.stack([crimson @ blue, crimson @ digit, navy @ red, navy @ digit]).max() < 0


def test_vectors_come_from_the_model_and_unread_words_are_logged(model: Path, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level("INFO", logger="krl"):
        vectors = word_vectors(model, ["red", "blue", "digit"], ["crimson", "unknown"])
    expected = place_words(torch.tensor([MEANINGS[word] for word in ("red", "blue", "digit", "crimson")]), 3)
    assert vectors[0] == [0.0, 0.0]
    torch.testing.assert_close(torch.tensor(vectors[1:5]), expected, atol=1e-4, rtol=0)
    spoken = [(record.levelname, record.message) for record in caplog.records if record.message.startswith("the word")]
    assert [level for level, _ in spoken] == ["INFO", "WARNING"]  # the second is near none of them
    assert spoken[0][1].startswith("the word 'crimson', which no description has, is understood as near: red 0.6")
    assert spoken[1][1].startswith(
        "the word 'unknown' is near none of the descriptions' words and is a guess; nearest:"
    )
    assert max(map(abs, vectors[5])) < 0.1  # and it is placed in the middle


def test_a_generator_takes_words_that_no_description_has(model: Path, tmp_path: Path) -> None:
    shutil.copytree(model, tmp_path / "model")
    write_digits(tmp_path / "digits", per_class=10, val_per_class=4)
    images = sorted((tmp_path / "digits").rglob("*.png"))
    rows = [f"{path.relative_to(tmp_path / 'digits')},{('red', 'blue')[n % 2]} digit" for n, path in enumerate(images)]
    (tmp_path / "text.csv").write_text("\n".join(["image,text", *rows]))
    (tmp_path / "words.txt").write_text("Crimson\n\nnavy\nred\n")
    knowledge = ConditioningConfig(
        condition="text",
        condition_file=tmp_path / "text.csv",
        sentence_model=tmp_path / "model",
        more_words=tmp_path / "words.txt",
        condition_dim=8,
    )
    config = FitConfig(
        task="gan",
        model="dcgan-2",
        out=tmp_path / "run",
        data=DataConfig(data=str(tmp_path / "digits")),
        input=InputConfig(size=(8,)),
        loop=LoopConfig(epochs=1, batch_size=25, device="cpu", precision="fp32"),
        generation=GenerationConfig(latent=4),
        conditioning=knowledge,
    )
    run = fit(config)
    settings = run.record.model.arguments["condition"]
    assert settings["vocabulary"] == ["", "blue", "digit", "red", "crimson", "navy"]
    assert settings["untrained"] == ["crimson", "navy"]
    generator = run.module()
    texts = ["red digit", "crimson digit", "blue digit", "navy digit"]
    tokens = torch.from_numpy(encode(texts, settings))
    with torch.no_grad():
        red, crimson, blue, navy = generator(torch.zeros(4, 4), tokens)
    assert (crimson - red).abs().mean() < (crimson - blue).abs().mean()
    assert (navy - blue).abs().mean() < (navy - red).abs().mean()
    shutil.rmtree(tmp_path / "model")  # what is read again for measuring and distilling needs no model
    conditions = read_data(run.record, EvaluateConfig(run.path).data).conditions
    assert conditions is not None
    assert conditions.settings == settings
    assert {tuple(row) for row in conditions.tokens.tolist()} == {(1, 2), (3, 2)}


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            lambda folder: folder.rename(folder.with_name("moved")),
            "is not a folder; save a sentence-transformers model",
        ),
        (lambda folder: (folder / "model.safetensors").write_bytes(b"no"), "cannot be used"),
        (lambda folder: (folder / "modules.json").unlink(), "cannot be used"),
    ],
)
def test_a_folder_that_is_no_model_is_refused(model: Path, tmp_path: Path, change: Any, message: str) -> None:
    folder = tmp_path / "model"
    shutil.copytree(model, folder)
    change(folder)
    with pytest.raises((UsageError, DataError), match=message):
        word_vectors(folder, ["red", "blue"], [])


def test_code_that_comes_with_a_model_is_not_run(model: Path, tmp_path: Path) -> None:
    folder = tmp_path / "model"
    shutil.copytree(model, folder)
    (folder / "evil.py").write_text(f"open({str(tmp_path / 'ran')!r}, 'w')\nclass Evil: pass\n")
    modules = json.loads((folder / "modules.json").read_text())
    modules[0]["type"] = "evil.Evil"
    (folder / "modules.json").write_text(json.dumps(modules))
    with pytest.raises(DataError, match="cannot be used"):
        word_vectors(folder, ["red", "blue"], [])
    assert not (tmp_path / "ran").exists()


def test_words_that_mean_the_same_are_refused(model: Path) -> None:
    with pytest.raises(DataError, match="says the same of all 2 words"):
        word_vectors(model, ["unknown", "strange"], [])
    with pytest.raises(UsageError, match="4097 words are given; accepted: 4096 at most"):
        word_vectors(model, [str(number) for number in range(4097)], [])


@pytest.mark.parametrize(
    ("content", "message"), [("dark red", "line 1: 'dark red' is not one word"), ("\n", "no words")]
)
def test_a_file_of_words_has_a_word_in_a_line(tmp_path: Path, content: str, message: str) -> None:
    from krl_train.conditioning.tables import read_words

    (tmp_path / "words.txt").write_text(content)
    with pytest.raises(DataError, match=message):
        read_words(tmp_path / "words.txt")


def test_the_library_is_asked_for_by_its_extra(model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "sentence_transformers", None)
    with pytest.raises(MissingExtraError, match=r"\[text\]"):
        word_vectors(model, ["red", "blue"], [])
