from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file

from _helpers.images import make_split_folder
from _helpers.resuming import stopped_at_checkpoint
from krl_runtime.errors import ModelError, RunError, TrainingError, UsageError
from krl_runtime.images.preprocessing import Preprocessing
from krl_train.config import (
    AugmentConfig,
    DataConfig,
    FitConfig,
    InputConfig,
    LoopConfig,
    OptimConfig,
    PlannedOptim,
    TransferConfig,
)
from krl_train.data import Augmentation, PixelSet, open_source, preprocessing_for
from krl_train.loop import CHECKPOINT, BatchStream, resolve_device
from krl_train.run import RECORD, WEIGHTS, Run
from krl_train.tasks.optim import build_optimizer, learning_rate_factor
from krl_train.training.fit import fit
from krl_train.training.view_sheet import write_view_sheet
from krl_train.worker import Worker


def config(out: Path, data: str = "digits", **changes) -> FitConfig:
    loop = LoopConfig(epochs=2, batch_size=64, device="cpu", precision="fp32")
    base = FitConfig(model="resnet8", out=out, data=DataConfig(data=data, limit=320, val_limit=100), loop=loop)
    return replace(base, **changes)


def test_a_run_says_what_was_done_and_what_came_of_it(tmp_path: Path) -> None:
    run = fit(config(tmp_path / "run", loop=LoopConfig(epochs=6, batch_size=32, device="cpu", precision="fp32")))
    record = Run.open(run.path).record
    assert record.metrics["top1"] > 0.7
    assert record.metrics["count"] == 100
    assert sum(map(sum, record.metrics["confusion"])) == 100
    hits = sum(record.metrics["confusion"][index][index] for index in range(10))
    assert record.metrics["top1"] == pytest.approx(hits / 100)
    assert len(record.history) == 6
    assert record.history[-1]["val_top1"] == record.metrics["top1"]
    assert record.history[-1]["loss"] < record.history[0]["loss"]
    assert record.configuration["optim"]["optimizer"] == "sgd"
    assert record.data["source"] == "digits"
    assert record.data["train"]["count"] == 320
    assert record.preprocessing.shape == (1, 8, 8)
    assert set(record.versions) >= {"python", "torch", "krl"}
    assert list((run.path / "events").glob("events.out.tfevents.*"))
    assert not (run.path / "checkpoint").exists()


def test_the_same_seed_gives_the_same_weights_and_another_seed_others(tmp_path: Path) -> None:
    first, again = (fit(config(tmp_path / name)).record.weights_sha256 for name in ("a", "b"))
    other = fit(config(tmp_path / "c", loop=LoopConfig(2, 64, seed=1, device="cpu", precision="fp32")))
    assert first == again != other.record.weights_sha256


def test_resumed_between_epochs_and_steps_is_as_if_never_stopped(tmp_path: Path) -> None:
    optim = OptimConfig(ema=0.9, clip_norm=1.0, label_smoothing=0.1)
    whole = fit(config(tmp_path / "whole", optim=optim)).record

    stopped = config(
        tmp_path / "stopped",
        optim=optim,
        loop=LoopConfig(2, 64, device="cpu", precision="fp32", checkpoint_minutes=0.0),
    )
    with stopped_at_checkpoint() as saves, pytest.raises(KeyboardInterrupt):
        fit(stopped)
    assert saves[-1] not in (0, 5)  # stopped in mid-epoch
    with pytest.raises(RunError, match="not finished; continue it with the same command and --resume"):
        Run.open(stopped.out)
    resumed = fit(replace(stopped, resume=True)).record
    assert resumed.weights_sha256 == whole.weights_sha256
    assert [entry["loss"] for entry in resumed.history[1:]] == [entry["loss"] for entry in whole.history[1:]]


