"""Images of another kind than a bundle's golden inputs, planted."""

import shutil

import numpy as np
import pytest
from PIL import Image

from krl_deploy.cli import main
from krl_deploy.evaluation.shift import distribution_shift
from krl_runtime import Bundle

RNG = np.random.default_rng(0)


def textures(count, *, mean=120, contrast=40):
    """Images with smooth structure, of varied brightness."""
    coarse = RNG.normal(0, contrast, (count, 3, 4, 4)) + RNG.normal(mean, 20, (count, 1, 1, 1))
    return np.clip(coarse.repeat(4, 2).repeat(4, 3), 0, 255).astype(np.uint8)


def logits(count, *, margin):
    return (np.eye(10)[RNG.integers(0, 10, count)] * RNG.normal(margin, 1, (count, 1))).astype(np.float32)


@pytest.mark.parametrize("seed", range(5))
def test_images_of_the_same_kind(seed):
    globals()["RNG"] = np.random.default_rng(seed)
    assert distribution_shift(textures(16), logits(16, margin=9), textures(128), logits(128, margin=9)) == ""


@pytest.mark.parametrize(
    ("other", "reason"),
    [
        (lambda: (textures(128).mean(1, keepdims=True).repeat(3, 1).astype(np.uint8), 9), "their pixels differ"),
        (lambda: (textures(128, mean=20), 9), "their pixels differ"),
        (lambda: (textures(128, contrast=2), 9), "their pixels differ"),
        (lambda: (textures(128), 4), "the network does not know them"),
    ],
)
def test_images_of_another_kind(other, reason):
    images, margin = other()
    found = distribution_shift(textures(16), logits(16, margin=9), images, logits(128, margin=margin))
    assert found.startswith(reason)


def test_a_network_whose_logits_hardly_vary_knows_nothing():
    """Untrained networks give the same for all images, but for rounding."""
    noise = [np.float32(1.6) + RNG.normal(0, 1e-7, (count, 10)).astype(np.float32) for count in (16, 128)]
    assert distribution_shift(textures(16), noise[0] + np.float32(1e-6), textures(128), noise[1]) == ""


@pytest.fixture
def scans(tmp_path):
    """Bright structures with dark edges, as no digit has: another domain, with the digits' names in one folder."""
    flat, named = tmp_path / "flat", tmp_path / "named"
    flat.mkdir()
    for index, image in enumerate(textures(600, mean=200, contrast=15)):
        folder = named / str(index % 10)
        folder.mkdir(parents=True, exist_ok=True)
        for file in (flat / f"{index}.png", folder / f"{index}.png"):
            Image.fromarray(image[0]).save(file)
    return tmp_path


@pytest.mark.parametrize("folder", ["flat", "named"])
@pytest.mark.parametrize("command", ["fp16", "quantize"])
def test_a_variant_is_not_judged_on_them(bundle, scans, capsys, command, folder):
    before = {path.name: path.read_bytes() for path in bundle.path.iterdir()}
    assert main([command, str(bundle.path), "--data", str(scans / folder)]) == 1
    error = capsys.readouterr().err
    assert "images are unlike the golden inputs of the bundle" in error
    assert "--accept-unmeasured" in error
    assert {path.name: path.read_bytes() for path in bundle.path.iterdir()} == before


def test_images_of_one_class_are_of_the_same_kind(bundle, digits, tmp_path, capsys):
    for split in ("train", "val"):
        for name in ("3", "7"):
            shutil.copytree(digits / split / name, tmp_path / "some" / split / name)
    options = ["--data", str(tmp_path / "some"), "--max-drop", "2"]
    assert main(["quantize", str(bundle.path), *options]) == 0
    assert "8 classes have no image and were not judged" in capsys.readouterr().out
    recall = Bundle.open(bundle.path).manifest.evidence["int8"]["recall"]
    assert sorted(recall) == ["3", "7"]


def test_calibration_and_evaluation_may_have_different_classes(bundle, digits, tmp_path):
    for split, names in (("train", ("0", "1", "2", "3")), ("val", ("2", "3", "4", "5"))):
        for name in names:
            shutil.copytree(digits / split / name, tmp_path / "some" / split / name)
    assert main(["quantize", str(bundle.path), "--data", str(tmp_path / "some"), "--max-drop", "2"]) == 0
    evidence = Bundle.open(bundle.path).manifest.evidence["int8"]
    assert (sorted(evidence["recall"]), evidence["images"]["count"]) == (["2", "3", "4", "5"], 120)


def test_a_few_golden_inputs_say_nothing_of_them(tmp_path, run, digits, scans, capsys):
    path = tmp_path / "few.krl"
    assert main(["export", str(run.path), "-o", str(path), "--data", str(digits), "--golden", "4"]) == 0
    assert main(["quantize", str(path), "--data", str(scans / "flat")]) == 1
    assert "whether the images are the model's cannot be seen from 4 golden inputs" in capsys.readouterr().err


def test_labels_of_other_images_do_not_open_the_gate(bundle, digits, tmp_path, capsys):
    """The folders are exchanged: FP32 is never right, so that INT8 loses nothing whatever it predicts."""
    for split in ("train", "val"):
        for index in range(10):
            shutil.copytree(digits / split / str(index), tmp_path / "turned" / split / str((index + 1) % 10))
    command = ["quantize", str(bundle.path), "--data", str(tmp_path / "turned"), "--method", "percentile"]
    assert main([*command, "--percentile", "60"]) == 1
    assert "where FP32 is not better than chance" in capsys.readouterr().err


def test_copies_are_judged_on_and_not_calibrated_on(bundle, digits, tmp_path, capsys, caplog):
    """Half of the training images are those of val; then all of them are."""
    for name in ("0", "1"):
        shutil.copytree(digits / "val" / name, tmp_path / "half" / "val" / name)
        shutil.copytree(digits / "val" / name, tmp_path / "half" / "train" / name)
    assert main(["quantize", str(bundle.path), "--data", str(tmp_path / "half"), "--max-drop", "5"]) == 1
    assert "the images that it was judged on were calibrated on as well" in capsys.readouterr().err
    for name in ("0", "1"):
        for file in (digits / "train" / name).glob("*.png"):
            shutil.copy(file, tmp_path / "half" / "train" / name / f"own-{file.name}")
    assert main(["quantize", str(bundle.path), "--data", str(tmp_path / "half"), "--max-drop", "5"]) == 0
    captured = capsys.readouterr()
    assert "60 images are not calibrated on, since it is judged on the same" in captured.err
    assert Bundle.open(bundle.path).manifest.evidence["int8"]["calibration"]["count"] == 120
