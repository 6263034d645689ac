from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from _helpers.bundles import write_bundle
from _helpers.embeddings import write_embedder, write_folder
from krl_runtime.cli import main

pytestmark = pytest.mark.usefixtures("without_openvino")


@pytest.fixture
def run(capsys: pytest.CaptureFixture[str]):
    def call(*arguments: object) -> tuple[int, str, str]:
        code = main([str(argument) for argument in arguments])
        return code, *capsys.readouterr()

    return call


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return write_embedder(tmp_path / "tiny.krl", variants=("fp32", "fp16")).path


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    write_folder(tmp_path / "data", count=20)
    return tmp_path / "data"


def test_index_and_search(run, path: Path, folder: Path):
    code, out, err = run("index", path, folder)
    assert code == 0, err
    assert out == f"60 images of 3 labels, 6 dimensions, in {path}.index\n"
    assert f"krl-runtime search {path} IMAGE" in err
    code, out, err = run("search", path, folder / "red" / "1.png", folder / "blue" / "2.png")
    assert code == 0, err
    header, _, first, second = out.splitlines()
    assert header.split() == ["query", "result", "similarity", "nearest", "then"]
    assert first.split()[1:4] == ["red", "1.000", "red/1.png"]
    assert second.split()[1:4] == ["blue", "1.000", "blue/2.png"]


def test_as_json_and_with_another_variant(run, path: Path, folder: Path, tmp_path: Path):
    out = run("index", path, folder, "--json", "-o", tmp_path / "own.idx", "--variant", "fp16")[1]
    values = json.loads(out)
    assert (values["index"], values["count"], values["variant"]) == (str(tmp_path / "own.idx"), 60, "fp16")
    code, out, _ = run(
        "search", folder / "green", path, "--index", tmp_path / "own.idx", "--json", "--top-k", 2, "--variant", "fp32"
    )
    assert code == 0
    values = json.loads(out)
    assert values["variant"] == "fp32"
    assert [item["label"] for item in values["results"]] == ["green"] * 20
    assert [len(item["neighbors"]) for item in values["results"]] == [2] * 20
    assert (
        values["results"][3]["neighbors"][0]["name"]
        == Path(values["results"][3]["file"]).relative_to(folder).as_posix()
    )


def test_none_of_these(run, path: Path, folder: Path, tmp_path: Path):
    write_folder(tmp_path / "others", {"white": (250, 250, 250)}, seed=50)
    code, out, err = run("index", path, folder, "--none-of-these", "0.1", "--others", tmp_path / "others")
    assert code == 0, err
    _, known, others = out.splitlines()
    assert "refuses 10.00% of 60 known images (its own, each against the others)" in known
    assert others.startswith("of 4 images of others it refuses ")
    out = run("search", path, tmp_path / "others", "--least-similarity", "1.1")[1]
    assert out.count("none of these") == 4
    assert "none of these" not in run("search", path, tmp_path / "others", "--least-similarity", "-1")[1]
    with pytest.raises(SystemExit):
        run("index", path, folder, "--overwrite", "--none-of-these", "5")


def test_add_and_overwrite(run, path: Path, folder: Path, tmp_path: Path):
    assert run("index", path, folder)[0] == 0
    code, _, err = run("index", path, folder)
    assert code == 2
    assert "exists already; give --add, or --overwrite to replace it" in err
    code, _, err = run("index", path, folder, "--add")
    assert code == 2
    assert "blue/0.png and 59 more of the given names are in the index already" in err
    write_folder(tmp_path / "more", {"violet": (150, 0, 200)})
    assert "64 images of 4 labels" in run("index", path, tmp_path / "more", "--add")[1]
    assert "64 images of 4 labels" in run("index", path, tmp_path / "more", "--add", "--overwrite")[1]
    assert "60 images of 3 labels" in run("index", path, folder, "--overwrite")[1]