def test_a_training_with_views_of_all_kinds_resumes_and_shows_them(tmp_path: Path) -> None:
    views = AugmentConfig(
        **{
            "random_resized_crop": True,
            "crop_scale": (0.3, 1.0),
            "auto_augment": "randaugment",
            "color_jitter": (0.4,),
        },
        **{"rotate": 5, "erase": 0.5, "mixup": 0.4, "cutmix": 1.0},
    )
    optim = OptimConfig(label_smoothing=0.1)
    whole = fit(config(tmp_path / "whole", augment=views, optim=optim))
    loop = LoopConfig(2, 64, device="cpu", precision="fp32", checkpoint_minutes=0.0)
    stopped = config(tmp_path / "stopped", augment=views, optim=optim, loop=loop)
    with stopped_at_checkpoint(3), pytest.raises(KeyboardInterrupt):
        fit(stopped)
    assert fit(replace(stopped, resume=True)).record.weights_sha256 == whole.record.weights_sha256
    planned = whole.record.plan["augmentation"]
    assert (planned["auto_augment"], planned["crop_scale"], planned["cutmix"]) == ("randaugment", [0.3, 1.0], 1.0)
    assert planned["color_jitter"] == [0.4, 0.4, 0.0, 0.0]  # digits are gray
    with pytest.raises(RunError, match=r"cannot be resumed.*cutmix was 1.0, now 0.5"):
        fit(replace(stopped, augment=replace(views, cutmix=0.5), resume=True))
    sheets = [np.asarray(Image.open(run / "samples" / "views.png")) for run in (whole.path, stopped.out)]
    assert sheets[0].shape == (4 * 8, 8 * 8)
    assert np.array_equal(*sheets)


@pytest.mark.parametrize(("height", "width", "channels", "count"), [(8, 12, 3, 20), (256, 64, 1, 5)])
def test_the_sheet_has_a_column_for_each_image(tmp_path: Path, height, width, channels, count) -> None:
    levels = np.linspace(20, 240, count).astype(np.uint8)
    data = PixelSet(np.broadcast_to(levels[:, None, None, None], (count, channels, height, width)).copy(), [0] * count)
    size = Preprocessing(height, width, channels=channels, mean=(0.5,) * channels, std=(0.5,) * channels)
    augmentation = Augmentation.resolve(AugmentConfig(zoom=1.1), size, flip=True, seed=0)
    write_view_sheet(BatchStream(data, replace(augmentation, padding=0), 4, 0), tmp_path)
    sheet = np.asarray(Image.open(tmp_path / "samples" / "views.png"))
    columns, scale = min(8, count), min(1, 128 / max(height, width))
    assert sheet.shape[:2] == (4 * height * scale, columns * width * scale)
    assert sheet.ndim == (2 if channels == 1 else 3)
    chosen = levels[np.linspace(0, count - 1, columns).astype(int)]
    rows = sheet if channels == 1 else sheet[:, :, 0]
    assert (rows == np.repeat(chosen, int(width * scale))).all()


def _command(out: Path, *more: str) -> list[str]:
    options = ["--model", "resnet20", "--data", "digits", "--epochs", "8", "--batch-size", "32"]
    options += ["--precision", "fp32", "--checkpoint-minutes", "0.002"]
    return [
        sys.executable,
        "-m",
        "krl_train",
        "fit",
        *options,
        "--out",
        str(out),
        "--checkpoint-minutes",
        "0.002",
        *more,
    ]


