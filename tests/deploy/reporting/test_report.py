"""The page says what the files say, as an independent reader finds it."""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import sys
from pathlib import Path

import numpy as np
import onnxruntime
import pytest

import krl_deploy
from _helpers.bundles import write_bundle
from _helpers.digits import LABELS, pixels_of
from _helpers.embeddings import write_embedder
from _helpers.image_nets import LABELS_CONDITION, write_generator, write_restorer
from _helpers.pages import ReadPage
from krl_deploy.cli import COMMANDS, main
from krl_deploy.reporting.plots import scatter
from krl_runtime import Bundle
from krl_runtime.cli.program import _parser
from krl_runtime.errors import KrlError, MissingExtraError, UsageError


def scores(bundle: Path, file: str, pixels: np.ndarray) -> np.ndarray:
    """Return the logits of one of a bundle's files, by ONNX Runtime alone."""
    session = onnxruntime.InferenceSession(bundle / file, providers=["CPUExecutionProvider"])
    return session.run(None, {"pixels": pixels})[0]


@pytest.fixture(scope="module")
def page(results: Path, digits: Path, tmp_path_factory: pytest.TempPathFactory) -> ReadPage:
    out = tmp_path_factory.mktemp("page") / "report.html"
    found = krl_deploy.report(path=results, out=out, data=digits, samples=10)
    assert found.details["bytes"] == out.stat().st_size <= 6_000_000
    assert not found.details["skipped"]
    return ReadPage(out)


def test_accuracy_is_what_the_files_give(page: ReadPage, results: Path, digits: Path):
    pixels, truth = pixels_of(digits / "val")
    rows = {(row["model"], row["variant"]): row for row in page.table("Every network")}
    for variant, file in (("fp32", "model.fp32.onnx"), ("int8", "model.int8.cpu.onnx")):
        row = rows["student", f"{variant} cpu"]
        correct = (scores(results / "student.krl", file, pixels).argmax(1) == truth).mean()
        assert row["accuracy"].startswith(f"top-1 {correct:.2%}".replace("%", " %"))
        assert row["size, MiB"] == f"{(results / 'student.krl' / file).stat().st_size / 2**20:.2f}"
        assert float(row["latency, ms"]) > 0
        assert row["measured on"].startswith(f"{len(truth)} images of digits; ")
    assert ("teacher", "fp32") in rows  # from its run: nothing has measured it on a device
    assert "krl-runtime evaluate teacher.krl DATA" in [row["command"] for row in page.table("Not measured")]


def test_confusions_are_what_the_files_give(page: ReadPage, results: Path, digits: Path):
    pixels, truth = pixels_of(digits / "val")
    matrices = [plot for plot in page.plots if plot["data"][0]["type"] == "heatmap"]
    assert len(matrices) == 2
    for plot, file in zip(matrices, ("model.fp32.onnx", "model.int8.cpu.onnx"), strict=True):
        predicted = scores(results / "student.krl", file, pixels).argmax(1)
        expected = np.zeros((10, 10), int)
        np.add.at(expected, (truth, predicted), 1)
        np.testing.assert_array_equal(plot["data"][0]["text"], expected)
        assert plot["data"][0]["x"] == list(LABELS)
    fp32 = scores(results / "student.krl", "model.fp32.onnx", pixels).argmax(1)
    for row in page.table("Recall of each class"):
        own = truth == int(row["class"])
        assert row["fp32 cpu"] == f"{(fp32[own] == truth[own]).mean():.1%}"


def test_samples_are_what_the_files_predict(page: ReadPage, results: Path, digits: Path):
    rows = page.table("10 images")
    assert sorted(row["image"] for row in rows) == list(LABELS)
    columns = {
        "teacher dscnn-0.5": ("teacher.krl", "model.fp32.onnx"),
        "student fp32": ("student.krl", "model.fp32.onnx"),
        "student int8": ("student.krl", "model.int8.cpu.onnx"),
    }
    assert list(rows[0]) == ["image", *columns]
    for index, row in enumerate(rows):
        shown = page.images[f"sample {index + 1}, {row['image']}"]
        for column, (bundle, file) in columns.items():
            logits = scores(results / bundle, file, shown[None, None])[0].astype(np.float64)
            best = int(logits.argmax())
            share = np.exp(logits[best]) / np.exp(logits).sum()
            mark = "" if LABELS[best] == row["image"] else "✗ wrong: "
            assert row[column] == f"{mark}{LABELS[best]} {share:.1%}".replace("%", " %")


