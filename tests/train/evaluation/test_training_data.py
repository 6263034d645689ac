"""Images that a run was trained on are not measured unnoticed, wherever they lie."""

from __future__ import annotations

import hashlib
import json
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from _helpers.images import blurred_noise, make_folder, make_split_folder
from krl_train.cli import main
from krl_train.data.fingerprints import count_known, fingerprints
from krl_train.run import Run

FRACTION = 0.35


def held_out(folder: Path, fraction: float = FRACTION) -> set[str]:
    """Names of the files that a folder's split holds out: of each class those with the smallest SHA-256."""
    chosen: set[str] = set()
    for place in {path.parent for path in folder.rglob("*.png")}:
        ordered = sorted(place.glob("*.png"), key=lambda path: hashlib.sha256(path.read_bytes()).digest())
        chosen |= {str(path.relative_to(folder)) for path in ordered[: round(fraction * len(ordered))]}
    return chosen


def trained(folder: Path, data: Path, *more: str) -> Path:
    options = ["--data", str(data), "--model", "resnet8", "--epochs", "1", "--batch-size", "8", "--device", "cpu"]
    assert main(["fit", *options, "--out", str(folder), *more]) == 0
    return folder


def measured(capsys: pytest.CaptureFixture[str], run: Path, *options: str) -> tuple[dict[str, Any], str]:
    capsys.readouterr()
    assert main(["evaluate", str(run), "--device", "cpu", "--json", *options]) == 0
    shown = capsys.readouterr()
    return json.loads(shown.out), shown.err


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a folder with data, and a run that was trained on it with another fraction than the default."""
    root = tmp_path_factory.mktemp("place")
    make_folder(root / "data", count=20)
    trained(root / "run", root / "data", "--val-fraction", str(FRACTION))
    return root


def test_the_record_knows_the_files(place: Path) -> None:
    described = Run.open(place / "run").record.data["train"]
    files = {str(path.relative_to(place / "data")): path for path in (place / "data").rglob("*.png")}
    hashes = {name: hashlib.sha256(path.read_bytes()).hexdigest() for name, path in files.items()}
    val = held_out(place / "data")
    assert 5 < len(val) < 30
    assert described["count"] == 40 - len(val)
    assert count_known(described, [hashes[name] for name in val]) == 0
    assert count_known(described, [hashes[name] for name in files if name not in val]) == 40 - len(val)


@pytest.mark.parametrize("how", ["the same", "the path", "a link", "a copy", "renamed", "in a train folder"])
def test_the_held_out_part_is_found_again(
    place: Path, how: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    data = tmp_path / "data"
    if how == "a link":
        data.symlink_to(place / "data")
    elif how == "in a train folder":
        shutil.copytree(place / "data", data / "train")
    elif how in ("a copy", "renamed"):
        shutil.copytree(place / "data", data)
    if how == "renamed":
        for path in list(data.rglob("*.png")):
            path.rename(path.with_name(f"x{100 - int(path.stem)}.png"))
    given = {"the same": [], "the path": ["--data", str(place / "data")]}.get(how, ["--data", str(data)])
    own, _ = measured(capsys, place / "run")
    result, log = measured(capsys, place / "run", *given)
    assert (result["top1"], result["confusion"]) == (own["top1"], own["confusion"])
    assert result["loss"] == pytest.approx(own["loss"], abs=1e-5)
    assert (result["split"], result["images"]) == ("val", len(held_out(place / "data")))
    assert result["trained_images"] == 0
    assert result["trained_on"] == f"{place / 'data'} (train, {40 - result['images']} images)"
    assert "among those that the run was trained on" not in log


def test_other_images_are_all_measured(place: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    make_folder(tmp_path / "new", count=7, seed=5)
    result, log = measured(capsys, place / "run", "--data", str(tmp_path / "new"))
    assert (result["split"], result["images"], result["trained_images"]) == ("all", 14, 0)
    assert "warning" not in log.lower()


@pytest.mark.parametrize("case", ["all", "train", "one of them in a val folder", "half in a val folder"])
def test_training_images_are_pointed_out(
    place: Path, case: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    val = held_out(place / "data")
    seen = sorted(str(path.relative_to(place / "data")) for path in (place / "data").rglob("*.png"))
    seen = [name for name in seen if name not in val]
    if case in ("all", "train"):
        options, count, wanted = ["--split", case], 40 if case == "all" else len(seen), len(seen)
    else:
        mixed = make_split_folder(tmp_path / "mixed", count=4)
        leaked = seen[:1] if case.startswith("one") else seen[::2]
        for index, name in enumerate(leaked):
            shutil.copy(place / "data" / name, mixed / "val" / Path(name).parent / f"leaked{index}.png")
        options, count, wanted = ["--data", str(mixed)], 8 + len(leaked), len(leaked)
    result, log = measured(capsys, place / "run", *options)
    assert (result["images"], result["trained_images"]) == (count, wanted)
    assert f"{wanted} of the {count} measured images are among those that the run was trained on" in " ".join(
        log.split()
    )


def test_a_folder_that_holds_training_images_alone_is_pointed_out(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    data = make_split_folder(tmp_path / "data", count=10)
    run = trained(tmp_path / "run", data)
    shutil.copytree(data / "train", tmp_path / "copy")
    result, log = measured(capsys, run, "--data", str(tmp_path / "copy"), "--split", "all")
    assert (result["images"], result["trained_images"]) == (20, 20)
    assert "20 of the 20 measured images" in " ".join(log.split())
    own, _ = measured(capsys, run)
    assert (own["split"], own["images"], own["trained_images"]) == ("val", 20, 0)


def test_a_named_set_is_known_by_its_name(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    options = ["--data", "digits", "--model", "resnet8", "--epochs", "1", "--device", "cpu", "--limit", "100"]
    assert main(["fit", *options, "--out", str(tmp_path / "run")]) == 0
    result, log = measured(capsys, tmp_path / "run", "--val-limit", "50")
    assert (result["trained_images"], result["trained_on"]) == (0, "digits (train, 100 images)")
    assert "warning" not in log.lower()
    result, log = measured(capsys, tmp_path / "run", "--split", "train", "--limit", "60")
    assert result["trained_images"] == 60
    assert "60 of the 60 measured images" in " ".join(log.split())


@pytest.mark.parametrize("layout", ["plain", "split"])
def test_an_imported_run_is_measured_as_its_import_was(
    layout: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    data = make_folder(tmp_path / "data", count=15) if layout == "plain" else make_split_folder(tmp_path / "data", 15)
    weights = trained(tmp_path / "made", make_folder(tmp_path / "other", count=15, seed=8)) / "model.safetensors"
    options = ["--weights", str(weights), "--model", "resnet8", "--data", str(data), "--device", "cpu"]
    capsys.readouterr()
    assert main(["import", *options, "--out", str(tmp_path / "run"), "--json"]) == 0
    imported = json.loads(capsys.readouterr().out)
    shutil.copytree(data, tmp_path / "copy")
    for given in ([], ["--data", str(data)], ["--data", str(tmp_path / "copy")]):
        result, log = measured(capsys, tmp_path / "run", *given)
        assert (result["split"], result["images"]) == ("all" if layout == "plain" else "val", 30)
        assert (result["top1"], result["loss"]) == (imported["top1"], imported["loss"])
        assert (result["trained_on"], result["trained_images"]) == ("not known: the weights were imported", None)
        assert "warning" not in log.lower()
    assert main(["evaluate", str(tmp_path / "run"), "--device", "cpu"]) == 0
    shown = capsys.readouterr().out
    assert f"on 30 images of {data} ({result['split']})" in shown
    assert "trained on: not known: the weights were imported" in shown


def write_images(folder: Path, count: int, first: int = 0) -> Path:
    folder.mkdir(parents=True)
    for index in range(count):
        blurred_noise(40, first + index, 1).save(folder / f"{index:02}.png")
    return folder


def test_a_restorer_finds_its_held_out_images(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    data = write_images(tmp_path / "data", 16)
    options = ["--task", "restoration", "--scale", "2", "--model", "espcn-4", "--size", "8", "--batch-size", "8"]
    options += ["--data", str(data), "--epochs", "1", "--device", "cpu", "--val-fraction", str(FRACTION)]
    assert main(["fit", *options, "--out", str(tmp_path / "run")]) == 0
    wanted = len(held_out(data))
    assert 0 < wanted < 16
    shutil.copytree(data, tmp_path / "copy")
    own, _ = measured(capsys, tmp_path / "run")
    for given in ([], ["--data", str(data)], ["--data", str(tmp_path / "copy")]):
        result, log = measured(capsys, tmp_path / "run", *given)
        assert (result["split"], result["count"], result["psnr"]) == ("val", wanted, own["psnr"])
        assert (result["trained_images"], result["trained_on"]) == (0, f"{data} (train, {16 - wanted} images)")
        assert "warning" not in log.lower()
    result, log = measured(capsys, tmp_path / "run", "--data", str(tmp_path / "copy"), "--split", "all")
    assert (result["count"], result["trained_images"]) == (16, 16 - wanted)
    assert f"{16 - wanted} of the 16 measured images" in " ".join(log.split())
    result, _ = measured(capsys, tmp_path / "run", "--data", str(write_images(tmp_path / "new", 3, 50)))
    assert (result["split"], result["count"], result["trained_images"]) == ("all", 3, 0)


def digests(numbers: Sequence[int]) -> list[str]:
    return [hashlib.sha256(str(number).encode()).hexdigest() for number in numbers]


def test_a_large_training_is_estimated() -> None:
    known = {"count": 50_000, "fingerprints": fingerprints(digests(range(50_000)))}
    assert len(known["fingerprints"]) < 45_000  # type: ignore[arg-type]
    for part in (range(50_000), range(10_000, 20_000), range(45_000, 55_000)):
        truth = len(set(part) & set(range(50_000)))
        found = count_known(known, digests(part))
        # A share of 0.08 is kept: the number of those found has a relative standard error of 1 / sqrt(0.08 n).
        assert found == pytest.approx(truth, rel=4 / np.sqrt(0.08 * truth))
    assert count_known(known, digests(range(50_000, 90_000))) == 0
    assert count_known({"count": 3}, digests(range(3))) is None


def test_files_that_are_read_again_have_the_same_fingerprints(tmp_path: Path) -> None:
    data = make_folder(tmp_path / "data", count=6)
    large = np.random.default_rng(0).integers(0, 256, (1024, 1024, 3)).astype(np.uint8)
    Image.fromarray(large).save(data / "cat" / "large.png")
    records = []
    for name, more in (("memory", []), ("disk", ["--memory-limit-mb", "0"])):
        run = trained(tmp_path / name, data, "--size", "16", *more)
        records.append(Run.open(run).record.data["train"]["fingerprints"])
    assert records[0] == records[1] != ""
