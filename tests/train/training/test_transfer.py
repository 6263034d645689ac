"""``krl-train fit --from``: every method through the loop, its record, resuming, processes, and what is refused."""

from __future__ import annotations

import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from _helpers.images import make_split_folder
from _helpers.resuming import stopped_at_checkpoint
from krl_runtime.errors import RunError, UsageError
from krl_train import fit as fit_by_options
from krl_train.cli import main
from krl_train.config import AugmentConfig, DataConfig, FitConfig, LoopConfig, OptimConfig, TransferConfig
from krl_train.run import Run
from krl_train.training.fit import fit

LOOP = LoopConfig(epochs=2, batch_size=16, device="cpu", precision="fp32")
CLASSES = ("cat", "cow", "dog")


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Run:
    """Return a run on ten digits."""
    folder = tmp_path_factory.mktemp("base")
    data = DataConfig(data="digits", limit=100, val_limit=40)
    return fit(FitConfig(model="resnet8", out=folder / "run", data=data, loop=LOOP))


@pytest.fixture(scope="module")
def images(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a folder of three classes."""
    return make_split_folder(tmp_path_factory.mktemp("images"), 24, CLASSES)


def config(base: Run, images: Path, out: Path, method: dict[str, Any] | None = None, **changes: Any) -> FitConfig:
    made = FitConfig(
        out=out, data=DataConfig(data=str(images)), loop=LOOP, transfer=TransferConfig(str(base.path), **(method or {}))
    )
    return replace(made, **changes)


def moved(base: Run, run: Run) -> set[str]:
    """Return the names of the tensors that are not bit for bit those of the start."""
    first, second = base.state(), run.state()
    return {name for name, value in second.items() if not torch.equal(value, first[name])}


def test_a_linear_probe_leaves_everything_below_as_it_was(base: Run, images: Path, tmp_path: Path) -> None:
    optim = OptimConfig(lr=0.1, ema=0.9, clip_norm=1.0)
    run = fit(config(base, images, tmp_path / "run", {"transfer": "linear"}, optim=optim))
    assert moved(base, run) == {"linear.weight", "linear.bias"}
    record = run.record
    assert record.model.name == "resnet8"  # the run's, as --model was left out
    assert record.parent == base.identity
    assert record.labels == CLASSES
    assert record.preprocessing == base.record.preprocessing
    assert record.configuration["transfer"]["transfer"] == "linear"
    assert record.plan["transfer"]["method"] == "linear"
    last, *others = record.plan["transfer"]["stages"]
    assert (last["name"], last["parameters"], last["lr"], last["first_step"]) == ("linear", 64 * 3 + 3, 0.1, 0)
    assert [stage["name"] for stage in others] == ["layer3", "layer2", "layer1"]
    assert {(stage["lr"], stage["first_step"]) for stage in others} == {(0.0, None)}


def test_all_of_it_stopped_and_resumed_is_as_if_never_stopped(base: Run, images: Path, tmp_path: Path) -> None:
    method = {
        **{"transfer": "staged", "unfreeze_share": 0.9, "layer_decay": 0.5, "freeze_statistics": True},
        **{"l2_sp": 0.01, "feature_transfer": 0.1, "relation_transfer": 0.1},
    }
    options: dict[str, Any] = {
        "optim": OptimConfig(lr=0.05, ema=0.9),
        "augment": AugmentConfig(mixup=0.2),
        "loop": replace(LOOP, balance="sampling", early_stopping=5),
        "data": DataConfig(data=str(images), shots=20),
    }
    whole = fit(config(base, images, tmp_path / "whole", method, **options))
    assert [stage["first_step"] for stage in whole.record.plan["transfer"]["stages"]] == [0, 2, 4, 7]  # of 8 steps
    assert {"l2_sp", "feature_transfer", "relation_transfer"} < set(whole.record.history[-1])
    assert whole.record.data["train"]["count"] == 60
    loop = replace(options["loop"], checkpoint_minutes=0.0)
    stopped = config(base, images, tmp_path / "stopped", method, **(options | {"loop": loop}))
    with stopped_at_checkpoint(3) as saves, pytest.raises(KeyboardInterrupt):
        fit(stopped)
    assert saves[-1] not in (0, 4)  # in the middle of an epoch, with a stage that waits
    resumed = fit(replace(stopped, resume=True))
    assert resumed.record.weights_sha256 == whole.record.weights_sha256
    other = TransferConfig(str(base.path), **(method | {"layer_decay": 0.25}))
    with pytest.raises(RunError, match=r"layer_decay was 0\.5, now 0\.25"):
        fit(replace(stopped, resume=True, transfer=other))


def test_terms_in_half_precision(base: Run, images: Path, tmp_path: Path) -> None:
    terms = {"l2_sp": 0.01, "feature_transfer": 0.1, "relation_transfer": 0.1}
    loop = replace(LOOP, epochs=1)
    full = fit(config(base, images, tmp_path / "full", terms, loop=loop)).record.history[0]
    half = fit(config(base, images, tmp_path / "half", terms, loop=replace(loop, precision="bf16"))).record.history[0]
    # bfloat16 has 8 bits, and differences of features that are nearly equal keep fewer
    assert {name: half[name] for name in terms} == {name: pytest.approx(full[name], rel=0.2) for name in terms}


def test_statistics_stay_and_lower_stages_wait(base: Run, images: Path, tmp_path: Path) -> None:
    run = fit(config(base, images, tmp_path / "run", {"freeze_statistics": True}))
    statistics = {name for name in base.state() if "running" in name or "batches" in name}
    assert moved(base, run) == set(base.state()) - statistics
    waiting = {"transfer": "staged", "unfreeze_share": 1.0}
    late = fit(config(base, images, tmp_path / "late", waiting, loop=replace(LOOP, epochs=1)))  # 4 steps
    below = ("conv1", "bn1", "layer1")  # would begin with the step after the last one
    assert {name for name in base.state() if not name.startswith(below)} == moved(base, late)


def test_classes_of_other_names_get_a_new_last_layer(images: Path, tmp_path: Path) -> None:
    first = FitConfig(model="resnet8", out=tmp_path / "first", data=DataConfig(data=str(images)), loop=LOOP)
    start = fit(first)
    still = {"optim": OptimConfig(lr=1e-12, weight_decay=0.0), "loop": replace(LOOP, epochs=1)}
    again = fit(config(start, images, tmp_path / "again", {"freeze_statistics": True}, **still))
    torch.testing.assert_close(again.state()["linear.weight"], start.state()["linear.weight"])
    others = make_split_folder(tmp_path / "others", 12, ("ant", "bee", "fly"))
    other = fit(config(start, others, tmp_path / "other", {"freeze_statistics": True}, **still))
    assert (other.state()["linear.weight"] - start.state()["linear.weight"]).abs().max() > 0.01
    torch.testing.assert_close(other.state()["conv1.weight"], start.state()["conv1.weight"])
    numbers = make_split_folder(tmp_path / "numbers", 12, ("0", "1", "2"))  # which may stand for any names
    kept = fit(config(start, numbers, tmp_path / "kept", {"freeze_statistics": True}, **still))
    torch.testing.assert_close(kept.state()["linear.weight"], start.state()["linear.weight"])


def test_published_weights_are_a_start(images: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    models = pytest.importorskip("torchvision.models")
    torch.manual_seed(5)
    published = models.squeezenet1_1(weights=None).state_dict()
    monkeypatch.setattr("torchvision.models._api.load_state_dict_from_url", lambda *_, **__: dict(published))
    options = {"data": str(images), "shots": 4, "size": (32,), "epochs": 1, "batch_size": 6, "device": "cpu"}
    with pytest.raises(UsageError, match=r"--from squeezenet1_1 is a published network.*give --pretrained"):
        fit_by_options(from_="squeezenet1_1", out=tmp_path / "a", **options)
    with pytest.raises(UsageError, match="--from squeezenet1_1 is the network itself, and --model is resnet8"):
        fit_by_options(from_="squeezenet1_1", model="resnet8", pretrained=True, out=tmp_path / "a", **options)
    made = fit_by_options(from_="squeezenet1_1", pretrained=True, transfer="linear", out=tmp_path / "run", **options)
    run = Run.open(made.run)
    last = {"classifier.1.weight", "classifier.1.bias"}
    state = run.state()
    assert state["classifier.1.weight"].shape[0] == 3
    assert all(torch.equal(state[name], value) for name, value in published.items() if name not in last)
    assert run.record.parent is not None
    assert {key: run.record.parent[key] for key in ("kind", "name")} == {"kind": "published", "name": "squeezenet1_1"}
    # ImageNet's, as torchvision documents them
    assert run.record.preprocessing.mean == (0.485, 0.456, 0.406)
    older = fit_by_options(model="squeezenet1_1", pretrained=True, out=tmp_path / "older", **options)
    assert Run.open(older.run).record.parent == run.record.parent


def test_two_processes_unfreeze_stages(base: Run, images: Path, tmp_path: Path) -> None:
    command = [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node", "2", "-m", "krl_train", "fit"]
    options = f"--from {base.path} --transfer staged --freeze-statistics --data {images} --device cpu --epochs 2"
    more = f"--batch-size 16 --precision fp32 --keep last --out {tmp_path / 'run'}"
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    done = subprocess.run([*command, *options.split(), *more.split()], capture_output=True, text=True, env=environment)
    assert done.returncode == 0, done.stderr[-2000:]
    method = {"transfer": "staged", "freeze_statistics": True}  # whose statistics would differ
    alone = fit(config(base, images, tmp_path / "alone", method, loop=replace(LOOP, keep="last"))).state()
    first, state = base.state(), Run.open(tmp_path / "run").state()
    torch.testing.assert_close(state, alone, rtol=1e-3, atol=1e-5)
    assert (alone["conv1.weight"] - first["conv1.weight"]).abs().max() > 1e-3  # it was unfrozen


class Own(nn.Module):
    """A network of a user's own, without stages and without batch normalization."""

    def __init__(self, num_classes: int) -> None:
        super().__init__()
        self.hidden = nn.Linear(64, 16)
        self.last = nn.Linear(16, num_classes)

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        logits: torch.Tensor = self.last(self.hidden(images.flatten(1)).relu())
        return logits


def test_a_network_of_ones_own_is_carried_over(base: Run, images: Path, tmp_path: Path) -> None:
    start = fit(FitConfig(model=Own, out=tmp_path / "start", data=DataConfig(data="digits", shots=5), loop=LOOP))
    own = {"model": Own}
    run = fit(config(start, images, tmp_path / "run", {"transfer": "linear"}, **own))
    assert moved(start, run) == {"last.weight", "last.bias"}
    both = {"feature_transfer": 1.0, "relation_transfer": 1.0}
    compared = fit(config(start, images, tmp_path / "compared", both, **own))
    assert compared.record.history[-1]["feature_transfer"] > 0  # at the input of the last layer
    with pytest.raises(UsageError, match=r"--transfer staged goes through the stages of a network, and .*Own has none"):
        fit(config(start, images, tmp_path / "staged", {"transfer": "staged"}, **own))
    with pytest.raises(UsageError, match="--layer-decay goes through the stages of a network"):
        fit(config(start, images, tmp_path / "decayed", {"layer_decay": 0.5}, **own))
    with pytest.raises(UsageError, match=r"--freeze-statistics is for batch normalization, and .*Own has none"):
        fit(config(start, images, tmp_path / "frozen", {"freeze_statistics": True}, **own))
    with pytest.raises(RunError, match="weights do not fit the network asked for"):
        fit(config(base, images, tmp_path / "other", **own))
    assert not any((tmp_path / name).exists() for name in ("staged", "decayed", "frozen", "other"))


def test_a_command_is_resumed_by_the_run_alone(base: Run, images: Path, tmp_path: Path) -> None:
    out = str(tmp_path / "run")
    options = f"--from {base.path} --transfer staged --layer-decay 0.5 --freeze-statistics --data {images} --shots 5"
    asked = ["fit", *options.split(), "--epochs", "2", "--batch-size", "5", "--device", "cpu", "--out", out]
    with stopped_at_checkpoint(1):
        assert main(asked) == 130  # as after Ctrl-C
    assert main(["fit", "--resume", "--out", out]) == 0
    assert Run.open(out).record.plan["transfer"]["method"] == "staged"


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"transfer": "linear"}, "--transfer is for a network that starts from a run or published weights"),
        ({"layer_decay": 0.5}, "--layer-decay is for a network that starts from"),
        ({"from_": "r", "transfer": "linear", "l2_sp": 0.1}, "--transfer linear trains the last layer.*leave --l2-sp"),
        ({"from_": "r", "transfer": "linear", "layer_decay": 0.5}, "leave --layer-decay out"),
        ({"from_": "r", "unfreeze_share": 0.5}, "--unfreeze-share is for --transfer staged"),
        ({"from_": "r", "transfer": "staged", "unfreeze_share": 1.5}, "--unfreeze-share is 1.5; accepted: above 0"),
        ({"from_": "r", "layer_decay": 0.0}, "--layer-decay is 0.0; accepted: above 0, to 1"),
        ({"from_": "r", "relation_transfer": -1.0}, "--relation-transfer is -1.0; accepted: 0 or more"),
    ],
)
def test_options_that_do_not_go_together_are_refused(options: dict[str, Any], message: str) -> None:
    with pytest.raises(UsageError, match=message):
        TransferConfig(**options)