def test_golden_inputs_are_the_samples_without_data(results: Path, tmp_path: Path):
    krl_deploy.report(path=results / "student.krl", out=tmp_path / "r.html", samples=4)
    page = ReadPage(tmp_path / "r.html")
    golden = Bundle.open(results / "student.krl").golden()
    assert len(page.images) == 4
    for alt, shown in page.images.items():
        (index,) = np.flatnonzero((golden["pixels"][:, 0] == shown).all((1, 2)))[:1]
        row = page.table("4 images")[int(alt.split()[1].strip(",")) - 1]
        assert row["student fp32"].startswith(f"{golden['logits'][index].argmax()} ")


def test_the_layers_are_those_of_the_commands(page: ReadPage, results: Path):
    compared = json.loads((results / "compare.json").read_text())["layers"]
    shown = page.table("Numeric gap")
    assert [(row["layer"], row["alone, dB"]) for row in shown] == [
        (layer["name"], f"{layer['alone']['snr_db']:.1f}") for layer in compared
    ]
    timed = json.loads((results / "layers.json").read_text())["layers"]["layers"]
    assert [(row["layer"], row["ms"]) for row in page.table("Time of each layer")] == [
        (layer["name"], f"{layer['ms']:.4f}") for layer in timed
    ]


def test_the_family_is_a_tree(page: ReadPage):
    text = page.source[page.source.index('<ul class="tree">') : page.source.index("Accuracy, latency and size</h2>")]
    places = [text.index(f"<strong>{name}</strong>") for name in ("teacher", "teacher.krl", "student", "student.krl")]
    assert places == sorted(places)
    roles = [part.partition("<")[0] for part in text.split('<span class="role">')[1:]]
    assert roles == ["teacher", "bundle", "variant", "student", "bundle", "variant", "variant"]


def test_every_number_has_its_command_and_file(page: ReadPage, results: Path):
    sources = page.table("Sources")
    programs = {"krl-deploy": set(COMMANDS), "krl-runtime": set(_parser()._subparsers._group_actions[0].choices)}
    for row in [*sources, *page.table("Not measured")]:
        program, verb = row["command"].split()[:2]
        assert verb in programs.get(program, {verb}) or verb == "on"
    files = {row["file"] for row in sources}
    assert {"compare.json", "layers.json", "check.json", "device.json", "student.krl/manifest.json"} <= files
    assert all((results / file).is_file() for file in files)
    assert str(results) not in page.source  # no folder of this machine


def test_what_is_absent_is_listed_until_its_command_has_run(results: Path, tmp_path: Path, monkeypatch, capsys):
    shutil.copytree(results / "student.krl", tmp_path / "student.krl")
    monkeypatch.chdir(tmp_path)
    absent = {item["what"]: item["command"] for item in _report(tmp_path)["absent"]}
    command = absent["numeric gap of each layer of student.krl"]
    assert command == "krl-deploy compare student.krl --layers --json > compare.json"
    assert main(command.split()[1:-2]) == 0
    (tmp_path / "compare.json").write_text(capsys.readouterr().out)
    now = {item["what"] for item in _report(tmp_path)["absent"]}
    assert set(absent) - now == {"numeric gap of each layer of student.krl"}


def _report(folder: Path) -> dict:
    return dict(krl_deploy.report(path=folder, out=folder / "r.html", samples=0).details)


@pytest.mark.parametrize(
    ("name", "content", "reason"),
    [
        ("a.json", b"{", "cannot be read"),
        ("a.json", b"\xff\xfe", "cannot be read"),
        ("a.json", b"[" * 100_000, "cannot be read"),
        ("a.json", b'{"bundle": "tiny.krl", "a": 1, "b": 2, "outputs": {}, "layers": [1]}', "not the form"),
        ("a.json", b'{"kind": "krl latency profile", "machine": {}}', "not a usable latency profile"),
        ("run.json", b'{"kind": "krl-run", "parent": "x", "weights_sha256": "0"}', "not the record of a krl run"),
        ("run.json", b'{"kind": "krl-run", "weights_sha256": ""}', "not finished"),
        (
            "a.json",
            b'{"bundle": "tiny.krl", "manifest": "0", "rows": [], "reference": "", "data": "x"}',
            "another state of tiny.krl",
        ),
    ],
)
def test_a_file_that_cannot_be_used_is_named(tmp_path: Path, name: str, content: bytes, reason: str):
    write_bundle(tmp_path / "tiny.krl")
    (tmp_path / "results").mkdir()
    (tmp_path / "results" / name).write_bytes(content)
    (skipped,) = _report(tmp_path)["skipped"]
    assert reason in skipped["reason"]
    (row,) = ReadPage(tmp_path / "r.html").table("Files that were not used")
    assert row["file"].startswith("results")


