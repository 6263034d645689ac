"""Generators that start from a run: fine-tuning on other images, with few of them."""

from __future__ import annotations

import hashlib
import json
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from _helpers.digits import write_digits
from _helpers.generation import LOOP, gan_config, third_party_generator
from _helpers.resuming import stopped_at_checkpoint
from krl_compress.config import DistillConfig
from krl_compress.distillation.distill import distill
from krl_runtime.errors import KrlError, RunError, UsageError
from krl_train.config import (
    ConditioningConfig,
    DataConfig,
    DiscriminatorStartConfig,
    FitConfig,
    GenerationConfig,
    InputConfig,
    OptimConfig,
    TransferConfig,
)
from krl_train.importers.importing import import_weights
from krl_train.models.generators import GeneratorNetwork
from krl_train.run import DISCRIMINATOR, RECORD, WEIGHTS, Run
from krl_train.training import gan
from krl_train.training.fit import fit

FEW = DataConfig(data="digits", limit=20, val_limit=80)
STILL = OptimConfig(lr=1e-30, ema=0.5)  # a step that moves no weight in float32


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Run:
    return fit(gan_config(tmp_path_factory.mktemp("source") / "run", model="dcgan-4"))


def started(out: Path, source: Run, **changes: Any) -> FitConfig:
    base = gan_config(out, model="", data=FEW, transfer=TransferConfig(from_=str(source.path)))
    return replace(base, **{"generation": GenerationConfig(), **changes})


def frozen(layers: int) -> DiscriminatorStartConfig:
    return DiscriminatorStartConfig(freeze_discriminator=layers)


def images(run: Run, condition: int | None = None) -> torch.Tensor:
    generator = run.module()
    assert isinstance(generator, GeneratorNetwork)
    latent = torch.randn(4, generator.latent_size, generator=torch.Generator().manual_seed(0))
    tokens = None if condition is None else torch.full((4, 1), condition)
    with torch.no_grad():
        return generator(latent, tokens)


def test_the_run_of_a_gan_keeps_its_discriminator(source: Run) -> None:
    data = (source.path / DISCRIMINATOR).read_bytes()
    record = json.loads((source.path / RECORD).read_text())
    assert record["discriminator_sha256"] == hashlib.sha256(data).hexdigest()
    assert record["discriminator_sha256"] != record["weights_sha256"]
    assert set(load_file(source.path / DISCRIMINATOR)) == set(source.discriminator_state())


def test_generator_and_discriminator_start_with_the_weights_of_the_run(source: Run, tmp_path: Path) -> None:
    run = fit(started(tmp_path / "run", source, optim=STILL))
    assert run.record.model == source.record.model
    assert run.record.preprocessing == source.record.preprocessing
    assert run.record.parent is not None
    assert run.record.parent["weights_sha256"] == source.record.weights_sha256
    before, after = load_file(source.path / WEIGHTS), load_file(run.path / WEIGHTS)
    weights = [name for name in before if "running" not in name and "tracked" not in name]
    assert weights
    for name in weights:
        torch.testing.assert_close(after[name], before[name])
    before, after = load_file(source.path / DISCRIMINATOR), load_file(run.path / DISCRIMINATOR)
    for name in (name for name in before if name.endswith("original")):
        torch.testing.assert_close(after[name], before[name])