def test_bad_images(run, path: Path, folder: Path):
    assert run("index", path, folder)[0] == 0
    broken = folder / "red" / "broken.png"
    broken.write_bytes(b"none")
    code, _, err = run("search", path, folder / "red")
    assert code == 2
    assert "broken.png" in err
    out = run("search", path, folder / "red", "--on-bad-image", "skip", "--json")[1]
    assert len(json.loads(out)["results"]) == 20
    assert [item["file"] for item in json.loads(out)["skipped"]] == [str(broken)]
    assert run("index", path, folder, "--overwrite")[0] == 2
    assert run("index", path, folder, "--overwrite", "--on-bad-image", "skip")[0] == 0


def test_the_sheet_shows_queries_and_neighbors(run, path: Path, folder: Path, tmp_path: Path):
    assert run("index", path, folder)[0] == 0
    (folder / "blue" / "7.png").unlink()
    queries = [folder / "red" / "3.png", folder / "blue" / "6.png"]
    sheet = tmp_path / "sheet.png"
    code, _, err = run("search", path, *queries, "--sheet", sheet, "--gallery", folder, "--top-k", 20)
    assert code == 0, err
    assert "the sheet lacks" in err
    image = np.asarray(Image.open(sheet).convert("RGB")).astype(int)
    assert image.shape == (2 * 158 + 6, 21 * 134 + 6, 3)
    for row, query in enumerate(queries):
        mean = np.asarray(Image.open(query)).astype(int).mean((0, 1))
        for column in (0, 1):  # the nearest is the query itself
            top, left = 6 + row * 158, 6 + column * 134
            part = image[top : top + 128, left : left + 128]
            assert np.abs(part.mean((0, 1)) - mean).max() < 3
            text = image[top + 128 : top + 152, left : left + 128]
            assert (text.min(axis=2) < 128).sum() > 40  # letters
    code, _, err = run("search", path, queries[0], "--sheet", sheet)
    assert code == 2
    assert "--sheet FILE.png and --gallery FOLDER go together" in err
    code, _, err = run("search", path, queries[0], "--sheet", tmp_path / "a.bmp", "--gallery", folder)
    assert code == 2
    assert "cannot be written as a.bmp" in err


def test_names_never_lead_out_of_the_gallery(run, path: Path, folder: Path, tmp_path: Path):
    """An index is data from anywhere: its names are not followed out of the folder."""
    from krl_runtime import Index, load

    with load(path) as model:
        secret = folder / "red" / "0.png"
        Index.of(model, [model(secret)], [f"../data/red/{secret.name}"]).save(f"{path}.index")
    (tmp_path / "gallery").mkdir()
    code, _, err = run("search", path, secret, "--sheet", tmp_path / "s.png", "--gallery", tmp_path / "gallery")
    assert code == 0
    assert "leaves its folder" in err
    part = np.asarray(Image.open(tmp_path / "s.png"))[10:130, 145:260]
    assert (part == 200).all()


def test_missing_damaged_and_other_indexes(run, path: Path, folder: Path, tmp_path: Path):
    code, _, err = run("search", path, folder)
    assert code == 2
    assert f"index {path}.index does not exist; make it with: krl-runtime index NAME.krl FOLDER" in err
    Path(f"{path}.index").write_bytes(b"none")
    assert "is damaged or no index" in run("search", path, folder)[2]
    other = write_embedder(tmp_path / "other.krl", seed=5).path
    assert run("index", other, folder)[0] == 0
    code, _, err = run("search", path, folder, "--index", f"{other}.index")
    assert code == 2
    assert "was made with another model (other)" in err


def test_each_command_names_the_right_one(run, path: Path, folder: Path, tmp_path: Path):
    classifier = write_bundle(tmp_path / "c.krl").path
    image = folder / "red" / "0.png"
    code, _, err = run("classify", path, image)
    assert code == 2
    assert "a bundle for classification is needed here; this one is for krl-runtime index and krl-runtime search" in err
    for arguments in (("search", classifier, image), ("index", classifier, folder)):
        code, _, err = run(*arguments)
        assert code == 2
        assert "a bundle for embedding is needed here; this one is for krl-runtime classify" in err
