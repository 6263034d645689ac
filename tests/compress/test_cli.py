from __future__ import annotations

import json
from pathlib import Path

import pytest

from _helpers.resuming import stopped_at_checkpoint
from krl_compress.cli import main
from krl_compress.config import RECIPES
from krl_compress.distillers import parse_loss
from krl_train.run import Run

FAST = ["--data", "digits", "--limit", "200", "--val-limit", "100", "--epochs", "1", "--batch-size", "50"]
FAST += ["--precision", "fp32", "--device", "cpu"]


@pytest.fixture(scope="module")
def teacher(tmp_path_factory: pytest.TempPathFactory) -> Path:
    from krl_train.cli import main as train

    out = tmp_path_factory.mktemp("runs") / "teacher"
    options = ["--epochs", "6", "--limit", "600", "--batch-size", "50", "--precision", "fp32", "--val-limit", "200"]
    assert train(["fit", "--data", "digits", "--model", "resnet20", "--out", str(out), *options]) == 0
    return out


def test_several_losses_at_once_and_several_teachers(
    teacher: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    options = ["--teacher", str(teacher), "--student", "resnet8", "--out", str(tmp_path / "a"), *FAST]
    assert main(["distill", *options, "--loss", "kd:weight=0.9,temperature=4", "--loss", "rkd:weight=25"]) == 0
    assert set(Run.open(tmp_path / "a").record.history[0]) >= {"kd", "rkd"}
    assert "ce" not in Run.open(tmp_path / "a").record.history[0]
    capsys.readouterr()
    several = ["--teacher", str(teacher), "--teacher", str(tmp_path / "a"), "--student", "dscnn-0.25", *FAST]
    assert main(["distill", *several, "--fusion", "confidence", "--out", str(tmp_path / "b"), "--json"]) == 0
    result = json.loads(capsys.readouterr().out)
    assert len(result["teachers"]) == 2
    assert len(Run.open(tmp_path / "b").record.parent["teachers"]) == 2
    assert main(["distill", *several, "--loss", "at", "--out", str(tmp_path / "c")]) == 2
    assert "a single --teacher" in capsys.readouterr().err


def test_wrong_losses_are_one_sentence(teacher: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    options = ["--teacher", str(teacher), "--student", "resnet8", "--out", str(tmp_path / "a"), *FAST]
    assert main(["distill", *options, "--loss", "kdd"]) == 2
    assert "did you mean 'kd'" in capsys.readouterr().err
    assert main(["distill", *options, "--loss", "at", "--feature-taps", "nowhere"]) == 2
    assert "it has: conv1" in capsys.readouterr().err
    assert main(["distill", *options, "--loss", "at", "--cache-teacher", "--cache-dir", str(tmp_path / "cache")]) == 2
    assert "leave out --cache-teacher" in capsys.readouterr().err
    assert main(["distill", *options, "--recipe", "dkdd"]) == 2
    assert "did you mean 'dkd" in capsys.readouterr().err


def test_the_largest_probabilities_alone_can_be_stored(teacher: Path, tmp_path: Path) -> None:
    import numpy as np
    import torch

    from krl_compress.distillers import FrozenTeacher
    from krl_compress.teachers.store import StoredTeacher
    from krl_train.config import AugmentConfig, DataConfig
    from krl_train.data import Augmentation, open_source
    from krl_train.tasks import Batch

    run = Run.open(teacher)
    preprocessing = run.record.preprocessing
    data = open_source(DataConfig(data="digits")).read("train", preprocessing, limit=60)
    augmentation = Augmentation.resolve(AugmentConfig(augment=False), preprocessing, flip=False, seed=0)
    frozen = FrozenTeacher(run.network())
    stored = StoredTeacher(frozen, "x", data, augmentation, views=1, folder=tmp_path, top_k=3)
    stored.fill(torch.device("cpu"))
    indices = np.arange(60)
    batch = Batch(data.pixels(indices), torch.zeros(60), torch.from_numpy(indices), 0)
    p, q = stored(batch).softmax(1), frozen(batch).softmax(1)
    kept = q.topk(3).indices
    torch.testing.assert_close(p.gather(1, kept), q.gather(1, kept), rtol=2e-3, atol=1e-4)
    torch.testing.assert_close(p.sum(1), torch.ones(60))
    rest = p.scatter(1, kept, float("nan"))  # what was not kept is spread evenly
    spread = [row[~row.isnan()] for row in rest]
    assert all(torch.allclose(row, row[0].expand(7), atol=1e-6) for row in spread)


def test_mutual_learning_leaves_a_run_for_each(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "mutual"
    assert main(["mutual", "--peer", "resnet8", "--peer", "dscnn-0.25", "--out", str(out), *FAST, "--json"]) == 0
    result = json.loads(capsys.readouterr().out)["runs"]
    assert [each["model"] for each in result] == ["resnet8", "dscnn-0.25"]
    assert Run.open(out).record.model.name == "resnet8"
    assert Run.open(out / "net1").network().preprocessing.channels == 1
    assert main(["mutual", "--peer", "resnet8", "--out", str(tmp_path / "one"), *FAST]) == 2
    assert "give two networks or more" in capsys.readouterr().err


def test_joint_training_resumes_as_if_never_stopped(tmp_path: Path) -> None:
    options = ["--teacher", "resnet20", "--student", "resnet8", *FAST, "--epochs", "2"]
    assert main(["joint", *options, "--out", str(tmp_path / "whole")]) == 0
    with stopped_at_checkpoint(1):
        assert main(["joint", *options, "--out", str(tmp_path / "stopped")]) == 130
    assert main(["joint", *options, "--out", str(tmp_path / "stopped"), "--resume"]) == 0
    for folder in (Path(), Path("net1")):
        whole, stopped = (Run.open(tmp_path / name / folder).record for name in ("whole", "stopped"))
        assert whole.weights_sha256 == stopped.weights_sha256
    assert Run.open(tmp_path / "whole" / "net1").record.model.name == "resnet20"


@pytest.mark.parametrize("recipe", sorted(path.stem for path in RECIPES.glob("*.yaml")))
def test_every_recipe_is_a_valid_configuration(recipe: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    seen = []
    monkeypatch.setattr("krl_compress.verbs.distill", lambda config: seen.append(config) or _Stop.now())
    student = [] if recipe.startswith("cifar100") else ["--student", "resnet8"]
    with pytest.raises(_Stop):
        _unguarded(["distill", "--recipe", recipe, "--teacher", "t", *student, "--out", str(tmp_path)], monkeypatch)
    (config,) = seen
    terms = [parse_loss(text) for text in config.losses.loss]
    assert terms
    if recipe.startswith("cifar100"):
        assert config.loop.epochs == 240
        assert config.data.data == "cifar100"
        assert [round(240 * share) for share in config.optim.milestones] == [150, 180, 210]
        assert recipe.endswith(config.student.removeprefix("cifar-"))


def test_a_later_recipe_and_the_command_line_change_the_loss(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    seen = []
    monkeypatch.setattr("krl_compress.verbs.distill", lambda config: seen.append(config) or _Stop.now())
    base = ["distill", "--recipe", "cifar100-resnet56-resnet20", "--teacher", "t", "--out", str(tmp_path)]
    for more in (["--recipe", "kd"], ["--recipe", "kd", "--loss", "at"]):
        with pytest.raises(_Stop):
            _unguarded([*base, *more], monkeypatch)
    assert seen[0].losses.loss == ("ce:weight=0.1", "kd:weight=0.9,temperature=4")
    assert seen[0].loop.epochs == 240
    assert seen[1].losses.loss == ("at",)


class _Stop(BaseException):
    """Ends a command where its configuration is known."""

    @classmethod
    def now(cls) -> None:
        raise cls


def _unguarded(arguments: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    import krl_runtime.cli.dispatch

    monkeypatch.setattr(krl_runtime.cli.dispatch, "guard", lambda prog, command, quiet: command())
    main(arguments)


@pytest.mark.slow
def test_a_study_compares_and_goes_on_where_it_stopped(
    teacher: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "study"
    options = ["study", "--teacher", str(teacher), "--student", "dscnn-0.25", "--out", str(out), "--methods", "kd"]
    budget = f"--options={' '.join(FAST)}"
    assert main([*options, "--seeds", "1", budget, "--json"]) == 0
    first = json.loads(capsys.readouterr().out)
    assert [row["method"] for row in first["rows"]] == ["baseline", "kd"]
    stamp = (out / "dscnn-0.25" / "kd" / "seed-0" / "model.safetensors").stat().st_mtime_ns
    assert main([*options, "--seeds", "2", budget, "--json"]) == 0
    second = json.loads(capsys.readouterr().out)
    assert (out / "dscnn-0.25" / "kd" / "seed-0" / "model.safetensors").stat().st_mtime_ns == stamp
    runs = [Run.open(out / "dscnn-0.25" / "kd" / f"seed-{seed}").record.metrics for seed in (0, 1)]
    row = second["rows"][1]
    assert row["top1"] == pytest.approx((runs[0]["top1"] + runs[1]["top1"]) / 2)
    assert row["deviation"] == pytest.approx(abs(runs[0]["top1"] - runs[1]["top1"]) / 2**0.5)
    assert row["gain"] == pytest.approx(100 * (row["top1"] - second["rows"][0]["top1"]))
    assert row["peak_memory_mib"] > 100
    assert (out / "dscnn-0.25.png").stat().st_size > 10_000
    assert "| dscnn-0.25 | kd |" in (out / "study.md").read_text()
    # earlier runs count for the same options, data, teacher and code alone
    other = f"--options={' '.join([*FAST, '--lr', '0.001'])}"
    assert main([*options, "--seeds", "1", other]) == 2
    error = capsys.readouterr().err
    assert "are of another study; give another --out" in error.replace("\n", " ")
    again = ["study", "--teacher", str(out / "dscnn-0.25" / "kd" / "seed-0"), *options[3:]]
    assert main([*again, "--seeds", "1", budget]) == 2
    assert "was not made with teacher" in capsys.readouterr().err
    (out / "code.sha256").write_text("0" * 64)
    assert main([*options, "--seeds", "1", budget]) == 2
    assert "krl's code was 0000000000000000, and is" in capsys.readouterr().err
    assert main(["study", "--teacher", "t", "--student", "s", "--out", str(out), "--methods", "nonsense"]) == 2
    assert "not known; accepted" in capsys.readouterr().err


def test_a_student_that_is_a_run_has_a_folder_in_the_study(teacher: Path, tmp_path: Path) -> None:
    from krl_compress.studies import _folder

    weights = Run.open(teacher).record.weights_sha256
    assert _folder(str(teacher)) == f"teacher-{weights[:8]}"
    assert (_folder("dscnn-0.25"), _folder("mypkg:Small")) == ("dscnn-0.25", "mypkg.Small")
