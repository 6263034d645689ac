from __future__ import annotations

import json
import os
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from _helpers.images import SHARED_DATA, make_folder, make_split_folder
from krl_runtime.errors import ModelError
from krl_train.cli import main
from krl_train.importers.matching import match_weights
from krl_train.importers.weights import read_weights
from krl_train.models import build_model
from krl_train.run import Run


@pytest.fixture(scope="module")
def state() -> dict[str, torch.Tensor]:
    torch.manual_seed(0)
    return build_model("resnet8", 2).state_dict()


def test_safetensors_are_read(tmp_path: Path, state: dict[str, torch.Tensor]) -> None:
    save_file(dict(state), tmp_path / "w.safetensors")
    assert set(read_weights(tmp_path / "w.safetensors")) == set(state)


class Payload:
    def __reduce__(self):
        return (os.mkdir, ("owned",))


def test_nothing_in_a_strange_file_is_executed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    torch.save({"state_dict": Payload()}, "evil.pth")
    with pytest.raises(ModelError, match="cannot be read as weights alone"):
        read_weights(Path("evil.pth"))
    assert not Path("owned").exists()


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "cannot be read"),
        (b"not a file of weights at all", "cannot be read"),
    ],
)
@pytest.mark.parametrize("suffix", [".pth", ".safetensors"])
def test_damaged_files_are_refused(tmp_path: Path, content: bytes, message: str, suffix: str) -> None:
    file = tmp_path / f"w{suffix}"
    file.write_bytes(content)
    with pytest.raises(ModelError, match=message):
        read_weights(file)


def test_files_without_tensors_are_refused(tmp_path: Path) -> None:
    torch.save({"epoch": 3}, tmp_path / "a.pth")
    with pytest.raises(ModelError, match=r"hold no tensors; their entries are \['epoch'\]"):
        read_weights(tmp_path / "a.pth")
    torch.save(torch.zeros(3), tmp_path / "b.pth")
    with pytest.raises(ModelError, match="hold a Tensor"):
        read_weights(tmp_path / "b.pth")
    with pytest.raises(ModelError, match="no such file"):
        read_weights(tmp_path / "c.pth")


def test_what_does_not_fit_is_listed(state: dict[str, torch.Tensor]) -> None:
    with pytest.raises(ModelError, match=r"missing: layer1\.1\.bn1\.bias.*Check --model"):
        match_weights(state, build_model("resnet20", 2), "file")
    with pytest.raises(ModelError, match=r"linear\.weight is \[2, 64\], expected \[10, 64\]"):
        match_weights(state, build_model("resnet8", 10), "file")
    with pytest.raises(ModelError, match="not known to the network: extra"):
        match_weights({**state, "extra": torch.zeros(1)}, build_model("resnet8", 2), "file")
    bad = {**state, "linear.bias": torch.tensor([1.0, float("inf")])}
    with pytest.raises(ModelError, match=r"not finite numbers: linear\.bias"):
        match_weights(bad, build_model("resnet8", 2), "file")


def test_import_measures_and_the_run_evaluates_the_same(
    tmp_path: Path, state: dict[str, torch.Tensor], capsys: pytest.CaptureFixture[str]
) -> None:
    torch.save({"state_dict": {"module." + name: value for name, value in state.items()}}, tmp_path / "w.th")
    data = make_split_folder(tmp_path / "data")
    numbers = ["--mean", ".5", ".5", ".5", "--std", ".2", ".2", ".2"]
    options = ["--weights", str(tmp_path / "w.th"), "--model", "resnet8", *numbers, "--data", str(data)]
    assert main(["import", *options, "--out", str(tmp_path / "run"), "--json"]) == 0
    imported = json.loads(capsys.readouterr().out)
    assert main(["evaluate", str(tmp_path / "run"), "--data", str(data), "--json"]) == 0
    evaluated = json.loads(capsys.readouterr().out)
    assert evaluated["top1"] == imported["top1"]
    assert (evaluated["split"], evaluated["count"]) == ("val", 24)
    run = Run.open(tmp_path / "run")
    assert run.record.preprocessing.mean == (0.5, 0.5, 0.5)
    assert run.record.labels == ("cat", "dog")
    with torch.no_grad():
        pixels = torch.zeros(1, 3, 16, 16, dtype=torch.uint8)
        model = build_model("resnet8", 2)
        model.load_state_dict(state)
        expected = model.eval()((pixels.float() / 255 - 0.5) / 0.2)
        torch.testing.assert_close(run.network()(pixels), expected)


