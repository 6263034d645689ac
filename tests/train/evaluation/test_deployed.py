"""Generators' bundles, measured as a device runs them."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from _helpers.digits import train_run, write_digits
from _helpers.generation import gan_config
from krl_deploy.cli import main as deploy
from krl_runtime import Generator, load
from krl_runtime.errors import BundleError, UsageError
from krl_train.cli import main
from krl_train.conditioning.generator_data import open_generator
from krl_train.config import ConditioningConfig, DataConfig, EvaluateConfig, GeneratorScoreConfig, LoopConfig
from krl_train.data import open_source
from krl_train.evaluation.deployed import DeployedGenerator
from krl_train.evaluation.evaluate import evaluate
from krl_train.models.sampling import generate_pixels, sample_latents
from krl_train.training.fit import fit

LOOP = LoopConfig(epochs=1, batch_size=32, device="cpu", precision="fp32")
DATA = DataConfig(data="digits", val_limit=64)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a folder with generators without and with labels, their bundles, and a classifier."""
    root = tmp_path_factory.mktemp("deployed")
    labels = ConditioningConfig(condition="labels", condition_dim=4)
    for name, knowledge in (("plain", ConditioningConfig()), ("labels", labels)):
        model = "mlp-8" if name == "plain" else "dcgan-2"
        fit(gan_config(root / name, model=model, loop=LOOP, conditioning=knowledge))
        assert deploy(["export", str(root / name), "-o", str(root / f"{name}.krl")]) == 0
    assert deploy(["quantize", str(root / "labels.krl"), "--limit", "32", "--val-limit", "32", "--min-psnr", "1"]) == 0
    train_run(root / "classifier", write_digits(root / "data", per_class=5, val_per_class=5), steps=1)
    return root


@pytest.mark.parametrize("name", ["plain", "labels"])
def test_a_bundle_makes_what_its_run_makes(folder: Path, name: str) -> None:
    deployed = DeployedGenerator(folder / f"{name}.krl", "fp32", "cpu")
    _, generator = open_generator(folder / name)
    latents = sample_latents(600, generator.latent_size, seed=3)
    tokens = None if name == "plain" else (torch.arange(600) % 10)[:, None]
    mine, theirs = (generate_pixels(net, latents, tokens).int() for net in (deployed, generator))
    assert mine.shape == theirs.shape
    assert (mine - theirs).abs().max() <= 1
    assert theirs.float().std() > 0


def test_a_bundle_scores_as_its_run_does(folder: Path) -> None:
    options = GeneratorScoreConfig(features=folder / "classifier", score_samples=64, variant="fp32")
    mine = evaluate(EvaluateConfig(run=folder / "plain.krl", generator=options, data=DATA, device="cpu"))
    theirs = evaluate(
        EvaluateConfig(run=folder / "plain", generator=replace(options, variant=None), data=DATA, device="cpu")
    )
    for name in ("fid", "kid", "precision", "recall", "density", "coverage"):
        assert mine[name] == pytest.approx(theirs[name], rel=0.02, abs=0.02), name
    assert mine["variant"] == "fp32"
    assert mine["backend"].startswith("onnxruntime-cpu runs variant fp32")
    assert "parameters" not in mine


def test_an_int8_bundle_is_compared_with_its_run(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    against = ["--against", str(folder / "labels"), "--score-samples", "64", "--device", "cpu"]
    results = {}
    for variant in ("fp32", "int8"):
        assert main(["evaluate", str(folder / "labels.krl"), *against, "--variant", variant, "--json"]) == 0
        results[variant] = json.loads(capsys.readouterr().out)
    assert results["fp32"]["psnr"] is None or results["fp32"]["psnr"] > 80
    assert results["int8"]["psnr"] < 60
    _, generator = open_generator(folder / "labels")
    data = open_source(DataConfig(data="digits"), classes=True).read("train", generator.preprocessing)
    tokens = data.labels[torch.arange(64) * len(data) // 64][:, None]
    latents = sample_latents(64, generator.latent_size, seed=1)
    with torch.no_grad():
        wanted = generator(latents, tokens).clamp(0, 255).numpy()
    with load(folder / "labels.krl", Generator, variant="int8", backend="cpu") as model:
        made = np.clip(model.values(latents.numpy(), tokens.numpy()), 0, 255)
    error = float(np.mean((made - wanted).astype(np.float64) ** 2))
    assert results["int8"]["psnr"] == pytest.approx(10 * np.log10(255**2 / error), abs=0.01)
    assert results["int8"]["variant"] == "int8"
    assert main(["evaluate", str(folder / "labels.krl"), *against, "--variant", "int8"]) == 0
    assert "labels.krl (int8): 64 generated images" in capsys.readouterr().out


def test_what_a_bundle_cannot_say_is_asked_for(folder: Path, tmp_path: Path) -> None:
    options = GeneratorScoreConfig(features=folder / "classifier", score_samples=64)
    with pytest.raises(UsageError, match="no data is known: the generator is a bundle"):
        evaluate(EvaluateConfig(run=folder / "plain.krl", generator=options))
    with pytest.raises(UsageError, match="names no data for its conditions; give --against, the run"):
        evaluate(EvaluateConfig(run=folder / "labels.krl", generator=options, data=DATA))
    with pytest.raises(UsageError, match="have not the same conditions"):
        evaluate(EvaluateConfig(run=folder / "labels.krl", generator=replace(options, against=folder / "plain")))
    for name in ("plain", "classifier"):
        with pytest.raises(UsageError, match="--variant and --backend are for bundles"):
            evaluate(EvaluateConfig(run=folder / name, generator=replace(options, variant="int8")))
    assert deploy(["export", str(folder / "classifier"), "-o", str(tmp_path / "classifier.krl")]) == 0
    with pytest.raises(
        UsageError, match="is a bundle for classification; measure it as a device runs it, with: krl-runtime evaluate"
    ):
        evaluate(EvaluateConfig(run=tmp_path / "classifier.krl", generator=options, data=DATA))
    shutil.copytree(folder / "plain.krl", tmp_path / "forged.krl")
    model = next((tmp_path / "forged.krl").rglob("*.onnx"))
    model.write_bytes(model.read_bytes()[:-1] + b"\0")
    with pytest.raises(BundleError, match="damaged or was changed"):
        evaluate(EvaluateConfig(run=tmp_path / "forged.krl", generator=options, data=DATA))
