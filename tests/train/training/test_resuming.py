from __future__ import annotations

import shutil
from dataclasses import replace
from pathlib import Path

import pytest

from _helpers.images import make_split_folder
from _helpers.resuming import stopped_at_checkpoint
from krl_runtime.errors import RunError
from krl_train.cli import main
from krl_train.config import DataConfig, FitConfig, LoopConfig, OptimConfig, TransferConfig
from krl_train.run import Run
from krl_train.training.fit import fit

LOOP = LoopConfig(epochs=3, batch_size=8, device="cpu", precision="fp32")


def config(data: Path, out: Path, **changes) -> FitConfig:
    return replace(FitConfig(model="resnet8", data=DataConfig(data=str(data)), out=out, loop=LOOP), **changes)


def stop(asked: FitConfig) -> None:
    with stopped_at_checkpoint(2), pytest.raises(KeyboardInterrupt):
        fit(asked)


def test_a_run_goes_on_wherever_it_and_its_data_are_moved(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    first, second = tmp_path / "first", tmp_path / "second" / "machine"
    for folder in (first / "images", second):
        folder.mkdir(parents=True)
    data = make_split_folder(first / "images")
    start = fit(config(data, first / "start", loop=replace(LOOP, epochs=1)))
    whole = fit(config(data, first / "whole", transfer=TransferConfig(str(start.path))))
    monkeypatch.chdir(first)
    here = data.relative_to(first)
    stop(config(here, Path("run"), transfer=TransferConfig("start")))
    shutil.move(first / "run", second / "its-run")
    shutil.move(data, second / "its-data")
    shutil.move(first / "start", second / "its-start")
    monkeypatch.chdir(second.parent)
    moved = config(
        Path("machine/its-data"), Path("machine/its-run"), transfer=TransferConfig("machine/its-start"), resume=True
    )
    assert fit(moved).record.weights_sha256 == whole.record.weights_sha256
    assert fit(moved).record.weights_sha256 == whole.record.weights_sha256  # it is finished, and says so


def test_the_recorded_options_hold_in_another_directory(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    for name in ("here/images", "there"):
        (tmp_path / name).mkdir(parents=True)
    make_split_folder(tmp_path / "here" / "images")
    monkeypatch.chdir(tmp_path / "here")
    whole = fit(config(Path("images"), Path("whole")))
    for name in ("run", "moved"):
        stop(config(Path("images"), Path(name)))
    monkeypatch.chdir(tmp_path / "there")
    assert main(["fit", "--resume", "--out", "../here/run"]) == 0
    assert Run.open("../here/run").record.weights_sha256 == whole.record.weights_sha256
    shutil.move("../here/images", "photos")
    shutil.move("../here/moved", "moved")
    assert main(["fit", "--resume", "--out", "moved"]) == 2
    assert "is neither a folder nor a known data set" in " ".join(capsys.readouterr().err.split())
    assert main(["fit", "--resume", "--out", "moved", "--data", "photos"]) == 0
    assert Run.open("moved").record.weights_sha256 == whole.record.weights_sha256


def test_a_run_does_not_go_on_with_other_things(tmp_path: Path) -> None:
    (tmp_path / "images").mkdir()
    data = make_split_folder(tmp_path / "images")
    starts = [
        fit(config(data, tmp_path / f"start-{seed}", loop=replace(LOOP, epochs=1, seed=seed))).path for seed in (0, 1)
    ]
    asked = config(data, tmp_path / "run", transfer=TransferConfig(str(starts[0])))
    stop(asked)
    again = replace(asked, resume=True)
    with pytest.raises(RunError, match=r"parent\.weights_sha256 was '[0-9a-f]+…', now"):
        fit(replace(again, transfer=TransferConfig(str(starts[1]))))
    with pytest.raises(RunError, match=r"lr was None, now 0\.5"):
        fit(replace(again, optim=OptimConfig(lr=0.5)))
    with pytest.raises(RunError, match=r"model\.name was 'resnet8', now 'resnet14'"):
        fit(replace(again, model="resnet14", transfer=TransferConfig()))
    images = sorted((data / "train").rglob("*.png"))
    shutil.copy(next((data / "val").rglob("*.png")), images[0].parent / "one-more.png")
    count = len(images)
    message = rf"the train images are others: {count} were, now {count + 1}, {count} of them the same"
    with pytest.raises(RunError, match=message):
        fit(again)
    (images[0].parent / "one-more.png").unlink()
    images[0].write_bytes(next((data / "val").rglob("*.png")).read_bytes())
    with pytest.raises(RunError, match=rf"{count} were, now {count}, {count - 1} of them the same"):
        fit(again)


def test_files_count_and_not_how_they_are_kept_in_memory(tmp_path: Path) -> None:
    (tmp_path / "images").mkdir()
    data = make_split_folder(tmp_path / "images")
    asked = config(data, tmp_path / "run")
    stop(asked)
    from_disk = replace(asked.data, memory_limit_mb=0)  # images are then read in each epoch
    fit(replace(asked, resume=True, data=from_disk))
    stop(replace(asked, overwrite=True))
    first, second = (data / "train" / name for name in ("cat", "dog"))
    first.rename(data / "train" / "other")
    second.rename(first)
    (data / "train" / "other").rename(second)
    with pytest.raises(RunError, match=r"the train images are others: .*, the same images in another order or with"):
        fit(replace(asked, resume=True))
