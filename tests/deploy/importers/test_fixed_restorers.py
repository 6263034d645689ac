"""Restorers whose sides or batch cannot be opened: judged by ONNX Runtime on the file, at its own size."""

from __future__ import annotations

import json

import numpy as np
import onnx
import pytest
from PIL import Image

from _helpers.graphs import run
from _helpers.image_nets import smooth
from _helpers.restorer_files import MIDDLES, SCALE, SIDE, WIDTH, fixed_restorer
from krl_deploy.cli import main
from krl_runtime import Bundle, Restorer, load
from krl_runtime.device.selftest import selftest


@pytest.fixture
def data(tmp_path):
    folder = tmp_path / "data"
    folder.mkdir()
    for number in range(4):
        Image.fromarray(smooth(60, 70, 3, seed=number)).save(folder / f"{number}.png")
    return folder


def imported(tmp_path, model, data, *more):
    file = tmp_path / "third_party.onnx"
    onnx.save(model, file)
    common = ["--task", "restoration", "--data", str(data), "--golden", "4"]
    return main(["import", str(file), "-o", str(tmp_path / "a.krl"), *common, *more])


@pytest.mark.parametrize("kind", MIDDLES)
def test_images_of_the_own_size_and_larger_ones(kind, tmp_path, data, capsys):
    model = fixed_restorer(kind)
    assert imported(tmp_path, model, data) == 0
    said = " ".join(capsys.readouterr().err.split())
    assert ("may show faint seams" in said) == (kind != "position")  # that one is local
    bundle = Bundle.open(tmp_path / "a.krl")
    assert bundle.manifest.inputs[0].shape[2:] == (SIDE, WIDTH)
    assert [replay.state for replay in selftest(bundle) if replay.kind == "cpu"] == ["passed"]
    restorer = load(bundle.path, Restorer, threads=1)
    exact = smooth(SIDE, WIDTH, 3, seed=9)
    expected = run(model, input=exact.transpose(2, 0, 1)[None].astype(np.float32) / 255)[0][0] * 255
    made = restorer.restore_planes(exact.transpose(2, 0, 1))
    np.testing.assert_allclose(made, expected, atol=0.05)
    larger = smooth(SIDE + 9, 2 * WIDTH + 1, 3, seed=8)
    # The corner is made of the same part as an image of that size.
    corner = larger[:SIDE, :WIDTH].transpose(2, 0, 1)
    keep = SCALE * (SIDE - (restorer.overlap or 0)), SCALE * (WIDTH - (restorer.overlap or 0))
    whole = restorer.restore_planes(np.ascontiguousarray(larger.transpose(2, 0, 1)))
    assert whole.shape == (3, SCALE * larger.shape[0], SCALE * larger.shape[1])
    wanted = restorer.restore_planes(corner)
    np.testing.assert_allclose(whole[:, : keep[0], : keep[1]], wanted[:, : keep[0], : keep[1]], atol=0.05)


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["windows", "channel attention", "skip"])
def test_the_other_variants_of_fixed_networks(kind, tmp_path, data, capsys):
    model = fixed_restorer(kind)
    assert imported(tmp_path, model, data) == 0
    bundle = str(tmp_path / "a.krl")
    assert main(["fp16", bundle, "--data", str(data), "--accept-unmeasured"]) == 0
    assert main(["quantize", bundle, "--data", str(data), "--max-drop", "30", "--accept-unmeasured"]) == 0
    exact = smooth(SIDE, WIDTH, 3, seed=9).transpose(2, 0, 1)[None]
    expected = run(model, input=exact.astype(np.float32) / 255)[0] * 255
    for name, least in (("model.fp16.onnx", 45), ("model.int8.fp32.onnx", 25), ("model.int8.cpu.onnx", 25)):
        made = run(onnx.load(tmp_path / "a.krl" / name), pixels=exact)[0]
        error = float(np.square(made.astype(np.float64) - expected).mean())
        assert 10 * np.log10(255**2 / error) > least
    capsys.readouterr()


def test_a_fixed_batch_of_several_is_refused_by_name(tmp_path, data, capsys):
    assert imported(tmp_path, fixed_restorer("a constant for each", batch=4), data, "--json") == 1
    assert "its batch is fixed to 4, accepted: 1 or any number" in capsys.readouterr().err
    assert not (tmp_path / "a.krl").exists()


@pytest.mark.parametrize("kind", ["position", "windows", "channel attention", "tokens"])
def test_a_batch_of_several_that_can_be_opened(kind, tmp_path, data, capsys):
    assert imported(tmp_path, fixed_restorer(kind, batch=4), data, "--json") == 0
    assert json.loads(capsys.readouterr().out)["input"] == f"uint8 [batch, 3, {SIDE}, {WIDTH}]"