def test_starts_that_cannot_be_used_are_refused(base: Run, images: Path, tmp_path: Path) -> None:
    parts = replace(LOOP, accumulate=2)
    with pytest.raises(UsageError, match="--relation-transfer compares all images of a step; leave --accumulate out"):
        fit(config(base, images, tmp_path / "a", {"relation_transfer": 1.0}, loop=parts))
    with pytest.raises(UsageError, match="no network is named; give --model NAME"):
        FitConfig(out=tmp_path / "a")
    with pytest.raises(UsageError, match="is a run, and --pretrained is for --from NAME"):
        fit(config(base, images, tmp_path / "a", pretrained=True))
    with pytest.raises(RunError, match="weights do not fit the network asked for"):
        fit(config(base, images, tmp_path / "a", model="resnet14"))
    with pytest.raises(RunError, match="--from resnet20 is neither the folder of a run nor a network"):
        fit(replace(config(base, images, tmp_path / "a"), transfer=TransferConfig("resnet20"), pretrained=True))
    with pytest.raises(UsageError, match="--transfer is for classification and embedding; the task is restoration"):
        fit(config(base, images, tmp_path / "a", {"transfer": "linear"}, task="restoration"))
    (tmp_path / "generator").mkdir()
    (tmp_path / "generator" / "run.json").write_text('{"task": "generation", "model": {"name": "mlp-16"}}')
    with pytest.raises(RunError, match="is a run of the task generation, and --task is classification"):
        fit(replace(config(base, images, tmp_path / "a"), transfer=TransferConfig(str(tmp_path / "generator"))))
    (tmp_path / "bundle").mkdir()
    (tmp_path / "bundle" / "manifest.json").write_text("{}")
    with pytest.raises(RunError, match="is a bundle, where a run is needed"):
        fit(replace(config(base, images, tmp_path / "a"), transfer=TransferConfig(str(tmp_path / "bundle"))))
    assert not (tmp_path / "a").exists()
