"""The command: sheets, neighbors, layers beside a teacher's, and what it refuses."""

from __future__ import annotations

import csv
import json
from dataclasses import replace

import numpy as np
import pytest
import torch
from PIL import Image

import krl_train
from _helpers.digits import LABELS, PREPROCESSING, record, write_digits
from krl_runtime.device.explanation import read_explanation
from krl_runtime.errors import UsageError
from krl_train.cli import main
from krl_train.run import ModelSpec, Run, fresh_network


@pytest.fixture(scope="module")
def digits(tmp_path_factory):
    return write_digits(tmp_path_factory.mktemp("data") / "digits", per_class=8, val_per_class=4)


@pytest.fixture(scope="module")
def runs(digits, tmp_path_factory):
    """Untrained networks: what is explained of them is as true."""
    root = tmp_path_factory.mktemp("runs")

    def write(name, spec, seed, **changes):
        torch.manual_seed(seed)
        made = replace(record(spec, str(digits.resolve())), **changes)
        return Run.write(root / name, made, fresh_network(made).backbone.state_dict()).path

    larger = replace(PREPROCESSING, height=20, width=20)
    condition = {"kind": "labels", "length": 1, "dim": 4, "vocabulary": list(LABELS)}
    generator = ModelSpec("dcgan-2", 0, 1, {"latent": 4, "condition": condition})
    nowhere = {"source": "/nowhere", "root": "data", "val_fraction": 0.2}
    return {
        "student": write("student", ModelSpec("resnet8", 10, 1), 0),
        "teacher": write("teacher", ModelSpec("resnet14", 10, 1), 1, preprocessing=larger),
        "embedder": write("embedder", ModelSpec("resnet8", 16, 1), 2, task="embedding"),
        "lost": write("lost", ModelSpec("resnet8", 10, 1), 0, data=nowhere),
        "generator": write("generator", generator, 3, task="generation"),
        "other": write("other", replace(generator, name="dcgan-4"), 4, task="generation"),
    }


def test_images_get_sheets_predictions_and_neighbors(runs, digits, tmp_path, capsys):
    file = digits / "train" / "3" / "002.png"
    assert main(["explain", str(runs["student"]), str(file), "-o", str(tmp_path / "out"), "--neighbors", "2"]) == 0
    shown = capsys.readouterr().out
    found = read_explanation(tmp_path / "out")
    (image,) = found["images"]
    assert image["prediction"] in shown
    with torch.no_grad():
        pixels = torch.from_numpy(PREPROCESSING(file))[None]
        expected = Run.open(runs["student"]).network()(pixels).softmax(1)[0]
    assert image["probability"] == pytest.approx(float(expected.max()), abs=1e-5)
    assert image["prediction"] == LABELS[int(expected.argmax())]
    nearest, second = image["neighbors"]
    assert nearest["name"] == str(file.resolve())  # it is among the training images itself
    assert nearest["label"] == "3"
    assert nearest["similarity"] == pytest.approx(1, abs=1e-5)
    assert second["similarity"] <= nearest["similarity"]
    with Image.open(tmp_path / "out" / image["sheet"]) as sheet:
        assert sheet.width == 5 * (128 + 6) + 6  # the image, two maps, two neighbors
    assert np.asarray(image["cam"]).shape == (4, 4)


def test_neighbors_come_from_a_folder_without_classes(runs, digits, tmp_path):
    folder = tmp_path / "loose"
    folder.mkdir()
    for place, file in enumerate(sorted(digits.glob("val/*/000.png"))[:3]):
        (folder / f"{place}.png").write_bytes(file.read_bytes())
    found = krl_train.explain(run=runs["student"], images=[folder], out=tmp_path / "out", neighbors_from=folder)
    images = found.to_dict()["images"]
    assert [image["neighbors"][0]["name"] for image in images] == [str(folder / f"{place}.png") for place in range(3)]
    assert [len(image["neighbors"]) for image in images] == [3, 3, 3]


def test_an_embedding_is_explained_by_its_nearest_neighbor(runs, digits, tmp_path):
    file = digits / "val" / "5" / "000.png"
    found = krl_train.explain(run=runs["embedder"], images=file, out=tmp_path / "out", neighbors=1)
    (image,) = found.to_dict()["images"]
    network = Run.open(runs["embedder"]).module()
    files = sorted(digits.glob("train/*/*.png"))
    with torch.no_grad():
        known = network(torch.from_numpy(np.stack([PREPROCESSING(each) for each in files])))
        similarity = known @ network(torch.from_numpy(PREPROCESSING(file))[None])[0]
    best = files[int(similarity.argmax())]
    assert image["neighbors"][0]["name"] == str(best.resolve())
    assert image["prediction"] == best.parent.name
    assert image["cam"] is not None


