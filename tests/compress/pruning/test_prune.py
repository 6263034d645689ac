"""``krl-compress prune``: from a run to the run of a thinner network."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import onnxruntime
import pytest
import torch

from _helpers.resuming import stopped_at_checkpoint
from krl_compress.cli import main
from krl_runtime.errors import RunError
from krl_train.cli import main as train
from krl_train.run import Run

FAST = ["--data", "digits", "--limit", "200", "--val-limit", "100", "--epochs", "1", "--batch-size", "50"]
FAST += ["--precision", "fp32", "--device", "cpu"]


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("runs") / "whole"
    assert train(["fit", "--model", "dscnn-0.5", "--out", str(out), *FAST, "--epochs", "4"]) == 0
    return out


@pytest.fixture(scope="module")
def pruned(whole: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("runs") / "pruned"
    options = ["--keep-channels", "0.5", "--steps", "2", "--criterion", "taylor", "--sensitivity", *FAST]
    assert main(["prune", str(whole), "--out", str(out), *options]) == 0
    return out


def macs(run: Run) -> int:
    """Count multiplications by the shapes of weights and outputs, without torch's counter."""
    total = 0

    def add(module: torch.nn.Module, _, output: torch.Tensor) -> None:
        nonlocal total
        total += module.weight[0].numel() * output[0].numel()

    network = run.network()
    for module in network.modules():
        if isinstance(module, torch.nn.Conv2d | torch.nn.Linear):
            module.register_forward_hook(add)
    network(torch.zeros(1, *network.preprocessing.shape, dtype=torch.uint8))
    return total


def test_the_result_is_an_ordinary_run(whole: Path, pruned: Path, tmp_path: Path) -> None:
    before, after = Run.open(whole), Run.open(pruned)
    assert after.record.command == "krl-compress prune"
    assert after.record.metrics["macs"] == macs(after) < 0.5 * macs(before)
    assert after.record.metrics["teacher"]["macs"] == macs(before)
    first, second = after.record.metrics["pruning"]["steps"]
    assert before.record.metrics["macs"] > first["macs"] > second["macs"] == macs(after)
    widths = {module.out_channels for module in after.network().modules() if isinstance(module, torch.nn.Conv2d)}
    assert all(width % 8 == 0 for width in widths)
    assert after.record.history  # it was trained after the last step
    more = ["--out", str(tmp_path / "more"), *FAST]
    assert train(["fit", "--from", str(pruned), *more]) == 0
    assert macs(Run.open(tmp_path / "more")) == macs(after)
    taught = ["--teacher", str(pruned), "--student", str(pruned), "--out", str(tmp_path / "taught"), *FAST]
    assert main(["distill", *taught]) == 0
    assert macs(Run.open(tmp_path / "taught")) == macs(after)
    assert train(["evaluate", str(pruned), "--data", "digits"]) == 0


def test_it_is_exported_as_it_computes(pruned: Path, tmp_path: Path) -> None:
    from krl_deploy.cli import main as deploy

    bundle = tmp_path / "pruned.krl"
    assert deploy(["export", str(pruned), "-o", str(bundle)]) == 0
    network = Run.open(pruned).network()
    pixels = np.random.default_rng(0).integers(0, 256, (3, *network.preprocessing.shape)).astype(np.uint8)
    with torch.no_grad():
        expected = network(torch.from_numpy(pixels)).numpy()
    session = onnxruntime.InferenceSession(bundle / "model.fp32.onnx", providers=["CPUExecutionProvider"])
    found = session.run(None, {session.get_inputs()[0].name: pixels})[0]
    np.testing.assert_allclose(found, expected, rtol=1e-3, atol=1e-4)