@pytest.mark.slow
def test_killed_in_mid_epoch_and_resumed_ends_with_the_same_weights(tmp_path: Path) -> None:
    env = {**os.environ, "OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""}
    subprocess.run(_command(tmp_path / "whole"), check=True, env=env, capture_output=True)
    kills = 0
    for attempt in range(2):
        more = ("--resume",) if attempt else ()
        process = subprocess.Popen(
            _command(tmp_path / "killed", *more), env=env, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
        )
        checkpoint = tmp_path / "killed" / CHECKPOINT
        before = checkpoint.stat().st_mtime_ns if checkpoint.exists() else 0
        deadline = time.monotonic() + 60
        while process.poll() is None and time.monotonic() < deadline:
            if checkpoint.exists() and checkpoint.stat().st_mtime_ns > before:
                time.sleep(0.2 + 0.1 * attempt)  # somewhere between two checkpoints
                break
            time.sleep(0.01)
        if process.poll() is None:
            process.send_signal(signal.SIGKILL)
            kills += 1
        process.wait()
    assert kills >= 1
    done = subprocess.run(_command(tmp_path / "killed", "--resume"), env=env, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert "resuming at epoch" in done.stderr
    first, second = (load_file(tmp_path / name / WEIGHTS) for name in ("whole", "killed"))
    assert all(torch.equal(first[name], second[name]) for name in first)


@pytest.mark.slow
def test_two_processes_train_with_gloo(tmp_path: Path) -> None:
    folder = make_split_folder(tmp_path / "data", count=64)
    options = [
        "--model",
        "dscnn-0.25",
        "--data",
        str(folder),
        "--epochs",
        "10",
        "--batch-size",
        "16",
        "--device",
        "cpu",
    ]
    command = [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node", "2", "-m", "krl_train", "fit"]
    env = {**os.environ, "OMP_NUM_THREADS": "1"}
    out = tmp_path / "run"
    done = subprocess.run([*command, *options, "--out", str(out), "--json"], env=env, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    record = Run.open(out).record
    assert record.metrics["count"] == 128  # each image once, though each process saw half of them
    assert record.metrics["top1"] > 0.9
    assert json.loads(done.stdout)["top1"] == record.metrics["top1"]  # printed by one process alone


def test_processes_share_the_images_that_one_would_see() -> None:
    pixels = np.random.default_rng(0).integers(0, 256, (40, 3, 8, 8)).astype(np.uint8)
    data = PixelSet(pixels, [0] * 40)
    augmentation = Augmentation.resolve(AugmentConfig(), Preprocessing(8, 8), flip=True, seed=0)
    stream = BatchStream(data, augmentation, 16, seed=0)
    cpu = torch.device("cpu")
    alone = list(stream.epoch(1, 0, Worker(cpu)))
    halves = [list(stream.epoch(1, 0, Worker(cpu, rank, 2))) for rank in range(2)]
    assert [len(batch.labels) for batch in alone] == [16, 16, 8]
    assert stream.steps == 3
    for step, batch in enumerate(alone):
        for rank in range(2):
            assert torch.equal(batch.pixels[rank::2], halves[rank][step].pixels)
    seen = torch.cat([batch.indices for batch in alone])
    assert sorted(seen.tolist()) == list(range(40))
    later = list(stream.epoch(1, 1, Worker(cpu)))
    assert torch.equal(later[0].pixels, alone[1].pixels)


def test_a_loss_that_is_not_a_number_stops_and_keeps_the_checkpoint(tmp_path: Path) -> None:
    bad = config(
        tmp_path / "run",
        optim=OptimConfig(lr=1e18, warmup=0.0),
        loop=LoopConfig(30, 64, device="cpu", precision="fp32"),
    )
    with pytest.raises(TrainingError, match=r"not (a )?finite number"):
        fit(bad)
    saved = tmp_path / "run" / CHECKPOINT
    if saved.exists():
        state = torch.load(saved, weights_only=True)["learners"]["model"]["module"]
        assert all(torch.isfinite(value).all() for value in state.values())


def test_a_loss_that_turns_bad_later_keeps_the_last_good_checkpoint(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from krl_train.tasks import Supervised

    real = Supervised.forward
    calls: list[int] = []

    def poisoned(self, batch):
        calls.append(1)
        parts = real(self, batch)
        return {"loss": parts["loss"] * float("nan")} if len(calls) > 8 else parts

    monkeypatch.setattr(Supervised, "forward", poisoned)
    with pytest.raises(TrainingError, match=r"epoch 2, step 4; the last good checkpoint stays in .*--lr"):
        fit(config(tmp_path / "run"))
    monkeypatch.setattr(Supervised, "forward", real)
    resumed = fit(config(tmp_path / "run", resume=True)).record
    assert resumed.weights_sha256 == fit(config(tmp_path / "clean")).record.weights_sha256


def test_a_run_that_never_started_is_not_in_the_way(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: object, **__: object) -> None:
        raise UsageError("refused")

    monkeypatch.setattr("krl_train.training.train.ClassificationTask", fail)
    with pytest.raises(UsageError, match="refused"):
        fit(config(tmp_path / "run"))
    assert (tmp_path / "run" / RECORD).exists()
    monkeypatch.undo()
    assert fit(config(tmp_path / "run")).record.metrics


def test_out_folders_are_not_lost(tmp_path: Path) -> None:
    fit(config(tmp_path / "run"))
    with pytest.raises(RunError, match=r"exists already; continue it with --resume, or replace it with --overwrite"):
        fit(config(tmp_path / "run"))
    finished = fit(config(tmp_path / "run", resume=True))
    assert finished.record.metrics
    with pytest.raises(RunError, match=r"cannot be resumed.*epochs was 2, now 3"):
        fit(config(tmp_path / "run", resume=True, loop=LoopConfig(3, 64, device="cpu", precision="fp32")))
    with pytest.raises(UsageError, match="exclude each other"):
        fit(config(tmp_path / "run", resume=True, overwrite=True))
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "thesis.txt").write_text("years of work")
    with pytest.raises(UsageError, match="is not a run"):
        fit(config(tmp_path / "mine", overwrite=True))
    assert (tmp_path / "mine" / "thesis.txt").exists()
    assert fit(config(tmp_path / "run", overwrite=True)).record.weights_sha256


def test_fine_tuning_starts_from_another_run(tmp_path: Path) -> None:
    fit(config(tmp_path / "base"))
    untouched = LoopConfig(1, 64, device="cpu", precision="fp32")
    tuned = fit(
        config(
            tmp_path / "tuned",
            transfer=TransferConfig(str(tmp_path / "base")),
            loop=untouched,
            optim=OptimConfig(lr=1e-12),
        )
    )
    base = Run.open(tmp_path / "base")
    assert tuned.record.parent["weights_sha256"] == base.record.weights_sha256
    first, second = base.state(), tuned.state()
    assert torch.allclose(first["conv1.weight"], second["conv1.weight"], atol=1e-6)

    gray = tmp_path / "data"
    for name in ("a", "b", "c"):
        (gray / name).mkdir(parents=True)
        for index in range(20):
            Image.new("L", (8, 8), index * 10).save(gray / name / f"{index}.png")
    other = fit(config(tmp_path / "other", data=str(gray), transfer=TransferConfig(str(tmp_path / "base"))))
    assert other.state()["linear.weight"].shape[0] == 3  # a new last layer for other labels
    with pytest.raises(RunError, match="do not fit the network"):
        fit(config(tmp_path / "wrong", transfer=TransferConfig(str(tmp_path / "base")), model="dscnn-0.25"))


def test_learning_rate_follows_the_published_schedules() -> None:
    steps = 2400
    multistep = PlannedOptim(schedule="multistep", warmup=0.0)
    factors = [learning_rate_factor(multistep, step, steps) for step in (0, 1499, 1500, 1800, 2100, 2399)]
    np.testing.assert_allclose(factors, [1, 1, 0.1, 0.01, 0.001, 0.001])
    cosine = PlannedOptim(warmup=0.1)
    assert learning_rate_factor(cosine, 0, 100) == pytest.approx(1 / 11)
    assert learning_rate_factor(cosine, 10, 100) == pytest.approx(1)
    assert learning_rate_factor(cosine, 55, 100) == pytest.approx(0.5)
    assert learning_rate_factor(cosine, 100, 100) == pytest.approx(0)
    assert learning_rate_factor(PlannedOptim(schedule="constant", warmup=0.0), 77, 100) == 1


def test_optimizers_take_what_was_asked_for() -> None:
    module = torch.nn.PReLU(2)
    module.register_parameter("frozen", torch.nn.Parameter(torch.ones(2), requires_grad=False))
    sgd = build_optimizer(OptimConfig(), module, batch_size=256)
    assert sgd.param_groups[0]["lr"] == pytest.approx(0.2)
    assert len(sgd.param_groups[0]["params"]) == 1
    adamw = build_optimizer(OptimConfig(optimizer="adamw", lr=3e-4, weight_decay=0.05), module, 128)
    assert (type(adamw).__name__, adamw.param_groups[0]["lr"], adamw.param_groups[0]["weight_decay"]) == (
        "AdamW",
        3e-4,
        0.05,
    )


def test_mixed_precision_trains_where_it_is_asked_for(tmp_path: Path) -> None:
    run = fit(config(tmp_path / "run", loop=LoopConfig(4, 32, device="cpu", precision="bf16")))
    assert run.record.metrics["top1"] > 0.5
    assert all(value.dtype in (torch.float32, torch.int64) for value in run.state().values())
    with pytest.raises(UsageError, match="fp16 needs a GPU"):
        fit(config(tmp_path / "half", loop=LoopConfig(1, 32, device="cpu", precision="fp16")))


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU here")
def test_a_missing_gpu_is_said() -> None:
    with pytest.raises(UsageError, match="sees no CUDA device"):
        resolve_device("cuda")


@pytest.fixture(scope="class")
def run(tmp_path_factory: pytest.TempPathFactory) -> Run:
    return fit(config(tmp_path_factory.mktemp("runs") / "run"))


@pytest.fixture
def copy(run: Run, tmp_path: Path) -> Path:
    return Path(shutil.copytree(run.path, tmp_path / "copy"))


def test_round_trip(run: Run) -> None:
    again = Run.open(run.path)
    assert again.record.to_bytes() == run.record.to_bytes()
    assert not again.network().training


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda values: values.update(schema_version=99), "schema version 99; this krl reads version 2"),
        (lambda values: values.update(kind="other"), "not the record of a krl run"),
        (lambda values: values.update(surprise=1), r"unknown keys \['surprise'\]"),
        (lambda values: values.pop("labels"), "not the record of a krl run"),
        (lambda values: values["preprocessing"].update(channels=2), "channels is 2"),
        (lambda values: values["model"].update(name="resnet20"), "do not fit resnet20"),
    ],
)
def test_a_wrong_record_is_refused(copy: Path, change, message: str) -> None:
    values = json.loads((copy / RECORD).read_text())
    change(values)
    (copy / RECORD).write_text(json.dumps(values))
    with pytest.raises(RunError, match=message):
        Run.open(copy).network()


def test_a_flipped_byte_is_found(copy: Path) -> None:
    data = bytearray((copy / WEIGHTS).read_bytes())
    data[len(data) // 2] ^= 1
    (copy / WEIGHTS).write_bytes(data)
    with pytest.raises(RunError, match="damaged or was changed"):
        Run.open(copy)
    (copy / WEIGHTS).unlink()
    with pytest.raises(RunError, match="is missing"):
        Run.open(copy)
    (copy / RECORD).write_bytes(b"\xff{")
    with pytest.raises(RunError, match="not valid JSON"):
        Run.open(copy)


def test_places_without_a_run(tmp_path: Path) -> None:
    with pytest.raises(RunError, match="does not exist"):
        Run.open(tmp_path / "nowhere")
    with pytest.raises(RunError, match="holds no run"):
        Run.open(tmp_path)


def test_weights_that_are_not_numbers_are_neither_written_nor_read(run: Run, tmp_path: Path) -> None:
    state = {**run.state(), "conv1.bias": torch.tensor([float("nan")])}
    with pytest.raises(ModelError, match=r"not finite numbers: conv1\.bias"):
        Run.write(tmp_path / "nan", run.record, state)
    assert not (tmp_path / "nan" / WEIGHTS).exists()


def test_loaded_weights_keep_the_input_they_were_trained_with(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    short = LoopConfig(1, 64, device="cpu", precision="fp32")
    asked = InputConfig(size=(12,), interpolation="bicubic", mean=(0.1,), std=(0.7,))
    fit(config(tmp_path / "base", loop=short, input=asked))
    caplog.clear()
    tuned = fit(
        config(tmp_path / "tuned", loop=short, transfer=TransferConfig(str(tmp_path / "base")))
    ).record.preprocessing
    assert tuned == Preprocessing(12, 12, 1, interpolation="bicubic", mean=(0.1,), std=(0.7,))
    assert "were trained with" not in caplog.text
    other = InputConfig(size=(10,), mean=(0.5,))
    changed = fit(
        config(tmp_path / "other", loop=short, transfer=TransferConfig(str(tmp_path / "base")), input=other)
    ).record.preprocessing
    assert changed == Preprocessing(10, 10, 1, interpolation="bicubic", mean=(0.5,), std=(0.7,))
    assert "the weights were trained with mean (0.1,) and std (0.7,)" in caplog.text


def test_published_weights_bring_their_input(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    models = pytest.importorskip("torchvision.models")
    published = models.efficientnet_b1(weights=None).state_dict()
    monkeypatch.setattr("torchvision.models._api.load_state_dict_from_url", lambda *_, **__: dict(published))
    data = DataConfig(data=str(make_split_folder(tmp_path)), limit=4, val_limit=2)
    small = InputConfig(size=(32,))
    base = config(tmp_path / "run", model="efficientnet_b1", pretrained=True, loop=LoopConfig(1, 4, device="cpu"))
    run = fit(replace(base, data=data, input=small, optim=OptimConfig(lr=1e-12)))
    assert run.record.preprocessing == Preprocessing(32, 32)  # ImageNet's mean and std, not the images'
    source = open_source(data)
    # torchvision's table of weights: IMAGENET1K_V2 of EfficientNet-B1 takes 240 of 255 pixels
    expected = Preprocessing(240, 240, crop_fraction=240 / 255)
    assert preprocessing_for(InputConfig(), source, "efficientnet_b1", pretrained=True) == expected
