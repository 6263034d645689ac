"""``krl-deploy export --none-of-these``: the threshold, against plain ONNX Runtime and scikit-learn."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import onnxruntime as ort
import pytest
from PIL import Image
from sklearn.metrics import roc_auc_score

from _helpers.digits import pixels_of
from krl_deploy.cli import main
from krl_runtime import Bundle, Classifier, load
from krl_runtime.evaluation.refusal import separation
from krl_train.run import Run


def best(bundle: Path, pixels: np.ndarray) -> np.ndarray:
    """Return the largest softmax of each image, in float64."""
    session = ort.InferenceSession((bundle / "model.fp32.onnx").read_bytes())
    logits = session.run(None, {"pixels": pixels})[0].astype(np.float64)
    powers = np.exp(logits - logits.max(1, keepdims=True))
    return (powers / powers.sum(1, keepdims=True)).max(1)


@pytest.fixture(scope="module")
def others(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Images that are no digits."""
    folder = tmp_path_factory.mktemp("others") / "noise" / "noise"
    folder.mkdir(parents=True)
    for index, pixels in enumerate(np.random.default_rng(1).integers(0, 256, (80, 16, 16), np.uint8)):
        Image.fromarray(pixels).save(folder / f"{index}.png")
    return folder.parent


@pytest.fixture(scope="module")
def refusing(tmp_path_factory: pytest.TempPathFactory, run: Run, digits: Path, others: Path) -> Path:
    path = tmp_path_factory.mktemp("refusing") / "digits.krl"
    options = ["--none-of-these", "0.05", "--others", str(others), "--quiet"]
    assert main(["export", str(run.path), "-o", str(path), "--data", str(digits), *options]) == 0
    return path


def test_the_threshold_refuses_the_share_that_was_asked_for(refusing: Path, digits: Path, others: Path):
    manifest = Bundle.open(refusing).manifest
    least, evidence = manifest.settings["least_score"], manifest.evidence["fp32"]["none_of_these"]
    known = best(refusing, pixels_of(digits / "val")[0])
    noise = best(refusing, np.stack([manifest.preprocessing(file) for file in sorted(others.rglob("*.png"))]))
    assert len(known) == 300
    assert (known < least).sum() == 15
    assert np.abs(known - least).min() > 1e-6  # between two images
    assert (evidence["asked"], evidence["refused"], evidence["images"], evidence["least"]) == (0.05, 0.05, 300, least)
    assert evidence["others"]["images"] == 80
    assert evidence["others"]["refused"] == (noise < least).mean()
    assert evidence["others"]["false_positive_rate"] == pytest.approx((noise >= least).mean())
    truth = np.repeat([1, 0], [len(known), len(noise)])
    assert evidence["others"]["auroc"] == pytest.approx(roc_auc_score(truth, np.concatenate([known, noise])), abs=1e-4)


def test_ties_count_half():
    rng = np.random.default_rng(0)
    known, others = rng.integers(0, 9, 70) / 9, rng.integers(0, 6, 40) / 9
    expected = roc_auc_score(np.repeat([1, 0], [70, 40]), np.concatenate([known, others]))
    assert separation(known, others) == pytest.approx(expected)


def test_the_runtime_decides_by_it(refusing: Path, digits: Path):
    files = sorted((digits / "val").glob("*/*.png"))
    with load(refusing, Classifier) as model:
        results = model(files)
    refused = [result for result in results if not result.known]
    assert len(refused) == 15
    assert {result.prediction for result in refused} == {"none of these"}
    assert all(result.label == result.top[0][0] for result in refused)


