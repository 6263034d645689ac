"""``krl-train fit --task restoration``: patches, metrics, training, resuming, and bad input."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from _helpers.images import blurred_noise
from _helpers.resuming import stopped_at_checkpoint
from krl_runtime.errors import DataError, RunError, UsageError
from krl_runtime.images.luma import corrupt, degrade, luma, to_uint8
from krl_runtime.images.ssim import ssim
from krl_train.cli import main
from krl_train.config import (
    AugmentConfig,
    DataConfig,
    EvaluateConfig,
    FitConfig,
    InputConfig,
    LoopConfig,
    OptimConfig,
    RestorationConfig,
    TransferConfig,
)
from krl_train.data import PatchStream, Truths, open_source
from krl_train.data.patches import read_image
from krl_train.evaluation.evaluate import evaluate
from krl_train.metrics.restoration import enlarge, score
from krl_train.models.restorers import RestorerNetwork
from krl_train.run import Run
from krl_train.training.fit import fit
from krl_train.worker import Worker

SR = Path("../shared/data/sr")
CPU = Worker(torch.device("cpu"))
BICUBIC = {"kind": "bicubic"}


def scene(side: int, seed: int) -> Image.Image:
    """Sharp-edged blobs, which a network can enlarge better than a bicubic filter."""
    return Image.fromarray(np.where(np.asarray(blurred_noise(side, seed, 3)) > 127, 220, 30).astype(np.uint8))


@pytest.fixture
def images(tmp_path: Path) -> Path:
    folder = tmp_path / "images"
    for split, count in (("train", 4), ("val", 2)):
        (folder / split).mkdir(parents=True)
        for index in range(count):
            scene(61 + index, 10 * count + index).save(folder / split / f"{index}.png")
    return folder


def config(folder: Path, out: Path, **changes: Any) -> FitConfig:
    base = FitConfig(
        out=out,
        task="restoration",
        model="espcn-8",
        data=DataConfig(data=str(folder)),
        input=InputConfig(size=(10,)),
        restoration=RestorationConfig(scale=2),
        loop=LoopConfig(epochs=2, batch_size=4, device="cpu", precision="fp32"),
    )
    return replace(base, **changes)


def truths(color: str = "y") -> Truths:
    made = [np.asarray(scene(40 + 3 * index, index)) for index in range(3)]
    planes = [item if color == "rgb" else to_uint8(luma(item)) for item in made]
    return Truths(("a", "b", "c"), tuple(planes))


# --- patches


@pytest.mark.parametrize("degradation", [BICUBIC, {"kind": "noise", "sigma": 20.0}, {"kind": "jpeg", "quality": 30}])
@pytest.mark.parametrize("color", ["y", "rgb"])
def test_patches_follow_from_seed_epoch_and_number_alone(degradation: dict[str, Any], color: str) -> None:
    scale = 2 if degradation is BICUBIC else 1
    stream, again = (
        PatchStream(truths(color), scale, degradation, (8, 8), LoopConfig(batch_size=4, seed=3)) for _ in range(2)
    )
    whole = list(stream.epoch(1, 0, CPU))
    assert len(whole) == stream.steps > 1
    channels = 3 if color == "rgb" else 1
    assert whole[0].pixels.shape == (4, channels, 8, 8)
    assert whole[0].truth.shape == (4, channels, 8 * scale, 8 * scale)
    assert whole[0].pixels.dtype == whole[0].truth.dtype == torch.uint8
    later = next(iter(again.epoch(1, 1, CPU)))
    assert torch.equal(later.pixels, whole[1].pixels)
    assert torch.equal(later.truth, whole[1].truth)
    halves = [next(iter(again.epoch(1, 0, Worker(torch.device("cpu"), rank, 2)))) for rank in range(2)]
    for rank in range(2):
        assert torch.equal(halves[rank].pixels, whole[0].pixels[rank::2])
    other = next(iter(stream.epoch(2, 0, CPU)))
    assert not torch.equal(other.pixels, whole[0].pixels)
    reseeded = PatchStream(truths(color), scale, degradation, (8, 8), LoopConfig(batch_size=4, seed=4))
    assert not torch.equal(next(iter(reseeded.epoch(1, 0, CPU))).pixels, whole[0].pixels)


def test_each_patch_lies_where_its_truth_lies() -> None:
    stream = PatchStream(truths(), 2, BICUBIC, (8, 8), LoopConfig(batch_size=16, seed=0))
    batch = next(iter(stream.epoch(0, 0, CPU)))
    for small, large in zip(batch.pixels, batch.truth, strict=True):
        again, _ = degrade(large[0].numpy(), 2)
        # The patch's own edge lacks its surroundings; inside, both are the same reduction.
        assert np.abs(again[3:-3, 3:-3].astype(int) - small[0, 3:-3, 3:-3].numpy()).max() <= 1


def test_without_augmentation_patches_are_cut_as_they_lie() -> None:
    ramp = np.arange(64, dtype=np.uint8)[None].repeat(64, 0)
    stream = PatchStream(Truths(("a",), (ramp,)), 1, BICUBIC, (8, 8), LoopConfig(batch_size=8, seed=0), augment=False)
    turned = PatchStream(Truths(("a",), (ramp,)), 1, BICUBIC, (8, 8), LoopConfig(batch_size=8, seed=0))
    assert all((batch.truth.diff(dim=3) == 1).all() for batch in stream.epoch(0, 0, CPU))
    steps = torch.cat([batch.truth.int().diff(dim=3)[:, 0, 0, 0] for batch in turned.epoch(0, 0, CPU)])
    assert set(steps.tolist()) == {-1, 0, 1}


def test_noise_has_the_asked_deviation_and_jpeg_is_pillows() -> None:
    gray = np.full((200, 200), 128, np.uint8)
    noisy = corrupt(gray, {"kind": "noise", "sigma": 15.0}, (1, 2)).astype(float)
    assert abs(noisy.std() - 15) < 0.3
    assert abs(noisy.mean() - 128) < 0.3
    blocky = corrupt(truths().images[0], {"kind": "jpeg", "quality": 10}, (0,))
    assert 0 < np.abs(blocky.astype(int) - truths().images[0]).mean() < 30
    with pytest.raises(UsageError, match="degradation kind is 'fog'; accepted: bicubic, none, noise, jpeg"):
        corrupt(gray, {"kind": "fog"}, (0,))


def test_luma_of_colors_and_gray_files_as_they_are(tmp_path: Path) -> None:
    Image.new("RGB", (4, 4), (255, 255, 255)).save(tmp_path / "white.png")
    Image.new("L", (4, 4), 255).save(tmp_path / "gray.png")
    assert read_image(tmp_path / "white.png", "y")[0, 0] == 235
    assert read_image(tmp_path / "gray.png", "y")[0, 0] == 255
    assert read_image(tmp_path / "white.png", "gray")[0, 0] == 255
    assert read_image(tmp_path / "white.png", "rgb").shape == (4, 4, 3)


# --- metrics


def reference_ssim(a: np.ndarray, b: np.ndarray) -> float:
    """SSIM as in the authors' ssim_index.m, window by window."""
    axis = np.exp(-((np.arange(11) - 5.0) ** 2) / (2 * 1.5**2))
    window = np.outer(axis, axis) / np.outer(axis, axis).sum()
    c1, c2 = (0.01 * 255) ** 2, (0.03 * 255) ** 2
    values = []
    for y in range(a.shape[0] - 10):
        for x in range(a.shape[1] - 10):
            p, q = a[y : y + 11, x : x + 11].astype(float), b[y : y + 11, x : x + 11].astype(float)
            mp, mq = (window * p).sum(), (window * q).sum()
            vp, vq = (window * (p - mp) ** 2).sum(), (window * (q - mq) ** 2).sum()
            covariance = (window * (p - mp) * (q - mq)).sum()
            values.append((2 * mp * mq + c1) * (2 * covariance + c2) / ((mp * mp + mq * mq + c1) * (vp + vq + c2)))
    return float(np.mean(values))