def test_other_json_is_left_alone_and_a_stale_result_is_not_shown(results: Path, tmp_path: Path):
    shutil.copytree(results / "student.krl", tmp_path / "student.krl")
    (tmp_path / "other.json").write_text('{"a": 1}')
    (tmp_path / "list.json").write_text("[1]")
    shutil.copy(results / "compare.json", tmp_path / "compare.json")
    assert _report(tmp_path)["skipped"] == []
    os.utime(tmp_path / "compare.json", (1, 1))
    (skipped,) = _report(tmp_path)["skipped"]
    assert "student.krl was changed after it was written" in skipped["reason"]
    assert not any("Numeric gap" in caption for caption in ReadPage(tmp_path / "r.html").tables)


def test_one_bundle_of_a_folder_has_only_its_own(results: Path, tmp_path: Path):
    found = krl_deploy.report(path=results / "teacher.krl", out=tmp_path / "r.html", samples=0).details
    assert [Path(path).name for path in found["bundles"]] == ["teacher.krl"]
    assert [Path(path).name for path in found["runs"]] == ["teacher"]
    page = ReadPage(tmp_path / "r.html")
    assert not any("student" in title for title in page.headings)
    assert not any("Numeric gap" in caption for caption in page.tables)


def test_a_generator_has_grids_of_the_same_latents(tmp_path: Path):
    bundle = write_generator(tmp_path / "gan.krl", condition=LABELS_CONDITION)
    krl_deploy.report(path=bundle.path, out=tmp_path / "r.html", samples=6)
    page = ReadPage(tmp_path / "r.html")
    (grid,) = page.images.values()
    from krl_runtime.pipelines.random_inputs import random_inputs

    feed = random_inputs(bundle.manifest.settings, 6, 1)
    session = onnxruntime.InferenceSession(bundle.path / "model.fp32.onnx", providers=["CPUExecutionProvider"])
    made = session.run(None, feed)[0]
    height, width = made.shape[2:]
    for index, image in enumerate(np.clip(np.rint(made), 0, 255)):
        top, left = index // 4 * (height + 2), index % 4 * (width + 2)
        cell = grid[top : top + height, left : left + width].reshape(height, width, -1).transpose(2, 0, 1)
        np.testing.assert_array_equal(cell, image)


def test_a_restorer_and_an_embedder_have_samples(tmp_path: Path):
    restorer = write_restorer(tmp_path / "sr.krl")
    krl_deploy.report(path=restorer.path, out=tmp_path / "r.html", samples=2)
    page = ReadPage(tmp_path / "r.html")
    golden = restorer.golden()
    shown = page.images["input 1"].reshape((*golden["pixels"][0].shape[1:], -1)).transpose(2, 0, 1)
    np.testing.assert_array_equal(shown, golden["pixels"][0])
    assert page.images["output of fp32 for input 1"].shape[0] >= page.images["input 1"].shape[0]
    embedder = write_embedder(tmp_path / "embed.krl", variants=("fp32", "int8"))
    krl_deploy.report(path=embedder.path, out=tmp_path / "e.html", samples=3)
    rows = ReadPage(tmp_path / "e.html").table("3 images")
    assert [row["fp32"] for row in rows] == ["reference"] * 3
    assert all(0.9 < float(row["int8"].split()[1]) <= 1 for row in rows)


