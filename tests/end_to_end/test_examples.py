"""Every example runs as it stands, on real images where they are at hand."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import pytest

from _helpers.images import SHARED_DATA
from _helpers.pages import ReadPage
from _helpers.words import write_sentence_model

ROOT = Path(__file__).parents[2]
EXAMPLES = ROOT / "examples"

pytestmark = pytest.mark.slow


def _run(*command: str, cwd: Path) -> subprocess.CompletedProcess[str]:
    programs = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    env = {**os.environ, "PATH": programs, "OMP_NUM_THREADS": "1"}
    done = subprocess.run(command, cwd=cwd, env=env, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-4000:]
    return done


def _subset(source: Path, target: Path, count: int) -> Path:
    for folder in sorted(path for path in source.rglob("*") if path.is_dir()):
        files = sorted(path for path in folder.iterdir() if path.is_file())[:count]
        for file in files:
            copy = target / file.relative_to(source)
            copy.parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(file, copy)
    return target


def test_quickstart(tmp_path: Path) -> None:
    """With TensorRT-RTX where it is installed, as sh examples/quickstart.sh --rtx runs it."""
    rtx = ["--rtx"] if find_spec("tensorrt_rtx_bindings") else []
    done = _run(sys.executable, str(EXAMPLES / "01_quickstart.py"), "work", *rtx, cwd=tmp_path)
    table = done.stdout[done.stdout.rindex("On ") :]
    titles = [line for line in table.splitlines() if line.startswith(("teacher", "student", "distilled"))]
    assert len(titles) == 4
    accuracies = [float(re.split(r"\s{2,}", line)[4]) for line in titles]
    assert accuracies[0] > 97  # the teacher
    assert min(accuracies) > 90
    assert abs(accuracies[2] - accuracies[3]) <= 1  # INT8 against FP32, in points
    assert done.stdout.count("tensorrt-rtx ") >= 2 * len(rtx)  # the table of engines: FP16 and INT8
    assert ("These engines are for desktop RTX GPUs" in done.stdout) == bool(rtx)
    # each step was printed as a command that can be repeated
    assert done.stdout.count("\n$ krl-") >= 9


def test_python_api(tmp_path: Path) -> None:
    script = EXAMPLES / "07_python_api.py"
    assert len(script.read_text().splitlines()) <= 40
    done = _run(sys.executable, str(script), "work", "4", cwd=tmp_path)
    teacher, student = map(float, re.findall(r"of the (?:teacher|student): ([\d.]+)%", done.stdout))
    (int8,) = map(float, re.findall(r"in INT8: ([\d.]+)%", done.stdout))
    assert teacher > 50  # chance is 10
    assert student > 20
    assert abs(student - int8) <= 2
    assert "ready for JetPack 6.2: True" in done.stdout
    assert "onnxruntime-cpu runs variant int8" in done.stdout
    assert "krl" not in done.stderr  # the functions print nothing


def test_transfer_from_one_labeling_to_another(tmp_path: Path) -> None:
    script = EXAMPLES / "08_transfer_recognition.py"
    done = _run(sys.executable, str(script), "work", "--epochs", "40", cwd=tmp_path)
    table = done.stdout[done.stdout.rindex("Holes, learned from 5 images") :]
    lines = {
        name: re.split(r"\s{2,}", line)
        for name in ("from nothing", "last layer alone", "all layers", "target and source at once")
        for line in table.splitlines()
        if line.startswith(name)
    }
    accuracy = {name: float(cells[1].split()[0]) for name, cells in lines.items()}
    assert accuracy["last layer alone"] > accuracy["from nothing"]
    assert min(float(cells[5]) for name, cells in lines.items() if name.startswith("target")) > 80  # of ten digits
    assert [cells[5] for name, cells in lines.items() if not name.startswith("target")] == ["-"] * 3
    answers = re.findall(r"^(\d)-\d+\.png: (\w+) \(\d+%\), digit (\d) \(\d+%\)$", table, re.MULTILINE)
    assert len(answers) == 3
    assert "torch is loaded here: False" in table


@pytest.mark.skipif(not (SHARED_DATA / "cifar10").is_dir(), reason="the shared data is not here")
def test_published_teacher(tmp_path: Path) -> None:
    data = _subset(SHARED_DATA / "cifar10", tmp_path / "data", 40)
    weights = next((SHARED_DATA / "models").glob("cifar10_resnet56-*.th"))
    script = EXAMPLES / "02_cifar10_published_teacher.sh"
    done = _run("sh", str(script), str(data), str(weights), str(tmp_path / "out"), "3", cwd=tmp_path)
    assert "student without teacher" in done.stdout
    assert (tmp_path / "out" / "resnet8.krl" / "model.int8.onnx").is_file()
    page = ReadPage(tmp_path / "out" / "report.html")
    assert list(page.table("12 images")[0])[1:] == ["teacher resnet56", "student fp32", "student int8"]
    assert {"compare.json", "layers.json", "check.json"} <= {row["file"] for row in page.table("Sources")}


@pytest.mark.skipif(not (SHARED_DATA / "flowers128").is_dir(), reason="the shared data is not here")
def test_photographs(tmp_path: Path) -> None:
    data = _subset(
        SHARED_DATA / "flowers128" / "train", tmp_path / "data", 110
    )  # of which more than 100 judge FP16 and INT8
    script = EXAMPLES / "03_flowers_photographs.sh"
    _run("sh", str(script), str(data), str(tmp_path / "out"), "2", "2", "64", cwd=tmp_path)
    assert (tmp_path / "out" / "student.krl" / "model.fp16.onnx").is_file()


@pytest.mark.skipif(not (SHARED_DATA / "MNIST").is_dir(), reason="the shared data is not here")
def test_generator(tmp_path: Path) -> None:
    script = EXAMPLES / "05_mnist_generator.sh"
    done = _run("sh", str(script), str(SHARED_DATA), str(tmp_path / "out"), "1", "640", "200", cwd=tmp_path)
    assert done.stdout.count("fid_floor") == 2
    assert len(list((tmp_path / "out" / "digits").glob("*.png"))) == 65  # and the grid of all
    page = ReadPage(tmp_path / "out" / "report.html")
    assert len(page.images) == 3  # grids of the teacher, of the student, and in INT8


def test_digits_from_descriptions(tmp_path: Path) -> None:
    script = EXAMPLES / "06_text_to_digits.py"
    words = (
        "red",
        "green",
        "blue",
        "yellow",
        "purple",
        "white",
        "zero",
        "one",
        "two",
        "three",
        "seven",
        "crimson",
        "7",
    )
    write_sentence_model(tmp_path / "words", dict(zip(words, np.eye(len(words)).tolist(), strict=True)))
    small = ("--images", "300", "--epochs", "1", "--width", "4", "--each", "1", "--sentence-model", "words")
    done = _run(sys.executable, str(script), "work", *small, cwd=tmp_path)
    assert "Images that show the requested digit and color" in done.stdout
    assert all(f"\n{name}" in done.stdout for name in ("text", "words", "labels", "none", "chance"))
    assert all(f"\n{word}  " in done.stdout for word in ("crimson", "pale", "7"))
    assert (tmp_path / "work" / "grid.png").is_file()


@pytest.mark.skipif(not (SHARED_DATA / "sr").is_dir(), reason="the shared data is not here")
def test_super_resolution(tmp_path: Path) -> None:
    data = _subset(SHARED_DATA / "sr", tmp_path / "data", 5)
    script = EXAMPLES / "04_super_resolution.sh"
    done = _run("sh", str(script), str(data), str(tmp_path / "out"), "1", "1", cwd=tmp_path)
    assert "student without teacher" in done.stdout
    assert (tmp_path / "out" / "student.krl" / "model.int8.onnx").is_file()
    assert len(list((tmp_path / "out" / "restored").iterdir())) == 1