def test_ssim_is_the_authors_definition() -> None:
    random = np.random.default_rng(0)
    a = to_uint8(luma(np.asarray(scene(24, 1)))).copy()
    b = to_uint8(a + 20 * random.standard_normal(a.shape))
    assert ssim(a, b) == pytest.approx(reference_ssim(a, b), abs=1e-6)
    assert ssim(a, a) == pytest.approx(1)
    with pytest.raises(UsageError, match="at least 11 pixels"):
        ssim(a[:10], b[:10])


def test_score_cuts_the_border_and_takes_luma() -> None:
    truth = np.asarray(scene(30, 0))
    spoiled = truth.copy()
    spoiled[:2] = 0  # within the border alone
    assert score(spoiled, truth, 2) == {"psnr": 100.0, "ssim": pytest.approx(1)}
    shifted = np.clip(truth.astype(int) + 10, 0, 255).astype(np.uint8)
    # Luma of 10 levels more in all channels is 219 / 255 of that.
    expected = 20 * np.log10(255 / np.abs(to_uint8(luma(shifted)).astype(float) - to_uint8(luma(truth)))).mean()
    assert score(shifted, truth, 2)["psnr"] == pytest.approx(expected, abs=0.3)


@pytest.mark.skipif(not SR.is_dir(), reason="../shared/data/sr is absent")
@pytest.mark.parametrize(
    ("folder", "scale", "published"), [("set5", 3, 30.39), ("set5", 2, 33.66), ("set14", 3, 27.54)]
)
def test_bicubic_scores_what_papers_report(folder: str, scale: int, published: float) -> None:
    found = []
    for path in sorted((SR / folder).iterdir()):
        small, truth = degrade(read_image(path, "y"), scale)
        found.append(score(enlarge(small, scale), truth, scale)["psnr"])
    assert np.mean(found) == pytest.approx(published, abs=0.03)