def test_the_line_has_the_points_that_no_other_one_beats():
    rng = np.random.default_rng(3)
    for better in (True, False):
        points = [
            {"x": x, "y": y, "error": None, "precision": "fp32", "name": "", "text": ""} for x, y in rng.random((40, 2))
        ]
        line = scatter("", {"a": points}, "x", "y", more_is_better=better).data[0]
        sign = 1 if better else -1
        beaten = {
            (p["x"], p["y"])
            for p in points
            for q in points
            if q is not p and q["x"] <= p["x"] and sign * q["y"] >= sign * p["y"]
        }
        assert set(zip(line["x"], line["y"], strict=True)) == {(p["x"], p["y"]) for p in points} - beaten


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"path": "nothing"}, "is no folder"),
        ({"path": "."}, "has neither a bundle NAME.krl nor a run"),
        ({"path": ".", "out": "r.pdf"}, "accepted: a file NAME.html"),
        ({"path": ".", "samples": 25}, "accepted: 0 to 24"),
        ({"path": "tiny.krl", "data": "nothing"}, "nothing"),
    ],
)
def test_refused(tmp_path: Path, monkeypatch, options: dict, message: str):
    monkeypatch.chdir(tmp_path)
    if options["path"] == "tiny.krl":
        write_bundle(tmp_path / "tiny.krl")
    with pytest.raises(KrlError, match=message) as raised:
        krl_deploy.report(**{"out": "r.html", **options})
    assert raised.value.exit_code == 2
    assert not (tmp_path / "r.html").exists()


def test_a_missing_library_names_the_extra(tmp_path: Path, monkeypatch):
    write_bundle(tmp_path / "tiny.krl")
    monkeypatch.setitem(sys.modules, "plotly", None)
    with pytest.raises(MissingExtraError, match=r"needs plotly.*report"):
        krl_deploy.report(path=tmp_path / "tiny.krl", out=tmp_path / "r.html")


def test_the_command(tmp_path: Path, capsys):
    write_bundle(tmp_path / "tiny.krl")
    assert main(["report", str(tmp_path / "tiny.krl"), "-o", str(tmp_path / "r.html"), "--samples", "2"]) == 0
    assert str(tmp_path / "r.html") in capsys.readouterr().out
    assert main(["report", str(tmp_path / "tiny.krl"), "-o", str(tmp_path / "r.html"), "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["bundles"] == [str(tmp_path / "tiny.krl")]
    with pytest.raises(UsageError):
        krl_deploy.report(path=tmp_path / "tiny.krl", out=tmp_path / "r.html", samples=-1)


def test_the_teacher_is_found_by_the_bundle_alone(results: Path, tmp_path: Path):
    for name in ("student.krl", "teacher.krl"):
        shutil.copytree(results / name, tmp_path / name)
    krl_deploy.report(path=tmp_path / "student.krl", out=tmp_path / "r.html", samples=2)
    rows = ReadPage(tmp_path / "r.html").table("2 images")
    assert list(rows[0]) == ["image", "teacher dscnn-0.5", "student fp32", "student int8"]


def damaged(value, rng, depth=0):
    """Return JSON with one value, somewhere in it, in place of another."""
    if isinstance(value, dict | list) and value and (depth == 0 or rng.random() < 0.8):
        keys = list(value) if isinstance(value, dict) else range(len(value))
        key = keys[rng.integers(len(keys))]
        copy = value.copy()
        copy[key] = damaged(value[key], rng, depth + 1)
        return copy
    others = (None, "x", -1, [], {}, [1], {"a": 1}, True, 1e999, float("nan"), "<b>")
    return others[rng.integers(len(others))]


@pytest.mark.parametrize(
    "name", ["compare.json", "layers.json", "check.json", "device.json", "evaluation.json", "run.json"]
)
def test_a_damaged_result_never_stops_the_page(results: Path, tmp_path: Path, name: str):
    shutil.copytree(results / "student.krl", tmp_path / "student.krl")
    sidecar = json.loads((results / "student.krl.device" / "evaluations.json").read_text())
    files = {
        "run.json": json.loads((results / "student" / "run.json").read_text()),
        "evaluation.json": next(iter(sidecar["evaluations"].values())),
    }
    whole = files.get(name) or json.loads((results / name).read_text())
    rng = np.random.default_rng(7)
    for number in range(60):
        (tmp_path / str(number)).mkdir()
        (tmp_path / str(number) / name).write_text(json.dumps(damaged(whole, rng)))
    assert len(_report(tmp_path)["skipped"]) >= 2


def test_damaged_evidence_never_stops_the_page(results: Path, tmp_path: Path):
    rng = np.random.default_rng(8)
    for number in range(30):
        shutil.copytree(results / "student.krl", tmp_path / f"{number}.krl")
        bundle = Bundle.open(tmp_path / f"{number}.krl")
        evidence = bundle.manifest.evidence
        for _ in range(3):
            evidence = damaged(evidence, rng)
        with contextlib.suppress(ValueError):  # numbers that no manifest can have
            bundle.update({}, evidence=evidence)
    assert len(_report(tmp_path)["skipped"]) >= 2
