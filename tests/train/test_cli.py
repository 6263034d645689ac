from __future__ import annotations

import errno
import json
import resource
import subprocess
import sys
from pathlib import Path

import pytest

from _helpers.images import make_split_folder
from krl_train.cli import COMMANDS, main
from krl_train.run import Run


@pytest.mark.parametrize("command", COMMANDS)
def test_help_names_every_option(command: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main([command, "--help"]) == 0
    shown = capsys.readouterr().out
    assert "--data" in shown or command in ("models", "recipes")
    assert "--out" in shown or command in ("evaluate", "models", "recipes")


def test_resuming_needs_the_folder_alone(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    options = ["--model", "dscnn-0.25", "--data", "digits", "--limit", "64", "--val-limit", "20", "--epochs", "1"]
    assert main(["fit", *options, "--out", str(tmp_path / "run")]) == 0
    assert "next: krl-compress distill --teacher" in capsys.readouterr().err
    assert main(["fit", "--resume", "--out", str(tmp_path / "run"), "--quiet"]) == 0
    assert main(["fit", "--resume", "--out", str(tmp_path / "run"), "--epochs", "2"]) == 2
    assert "epochs was 1, now 2" in capsys.readouterr().err


def test_models_are_listed(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["models"]) == 0
    assert {"resnet20", "resnet18", "mobilenet_v3_small"} <= set(capsys.readouterr().out.split())
    assert main(["models", "--task", "gan", "--json"]) == 0
    assert "dcgan-WIDTH" in json.loads(capsys.readouterr().out)["models"]


def test_overview_and_unknown_commands(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--help"]) == 0
    shown = capsys.readouterr().out
    assert all(name in shown for name in COMMANDS)
    assert main(["fitt"]) == 2
    assert "did you mean 'fit'" in capsys.readouterr().err


def test_a_file_of_options_is_the_command_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = tmp_path / "fit.yaml"
    file.write_text(
        "model: resnet8\ndata:\n  data: digits\n  limit: 64\n  val_limit: 20\nloop: {epochs: 1, batch_size: 32}\n"
        "augment: {flip: none, augment: true}\noptim:\n  schedule: multistep\n  milestones: [0.5, 0.75]\n"
    )
    assert main(["fit", "--config", str(file), "--batch-size", "16", "--out", str(tmp_path / "run"), "--json"]) == 0
    configuration = Run.open(tmp_path / "run").record.configuration
    assert configuration["loop"]["batch_size"] == 16  # the command line wins
    assert configuration["loop"]["epochs"] == 1
    assert configuration["augment"]["flip"] == "none"
    assert configuration["optim"]["milestones"] == [0.5, 0.75]
    assert json.loads(capsys.readouterr().out)["count"] == 20


def test_what_run_json_stores_can_be_given_again(tmp_path: Path) -> None:
    options = ["--model", "dscnn-0.25", "--data", "digits", "--limit", "64", "--val-limit", "20", "--epochs", "1"]
    assert main(["fit", *options, "--out", str(tmp_path / "a")]) == 0
    stored = json.loads((tmp_path / "a" / "run.json").read_text())["configuration"]
    stored["out"] = str(tmp_path / "b")
    (tmp_path / "again.yaml").write_text(json.dumps(stored))
    assert main(["fit", "--config", str(tmp_path / "again.yaml")]) == 0
    assert Run.open(tmp_path / "a").record.weights_sha256 == Run.open(tmp_path / "b").record.weights_sha256


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--data", "nowhere"], "neither a folder nor a known data set; known: digits, mnist"),
        (["--data", "digits", "--model", "resnet9"], "did you mean"),
        (["--data", "digits", "--size", "0"], "accepted: 1 to 16384"),
        (["--data", "digits", "--channels", "2"], "accepted: 1 (gray) or 3 (RGB)"),
        (["--data", "digits", "--mean", "1", "2"], "mean has 2 values"),
        (["--config", "missing.yaml"], "missing.yaml cannot be read"),
        (["--data", "digits", "--model", "resnet18", "--channels", "1"], "takes RGB images"),
        ([], "no data is named"),
    ],
)
def test_bad_input_is_one_sentence_and_exit_code_2(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], arguments: list[str], message: str
) -> None:
    assert main(["fit", "--model", "resnet8", "--out", str(tmp_path / "run"), *arguments]) == 2
    error = capsys.readouterr().err
    assert message in error
    assert "Traceback" not in error
    assert not (tmp_path / "run").exists()


def test_unknown_options_are_refused(tmp_path: Path) -> None:
    (tmp_path / "bad.yaml").write_text("modle: resnet8\n")
    with pytest.raises(SystemExit) as stopped:
        main(["fit", "--config", str(tmp_path / "bad.yaml"), "--model", "resnet8", "--out", "x"])
    assert stopped.value.code == 2


def test_a_full_disk_is_said_and_loses_nothing(tmp_path: Path) -> None:
    """A limit on the size of files stands in for a full disk: the write itself fails, half way."""
    out = tmp_path / "run"
    options = ["fit", "--model", "resnet8", "--data", "digits", "--limit", "64", "--val-limit", "20", "--epochs", "2"]
    command = [sys.executable, "-m", "krl_train", *options, "--out", str(out)]
    limit = 200_000  # a checkpoint has about 600,000 bytes
    done = subprocess.run(
        command,
        capture_output=True,
        text=True,
        preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limit)),
    )
    assert done.returncode == 2, done.stderr
    assert "the file grew beyond what this file system or limit allows" in done.stderr
    assert "Traceback" not in done.stderr
    assert list((out / "checkpoint").iterdir()) == []  # nothing half written
    assert main([*options, "--out", str(out)]) == 0


def test_a_disk_that_fills_up_later_keeps_the_last_checkpoint(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    options = ["fit", "--model", "resnet8", "--data", "digits", "--limit", "64", "--val-limit", "20", "--epochs", "2"]
    real = Path.write_bytes
    checkpoints: list[int] = []

    def write_bytes(path: Path, data: bytes) -> int:
        if path.name.startswith(".state.pt"):
            checkpoints.append(1)
            if len(checkpoints) == 2:
                real(path, data[:1000])
                raise OSError(errno.ENOSPC, "No space left on device")
        return real(path, data)

    monkeypatch.setattr(Path, "write_bytes", write_bytes)
    out = tmp_path / "run"
    assert main([*options, "--out", str(out)]) == 2
    assert "the disk is full" in capsys.readouterr().err
    assert [path.name for path in (out / "checkpoint").iterdir()] == ["state.pt"]  # the first one, whole
    assert main([*options, "--out", str(out), "--resume"]) == 0
    assert "resuming at epoch 2" in capsys.readouterr().err


def test_bad_images_follow_the_flag(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    root = make_split_folder(tmp_path / "data")
    (root / "train" / "cat" / "001.png").write_bytes(b"\x89PNG\r\n\x1a\nbroken")
    options = ["fit", "--model", "resnet8", "--data", str(root), "--epochs", "1", "--batch-size", "8"]
    assert main([*options, "--out", str(tmp_path / "a")]) == 2
    assert "001.png" in capsys.readouterr().err
    assert main([*options, "--out", str(tmp_path / "a"), "--on-bad-image", "skip"]) == 0
    assert "skipped 1 files" in capsys.readouterr().err


def test_unpack(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["unpack", "--data", "digits", "--out", str(tmp_path / "digits")]) == 0
    assert "1797 images" in capsys.readouterr().out
    assert len(list((tmp_path / "digits" / "val" / "7").iterdir())) > 20
    assert main(["unpack", "--data", "digits", "--out", str(tmp_path / "digits")]) == 2
