"""``krl-compress prune --sparsity 2:4``: zeros that stay, through trainings and to the deployed files."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import numpy_helper
from safetensors.numpy import load_file

from _helpers.resuming import stopped_at_checkpoint
from krl_compress.cli import main
from krl_deploy.cli import main as deploy
from krl_train.cli import main as train
from krl_train.run import Run

FAST = ["--data", "digits", "--limit", "200", "--val-limit", "100", "--epochs", "2", "--batch-size", "50"]
FAST += ["--precision", "fp32", "--device", "cpu"]


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("runs") / "whole"
    assert train(["fit", "--model", "resnet8", "--out", str(out), *FAST]) == 0
    return out


@pytest.fixture(scope="module")
def sparse(whole: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("runs") / "sparse"
    assert main(["prune", str(whole), "--sparsity", "2:4", "--ema", "0.5", "--out", str(out), *FAST]) == 0
    return out


def most_in_four(weight: np.ndarray) -> int:
    """Return how many of four weights along the input channels are not zero, at most."""
    groups = weight.reshape(weight.shape[0], weight.shape[1] // 4, 4, -1)
    return int((groups != 0).sum(2).max())


def layers(run: Path) -> dict[str, np.ndarray]:
    state = load_file(run / "model.safetensors")
    return {name: state[f"{name}.weight"] for name in Run.open(run).record.model.arguments["sparse"]}


def test_the_two_largest_of_four_are_kept(whole: Path, tmp_path: Path) -> None:
    out = tmp_path / "sparse"
    assert main(["prune", str(whole), "--sparsity", "2:4", "--only-prune", "--out", str(out), *FAST]) == 0
    before, after = load_file(whole / "model.safetensors"), layers(out)
    assert {"layer1.0.conv1", "layer3.0.conv2", "linear"} <= set(after)
    for name, weight in after.items():
        kernel = weight.reshape(*weight.shape[:2], -1)
        original = before[f"{name}.weight"].reshape(kernel.shape)
        for output, channel, place in np.ndindex(len(kernel), kernel.shape[1] // 4, kernel.shape[2]):
            four = original[output, 4 * channel : 4 * channel + 4, place]
            wanted = np.where(np.argsort(np.argsort(-abs(four))) < 2, four, 0)
            np.testing.assert_array_equal(kernel[output, 4 * channel : 4 * channel + 4, place], wanted)


def test_zeros_stay_through_training_and_its_average(whole: Path, sparse: Path) -> None:
    before, after = load_file(whole / "model.safetensors"), layers(sparse)
    for name, weight in after.items():
        assert most_in_four(weight) == 2
        assert np.mean(weight == 0) == pytest.approx(0.5)
        assert np.abs(weight - before[f"{name}.weight"])[weight != 0].max() > 1e-4  # it was trained
    found = Run.open(sparse).record.metrics["pruning"]["sparsity"]
    state = [value for value in load_file(sparse / "model.safetensors").values() if value.ndim > 1]
    assert found["layers"] == len(after)
    assert found["zeros"] == pytest.approx(sum((value == 0).sum() for value in state) / sum(v.size for v in state))
    assert list(found["left_alone"]) == ["conv1"]


def test_an_interrupted_training_holds_the_same_zeros(whole: Path, tmp_path: Path) -> None:
    options = ["prune", str(whole), "--sparsity", "2:4", *FAST]
    assert main([*options, "--out", str(tmp_path / "straight")]) == 0
    with stopped_at_checkpoint(1):
        assert main([*options, "--out", str(tmp_path / "stopped")]) != 0
    assert main(["prune", "--resume", "--out", str(tmp_path / "stopped")]) == 0
    straight, resumed = (Run.open(tmp_path / name).record.weights_sha256 for name in ("straight", "stopped"))
    assert resumed == straight


@pytest.mark.parametrize("command", ["fit", "distill", "int8"])
def test_later_trainings_hold_them(whole: Path, sparse: Path, tmp_path: Path, command: str) -> None:
    out = str(tmp_path / "after")
    if command == "fit":
        assert train(["fit", "--from", str(sparse), "--out", out, *FAST]) == 0
    else:
        more = ["--quantize", "int8"] if command == "int8" else []
        given = ["--teacher", str(whole), "--student", str(sparse), "--out", out, *more, *FAST]
        assert main(["distill", *given]) == 0
    state = load_file(tmp_path / "after" / "model.safetensors")
    for name in layers(sparse):
        weight = state[f"graph.{name}.weight" if command == "int8" else f"{name}.weight"]
        assert most_in_four(weight) == 2


def test_channels_go_first(whole: Path, tmp_path: Path) -> None:
    out = tmp_path / "both"
    given = ["--sparsity", "2:4", "--keep-channels", "0.5", "--only-prune", "--out", str(out), *FAST]
    assert main(["prune", str(whole), *given]) == 0
    before = load_file(whole / "model.safetensors")
    thin = layers(out)
    assert thin["layer3.0.conv2"].shape[1] == before["layer3.0.conv2.weight"].shape[1] // 2
    assert {most_in_four(weight) for weight in thin.values()} == {2}


def test_the_deployed_files_have_the_zeros(sparse: Path, tmp_path: Path) -> None:
    bundle, images = tmp_path / "sparse.krl", tmp_path / "images"
    assert train(["unpack", "--data", "digits", "--out", str(images)]) == 0
    assert deploy(["export", str(sparse), "-o", str(bundle), "--data", str(images)]) == 0
    loose = ["--max-drop", "100", "--max-recall-drop", "100"]
    assert deploy(["fp16", str(bundle), "--data", str(images), *loose]) == 0
    assert deploy(["quantize", str(bundle), "--data", str(images), "--limit", "64", *loose]) == 0
    for file in ("model.fp32.onnx", "model.fp16.onnx", "model.int8.onnx"):
        graph = onnx.load(bundle / file).graph
        made_by = {name: node for node in graph.node for name in node.output}
        constants = {item.name: numpy_helper.to_array(item) for item in graph.initializer}
        kernels = []
        for node in (node for node in graph.node if node.op_type == "Conv"):
            name = node.input[1]
            while name not in constants:  # behind DequantizeLinear or Cast
                name = made_by[name].input[0]
            kernels.append(constants[name])
        several = [kernel for kernel in kernels if kernel.shape[1] % 4 == 0]
        assert len(several) == len(kernels) - 1 >= 6, file
        assert {most_in_four(kernel) for kernel in several} == {2}, file


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ([], "--sparsity 2:4"),
        (["--sparsity", "2:4", "--steps", "2"], "--steps"),
    ],
)
def test_bad_options(
    whole: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], options: list[str], message: str
) -> None:
    assert main(["prune", str(whole), "--out", str(tmp_path / "sparse"), *options]) == 2
    assert message in capsys.readouterr().err


def test_a_sparse_run_is_not_pruned_again(sparse: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["prune", str(sparse), "--keep-channels", "0.5", "--out", str(tmp_path / "thin")]) == 2
    assert "sparse already" in capsys.readouterr().err