def test_the_first_evaluated_average_is_the_run(source: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    tasks: list[Any] = []
    monkeypatch.setattr(gan, "train_task", lambda task, *_, **__: tasks.append(task))
    fit(started(tmp_path / "run", source))
    generator = tasks[0].final().eval()
    latent = torch.randn(4, 6, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        torch.testing.assert_close(generator(latent), images(source))


@pytest.mark.parametrize(("model", "layers"), [("dcgan-4", 1), ("dcgan-4", 2), ("resgan-2", 1)])
def test_frozen_layers_stay_and_the_others_move(tmp_path: Path, model: str, layers: int) -> None:
    first = fit(gan_config(tmp_path / "first", model=model, input=InputConfig(size=(16,))))
    run = fit(started(tmp_path / "run", first, discriminator_start=frozen(layers)))
    before, after = (load_file(path / DISCRIMINATOR) for path in (first.path, run.path))
    places = sorted({int(name.split(".")[1]) for name in before if name.startswith("stages.")})
    for place in places:
        names = [name for name in before if name.startswith(f"stages.{place}.")]
        same = [torch.equal(before[name], after[name]) for name in names]
        assert all(same) if place in places[:layers] else not any(same), place
    assert not torch.equal(
        before["head.parametrizations.weight.original"], after["head.parametrizations.weight.original"]
    )


def test_a_resumed_start_is_as_if_never_stopped(source: Run, tmp_path: Path) -> None:
    whole = started(tmp_path / "whole", source, discriminator_start=frozen(1))
    finished = fit(whole).record
    stopped = replace(whole, out=tmp_path / "stopped", loop=replace(LOOP, checkpoint_minutes=0))
    whole_again = fit(replace(stopped, out=tmp_path / "again")).record
    with stopped_at_checkpoint(1), pytest.raises(KeyboardInterrupt):
        fit(stopped)
    resumed = fit(replace(stopped, resume=True)).record
    assert resumed.weights_sha256 == finished.weights_sha256 == whole_again.weights_sha256
    assert resumed.discriminator_sha256 == finished.discriminator_sha256


def conditional(out: Path, data: Path, **changes: Any) -> FitConfig:
    base = gan_config(
        out,
        model="dcgan-4",
        data=DataConfig(data=str(data)),
        input=InputConfig(size=(16,)),
        conditioning=ConditioningConfig(condition="labels", condition_dim=4),
    )
    return replace(base, **changes)


def test_classes_of_the_same_name_keep_their_vectors_and_others_start_from_the_mean(tmp_path: Path) -> None:
    data = write_digits(tmp_path / "data", per_class=8, val_per_class=8)
    other = tmp_path / "other"
    for split in ("train", "val"):
        for old, new in (("7", "7"), ("2", "two"), ("9", "9")):
            shutil.copytree(data / split / old, other / split / new)
    first = fit(conditional(tmp_path / "first", data))
    start = TransferConfig(from_=str(first.path))
    options = {"model": "", "transfer": start, "input": InputConfig(), "optim": STILL}
    run = fit(conditional(tmp_path / "run", other, **options))
    assert run.record.labels == ("7", "9", "two")
    for file in (WEIGHTS, DISCRIMINATOR):
        rows, found = (load_file(path / file)["conditioner.embedding.weight"] for path in (first.path, run.path))
        assert rows.shape == (10, 4)
        torch.testing.assert_close(found, torch.stack([rows[7], rows[9], rows.mean(0)]))
    plain = {**options, "conditioning": ConditioningConfig()}
    with pytest.raises(UsageError, match="trained with --condition labels, and --condition none is asked for; give"):
        fit(conditional(tmp_path / "plain", other, **plain))
    longer = {**options, "conditioning": ConditioningConfig(condition="labels", condition_dim=8)}
    with pytest.raises(UsageError, match=r"--condition-dim is 8, but the run .* has 4"):
        fit(conditional(tmp_path / "longer", other, **longer))
    assert not (tmp_path / "plain").exists()


def test_another_architecture_is_refused_with_what_to_do(source: Run, tmp_path: Path) -> None:
    wrong: list[tuple[dict[str, Any], type[KrlError], str]] = [
        ({"model": "dcgan-8"}, UsageError, "--model is dcgan-8, but the run .* is a dcgan-4.*leave --model out"),
        ({"generation": GenerationConfig(latent=7)}, UsageError, "--latent is 7, but the run .* has 6"),
        ({"input": InputConfig(size=(16,))}, UsageError, "makes images of 8×8 with 1 channels, and 16×16 with 1"),
        ({"input": InputConfig(channels=3)}, UsageError, "with 1 channels, and 8×8 with 3 are asked for"),
        (
            {"conditioning": ConditioningConfig(condition="labels")},
            UsageError,
            "trained with --condition none, and --condition labels is asked for",
        ),
        ({"generation": GenerationConfig(discriminator_width=9)}, UsageError, "--discriminator-width is 9, .* has 4"),
        ({"discriminator_start": frozen(9)}, UsageError, "--freeze-discriminator is 9; .*accepted: 0 to 1"),
        ({"transfer": TransferConfig(from_=str(tmp_path / "none"))}, RunError, "none does not exist"),
        (
            {"task": "vae", "generation": GenerationConfig()},
            UsageError,
            "--from is for classification and embedding and gan",
        ),
    ]
    for changes, kind, message in wrong:
        with pytest.raises(kind, match=message):
            fit(started(tmp_path / "run", source, **changes))
        assert not (tmp_path / "run").exists()
    classifier = fit(FitConfig(model="resnet8", data=FEW, loop=LOOP, out=tmp_path / "classifier"))
    with pytest.raises(RunError, match="is a run of the task classification, and --task is gan; give another run"):
        fit(started(tmp_path / "run", classifier, model="dcgan-4"))
    with pytest.raises(UsageError, match="--freeze-discriminator is for a generator that starts from a run"):
        gan_config(tmp_path / "run", discriminator_start=frozen(1))
    with pytest.raises(UsageError, match="leave --fresh-discriminator out"):
        DiscriminatorStartConfig(freeze_discriminator=1, fresh_discriminator=True)


def test_a_run_without_a_discriminator_gets_a_fresh_one_only_if_asked(tmp_path: Path) -> None:
    _, asked = third_party_generator(tmp_path, latent=6, hidden=16, size=(8,), channels=1)
    imported = import_weights(asked)
    assert not (imported.path / DISCRIMINATOR).exists()
    with pytest.raises(RunError, match=r"has no discriminator .* give --fresh-discriminator"):
        fit(started(tmp_path / "refused", imported))
    fresh = DiscriminatorStartConfig(fresh_discriminator=True)
    run = fit(started(tmp_path / "fresh", imported, discriminator_start=fresh, optim=STILL))
    torch.testing.assert_close(images(run), images(imported), atol=1e-3, rtol=0)
    assert run.discriminator_state()


def test_a_changed_or_missing_discriminator_is_noticed(source: Run, tmp_path: Path) -> None:
    copy = tmp_path / "copy"
    shutil.copytree(source.path, copy)
    state = load_file(copy / DISCRIMINATOR)
    name = next(iter(state))
    save_file({**state, name: state[name] + 1}, copy / DISCRIMINATOR)
    with pytest.raises(RunError, match=r"discriminator\.safetensors is damaged or was changed"):
        fit(started(tmp_path / "run", Run.open(copy)))
    (copy / DISCRIMINATOR).unlink()
    with pytest.raises(RunError, match=r"discriminator\.safetensors is missing"):
        fit(started(tmp_path / "run", Run.open(copy)))
    assert images(Run.open(copy)).isfinite().all()  # the generator needs none


def test_an_overwritten_run_has_no_discriminator_of_the_one_before(source: Run, tmp_path: Path) -> None:
    out = tmp_path / "run"
    shutil.copytree(source.path, out)
    fit(gan_config(out, task="vae", generation=GenerationConfig(latent=6), overwrite=True))
    assert not (out / DISCRIMINATOR).exists()
    assert not Run.open(out).record.discriminator_sha256


def test_a_student_with_a_discriminator_can_be_fine_tuned(source: Run, tmp_path: Path) -> None:
    student = distill(
        DistillConfig(teacher=(str(source.path),), student="dsgan-2", loop=LOOP, out=tmp_path / "student")
    )
    assert student.record.discriminator_sha256
    run = fit(started(tmp_path / "run", student, discriminator_start=frozen(1)))
    assert run.record.model.name == "dsgan-2"
