"""The commands that write images, and what the others say to bundles that make images."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from _helpers.bundles import npz, write_bundle
from _helpers.image_nets import LABELS_CONDITION, restorer_onnx, smooth, write_generator, write_restorer
from krl_runtime import load
from krl_runtime.bundle import Variant
from krl_runtime.cli import main
from krl_runtime.device.tune import lost


@pytest.fixture
def generator(tmp_path: Path) -> Path:
    return write_generator(tmp_path / "gan.krl").path


@pytest.fixture
def restorer(tmp_path: Path) -> Path:
    return write_restorer(tmp_path / "sr.krl").path


@pytest.fixture
def run(capsys: pytest.CaptureFixture[str]):
    def call(*arguments: object) -> tuple[int, str, str]:
        code = main([str(argument) for argument in arguments])
        captured = capsys.readouterr()
        return code, captured.out, captured.err

    return call


def opened(file: str | Path) -> np.ndarray:
    with Image.open(file) as image:
        return np.asarray(image)


def test_generate(run, generator: Path, tmp_path: Path):
    code, out, _ = run("generate", generator, "-o", tmp_path / "out", "--count", "5", "--seed", "7", "--json")
    assert code == 0
    result = json.loads(out)
    assert [Path(file).name for file in result["files"]] == [f"000{number}.png" for number in range(5)]
    assert (result["seed"], result["backend"], result["conditions"]) == (7, "onnxruntime-cpu", [])
    wanted = load(generator).generate(5, seed=7)
    for file, image in zip(result["files"], wanted, strict=True):
        assert (opened(file) == image.pixels[..., 0]).all()
    assert opened(result["grid"]).shape == (2 * 10 - 2, 3 * 10 - 2)


def test_generate_with_conditions(run, tmp_path: Path):
    bundle = write_generator(tmp_path / "cats.krl", condition=LABELS_CONDITION).path
    arguments = ("generate", bundle, "-o", tmp_path / "out", "-n", "3", "--condition", "cat", "--condition", "frog")
    code, out, _ = run(*arguments)
    assert code == 0
    assert "6 images of 8x8 L, and grid.png of 28x18 L" in out
    assert len(list((tmp_path / "out").glob("0*.png"))) == 6
    code, _, error = run(*arguments)
    assert code == 2
    assert "0000.png exists already; give another folder to --out, or --overwrite" in error
    assert run(*arguments, "--overwrite")[0] == 0
    code, _, error = run("generate", bundle, "-o", tmp_path / "more", "--condition", "cow")
    assert code == 2
    assert "label 'cow' is not known; accepted: cat, dog, frog" in error
    assert not (tmp_path / "more").exists()


def test_restore(run, restorer: Path, images: list[Path], tmp_path: Path):
    deep = images[0].parent / "deep" / "d.jpg"
    deep.parent.mkdir()
    Image.fromarray(smooth(9, 8)).save(deep)
    code, out, _ = run("restore", restorer, images[0].parent, "-o", tmp_path / "out")
    assert code == 0
    assert "40x60 RGB" in out
    assert opened(tmp_path / "out" / "deep" / "d.png").shape == (18, 16)
    restored = load(restorer)(images[1]).pixels
    assert (opened(tmp_path / "out" / "b.png") == restored).all()
    code, out, _ = run("restore", "-b", restorer, images[1], "-o", tmp_path / "one", "--json")
    assert code == 0
    file = tmp_path / "one" / "b.png"
    assert json.loads(out)["results"] == [{"file": str(images[1]), "restored": str(file), "size": "40x62 RGB"}]


def test_restore_what_is_no_image(run, restorer: Path, images: list[Path], tmp_path: Path):
    images[0].write_bytes(b"no image")
    code, _, error = run("restore", restorer, *images, "-o", tmp_path / "out")
    assert code == 2
    assert "a.png is not an image" in error
    code, out, _ = run("restore", restorer, *images, "-o", tmp_path / "out", "--on-bad-image", "skip", "--json")
    assert code == 0
    assert (len(json.loads(out)["results"]), len(json.loads(out)["skipped"])) == (2, 1)
    code, _, error = run("restore", restorer, images[0], "-o", tmp_path / "x", "--on-bad-image", "skip")
    assert code == 2
    assert "no image is left" in error


def test_restore_into_a_file(run, restorer: Path, images: list[Path]):
    code, _, error = run("restore", restorer, images[0], "-o", images[1])
    assert code == 2
    assert "is a file; give a folder to --out" in error


@pytest.mark.parametrize(
    ("given", "made"),
    [
        (["same.png", "same.jpg", "other.png"], ["other.png", "same.jpg.png", "same.png.png"]),
        (["a.png", "A.jpg"], ["A.jpg.png", "a.png.png"]),
        (["a.png", "A.png", "b.png"], ["A.png.png", "a.png-2.png", "b.png"]),
        (["a.jpg", "a.png", "a.jpg.png"], ["a.jpg.png", "a.jpg.png.png", "a.png.png"]),
        (["deep/x/a.png", "deep/x/a.bmp", "deep/a.png"], ["deep/a.png", "deep/x/a.bmp.png", "deep/x/a.png.png"]),
        (["d/a.png", "D/a.png"], ["D/a.png.png", "d/a.png-2.png"]),
        (["a.jpg", "a.png/b.png"], ["a.jpg.png", "a.png/b.png"]),
        (["e\u0301.png", "\u00e9.jpg"], ["e\u0301.png.png", "\u00e9.jpg.png"]),
    ],
)
def test_restore_where_names_meet(run, restorer: Path, tmp_path: Path, given: list[str], made: list[str]):
    """Each image has a file of its own, on file systems that ignore case as well: of different heights here."""
    folder, out = tmp_path / "in", tmp_path / "out"
    for number, name in enumerate(given):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(smooth(8 + number, 8)).save(folder / name)
    code, shown, _ = run("restore", restorer, folder, "-o", out, "--json")
    assert code == 0
    assert sorted(str(path.relative_to(out)) for path in out.rglob("*") if path.is_file()) == sorted(made)
    for result in json.loads(shown)["results"]:
        assert len(opened(result["restored"])) == 2 * len(opened(result["file"]))
    again, _, error = run("restore", restorer, folder, "-o", out)
    assert again == 2
    assert "exists already" in error


def test_restore_files_of_several_folders(run, restorer: Path, tmp_path: Path):
    files = [tmp_path / name / "a.png" for name in ("one", "two", "three")]
    for file in files:
        file.parent.mkdir()
        Image.fromarray(smooth(8, 8)).save(file)
    code, out, _ = run("restore", restorer, *files, "-o", tmp_path / "out", "--json")
    assert code == 0
    made = [(Path(item["file"]).parent.name, Path(item["restored"]).name) for item in json.loads(out)["results"]]
    assert made == [("one", "a.png.png"), ("two", "a.png-2.png"), ("three", "a.png-3.png")]


@pytest.mark.parametrize(
    ("command", "wanted"), [("generate", "generation"), ("restore", "restoration"), ("classify", "classification")]
)
def test_other_tasks_are_refused(run, tmp_path: Path, images: list[Path], command: str, wanted: str):
    bundles = {
        "generation": write_generator(tmp_path / "a.krl").path,
        "restoration": write_restorer(tmp_path / "b.krl").path,
        "classification": write_bundle(tmp_path / "c.krl").path,
    }
    rest = {"generate": ["-o", tmp_path / "x"], "restore": [images[0], "-o", tmp_path / "x"], "classify": images}
    for task, bundle in sorted(bundles.items(), key=lambda item: item[0] == wanted):
        code, _, error = run(command, bundle, *rest[command])
        assert code == (0 if task == wanted else 2)
        assert task == wanted or f"is for the task '{task}'; a bundle for {wanted} is needed here" in error


def test_serve_refuses_what_makes_images(run, generator: Path):
    code, _, error = run("serve", generator)
    assert code == 2
    assert "is for the task 'generation'; a bundle for classification or embedding is needed here" in error


def test_info(run, generator: Path, restorer: Path):
    code, out, _ = run("info", generator)
    assert code == 0
    assert "latent: distribution normal, size 6" in out
    assert "60.0 dB" in out
    assert "labels" not in out
    assert "color: y; degradation: kind bicubic; overlap: 3; scale: 2" in run("info", restorer)[1]


@pytest.mark.parametrize("write", [write_generator, write_restorer])
def test_selftest(run, tmp_path: Path, write):
    bundle = write(tmp_path / "a.krl")
    code, out, _ = run("selftest", bundle.path, "--json")
    assert code == 0
    replay = next(item for item in json.loads(out)["replays"] if item["kind"] == "cpu")
    assert (replay["state"], replay["agreement"], replay["required_agreement"]) == ("passed", None, None)
    assert replay["psnr"] > 100
    assert replay["required_psnr"] == 60
    assert "60.0 dB" in run("selftest", bundle.path)[1]


def test_selftest_of_wrong_images(run, tmp_path: Path):
    """An error of 3 levels everywhere is 10 log10(255² / 3²) = 38.6 dB."""
    bundle = write_generator(tmp_path / "a.krl")
    golden = bundle.golden()
    golden["images"] = np.where(golden["images"] > 127, golden["images"] - 3, golden["images"] + 3)
    variant = Variant("fp32", "model.fp32.onnx", tolerance=3.5, psnr=40.0)
    bundle = bundle.update({"golden.npz": npz(**golden)}, golden="golden.npz", variants={"fp32": variant})
    code, out, error = run("selftest", bundle.path, "--json")
    assert code == 1
    assert "replays failed: fp32 on cpu" in error
    replay = next(item for item in json.loads(out)["replays"] if item["kind"] == "cpu")
    assert replay["psnr"] == pytest.approx(38.6, abs=0.05)
    assert "the PSNR to the golden images is 38.6 dB, required: 40.0" in replay["cause"]
    bundle.update({}, variants={"fp32": replace(variant, psnr=38.0)})
    assert run("selftest", bundle.path)[0] == 0


def test_selftest_of_another_scale(run, tmp_path: Path):
    bundle = write_restorer(tmp_path / "a.krl")
    variants = {**bundle.manifest.variants, "fp16": Variant("fp16", "model.fp16.onnx", psnr=10.0)}
    bundle.update({"model.fp16.onnx": restorer_onnx(3)}, variants=variants)
    code, out, _ = run("selftest", bundle.path, "--json")
    assert code == 1
    failed = next(item for item in json.loads(out)["replays"] if item["state"] == "failed")
    assert failed["cause"] == "restored has shape [4, 1, 72, 60], the golden one [4, 1, 48, 40]"


@pytest.mark.parametrize(("write", "stages"), [(write_generator, {"inference"}), (write_restorer, {"decode"})])
def test_bench(run, tmp_path: Path, write, stages: set[str]):
    bundle = write(tmp_path / "a.krl").path
    code, out, _ = run("bench", bundle, "--iterations", "3", "--warmup", "0", "--threads", "1", "--json")
    assert code == 0
    result = json.loads(out)
    assert stages < set(result["stages_ms"])
    assert result["throughput_per_s"] > 0


def test_bench_refuses(run, generator: Path, restorer: Path, images: list[Path]):
    assert "makes images and takes none" in run("bench", generator, "--image", images[0])[2]
    assert "restoration runs one image at a time" in run("bench", restorer, "--batch", "2")[2]


def test_tune(run, restorer: Path):
    code, out, _ = run("tune", restorer, "--rounds", "1", "--threads", "1", "--json")
    assert code == 0
    result = json.loads(out)
    assert result["max_drop"] == 0.1
    assert result["measurements"][0]["variant"] == "fp32"


@pytest.mark.parametrize(
    ("scores", "expected"),
    [
        ({"fp32": {"psnr": 30.5}, "int8.cpu": {"psnr": 30.25, "psnr_to_fp32": 20.0}}, 0.25),
        ({"fp32": {"psnr_to_fp32": 200.0}, "int8.cpu": {"psnr_to_fp32": 34.0}}, 0.0),
        ({"fp32": {"psnr": None}, "int8.cpu": {"psnr": None, "psnr_to_fp32": 28.0}}, 2.0),
        ({"fp32": {}, "int8.cpu": {"psnr_to_fp32": "much"}}, None),
    ],
)
def test_what_evidence_says_is_lost(restorer: Path, scores: dict, expected: float | None):
    manifest = replace(load(restorer).bundle.manifest, evidence={"int8": {"scores": scores}})
    assert lost(manifest, "int8", "cpu") == expected