def test_evaluate_measures_by_hand_count(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    data = make_folder(tmp_path / "data", count=20)
    base = ["--model", "resnet8", "--data", str(data), "--epochs", "4", "--batch-size", "8", "--precision", "fp32"]
    assert main(["fit", *base, "--out", str(tmp_path / "run")]) == 0
    capsys.readouterr()
    assert main(["evaluate", str(tmp_path / "run"), "--json"]) == 0
    own = json.loads(capsys.readouterr().out)
    assert own["split"] == "val"  # the images that were held out
    plain = make_folder(tmp_path / "plain", count=15, seed=9)
    assert main(["evaluate", str(tmp_path / "run"), "--data", str(plain), "--json"]) == 0
    result = json.loads(capsys.readouterr().out)
    assert (result["split"], result["count"]) == ("all", 30)  # a plain folder needs no split

    from krl_runtime.images.folders import open_folder

    run = Run.open(tmp_path / "run")
    network, hits, losses = run.network(), [], []
    for image in open_folder(plain).split("all"):
        pixels = run.record.preprocessing(image.path)
        with torch.no_grad():
            logits = network(torch.from_numpy(pixels)[None])[0].double().numpy()
        hits.append(int(logits.argmax()) == image.label)
        losses.append(np.log(np.exp(logits).sum()) - logits[image.label])
    assert result["top1"] == pytest.approx(np.mean(hits), abs=1e-6)
    assert result["loss"] == pytest.approx(np.mean(losses), abs=1e-4)
    assert "top5" not in result
    assert result["recall"]["cat"] == pytest.approx(np.mean(hits[:15]), abs=1e-6)
    assert result["confusion"][0][0] == sum(hits[:15])


def test_classes_are_matched_by_name(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    data = make_folder(tmp_path / "data", classes=("a", "b", "c"), count=12)
    base = ["--model", "resnet8", "--data", str(data), "--epochs", "1", "--batch-size", "8"]
    assert main(["fit", *base, "--out", str(tmp_path / "run")]) == 0
    (data / "a").rename(tmp_path / "a")
    capsys.readouterr()
    assert main(["evaluate", str(tmp_path / "run"), "--data", str(data), "--split", "all", "--json"]) == 0
    result = json.loads(capsys.readouterr().out)
    assert result["recall"]["a"] is None
    assert sum(result["confusion"][0]) == 0
    assert sum(result["confusion"][2]) == 12
    (data / "b").rename(data / "bee")
    assert main(["evaluate", str(tmp_path / "run"), "--data", str(data)]) == 2
    assert "does not know: bee" in capsys.readouterr().err


@pytest.mark.skipif(not (SHARED_DATA / "models").is_dir(), reason="the shared models are not here")
def test_import_of_published_weights_from_the_command_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = next((SHARED_DATA / "models").glob("cifar10_resnet56-*.th"))
    numbers = ["--mean", ".485", ".456", ".406", "--std", ".229", ".224", ".225"]
    options = ["--weights", str(file), "--model", "resnet56", *numbers, "--data", str(SHARED_DATA / "cifar10")]
    code = main(["import", *options, "--val-limit", "200", "--out", str(tmp_path / "run"), "--json"])
    result = json.loads(capsys.readouterr().out)
    assert code == 0
    assert (result["count"], result["parameters"]) == (200, 853_018)
    assert result["top1"] >= 0.99  # these images were among those that they were trained on
