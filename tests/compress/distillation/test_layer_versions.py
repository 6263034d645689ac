"""MNASNet refuses weights without the version of its format, which files of tensors do not have."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from _helpers.resuming import stopped_at_checkpoint
from krl_compress.cli import main as compress
from krl_train.cli import main as train
from krl_train.models import build_model, load_weights
from krl_train.run import Run

FAST = ["--data", "digits", "--limit", "40", "--val-limit", "20", "--epochs", "2", "--batch-size", "20"]
FAST += ["--precision", "fp32", "--device", "cpu", "--channels", "3", "--size", "32"]


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("runs") / "mnasnet"
    with stopped_at_checkpoint(1):
        assert train(["fit", "--model", "mnasnet0_5", "--out", str(out), *FAST]) != 0
    assert train(["fit", "--resume", "--out", str(out)]) == 0
    return out


def test_weights_get_the_version_of_the_network_that_takes_them() -> None:
    first, second = build_model("mnasnet0_5", 10), build_model("mnasnet0_5", 10)
    load_weights(second, dict(first.state_dict()))  # without the versions
    assert all(torch.equal(value, second.state_dict()[name]) for name, value in first.state_dict().items())
    with pytest.raises(RuntimeError, match="Missing key"):
        load_weights(second, {})


def test_weights_from_before_batches_were_counted_are_taken() -> None:
    first, second = build_model("resnet8", 10), build_model("resnet8", 10)
    old = {name: value for name, value in first.state_dict().items() if not name.endswith("num_batches_tracked")}
    load_weights(second, old)
    assert all(torch.equal(value, second.state_dict()[name]) for name, value in old.items())


def test_a_run_is_read_back_wherever_it_is_used(run: Path, tmp_path: Path) -> None:
    state = Run.open(run).network().backbone.state_dict()
    assert all(torch.equal(value, state[name]) for name, value in Run.open(run).state().items())
    assert train(["evaluate", str(run), "--device", "cpu"]) == 0
    assert train(["fit", "--from", str(run), "--out", str(tmp_path / "more"), *FAST]) == 0
    taught = ["--teacher", str(run), "--student", str(run), "--out", str(tmp_path / "taught"), *FAST]
    assert compress(["distill", *taught]) == 0
    peers = ["--peer", "mnasnet0_5", "--peer", "lenet5", "--out", str(tmp_path / "peers"), *FAST]
    assert compress(["mutual", *peers]) == 0
    pruned = ["prune", str(run), "--keep-channels", "0.5", "--only-prune", "--out", str(tmp_path / "pruned")]
    assert compress([*pruned, *FAST[:-4]]) == 0
    assert Run.open(tmp_path / "pruned").network() is not None


def test_weights_of_a_file_are_imported(tmp_path: Path) -> None:
    torch.manual_seed(0)
    network = build_model("mnasnet0_5", 10).eval()
    torch.save(dict(network.state_dict()), tmp_path / "weights.pt")
    given = [
        "--weights",
        str(tmp_path / "weights.pt"),
        "--model",
        "mnasnet0_5",
        "--data",
        "digits",
        "--out",
        str(tmp_path / "run"),
    ]
    assert train(["import", *given, "--channels", "3", "--size", "32", "--val-limit", "20", "--device", "cpu"]) == 0
    found = Run.open(tmp_path / "run").state()
    assert all(torch.equal(value, found[name]) for name, value in network.state_dict().items())
