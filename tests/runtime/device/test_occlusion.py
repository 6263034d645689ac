"""Occlusion: a planted classifier that looks at one corner, and one with inputs beside the image."""

from __future__ import annotations

import json
from types import SimpleNamespace

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper
from PIL import Image

import krl_runtime
from _helpers.bundles import write_bundle
from krl_runtime.cli.program import main
from krl_runtime.device.explanation import read_explanation
from krl_runtime.errors import DataError, UsageError
from krl_runtime.images.heat import heat_colors, overlay
from krl_runtime.images.preprocessing import Preprocessing

SIDE, CORNER = 28, 6
SPEC = Preprocessing(SIDE, SIDE, channels=1, mean=(0.5,), std=(0.25,))
LABELS = ("dark", "bright")


def corner_graph() -> bytes:
    """Two logits, minus and plus ten times the brightness (-0.5 to 0.5) of the last 6 rows and first 6 columns."""
    weights = np.zeros((1, 1, SIDE, SIDE), np.float32)
    weights[..., SIDE - CORNER :, :CORNER] = 1 / (255 * CORNER**2)
    values = {"w": weights, "half": np.float32(-0.5), "signs": np.float32([[-10, 10]])}
    nodes = [
        helper.make_node("Cast", ["pixels"], ["x"], to=TensorProto.FLOAT),
        helper.make_node("Conv", ["x", "w"], ["c"]),
        helper.make_node("Flatten", ["c"], ["f"]),
        helper.make_node("Add", ["f", "half"], ["m"]),
        helper.make_node("MatMul", ["m", "signs"], ["logits"]),
    ]
    made = helper.make_graph(
        nodes,
        "corner",
        [helper.make_tensor_value_info("pixels", TensorProto.UINT8, ["batch", 1, SIDE, SIDE])],
        [helper.make_tensor_value_info("logits", TensorProto.FLOAT, ["batch", 2])],
        [numpy_helper.from_array(np.asarray(value), name) for name, value in values.items()],
    )
    model = helper.make_model(made, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    onnx.checker.check_model(model)
    return model.SerializeToString()


@pytest.fixture
def planted(tmp_path):
    return write_bundle(
        tmp_path / "corner.krl",
        preprocessing=SPEC,
        labels=LABELS,
        golden=0,
        contents={"model.fp32.onnx": corner_graph()},
    )


def test_only_the_corner_that_is_looked_at_has_heat(planted):
    image = np.full((SIDE, SIDE), 230, np.uint8)
    with krl_runtime.load(planted.path) as model:
        found = krl_runtime.explain(model, image, patch=4, stride=2)
    assert found.prediction.label == "bright"
    hidden = np.zeros((SIDE, SIDE), bool)
    hidden[SIDE - CORNER :, :CORNER] = True
    reached = np.zeros_like(hidden)
    reached[SIDE - CORNER - 2 :, : CORNER + 2] = True  # pixels that a patch can hide together with the corner's
    assert (found.heat[hidden] > 0.001).all()
    assert found.heat[~reached] == pytest.approx(0, abs=1e-7)
    # A patch within the corner takes 16 of its 36 pixels from 230 to 128, and the logits follow.
    margin = 20 * (230 / 255 - 0.5), 20 * ((20 * 230 + 16 * 128) / 36 / 255 - 0.5)
    expected = 1 / (1 + np.exp(-margin[0])) - 1 / (1 + np.exp(-margin[1]))
    assert found.drops[-1, 0] == pytest.approx(expected, rel=1e-4)
    assert found.drops.max() == pytest.approx(expected, rel=1e-4)


def test_patches_reach_all_sides(planted):
    with krl_runtime.load(planted.path) as model:
        found = krl_runtime.explain(model, np.full((SIDE, SIDE), 230, np.uint8), patch=5, stride=4)
        assert found.drops.shape == (7, 7)  # 0, 4 … 20, and 23
        for options in ({"patch": 0}, {"patch": SIDE + 1}, {"patch": 3, "stride": 0}):
            with pytest.raises(UsageError, match="accepted"):
                krl_runtime.explain(model, np.zeros((SIDE, SIDE), np.uint8), **options)


def test_command_writes_maps_and_what_a_report_reads(planted, tmp_path, capsys):
    file, out = tmp_path / "bright.png", tmp_path / "out"
    Image.new("L", (SIDE, SIDE), 230).save(file)
    assert main(["explain", str(planted.path), str(file), "-o", str(out), "--patch", "4", "--json"]) == 0
    printed = json.loads(capsys.readouterr().out)
    kept = read_explanation(out)
    assert kept["images"] == printed["images"]
    assert kept["images"][0]["prediction"] == "bright"
    drawn = np.asarray(Image.open(out / kept["images"][0]["sheet"])).astype(int)
    assert drawn.shape == (SIDE, SIDE, 3)
    colored = np.ptp(drawn, axis=2) > 20
    assert colored[-3:, :3].all()
    assert not colored[:, SIDE // 2 :].any()
    assert main(["explain", str(planted.path), str(file), "-o", str(out)]) == 2
    assert "--overwrite" in capsys.readouterr().err
    assert main(["explain", str(planted.path), str(file), "-o", str(out), "--overwrite"]) == 0
    other = tmp_path / "precious"
    other.mkdir()
    assert main(["explain", str(planted.path), str(file), "-o", str(other), "--overwrite"]) == 2
    assert other.is_dir()


def test_an_explanation_cannot_name_files_elsewhere(planted, tmp_path):
    file = tmp_path / "explain.json"
    for text, cause in (
        ('{"kind": "krl-explanation", "schema_version": 1, "images": [{"sheet": "../a.png"}]}', "leaves its folder"),
        ('{"kind": "krl-explanation", "schema_version": 0}', "version 0"),
        ('{"kind": "other"}', "not an explanation"),
        ("[" * 100_000, "cannot be read"),
    ):
        file.write_text(text)
        with pytest.raises(DataError, match=cause):
            read_explanation(tmp_path)


def test_overlay_leaves_pixels_without_heat_gray():
    pixels = np.random.default_rng(0).integers(0, 256, (8, 8, 3), dtype=np.uint8)
    heat = np.zeros((8, 8))
    heat[2, 3] = 5.0
    shown = overlay(pixels, heat).astype(int)
    gray = pixels.mean(axis=2).round()
    untouched = heat == 0
    assert (np.abs(shown[untouched] - gray[untouched][:, None]) <= 1).all()
    assert np.ptp(shown[2, 3]) > 0
    lightness = heat_colors(np.linspace(0, 1, 50)) @ np.array([0.2126, 0.7152, 0.0722])
    assert (np.diff(lightness) > 0).all()


def test_inputs_beside_the_image_stay_as_they_are():
    """A stand-in for a model with attributes: the second class has the brightness of one pixel plus the attribute."""
    sizes = []

    def run(batch):
        assert (batch["attributes"] == 0.25).all()
        sizes.append(len(batch["pixels"]))
        second = batch["pixels"][:, 0, 9, 9] / 255 + batch["attributes"][:, 0]
        return {"logits": np.stack([np.zeros(len(second)), second], 1).astype(np.float32)}

    model = SimpleNamespace(
        prepare=lambda _: {"pixels": np.full((1, 14, 14), 250, np.uint8), "attributes": np.float32([0.25])},
        run=run,
        logits=lambda batch: run(batch)["logits"],
        interpret_outputs=lambda outputs, top_k: [SimpleNamespace(index=1, score=1 / (1 + np.exp(-250 / 255 - 0.25)))],
        output_kind="logits",
        preprocessing=SPEC,
        bundle=SimpleNamespace(batch_limit=5),
    )
    found = krl_runtime.explain(model, {"image": "a.png", "size": 0.25}, patch=2, stride=2)
    hit = np.argwhere(found.drops > 1e-6)
    assert hit.tolist() == [[4, 4]]
    assert sizes[0] == 1
    assert max(sizes) == 5
    assert sum(sizes) == 1 + 49
