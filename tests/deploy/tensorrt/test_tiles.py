"""Engines of restorers for parts of one size, with the real TensorRT-RTX, which builds without a GPU."""

from __future__ import annotations

import json
from pathlib import Path

import onnx
import pytest
from PIL import Image

from _helpers.bundles import write_bundle
from _helpers.image_nets import smooth, write_generator, write_restorer
from _helpers.required import real_rtx
from _helpers.restorer_files import SIDE, WIDTH, fixed_restorer
from krl_deploy.cli import main
from krl_runtime.bundle import Bundle


@pytest.fixture(autouse=True)
def library():
    return real_rtx()


def run(capsys: pytest.CaptureFixture[str], *argv: object) -> tuple[int, str, str]:
    code = main([str(item) for item in argv])
    captured = capsys.readouterr()
    return code, captured.out, captured.err


def build(capsys: pytest.CaptureFixture[str], path: Path, *more: object) -> tuple[int, str, str]:
    return run(capsys, "build-engine", path, "--target", "rtx", "--precision", "fp32", *more)


@pytest.mark.parametrize("kind", ["windows", "channel attention", "position"])
def test_imported_restorers_of_one_size_become_engines(tmp_path: Path, capsys, kind: str):
    data = tmp_path / "data"
    data.mkdir()
    for number in range(3):
        Image.fromarray(smooth(60, 70, 3, seed=number)).save(data / f"{number}.png")
    onnx.save(fixed_restorer(kind), tmp_path / "net.onnx")
    path = tmp_path / "net.krl"
    code, _, error = run(capsys, "import", tmp_path / "net.onnx", "-o", path, "--task", "restoration", "--data", data)
    assert code == 0, error
    assert run(capsys, "fp16", path, "--data", data, "--accept-unmeasured")[0] == 0
    for precision in ("fp32", "fp16"):
        code, out, error = run(capsys, "build-engine", path, "--target", "rtx", "--precision", precision, "--json")
        assert code == 0, error
        engine = Bundle.open(path).manifest.engines[json.loads(out)["engine"]]
        assert (engine.height, engine.width, engine.variant) == (None, None, precision)
    code, _, error = build(capsys, path, "--tile", 64)
    assert code == 2
    assert f"--tile is 64, but the graph of bundle {path} is fixed to {SIDE}x{WIDTH}" in error


@pytest.mark.parametrize(
    ("overlap", "tile", "settings"),
    [(3, 64, {}), (11, 24, {}), (None, 128, {}), (None, 64, {"multiple": 4, "smallest_side": 4})],
)
def test_tiles_of_open_graphs(tmp_path: Path, capsys, overlap: int | None, tile: int, settings: dict[str, int]):
    whole = {"scale": 2, "color": "y", "overlap": overlap, "degradation": {"kind": "bicubic"}, **settings}
    bundle = write_restorer(tmp_path / "open.krl", settings=whole)
    code, out, error = build(capsys, bundle.path, "--tile", tile, "--json")
    assert code == 0, error
    engine = Bundle.open(bundle.path).manifest.engines[json.loads(out)["engine"]]
    assert (engine.height, engine.width) == ((24, tile, tile), (20, tile, tile))  # golden inputs are 24x20


@pytest.mark.parametrize("side", [24, 48, 64])
def test_a_tile_of_the_fixed_size_is_the_engine_itself(tmp_path: Path, capsys, side: int):
    bundle = write_restorer(tmp_path / "fixed.krl", size=(side, side))
    assert build(capsys, bundle.path, "--tile", side)[0] == 0
    (engine,) = Bundle.open(bundle.path).manifest.engines.values()
    assert engine.height is None


@pytest.mark.parametrize(
    ("more", "options", "message"),
    [
        ({"overlap": 30}, ["--tile", 48], "--tile is 48; accepted: 61 or more: the golden inputs are 24x20, and parts"),
        ({}, ["--tile", 16], "--tile is 16; accepted: 24 or more: the golden inputs are 24x20, and parts overlap by 3"),
        ({"overlap": None}, ["--tile", 0], "--tile is 0; accepted: 24 or more: the golden inputs are 24x20"),
        ({"size": (24, 20)}, ["--tile", 24], "is fixed to 24x20, and so is its engine; leave it out"),
        ({"size": (32, 32)}, ["--tile", 64], "is fixed to 32x32, and so is its engine; leave it out"),
        ({}, ["--tile", 64, "--width", "16,32,64"], "--tile stands for --height and --width; give it, or these"),
        ({"overlap": None}, [], "or --tile N for images of up to N x N pixels"),
        ({"multiple": 8}, ["--tile", 60], "--tile is 60; accepted: 24 or more, in multiples of 8"),
        ({"multiple": 4}, ["--height", "24,30,64", "--width", "20,40,64"], "accepted: 24,32,64"),
    ],
)
def test_what_is_refused(tmp_path: Path, capsys, more: dict[str, object], options: list[object], message: str):
    overlap, multiple = more.get("overlap", 3), more.get("multiple", 1)
    settings = {"scale": 2, "color": "y", "overlap": overlap, "multiple": multiple, "degradation": {"kind": "none"}}
    sizes = {"size": more["size"]} if "size" in more else {}
    bundle = write_restorer(tmp_path / "a.krl", settings=settings, **sizes)
    code, _, error = build(capsys, bundle.path, *options)
    assert code == 2
    assert message in " ".join(error.split())
    assert not Bundle.open(bundle.path).manifest.engines


@pytest.mark.parametrize("task", ["classification", "generation", "ONNX file"])
def test_what_is_no_restorer(tmp_path: Path, capsys, task: str):
    write = write_generator if task == "generation" else write_bundle
    path = write(tmp_path / "a.krl").path
    if task == "ONNX file":
        code, _, error = run(
            capsys, "build-engine", path / "model.fp32.onnx", "--target", "rtx", "--tile", 64, "-o", tmp_path / "x"
        )
        assert (code, "--tile is for bundles of restorers" in error) == (2, True)
        return
    code, _, error = build(capsys, path, "--tile", 64)
    assert code == 2
    assert f"--tile is for restorers; bundle {path} is for {task}; leave it out" in error