def test_it_is_trained_for_int8(pruned: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "int8"
    options = ["--teacher", str(pruned), "--student", str(pruned), "--quantize", "int8", "--out", str(out), *FAST]
    assert main(["distill", *options]) == 0
    assert Run.open(out).record.model.arguments["quantize"] == "int8"
    assert Run.open(out).network() is not None
    assert main(["prune", str(out), "--keep-channels", "0.5", "--out", str(tmp_path / "no")]) == 2
    assert "was trained for INT8" in capsys.readouterr().err
    assert not (tmp_path / "no").exists()


def test_it_is_pruned_again(pruned: Path, tmp_path: Path) -> None:
    out = tmp_path / "again"
    assert main(["prune", str(pruned), "--macs", "0.6", "--only-prune", "--out", str(out), *FAST]) == 0
    assert macs(Run.open(out)) <= 0.6 * macs(Run.open(pruned))


def test_macs_are_at_most_the_share(whole: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "half"
    assert main(["prune", str(whole), "--macs", "0.5", "--only-prune", "--out", str(out), *FAST]) == 0
    assert 0.3 * macs(Run.open(whole)) < macs(Run.open(out)) <= 0.5 * macs(Run.open(whole))
    assert main(["prune", str(whole), "--macs", "0.001", "--only-prune", "--out", str(tmp_path / "no"), *FAST]) == 2
    message = capsys.readouterr().err
    least = float(message.partition("keeps ")[2].partition(" ")[0])
    assert not (tmp_path / "no").exists()
    again = ["--macs", str(least), "--only-prune", "--out", str(tmp_path / "least"), *FAST]
    assert main(["prune", str(whole), *again]) == 0


def test_sensitivity_is_written(whole: Path, pruned: Path) -> None:
    found = json.loads((pruned / "sensitivity.json").read_bytes())
    assert (pruned / "sensitivity.png").read_bytes().startswith(b"\x89PNG")
    assert found["images"] == 100
    network = Run.open(whole).network()
    channels = {
        name: module.out_channels
        for name, module in network.backbone.named_modules()
        if "features" in name and isinstance(module, torch.nn.Conv2d)
    }
    assert found["layers"]
    for row in found["layers"]:
        assert row["channels"] == channels[row["layer"]]
        assert set(row["pruned"]) == {"0.25", "0.5"}
        assert all(0 <= value <= 1 for value in row["pruned"].values())


def test_an_interrupted_pruning_goes_on(whole: Path, tmp_path: Path) -> None:
    options = ["--keep-channels", "0.5", "--steps", "2", *FAST, "--epochs", "2"]
    straight, stopped = tmp_path / "straight", tmp_path / "stopped"
    assert main(["prune", str(whole), "--out", str(straight), *options]) == 0
    for number in (1, 2):  # in the first distillation, and after it
        more = ["--resume"] if number > 1 else []
        with stopped_at_checkpoint(number):
            assert main(["prune", str(whole), "--out", str(stopped), *options, *more]) != 0
        with pytest.raises(RunError, match="not finished"):
            Run.open(stopped)
    assert main(["prune", "--resume", "--out", str(stopped)]) == 0  # the options are those of the run
    found, expected = Run.open(stopped), Run.open(straight)
    assert found.record.model == expected.record.model
    assert all(torch.equal(value, expected.state()[name]) for name, value in found.state().items())
    assert main(["prune", str(whole), "--out", str(stopped), *options, "--keep-channels", "0.25", "--resume"]) == 2


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ([], "nothing given that says how much to prune; accepted: one of --keep-channels, --macs, --latency"),
        (["--keep-channels", "0.5", "--macs", "0.5"], "--keep-channels and --macs given that says"),
        (["--keep-channels", "0"], "--keep-channels is 0"),
        (["--keep-channels", "1"], "--keep-channels is 1"),
        (["--keep-channels", "-0.5"], "--keep-channels is -0.5"),
        (["--macs", "1.5"], "--macs is 1.5"),
        (["--keep-channels", "nan"], "--keep-channels is nan"),
        (["--keep-channels", "0.5", "--multiple", "0"], "--multiple is 0"),
        (["--keep-channels", "0.5", "--steps", "0"], "--steps is 0"),
        (["--keep-channels", "0.5", "--steps", "2", "--only-prune"], "--only-prune has none"),
        (["--keep-channels", "0.99"], "give a smaller --keep-channels"),
        (["--keep-channels", "0.5", "--multiple", "512"], "--multiple (it is 512)"),
    ],
)
def test_wrong_options_are_one_sentence(whole: Path, tmp_path: Path, capsys, options, message) -> None:
    assert main(["prune", str(whole), "--out", str(tmp_path / "no"), *options, *FAST]) == 2
    assert message in " ".join(capsys.readouterr().err.split())
    assert not (tmp_path / "no").exists()


