"""Named training recipes: ordinary options, which the command line overrides and the run records."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest
from ruamel.yaml import YAML

import krl_compress
import krl_train
from krl_compress.cli import main as compress
from krl_compress.config import RECIPES
from krl_train import verbs
from krl_train.cli import main
from krl_train.config import TRAINING_RECIPES, FitConfig

NAMES = sorted(path.stem for path in TRAINING_RECIPES.glob("*.yaml"))
FAST = ["--data", "digits", "--limit", "40", "--val-limit", "20", "--epochs", "1", "--batch-size", "20"]
FAST += ["--device", "cpu", "--model", "resnet8"]


def text_of(name: str) -> str:
    return (TRAINING_RECIPES / f"{name}.yaml").read_text(encoding="utf-8")


def flat(values: dict[str, Any]) -> dict[str, Any]:
    found: dict[str, Any] = {}
    for key, value in values.items():
        found |= flat(value) if isinstance(value, dict) else {key: value}
    return found


def recorded(folder: Path) -> dict[str, Any]:
    return flat(json.loads((folder / "run.json").read_text())["configuration"])


def test_there_are_recipes_for_small_images_imagenet_and_few_images() -> None:
    assert NAMES == ["cifar", "imagenet", "small-data"]
    assert not set(NAMES) & {path.stem for path in RECIPES.glob("*.yaml")}


@pytest.mark.parametrize("name", NAMES)
def test_a_recipe_is_what_the_run_records(name: str, tmp_path: Path) -> None:
    assert main(["fit", "--recipe", name, *FAST, "--out", str(tmp_path / "run")]) == 0
    found = recorded(tmp_path / "run")
    assert found["recipe"] == [name]
    given = YAML(typ="safe", pure=True).load(text_of(name))
    for key, value in given.items():
        if key not in ("epochs", "batch_size"):
            assert found[key] == value, key
    assert (found["epochs"], found["batch_size"]) == (1, 20)  # the command line wins


@pytest.mark.parametrize("name", NAMES)
def test_a_recipe_names_its_sources(name: str) -> None:
    first, *others = text_of(name).splitlines()
    assert re.match(r"# [A-Z].*\.$", first)  # what the table shows
    assert any("https://" in line for line in others)


@pytest.mark.parametrize("name", NAMES)
def test_python_takes_recipes_as_the_command_line_does(
    name: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    seen: list[FitConfig] = []
    monkeypatch.setattr("krl_train.training.fit.fit", seen.append)
    monkeypatch.setattr(verbs.RunResult, "of", classmethod(lambda cls, run: run))
    monkeypatch.setattr("krl_train.cli._show_run", lambda *_: None)
    options = ["--lr", "0.3", "--data", "digits", "--model", "resnet8", "--out", str(tmp_path)]
    assert main(["fit", "--recipe", name, *options]) == 0
    krl_train.fit(recipe=name, lr=0.3, data="digits", model="resnet8", out=tmp_path)
    assert seen[0] == seen[1]
    assert seen[0].optim.lr == 0.3
    assert seen[0].recipe == (name,)


def test_a_resumed_run_has_its_recipe(tmp_path: Path) -> None:
    out = tmp_path / "run"
    assert main(["fit", "--recipe", "cifar", *FAST, "--out", str(out)]) == 0
    before = (out / "run.json").read_text()
    assert main(["fit", "--resume", "--out", str(out)]) == 0
    assert main(["fit", "--resume", "--recipe", "cifar", *FAST, "--out", str(out)]) == 0
    assert (out / "run.json").read_text() == before


def test_the_command_lists_and_shows_them(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["recipes"]) == 0
    listed = capsys.readouterr().out
    assert all(name in listed for name in NAMES)
    assert "dkd-ls" not in listed
    assert main(["recipes", "imagenet"]) == 0
    assert capsys.readouterr().out == text_of("imagenet")
    assert compress(["recipes"]) == 0
    listed = capsys.readouterr().out
    assert all(name in listed for name in [*NAMES, "dkd-ls"])
    assert main(["recipes", "cifr"]) == 2
    error = capsys.readouterr().err
    assert "recipe cifr: not known (did you mean 'cifar'?); accepted: cifar, imagenet, small-data" in error
    assert main(["fit", "--recipe", "kd", *FAST, "--out", "none"]) == 2
    assert "--recipe kd: not known" in capsys.readouterr().err


def test_distillation_takes_a_recipe_for_training_and_one_for_the_loss(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    seen: list[Any] = []
    monkeypatch.setattr("krl_compress.distillation.distill.distill", seen.append)
    monkeypatch.setattr("krl_compress.verbs._check_teachers", lambda config: "classification")
    monkeypatch.setattr("krl_compress.verbs.DistillResult.of", classmethod(lambda cls, run: None))
    krl_compress.distill(recipe=("small-data", "kd"), teacher="t", student="resnet8", data="digits", out=tmp_path)
    monkeypatch.setattr("krl_compress.verbs.distill", lambda config: seen.append(config) or pytest.exit)
    arguments = ["distill", "--recipe", "small-data", "--recipe", "kd", "--teacher", "t", "--student", "resnet8"]
    compress([*arguments, "--data", "digits", "--out", str(tmp_path)])
    assert seen[0] == seen[1]
    assert seen[0].losses.loss == ("ce:weight=0.1", "kd:weight=0.9,temperature=4")
    assert seen[0].optim.weight_decay == 0.002
    assert seen[0].recipe == ("small-data", "kd")