def test_quantize_measures_the_share_again(
    refusing: Path, digits: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    shutil.copytree(refusing, tmp_path / "a.krl")
    assert main(["quantize", str(tmp_path / "a.krl"), "--data", str(digits), "--max-drop", "20", "--limit", "100"]) == 0
    shown = capsys.readouterr().out
    bundle = Bundle.open(tmp_path / "a.krl")
    assert bundle.manifest.settings == Bundle.open(refusing).manifest.settings
    scores = bundle.manifest.evidence["int8"]["scores"]
    session = ort.InferenceSession((tmp_path / "a.krl" / "model.int8.cpu.onnx").read_bytes())
    logits = session.run(None, {"pixels": pixels_of(digits / "val")[0]})[0].astype(np.float64)
    powers = np.exp(logits - logits.max(1, keepdims=True))
    accepted = (powers / powers.sum(1, keepdims=True)).max(1) >= bundle.manifest.settings["least_score"]
    assert scores["int8.cpu"]["refused"] == pytest.approx(1 - accepted.mean(), abs=1.5 / 300)
    assert scores["fp32"]["refused"] == pytest.approx(0.05)
    assert scores["fp32"]["top1_of_known"] >= scores["fp32"]["top1"]
    assert f"none of these: fp32 5.00%, int8 {scores['int8']['refused']:.2%}" in shown


def test_it_is_off_by_default(exported: Path):
    manifest = Bundle.open(exported).manifest
    assert "least_score" not in manifest.settings
    assert "none_of_these" not in manifest.evidence["fp32"]


def test_the_command_shows_what_it_measured(
    run: Run, digits: Path, others: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    options = ["--data", str(digits), "--none-of-these", "0.1", "--others", str(others)]
    assert main(["export", str(run.path), "-o", str(tmp_path / "a.krl"), *options]) == 0
    shown = capsys.readouterr().out
    assert "10.00% of 300 validation images" in shown
    assert "of 80 images, AUROC" in shown


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (("--none-of-these", "1.0"), "--none-of-these is 1.0; accepted: a share between 0 and 1"),
        (("--none-of-these", "0.001"), r"0.001 of 300 validation images is less than one image; give at least 1000"),
        (("--others", "OTHERS"), "--others measures the threshold of --none-of-these; give both"),
        (("--none-of-these", "0.1", "--others", "DIGITS"), "has classes of the model: 0, 1"),
        (("--none-of-these", "0.1", "--data", "OTHERS"), "has classes that the model does not: noise"),
        (("--none-of-these", "0.1", "--others", "nowhere"), "nowhere"),
    ],
)
def test_what_is_refused(
    run: Run,
    digits: Path,
    others: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    options: tuple[str, ...],
    message: str,
):
    import re

    # A folder of one class without a name is a folder of images, so that the noise stands beside another class.
    mixed = tmp_path / "mixed"
    shutil.copytree(others / "noise", mixed / "noise")
    shutil.copytree(digits / "val" / "3", mixed / "3")
    folders = {"OTHERS": str(mixed), "DIGITS": str(digits)}
    given = [folders.get(option, option) for option in options]
    data = [] if "--data" in given else ["--data", str(digits)]
    assert main(["export", str(run.path), "-o", str(tmp_path / "a.krl"), *data, *given]) == 2
    assert re.search(message, " ".join(capsys.readouterr().err.split()))
    assert not (tmp_path / "a.krl").exists()


def test_the_run_s_own_images_are_used_without_data(run: Run, tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    options = ["--none-of-these", "0.1", "--json"]
    assert main(["export", str(run.path), "-o", str(tmp_path / "a.krl"), *options]) == 0
    found = json.loads(capsys.readouterr().out)["none_of_these"]
    assert found["images"] > 300
    assert found["refused"] == pytest.approx(0.1, abs=1 / found["images"])


def test_runs_of_other_tasks(run: Run, tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    from krl_deploy.config import ExportConfig
    from krl_deploy.exporters.none_of_these import check_refusal
    from krl_runtime.errors import UsageError

    config = ExportConfig(run.path, tmp_path / "a.krl", none_of_these=0.1)
    for change, message in (
        ({"task": "restoration"}, "is for classifiers"),
        ({"labels": ("x",)}, "2 classes or more"),
        ({"output_kind": "sigmoid-logits"}, "can find no label anyway"),
    ):
        other = Run(run.path, replace(run.record, **change))
        with pytest.raises(UsageError, match=message):
            check_refusal(config, other)