def test_teacher_with_another_input_is_compared_layer_by_layer(runs, tmp_path, capsys):
    out = tmp_path / "out"
    assert main(["explain", str(runs["student"]), "--teacher", str(runs["teacher"]), "-o", str(out), "--json"]) == 0
    found = json.loads(capsys.readouterr().out)["teacher"]
    assert found["count"] == 40
    assert found["split"] == "val"
    cka = found["cka"]
    assert len(cka["matrix"]) == len(cka["student_layers"])
    assert {len(row) for row in cka["matrix"]} == {len(cka["teacher_layers"])}
    with (out / cka["table"]).open() as file:
        rows = list(csv.reader(file))
    assert rows[0][1:] == cka["teacher_layers"]
    assert [float(value) for value in rows[1][1:]] == cka["matrix"][0]
    with Image.open(out / cka["figure"]) as figure:
        assert figure.format == "PNG"
    assert [item["resolution"] for item in found["stages"]] == [1.0, 0.5, 0.25]


def test_a_run_is_its_own_best_teacher(runs, tmp_path):
    found = krl_train.explain(run=runs["student"], teacher=runs["student"], out=tmp_path / "out").to_dict()["teacher"]
    matrix = np.array(found["cka"]["matrix"])
    np.testing.assert_allclose(np.diag(matrix), 1, atol=1e-4)
    assert (matrix < 0.999).any()
    assert all(item["attention"] == 1 and item["cka"] == 1 for item in found["stages"])


def test_missing_training_data_is_said_and_the_rest_is_done(runs, digits, tmp_path, caplog):
    file = digits / "val" / "5" / "000.png"
    found = krl_train.explain(run=runs["lost"], images=file, out=tmp_path / "out").to_dict()
    assert [item["what"] for item in found["skipped"]] == ["neighbors"]
    assert "/nowhere" in caplog.text
    assert found["images"][0]["neighbors"] == []
    assert found["images"][0]["prediction"] is not None


def test_generators_are_explained_by_conditions_and_layers(runs, tmp_path):
    options = {"run": runs["generator"], "out": tmp_path / "out", "condition": "2", "compared_images": 16}
    found = krl_train.explain(**options, teacher=runs["other"]).to_dict()
    (factor,) = found["conditions"]["factors"]
    assert [item["value"] for item in factor["values"]][:3] == ["2", "0", "1"]
    assert factor["values"][1]["mean_absolute_change"] > 0
    assert found["teacher"]["data"] == "latents"
    assert found["teacher"]["stages"] == []
    itself = krl_train.explain(run=runs["other"], out=tmp_path / "it", teacher=runs["other"]).to_dict()["teacher"]
    np.testing.assert_allclose(np.diag(np.array(itself["cka"]["matrix"])), 1, atol=1e-4)


@pytest.mark.parametrize(
    ("run", "options", "message"),
    [
        ("student", {}, "nothing to explain"),
        ("student", {"condition": "2", "images": "a.png"}, "--condition is for generators"),
        ("student", {"teacher": "generator"}, "a generator is compared with a generator"),
        ("generator", {"images": "a.png"}, "takes no images"),
        ("student", {"teacher": "teacher", "compared_images": 3}, "16 or more"),
    ],
)
def test_refusals(runs, tmp_path, run, options, message):
    named = {name: runs.get(str(value), value) for name, value in options.items()}
    with pytest.raises(UsageError, match=message):
        krl_train.explain(run=runs[run], out=tmp_path / "out", **named)
    assert not (tmp_path / "out").exists()


def test_other_kinds_of_networks_are_refused_with_what_to_do(runs, tmp_path):
    state = Run.open(runs["student"]).state()
    several = record(ModelSpec("resnet8", 10, 1, {"inputs": [{"kind": "attributes"}]}))
    fused = Run.write(tmp_path / "fused", several, state).path
    with pytest.raises(UsageError, match=r"krl-runtime explain NAME\.krl LIST\.csv"):
        krl_train.explain(run=fused, images="a.png", out=tmp_path / "out")
    restorer = replace(record(ModelSpec("espcn-8", 0, 1, {"scale": 2})), task="restoration", labels=())
    restores = Run.write(tmp_path / "restorer", restorer, fresh_network(restorer).backbone.state_dict()).path
    with pytest.raises(UsageError, match="accepted: classification, embedding and generation"):
        krl_train.explain(run=restores, images="a.png", out=tmp_path / "out")
    (tmp_path / "a.krl").mkdir()
    (tmp_path / "a.krl" / "manifest.json").write_text("{}")
    with pytest.raises(UsageError, match="use: krl-runtime explain"):
        krl_train.explain(run=tmp_path / "a.krl", images="a.png", out=tmp_path / "out")


def test_what_is_there_is_not_overwritten(runs, digits, tmp_path, capsys):
    arguments = ["explain", str(runs["student"]), str(digits / "val" / "5"), "-o", str(tmp_path), "--neighbors", "0"]
    for more, message in (([], "--overwrite"), (["--overwrite"], "holds no explain.json")):
        assert main([*arguments, *more]) == 2
        assert message in capsys.readouterr().err
    assert tmp_path.is_dir()