def test_what_cannot_be_pruned_is_refused(whole: Path, tmp_path: Path, capsys) -> None:
    from krl_runtime.images.preprocessing import Preprocessing
    from krl_train.run import ModelSpec

    record = Run.open(whole).record
    spec = ModelSpec("style-8", 0, 3, {"scale": 1, "color": "rgb", "degradation": {"kind": "none"}})
    other = Run.write(tmp_path / "restorer", replace(record, task="restoration", model=spec), {"w": torch.zeros(1)})
    two = Run.write(tmp_path / "two", replace(record, source_labels=("a", "b")), {"w": torch.zeros(1)})
    spec = ModelSpec("cifar-shufflenetv2", 10, 3)
    network = spec.build(Preprocessing(32, 32))
    shuffled = replace(record, model=spec, preprocessing=Preprocessing(32, 32))
    lost = Run.write(tmp_path / "shuffled", shuffled, network.backbone.state_dict())
    for run, message in (
        (other, "is of translation or style (style-8)"),
        (two, "has two heads"),
        (lost, "torch-pruning cannot follow"),
    ):
        assert main(["prune", str(run.path), "--keep-channels", "0.5", "--out", str(tmp_path / "no"), *FAST]) == 2
        assert message in capsys.readouterr().err
    assert main(["prune", str(tmp_path / "nothing"), "--keep-channels", "0.5", "--out", str(tmp_path / "no")]) == 2
    assert "does not exist" in capsys.readouterr().err
    assert not (tmp_path / "no").exists()


def test_the_run_itself_is_not_overwritten(whole: Path, tmp_path: Path, capsys) -> None:
    out = tmp_path / "out"
    own = out / "steps" / "1" / "distilled"
    shutil.copytree(whole, out)
    shutil.copytree(whole, own)
    for run in (out, own):
        options = ["--keep-channels", "0.5", "--out", str(out), "--overwrite", *FAST]
        assert main(["prune", str(run), *options]) == 2
        assert "lies in --out" in capsys.readouterr().err
        Run.open(run)


def test_without_torch_pruning_the_extra_is_named(whole: Path, tmp_path: Path, capsys, monkeypatch) -> None:
    import sys

    monkeypatch.setitem(sys.modules, "torch_pruning", None)
    assert main(["prune", str(whole), "--keep-channels", "0.5", "--out", str(tmp_path / "no"), *FAST]) == 2
    message = capsys.readouterr().err
    assert "torch_pruning, which is not installed" in message
    assert "[prune]" in message


@pytest.mark.parametrize("spelling", [["--keep", "0.5"], ["--keep=0.5"]])
def test_keep_with_a_share_is_one_of_channels(whole: Path, tmp_path: Path, spelling: list[str]) -> None:
    short, long = tmp_path / "short", tmp_path / "long"
    assert main(["prune", str(whole), *spelling, "--only-prune", "--out", str(short), *FAST]) == 0
    assert main(["prune", str(whole), "--keep-channels", "0.5", "--only-prune", "--out", str(long), *FAST]) == 0
    assert Run.open(short).record.weights_sha256 == Run.open(long).record.weights_sha256
