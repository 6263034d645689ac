"""Bundles of imported generators: golden inputs, evidence, uniform latents, and the commands that take them."""

from __future__ import annotations

import json

import numpy as np
import onnx
import pytest

from _helpers.generator_files import SIDE, SIZE, brought, check, decoder, draw, generator_file, keras, one_by_one
from _helpers.graphs import constants, graph, node
from _helpers.required import real_rtx
from krl_deploy.cli import main
from krl_runtime.cli.program import main as runtime
from krl_runtime.pipelines.generator import latents_of


def modulated(batch):
    """StyleGAN's convolution: its weights are multiplied by a style, and a group for each image uses them."""
    rng = np.random.default_rng(6)
    weights = {
        "const": rng.normal(0, 1, (1, 4, SIDE, SIDE)).astype(np.float32),
        "affine": rng.normal(0, 0.5, (SIZE, 4)).astype(np.float32),
        "kernel": rng.normal(0, 0.5, (1, 3, 4, 3, 3)).astype(np.float32),
        "style_to": np.array([1, 1, 4, 1, 1]),
        "kernel_to": np.array([3, 4, 3, 3]),
    }
    nodes = [
        node("MatMul", ["z", "affine"], "s"),
        node("Reshape", ["s", "style_to"], "t"),
        node("Mul", ["kernel", "t"], "k"),
        node("Reshape", ["k", "kernel_to"], "w"),
        node("Conv", ["const", "w"], "c", pads=[1] * 4),
        node("Tanh", ["c"], "y"),
    ]
    return graph(nodes, {"z": [batch, SIZE]}, {"y": None}, weights, opset=17, ir=8)


@pytest.mark.parametrize("batch", ["n", 1])
def test_a_batch_that_cannot_be_opened(batch, tmp_path, caplog):
    latents = draw()
    expected = one_by_one(modulated(1), latents) * 127.5 + 127.5
    bundle, _ = brought(modulated(batch), tmp_path)
    assert "the batch stays fixed to 1; with an open one:" in caplog.text
    check(bundle, latents, expected, batch=1)
    assert main(["fp16", str(bundle.path)]) == 0
    assert runtime(["selftest", str(bundle.path)]) == 0


def test_golden_inputs_and_evidence(tmp_path):
    bundle, said = brought(generator_file(), tmp_path, golden=5)
    golden = bundle.golden()
    np.testing.assert_array_equal(golden["latent"], latents_of(2, 5, SIZE))
    expected = one_by_one(generator_file(), golden["latent"].reshape(-1, SIZE, 1, 1)) * 127.5 + 127.5
    np.testing.assert_allclose(golden["images"], expected, atol=0.02)
    assert bundle.manifest.settings == {"latent": {"size": SIZE, "distribution": "normal"}}
    assert bundle.manifest.task == "generation"
    assert bundle.manifest.evidence["fp32"]["parity"] == said["parity"]
    weights = decoder()[1]
    assert said["parameters"] == sum(value.size for value in weights.values())
    assert said["parity"]["inputs"] == 16
    assert said["parity"]["max_abs_error"] < 0.02


def test_uniform_latents(tmp_path):
    bundle, _ = brought(generator_file(), tmp_path, latent_distribution="uniform")
    assert bundle.manifest.settings == {"latent": {"size": SIZE, "distribution": "uniform"}}
    golden = bundle.golden()["latent"]
    np.testing.assert_array_equal(golden, latents_of(2, 16, SIZE, "uniform"))
    assert np.abs(golden).max() <= 1
    assert main(["quantize", str(bundle.path), "--accept-unmeasured", "--min-psnr", "1"]) == 0
    assert runtime(["selftest", str(bundle.path)]) == 0


@pytest.mark.parametrize("form", ["[N, C, 1, 1]", "as Keras writes it"])
def test_every_further_command_takes_the_bundle(form, tmp_path, capsys):
    model = keras(1) if "Keras" in form else generator_file()
    bundle = str(brought(model, tmp_path)[0].path)
    assert main(["fp16", bundle]) == 0
    assert main(["quantize", bundle]) == 0
    capsys.readouterr()
    assert main(["check", bundle, "--target", "tensorrt-10.3", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["counts"]["error"] == 0
    assert runtime(["selftest", bundle]) == 0
    assert runtime(["generate", bundle, "-o", str(tmp_path / "images"), "--count", "3"]) == 0
    assert len(list((tmp_path / "images").glob("0*.png"))) == 3


def test_rtx_takes_every_variant(tmp_path, capsys):
    real_rtx()
    bundle = str(brought(generator_file(batch=1), tmp_path)[0].path)
    assert main(["fp16", bundle]) == 0
    assert main(["quantize", bundle]) == 0
    assert main(["check", bundle, "--target", "rtx", "--parser"]) == 0
    assert capsys.readouterr().out.count("takes the file; the builder takes it") == 3
    assert main(["build-engine", bundle, "--target", "rtx"]) == 0


def test_weights_are_not_changed(tmp_path):
    stored = constants(onnx.load(brought(generator_file(), tmp_path)[0].path / "model.fp32.onnx"))
    for name, value in decoder()[1].items():
        np.testing.assert_array_equal(stored[name], value)
