"""Third-party restorers: pixel shuffles of fixed size opened, pixels at both ends, and what is refused."""

from __future__ import annotations

import json
from functools import partial

import numpy as np
import onnx
import pytest
from PIL import Image

from _helpers.graphs import graph, node, ops, run
from _helpers.image_nets import smooth
from _helpers.images import SHARED_DATA
from krl_deploy.cli import main
from krl_deploy.graph.cleanup import clean
from krl_deploy.graph.restorer import local_radius, open_sides
from krl_runtime import Restorer, load

RNG = np.random.default_rng(0)
SIDE, SCALE = 12, 2


def third_party(*, side: int | str = SIDE, shuffle: bool = True, opset: int = 11, peak: float = 1.0) -> onnx.ModelProto:
    """A net of two convolutions and a pixel shuffle by reshapes to a fixed size, as torch's old exporter wrote it."""
    height = SIDE if isinstance(side, str) else side
    values = {
        "w": RNG.normal(0, 0.2, (16, 1, 5, 5)).astype(np.float32),
        "v": RNG.normal(0, 0.2, (SCALE**2, 16, 3, 3)).astype(np.float32),
        "six": np.array([-1, 1, SCALE, SCALE, height, height]),
        "four": np.array([-1, 1, SCALE * height, SCALE * height]),
        "peak": np.float32(peak),
    }
    nodes = [
        node("Conv", ["input", "w"], "a", pads=[2, 2, 2, 2]),
        node("Relu", ["a"], "b"),
        node("Conv", ["b", "v"], "c", pads=[1, 1, 1, 1]),
    ]
    if shuffle:
        nodes += [
            node("Reshape", ["c", "six"], "d"),
            node("Transpose", ["d"], "e", perm=[0, 1, 4, 2, 5, 3]),
            node("Reshape", ["e", "four"], "f"),
            node("Mul", ["f", "peak"], "output"),
        ]
    else:
        nodes += [node("GlobalAveragePool", ["c"], "d"), node("Add", ["c", "d"], "e")]
        nodes += [node("DepthToSpace", ["e"], "output", blocksize=SCALE)]
    out = SCALE * side if isinstance(side, int) else "b"
    return graph(nodes, {"input": ["n", 1, side, side]}, {"output": ["n", 1, out, out]}, values, opset=opset, ir=8)


@pytest.fixture
def data(tmp_path):
    folder = tmp_path / "data"
    folder.mkdir()
    for number in range(4):
        Image.fromarray(smooth(50, 40, 3, seed=number)).save(folder / f"{number}.png")
    return folder


def imported(tmp_path, model, data, capsys, *more):
    file = tmp_path / "third_party.onnx"
    onnx.save(model, file)
    arguments = ["import", str(file), "-o", str(tmp_path / "a.krl"), "--task", "restoration", "--data", str(data)]
    code = main([*arguments, *map(str, more), "--json"])
    captured = capsys.readouterr()
    return code, json.loads(captured.out) if code == 0 else captured.err


def test_a_fixed_size_is_opened(tmp_path, data, capsys):
    model = third_party()
    code, result = imported(tmp_path, model, data, capsys)
    assert code == 0
    assert "a pixel shuffle by 2, written as reshapes to a fixed size, became DepthToSpace" in result["changes"]
    assert result["input"] == "uint8 [batch, 1, height, width]"
    assert result["count"] == 4
    restorer = load(tmp_path / "a.krl", Restorer, threads=1)
    assert (restorer.scale, restorer.color) == (2, "y")
    assert restorer.overlap == 6  # reach of a 5×5 and a 3×3 convolution, all of it to one side
    pixels = smooth(SIDE, SIDE)
    (wanted,) = run(model, input=(pixels[None, None] / 255).astype(np.float32))
    np.testing.assert_allclose(restorer.restore_planes(pixels[None]), 255 * wanted[0], atol=0.01)
    assert str(restorer(smooth(31, 17, 3))) == "34x62 RGB"


def test_values_of_0_to_255(tmp_path, data, capsys):
    model = third_party(peak=255.0)
    code, _ = imported(tmp_path, model, data, capsys, "--input-range", "0-255", "--color", "gray")
    assert code == 0
    pixels = smooth(SIDE, SIDE)
    (wanted,) = run(model, input=pixels[None, None].astype(np.float32))
    restorer = load(tmp_path / "a.krl", Restorer, threads=1)
    np.testing.assert_allclose(restorer.restore_planes(pixels[None]), wanted[0], rtol=1e-4, atol=0.5)


def test_a_net_that_is_not_local_sees_the_whole(tmp_path, data, capsys):
    code, result = imported(tmp_path, third_party(side="s", shuffle=False), data, capsys)
    assert code == 0, result
    assert load(tmp_path / "a.krl", Restorer).overlap is None


@pytest.mark.parametrize(
    ("model", "options", "message"),
    [
        (third_party(), ["--color", "rgb"], "--color is rgb, but the model takes 1 channels"),
        (third_party(), ["--height", "20"], "--height is 20, but the model's input is fixed to 12"),
        (third_party(), ["--scale", "3"], "--scale is 3, but the model makes images 2 times as large"),
        (third_party(), ["--labels", "a", "b"], "--labels is not for --task restoration"),
        (third_party(), ["--scale", "99"], "--scale is 99; accepted: 1 to 16"),
    ],
)
def test_what_does_not_fit(tmp_path, data, capsys, model, options, message):
    code, error = imported(tmp_path, model, data, capsys, *options)
    assert code in (1, 2)
    assert message in error


