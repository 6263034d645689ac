"""Restorers whose sides or batch cannot be opened: judged by ONNX Runtime on the file, at its own size."""

from __future__ import annotations

import json

import numpy as np
import onnx
import pytest
from PIL import Image

from _helpers.graphs import graph, node, run
from _helpers.image_nets import smooth
from krl_deploy.cli import main
from krl_runtime import Bundle, Restorer, load
from krl_runtime.device.selftest import selftest

SIDE, WIDTH, SCALE, CHANNELS = 16, 24, 2, 16
RNG = np.random.default_rng(0)


def network(kind, *, batch=1):
    """A convolution, a middle that needs one size, and a pixel shuffle."""
    rng = np.random.default_rng(3)
    values = {
        "w": rng.normal(0, 0.2, (CHANNELS, 3, 3, 3)).astype(np.float32),
        "v": rng.normal(0, 0.05, (3 * SCALE**2, CHANNELS, 3, 3)).astype(np.float32),
        "half": np.full(3 * SCALE**2, 0.5, np.float32),
    }
    start = [node("Conv", ["input", "w"], "a", pads=[1] * 4), node("Relu", ["a"], "b")]
    middle, more = {**MIDDLES, **REFUSED}[kind](batch)
    end = [node("Conv", ["m", "v", "half"], "d", pads=[1] * 4), node("DepthToSpace", ["d"], "e", blocksize=SCALE)]
    last = node("Add", ["e", "skip"], "output") if kind == "skip" else node("Identity", ["e"], "output")
    return graph(
        [*start, *middle, *end, last],
        {"input": [batch, 3, SIDE, WIDTH]},
        {"output": [batch, 3, SCALE * SIDE, SCALE * WIDTH]},
        {**values, **more},
        opset=18,
        ir=8,
    )


def windows(batch):
    """Attention in windows of 8 x 8, as in SwinIR."""
    rows, columns = SIDE // 8, WIDTH // 8
    shapes = {
        "s1": [batch, CHANNELS, rows, 8, columns, 8],
        "s2": [batch * rows * columns, 64, CHANNELS],
        "s3": [batch, rows, columns, 8, 8, CHANNELS],
        "s4": [batch, CHANNELS, SIDE, WIDTH],
    }
    nodes = [
        node("Reshape", ["b", "s1"], "t1"),
        node("Transpose", ["t1"], "t2", perm=[0, 2, 4, 3, 5, 1]),
        node("Reshape", ["t2", "s2"], "t3"),
        node("Transpose", ["t3"], "t4", perm=[0, 2, 1]),
        node("MatMul", ["t3", "t4"], "scores"),
        node("Softmax", ["scores"], "p", axis=-1),
        node("MatMul", ["p", "t3"], "t5"),
        node("Reshape", ["t5", "s3"], "t6"),
        node("Transpose", ["t6"], "t7", perm=[0, 5, 1, 3, 2, 4]),
        node("Reshape", ["t7", "s4"], "m"),
    ]
    return nodes, {name: np.int64(shape) for name, shape in shapes.items()}


def channel_attention(batch):
    nodes = [
        node("GlobalAveragePool", ["b"], "g"),
        node("Sigmoid", ["g"], "s"),
        node("Mul", ["b", "s"], "t"),
        node("Reshape", ["t", "shape"], "m"),
    ]
    return nodes, {"shape": np.int64([batch, CHANNELS, SIDE, WIDTH])}


def tokens(batch):
    """A product over all pixels, whose weight has one size."""
    nodes = [
        node("Reshape", ["b", "flat"], "t1"),
        node("MatMul", ["t1", "mix"], "t2"),
        node("Reshape", ["t2", "shape"], "m"),
    ]
    values = {
        "flat": np.int64([batch, CHANNELS, SIDE * WIDTH]),
        "mix": (np.eye(SIDE * WIDTH) + RNG.normal(0, 0.005, (SIDE * WIDTH, SIDE * WIDTH))).astype(np.float32),
        "shape": np.int64([batch, CHANNELS, SIDE, WIDTH]),
    }
    return nodes, values


def skip(batch):
    size = np.int64([batch, 3, SCALE * SIDE, SCALE * WIDTH])
    return [node("Identity", ["b"], "m"), node("Resize", ["input", "", "", "size"], "skip", mode="cubic")], {
        "size": size
    }


def position(batch):
    return [node("Add", ["b", "p"], "m")], {"p": RNG.normal(0, 0.1, (1, CHANNELS, SIDE, WIDTH)).astype(np.float32)}


def constants(batch):
    values = RNG.normal(0, 0.1, (batch, CHANNELS, SIDE, WIDTH)).astype(np.float32)
    return [node("Add", ["b", "p"], "m")], {"p": values}


MIDDLES = {
    "windows": windows,
    "channel attention": channel_attention,
    "tokens": tokens,
    "skip": skip,
    "position": position,
}
REFUSED = {"a constant for each": constants}


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
    model = network(kind)
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
    model = network(kind)
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
    assert imported(tmp_path, network("a constant for each", batch=4), data, "--json") == 1
    assert "its batch is fixed to 4, accepted: 1 or any number" in capsys.readouterr().err
    assert not (tmp_path / "a.krl").exists()


@pytest.mark.parametrize("kind", ["position", "windows", "channel attention", "tokens"])
def test_a_batch_of_several_that_can_be_opened(kind, tmp_path, data, capsys):
    assert imported(tmp_path, network(kind, batch=4), data, "--json") == 0
    assert json.loads(capsys.readouterr().out)["input"] == f"uint8 [batch, 3, {SIDE}, {WIDTH}]"
