"""On real photographs and real weights: published CIFAR-10 networks, and a third-party ONNX file."""

from __future__ import annotations

import gzip
import json
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from _helpers.images import SHARED_DATA
from krl_deploy.cli import main
from krl_deploy.config import ExportConfig
from krl_deploy.exporters.export import export
from krl_runtime import load
from krl_runtime.images.preprocessing import Preprocessing
from krl_train.run import ModelSpec, Run, RunRecord

pytestmark = pytest.mark.skipif(not SHARED_DATA.is_dir(), reason=f"no real data in {SHARED_DATA}")

CIFAR = SHARED_DATA / "cifar10"
CLASSES = ("airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck")


@pytest.fixture(scope="module")
def resnet20(tmp_path_factory: pytest.TempPathFactory) -> Run:
    weights = next((SHARED_DATA / "models").glob("cifar10_resnet20*.th"))
    state = torch.load(weights, weights_only=True, map_location="cpu")["state_dict"]
    record = RunRecord(
        task="classification",
        model=ModelSpec("resnet20", 10, 3),
        preprocessing=Preprocessing(32, 32),
        labels=CLASSES,
        command="krl-train import",
        configuration={},
        seed=0,
        data={"source": str(CIFAR), "root": "data", "val_fraction": 0.2, "on_bad_image": "refuse"},
    )
    plain = {name.removeprefix("module."): tensor for name, tensor in state.items()}
    return Run.write(tmp_path_factory.mktemp("runs") / "resnet20", record, plain)


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory, resnet20: Run) -> Path:
    path = tmp_path_factory.mktemp("bundles") / "resnet20.krl"
    export(ExportConfig(resnet20.path, path))
    return path


def files(count: int) -> list[Path]:
    return [file for folder in sorted((CIFAR / "val").iterdir()) for file in sorted(folder.iterdir())[: count // 10]]


def test_fp32_is_torch_from_the_image_file_on(bundle: Path, resnet20: Run) -> None:
    """100 real images through the runtime, against torch on what the training's preprocessing makes of them."""
    images = files(100)
    network = resnet20.network()
    with load(bundle, variant="fp32") as model, torch.inference_mode():
        assert model.backend.name == "onnxruntime-cpu"
        for answer, file in zip(model(images), images, strict=True):
            expected = network(torch.from_numpy(resnet20.record.preprocessing(file)[None]))[0].numpy()
            assert np.abs(answer.logits - expected).max() <= 1e-4


def test_int8_agrees_with_fp32(bundle: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """These weights have seen the validation images, so that agreement counts, not accuracy."""
    assert main(["quantize", str(bundle), "--data", str(CIFAR), "--limit", "200", "--val-limit", "500", "--json"]) == 0
    result = json.loads(capsys.readouterr().out)
    assert result["scores"]["int8"]["agreement"] >= 0.99
    assert result["scores"]["int8.cpu"]["agreement"] >= 0.99
    assert result["cpu_convolutions"] == {"int8_convolutions": 19, "float_convolutions": 0}
    assert list(result["kept_float"]["tensorrt"].values()) == ["matrix of 10x64: INT8 needs 16 rows and columns"]


def test_fp16_is_within_a_hundredth_of_the_largest_logit(bundle: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["fp16", str(bundle), "--data", str(CIFAR), "--val-limit", "300", "--json"]) == 0
    result = json.loads(capsys.readouterr().out)
    largest = np.abs(load(bundle).bundle.golden()["logits"]).max()
    for name in ("fp16", "fp16.rounded"):
        assert result["scores"][name]["agreement"] >= 0.995
        assert result["scores"][name]["max_error"] <= 0.01 * largest


@pytest.fixture(scope="module")
def mnist(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The first 500 test digits as PNG files."""

    def read(name: str, skip: int) -> np.ndarray:
        file = SHARED_DATA / "MNIST" / "raw" / name
        data = file.read_bytes() if file.exists() else gzip.decompress(file.with_name(f"{name}.gz").read_bytes())
        return np.frombuffer(data, np.uint8, offset=skip)

    root = tmp_path_factory.mktemp("mnist")
    images = read("t10k-images-idx3-ubyte", 16).reshape(-1, 28, 28)[:500]
    for index, (image, label) in enumerate(zip(images, read("t10k-labels-idx1-ubyte", 8)[:500], strict=True)):
        (root / str(label)).mkdir(exist_ok=True)
        Image.fromarray(image).save(root / str(label) / f"{index:03d}.png")
    return root


def test_a_third_party_file_of_opset_8(tmp_path: Path, mnist: Path, capsys: pytest.CaptureFixture[str]) -> None:
    arguments = ["import", str(SHARED_DATA / "models" / "mnist-cntk.onnx"), "-o", str(tmp_path / "mnist.krl")]
    arguments += ["--labels", *"0123456789", "--input-range", "0-255", "--data", str(mnist), "--json"]
    assert main(arguments) == 0
    result = json.loads(capsys.readouterr().out)
    assert result["top1"] >= 0.985
    assert result["count"] == 500
    assert result["opset"] == 18
    assert result["input"] == "uint8 [batch, 1, 28, 28]"
    options = ["--val-fraction", "0.3"]  # 150 images: the 95 of the default are too few to judge by
    assert main(["quantize", str(tmp_path / "mnist.krl"), "--data", str(mnist), *options, "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["cpu_convolutions"]["float_convolutions"] == 0


def test_a_foreign_int8_file(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """QLinear operators of opset 12, ImageNet's 1000 classes; the images are plain files without classes."""
    images = tmp_path / "images"
    images.mkdir()
    for file in sorted((SHARED_DATA / "natural224").glob("*.jpg"))[:8]:
        (images / file.name).write_bytes(file.read_bytes())
    labels = tmp_path / "labels.txt"
    labels.write_text("\n".join(f"class {index}" for index in range(1000)), encoding="utf-8")
    arguments = ["import", str(SHARED_DATA / "models" / "shufflenet-v2-12-int8.onnx"), "-o", str(tmp_path / "s.krl")]
    arguments += ["--labels", str(labels), "--mean", "0.485", "0.456", "0.406", "--std", "0.229", "0.224", "0.225"]
    assert main([*arguments, "--data", str(images), "--golden", "8", "--json"]) == 0
    captured = capsys.readouterr()
    assert "the model computes on integers (QLinearAdd, QLinearConv, QLinearMatMul)" in captured.err
    assert json.loads(captured.out)["top1"] is None
    with load(tmp_path / "s.krl") as model:
        answer = model(images / "000_n01440764_tench.jpg")
    assert answer.label == "class 0"