# --- training


def test_training_beats_bicubic_and_the_run_makes_its_network_again(images: Path, tmp_path: Path) -> None:
    loop = LoopConfig(epochs=40, batch_size=4, device="cpu", precision="fp32", evaluate_every=20)
    run = fit(config(images, tmp_path / "run", loop=loop, optim=OptimConfig(lr=5e-3)))
    metrics, arguments = run.record.metrics, run.record.model.arguments
    assert metrics["gain"] > 0.2
    assert metrics["psnr"] - metrics["input_psnr"] == pytest.approx(metrics["gain"], abs=1e-3)
    assert metrics["count"] == len(metrics["images"]) == 2
    assert run.record.task == "restoration"
    assert run.record.labels == ()
    assert arguments == {"scale": 2, "color": "y", "overlap": 4, "degradation": BICUBIC}
    assert run.record.configuration["optim"]["optimizer"] == "adamw"
    opened = Run.open(run.path).module()
    assert isinstance(opened, RestorerNetwork)
    assert opened(torch.zeros(1, 1, 5, 9, dtype=torch.uint8)).shape == (1, 1, 10, 18)
    grids = sorted((run.path / "samples").iterdir())
    assert [item.name for item in grids] == ["restored-0020.png", "restored-0040.png"]
    with Image.open(grids[0]) as grid:
        assert grid.size == (3 * 98, 2 * 98)


@pytest.mark.parametrize(
    ("restoration", "channels"),
    [
        (RestorationConfig(restore="denoise", noise_level=30.0, color="rgb"), 3),
        (RestorationConfig(restore="jpeg", jpeg_quality=10, color="gray", pixel_loss="charbonnier"), 1),
    ],
)
def test_denoising_and_jpeg_improve_on_their_input(
    images: Path, tmp_path: Path, restoration: RestorationConfig, channels: int
) -> None:
    loop = LoopConfig(epochs=30, batch_size=4, device="cpu", precision="fp32", evaluate_every=30)
    run = fit(config(images, tmp_path / "run", restoration=restoration, loop=loop))
    assert run.record.model.in_channels == channels
    assert run.record.model.arguments["scale"] == 1
    assert run.record.metrics["gain"] > 0.3


def test_resumed_in_mid_epoch_is_as_if_never_stopped(images: Path, tmp_path: Path) -> None:
    whole = fit(config(images, tmp_path / "whole")).record
    loop = LoopConfig(epochs=2, batch_size=4, device="cpu", precision="fp32", checkpoint_minutes=0.0)
    stopped = config(images, tmp_path / "stopped", loop=loop)
    with stopped_at_checkpoint() as saves, pytest.raises(KeyboardInterrupt):
        fit(stopped)
    assert saves[-1] == 3
    resumed = fit(replace(stopped, resume=True)).record
    assert resumed.weights_sha256 == whole.weights_sha256