def test_options_of_restoration_for_classifiers(tmp_path, data, capsys):
    arguments = ["import", str(tmp_path / "x.onnx"), "-o", str(tmp_path / "a.krl"), "--data", str(data)]
    assert main([*arguments, "--scale", "2"]) == 2
    assert "--scale is not for --task classification" in capsys.readouterr().err
    assert main(arguments) == 2
    assert "--labels is missing" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("perm", "six", "mode"), [([0, 1, 4, 2, 5, 3], (3, 2, 2), "CRD"), ([0, 3, 4, 1, 5, 2], (2, 2, 3), "DCR")]
)
def test_both_orders_of_pixel_shuffles(perm, six, mode):
    values = {"six": np.array([-1, *six, 4, 5]), "four": np.array([-1, 3, 8, 10])}
    nodes = [
        node("Relu", ["x"], "r"),
        node("Reshape", ["r", "six"], "a"),
        node("Transpose", ["a"], "b", perm=perm),
        node("Reshape", ["b", "four"], "y"),
    ]
    model = clean(graph(nodes, {"x": ["n", 12, 4, 5]}, {"y": ["n", 3, 8, 10]}, values))
    opened, changes = open_sides(model)
    assert ops(opened) == ["Relu", "DepthToSpace"]
    assert len(changes) == 1
    assert opened.graph.node[1].attribute[1].s.decode() == mode or opened.graph.node[1].attribute[0].s.decode() == mode
    x = RNG.normal(size=(2, 12, 4, 5)).astype(np.float32)
    assert (run(opened, x=x)[0] == run(model, x=x)[0]).all()
    assert run(opened, x=x[:, :, :2, :3])[0].shape == (2, 3, 4, 6)


def test_reshapes_that_are_no_shuffle_stay():
    values = {"six": np.array([-1, 3, 2, 2, 4, 5]), "four": np.array([-1, 12, 4, 5])}
    nodes = [
        node("Reshape", ["x", "six"], "a"),
        node("Transpose", ["a"], "b", perm=[0, 1, 3, 2, 4, 5]),
        node("Reshape", ["b", "four"], "y"),
    ]
    model = clean(graph(nodes, {"x": ["n", 12, 4, 5]}, {"y": ["n", 12, 4, 5]}, values))
    assert ops(open_sides(model)[0]) == ["Reshape", "Transpose", "Reshape"]


def test_radius_by_hand():
    kernel = np.ones((1, 1, 3, 3), np.float32)

    def radius(nodes, scale=1):
        values = {"k": kernel, "two": np.float32([1, 1, 2, 2]), "uneven": np.float32([1, 1, 2, 3])}
        return local_radius(graph(nodes, {"x": ["n", 1, "h", "w"]}, {"y": None}, values), scale)

    assert radius([node("Conv", ["x", "k"], "y", pads=[1, 1, 1, 1])]) == 2
    assert radius([node("Conv", ["x", "k"], "y", pads=[2, 2, 2, 2], dilations=[2, 2])]) == 4
    assert radius([node("Conv", ["x", "k"], "y", pads=[1, 1, 1, 1], strides=[2, 2])]) is None
    assert radius([node("ConvTranspose", ["x", "k"], "y", strides=[2, 2])], 2) == 2
    assert radius([node("Relu", ["x"], "y")], 2) is None
    resize = partial(node, "Resize", ["x", "", "two"], "y")
    assert [radius([resize(mode=mode)], 2) for mode in ("nearest", "linear", "cubic")] == [1, 1, 2]
    assert radius([resize(mode="linear", coordinate_transformation_mode="align_corners")], 2) is None
    assert radius([node("Resize", ["x", "", "uneven"], "y")], 2) is None
    assert radius([node("Concat", ["x", "x"], "y", axis=2)]) is None
    assert radius([node("Concat", ["x", "x"], "y", axis=1)]) == 0
    larger = [resize(mode="cubic"), node("Conv", ["y", "k"], "z", pads=[1, 1, 1, 1])]
    model = graph(larger, {"x": ["n", 1, "h", "w"]}, {"z": None}, {"k": kernel, "two": np.float32([1, 1, 2, 2])})
    assert local_radius(model, 2) == 3
    assert radius([node("GlobalAveragePool", ["x"], "a"), node("Mul", ["x", "a"], "y")]) is None


@pytest.mark.skipif(not (SHARED_DATA / "models").is_dir(), reason="shared data is absent")
def test_the_espcn_of_the_onnx_zoo(tmp_path, capsys):
    """A third-party network; 30.4 dB is what bicubic enlargement has on these five images."""
    model = onnx.load(SHARED_DATA / "models" / "super_resolution_espcn_x3.onnx")
    code, result = imported(tmp_path, model, SHARED_DATA / "sr" / "set5", capsys, "--golden", "2")
    assert code == 0
    assert result["psnr"] == pytest.approx(30.57, abs=0.02)
    assert load(tmp_path / "a.krl", Restorer).overlap == 10