@pytest.mark.slow
def test_two_processes_train_and_agree_on_the_metrics(images: Path, tmp_path: Path) -> None:
    out = tmp_path / "run"
    command = [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node", "2", "-m", "krl_train", "fit"]
    options = ["--task", "restoration", "--model", "espcn-8", "--data", str(images), "--scale", "2", "--size", "10"]
    options += ["--epochs", "2", "--batch-size", "4", "--device", "cpu", "--out", str(out)]
    env = {**os.environ, "OMP_NUM_THREADS": "1"}
    done = subprocess.run([*command, *options], env=env, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    metrics = Run.open(out).record.metrics
    again = evaluate(EvaluateConfig(run=out, device="cpu"))
    assert metrics["count"] == again["count"] == 2
    assert metrics["psnr"] == pytest.approx(again["psnr"], abs=1e-3)
    alone = fit(config(images, tmp_path / "alone", loop=LoopConfig(2, 4, device="cpu"))).record.metrics
    assert metrics["psnr"] == pytest.approx(alone["psnr"], abs=0.02)  # the same patches, summed up in another order


def test_fine_tuning_begins_at_the_other_run(images: Path, tmp_path: Path) -> None:
    first = fit(config(images, tmp_path / "first"))
    second = fit(
        config(
            images,
            tmp_path / "second",
            transfer=TransferConfig(str(first.path)),
            loop=replace(LoopConfig(1, 4, device="cpu")),
        )
    )
    assert second.record.parent is not None
    assert second.record.parent["weights_sha256"] == first.record.weights_sha256
    # weights that were trained with another normalization, as imported ones
    moved = replace(first.record.preprocessing, mean=(0.0,), std=(1.0,))
    other = Run.write(tmp_path / "moved", replace(first.record, preprocessing=moved), first.state())
    kept = fit(
        config(
            images,
            tmp_path / "kept",
            transfer=TransferConfig(str(other.path)),
            loop=replace(LoopConfig(1, 4, device="cpu")),
        )
    )
    assert (kept.record.preprocessing.mean, kept.record.preprocessing.std) == ((0.0,), (1.0,))
    with pytest.raises(RunError, match="is a espcn-8; its weights do not fit"):
        fit(config(images, tmp_path / "third", transfer=TransferConfig(str(first.path)), model="edsr-1-8"))


def test_the_commands_print_and_evaluate(images: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "run"
    command = ["fit", "--task", "restoration", "--model", "fsrcnn-8-4-1", "--data", str(images / "train"), "--scale"]
    options = ["2", "--size", "10", "--epochs", "1", "--batch-size", "4", "--device", "cpu", "--out", str(out)]
    assert main([*command, *options, "--val-data", str(images / "val"), "--json"]) == 0
    trained = json.loads(capsys.readouterr().out)
    assert trained["count"] == 2
    assert main(["evaluate", str(out), "--json", "--device", "cpu"]) == 0
    again = json.loads(capsys.readouterr().out)
    assert again["data"] == str((images / "val").resolve())
    assert again["psnr"] == pytest.approx(trained["psnr"], abs=1e-3)
    assert main(["evaluate", str(out), "--data", str(images / "train"), "--device", "cpu"]) == 0
    shown = capsys.readouterr().out
    assert "on 4 images" in shown
    assert "0.png" in shown


# --- bad input


@pytest.mark.parametrize(
    ("changes", "error", "message"),
    [
        ({"data": DataConfig()}, UsageError, "give --data FOLDER"),
        ({"data": DataConfig(data="nowhere")}, DataError, "neither a folder nor a known data set"),
        ({"input": InputConfig(size=(40,))}, DataError, "less than a patch of 80x80"),
        ({"input": InputConfig(size=(2,))}, UsageError, "patches of 4 pixels a side or more"),
        ({"pretrained": True}, UsageError, "--pretrained is for classification and embedding and style"),
        ({"augment": AugmentConfig(mixup=0.2)}, UsageError, "--mixup is for classification; the task is restoration"),
    ],
)
def test_what_cannot_be_trained_is_refused(
    images: Path, tmp_path: Path, changes: dict[str, Any], error: type[Exception], message: str
) -> None:
    if "data" in changes and changes["data"].data == "FOLDER":
        changes = {"data": replace(changes["data"], data=str(images))}
    with pytest.raises(error, match=message):
        fit(config(images, tmp_path / "run", **changes))
    assert not (tmp_path / "run").exists()


def test_images_of_one_pixel_are_named(images: Path, tmp_path: Path) -> None:
    Image.new("RGB", (1, 1)).save(images / "train" / "dot.png")
    with pytest.raises(DataError, match=r"dot.png has 1x1 pixels, less than a patch of 20x20"):
        fit(config(images, tmp_path / "run"))
    data = DataConfig(data=str(images), on_bad_image="skip")
    fit(config(images, tmp_path / "run", data=data, loop=LoopConfig(1, 4, device="cpu")))
    Image.new("RGB", (1, 1)).save(images / "val" / "dot.png")
    with pytest.raises(DataError, match=r"validation image dot.png: an image of 1x1 pixels cannot be made 2 times"):
        fit(config(images, tmp_path / "other", data=data, loop=LoopConfig(1, 4, device="cpu")))


def test_an_empty_folder_is_refused(tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    with pytest.raises(DataError, match="holds no images"):
        fit(config(tmp_path / "empty", tmp_path / "run"))


def test_validation_images_beside_the_data_are_for_restoration_alone(images: Path) -> None:
    with pytest.raises(UsageError, match="--val-data is for restoration"):
        open_source(DataConfig(data="digits", val_data=images))


@pytest.mark.parametrize(
    ("changes", "message"),
    [({"scale": 5}, "--scale is 5"), ({"noise_level": 0}, "--noise-level is 0"), ({"jpeg_quality": 100}, "1 to 95")],
)
def test_ranges_of_the_configuration(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(UsageError, match=message):
        RestorationConfig(**changes)


# --- color


def test_everything_is_scored_in_color_but_enlargements_on_luma() -> None:
    truth = np.asarray(scene(30, 0))
    noisy = corrupt(truth, {"kind": "noise", "sigma": 30.0}, (1,))
    error = (noisy.astype(float) - truth.astype(float)) ** 2
    found = score(noisy, truth, 1)
    assert found["psnr"] == pytest.approx(10 * np.log10(255**2 / error.mean()))
    channels = [reference_ssim(noisy[..., index], truth[..., index]) for index in range(3)]
    assert found["ssim"] == pytest.approx(np.mean(channels), abs=1e-6)
    rounded = [np.rint(item @ [65.481, 128.553, 24.966] / 255 + 16)[2:-2, 2:-2] for item in (noisy, truth)]  # BT.601
    expected = 10 * np.log10(255**2 / ((rounded[0] - rounded[1]) ** 2).mean())
    assert score(noisy, truth, 2)["psnr"] == pytest.approx(expected, abs=1e-3)


@pytest.mark.parametrize(
    ("restore", "gray", "color", "channels"),
    [
        ("denoise", False, "rgb", 3),
        ("jpeg", False, "rgb", 3),
        ("denoise", True, "gray", 1),
        ("super-resolution", False, "y", 1),
    ],
)
def test_the_network_sees_what_is_to_be_restored(
    images: Path, tmp_path: Path, restore: Any, gray: bool, color: str, channels: int
) -> None:
    if gray:
        for path in images.rglob("*.png"):
            Image.open(path).convert("L").save(path)
    restoration = RestorationConfig(restore=restore, scale=2 if restore == "super-resolution" else 3)
    spec = fit(config(images, tmp_path / "run", restoration=restoration)).record.model
    assert (spec.arguments["color"], spec.in_channels) == (color, channels)


def test_a_denoiser_of_luma_is_warned_of(images: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    fit(config(images, tmp_path / "run", restoration=RestorationConfig(restore="denoise", color="y")))
    assert "luma alone is restored and scored" in caplog.text
