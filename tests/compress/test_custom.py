"""A user's own teacher, student and loss: distilled, exported, and run where the module is absent."""

from __future__ import annotations

import hashlib
import json
import logging
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor, nn

import krl_compress
import krl_train
from _helpers.custom_module import SOURCE, user_module
from krl_compress.cli import main
from krl_compress.config import DistillConfig, JointConfig, LossConfig, MutualConfig
from krl_compress.distillation.distill import distill
from krl_compress.distillation.terms import resolve_losses
from krl_compress.distillation.together import joint, mutual
from krl_compress.distillers import parse_loss
from krl_deploy.cli import main as deploy
from krl_runtime.errors import ModelError, UsageError
from krl_train.config import AugmentConfig, DataConfig, FitConfig, InputConfig, LoopConfig, OptimConfig
from krl_train.run import RECORD, Run
from krl_train.training.fit import fit

LOOP = LoopConfig(epochs=3, batch_size=30, device="cpu", precision="fp32")
DIGEST = hashlib.sha256(SOURCE.encode()).hexdigest()


@pytest.fixture(scope="module")
def mine(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ModuleType]:
    with user_module(tmp_path_factory.mktemp("modules") / "lib", "user_nets") as module:
        yield module


@pytest.fixture(scope="module")
def teacher(tmp_path_factory: pytest.TempPathFactory, mine: ModuleType) -> Run:
    out = tmp_path_factory.mktemp("runs") / "teacher"
    loop = replace(LOOP, epochs=6)
    data = DataConfig(data="user_nets:split_squares")
    return fit(FitConfig(model="user_nets:wide", out=out, data=data, loop=loop, optim=OptimConfig(lr=0.1)))


def config(out: Path, teacher: object, **changes) -> DistillConfig:
    base = DistillConfig(teacher=teacher, student="user_nets:Tiny", out=out, loop=LOOP, optim=OptimConfig(lr=0.1))
    return replace(base, **changes)


def test_distilled_exported_and_run_where_the_module_is_absent(
    tmp_path: Path,
    mine: ModuleType,
    teacher: Run,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    out, bundle = tmp_path / "student", tmp_path / "student.krl"
    options = ["--teacher", str(teacher.path), "--student", "user_nets:Tiny", "--out", str(out), "--lr", "0.1"]
    options += ["--loss", "user_nets:softened:weight=0.9,temperature=3", "--loss", "user_nets:where_right"]
    options += ["--epochs", "6", "--batch-size", "30", "--device", "cpu", "--precision", "fp32"]
    assert main(["distill", *options]) == 0
    record = Run.open(out).record
    assert record.metrics["top1"] > 0.9
    assert [(item["use"], item["name"]) for item in record.sources] == [
        ("model", "user_nets:Tiny"),
        ("data", "user_nets:split_squares"),
        ("loss", "user_nets:softened"),
        ("loss", "user_nets:where_right"),
    ]
    assert {item["sha256"] for item in record.sources} == {DIGEST}
    assert {"user_nets:softened", "user_nets:where_right", "loss"} <= set(record.history[-1])
    assert deploy(["export", str(out), "--out", str(bundle)]) == 0
    images, labels = mine.made(12, seed=5)
    for index, image in enumerate(images):
        Image.fromarray(image).save(tmp_path / f"{index:02d}.png")

    code = """
import sys, krl_runtime
from pathlib import Path
from importlib.util import find_spec
assert find_spec("user_nets") is None
model = krl_runtime.load(sys.argv[1])
print(*(model(path).label for path in sorted(Path(sys.argv[2]).glob("*.png"))))
assert "torch" not in sys.modules
"""
    done = subprocess.run(
        [sys.executable, "-c", code, str(bundle), str(tmp_path)], capture_output=True, text=True, cwd=tmp_path
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.split() == [("red", "green", "blue")[label] for label in labels]

    monkeypatch.delitem(sys.modules, "user_nets")
    monkeypatch.setattr(sys, "path", [item for item in sys.path if not item.endswith("/lib")])
    capsys.readouterr()
    assert deploy(["export", str(out), "--out", str(tmp_path / "again.krl")]) == 2
    needs = "needs the module user_nets, which cannot be imported: No module named 'user_nets'; install it, or run"
    assert f"error: run {out}: model user_nets:Tiny {needs}" in capsys.readouterr().err
    for changed in (["--student", "resnet8"], ["--teacher", "user_nets:wide", "--data", "digits"]):
        assert main(["distill", *options, *changed, "--out", str(tmp_path / "new")]) == 2
        assert needs in capsys.readouterr().err


def test_objects_and_names_make_the_same_student(tmp_path: Path, mine: ModuleType, teacher: Run) -> None:
    names = LossConfig(loss=("user_nets:where_right", "kd:weight=0.5"))
    objects = LossConfig(loss=(mine.where_right, "kd:weight=0.5"))
    by_name = distill(config(tmp_path / "a", str(teacher.path), losses=names))
    by_object = distill(config(tmp_path / "b", teacher.path, student=mine.Tiny, losses=objects))
    assert by_name.record.weights_sha256 == by_object.record.weights_sha256
    stored = [json.loads((tmp_path / name / RECORD).read_bytes()) for name in "ab"]
    assert stored[0]["sources"] == stored[1]["sources"]
    assert stored[0]["configuration"]["losses"] == stored[1]["configuration"]["losses"]


def test_a_teacher_that_is_a_network_in_python(
    tmp_path: Path, mine: ModuleType, teacher: Run, caplog: pytest.LogCaptureFixture
) -> None:
    network, where = teacher.network().backbone, teacher.record.preprocessing
    before = {name: value.clone() for name, value in network.state_dict().items()}
    asked = InputConfig(mean=where.mean, std=where.std)
    data = DataConfig(data=mine.split_squares)
    with caplog.at_level(logging.INFO, "krl"):
        run = distill(config(tmp_path / "a", network, student=mine.Tiny(3), data=data, input=asked))
    assert "give --size, --channels, --mean and --std if it was trained with others" in caplog.text
    assert run.record.metrics["teacher"]["top1"] == teacher.record.metrics["top1"]
    assert run.record.metrics["top1"] > 0.6
    identity = run.record.parent["teachers"][0]
    assert identity == {
        "kind": "own",
        "name": "user_nets:Tiny",
        "weights_sha256": teacher.record.weights_sha256,
        "source_sha256": DIGEST,
    }
    assert all(parameter.requires_grad for parameter in network.parameters())
    assert all(torch.equal(value, before[name]) for name, value in network.state_dict().items())
    whole = distill(config(tmp_path / "b", teacher.network(), student=mine.Tiny(3), data=data, input=asked))
    assert whole.record.metrics["teacher"] == run.record.metrics["teacher"]
    reopened = Run.open(run.path)
    assert reopened.record.sources[-1] == {"use": "teacher", "name": "user_nets:Tiny", "sha256": DIGEST}
    assert isinstance(reopened.network().backbone, mine.Tiny)


def test_the_functions_of_the_packages_take_objects(tmp_path: Path, mine: ModuleType) -> None:
    fast = {"epochs": 2, "batch_size": 30, "device": "cpu", "precision": "fp32"}
    made = krl_train.fit(model=mine.Tiny(3), data=mine.Squares(60), out=tmp_path / "a", **fast)
    assert json.loads(json.dumps(made.to_dict()))["model"] == "user_nets:Tiny"
    options = {"student": mine.wide, "data": mine.Squares, "loss": mine.softened, **fast}
    student = krl_compress.distill(teacher=made.run, out=tmp_path / "b", **options)
    assert student.teachers[0]["parameters"] == made.metrics["parameters"]
    found = krl_train.evaluate(run=student.run, data=mine.Squares(30, seed=2), device="cpu")
    assert found.metrics["count"] == 30


def test_the_student_and_the_baseline_start_from_the_same_instance(
    tmp_path: Path, mine: ModuleType, teacher: Run
) -> None:
    student = mine.Tiny(3, width=4)
    still = OptimConfig(lr=1e-12, weight_decay=0)
    run = distill(config(tmp_path / "a", teacher.path, student=student, optim=still, baseline=True))
    baseline = Run.open(run.path / "baseline")
    assert [item["use"] for item in baseline.record.sources] == ["model", "data"]
    for each in (run, baseline):
        opened = Run.open(each.path).network(module=mine.Tiny(3, width=4))
        for name, value in opened.backbone.state_dict().items():
            torch.testing.assert_close(value, student.state_dict()[name], rtol=1e-4, atol=1e-6)


def test_several_networks_of_ones_own(tmp_path: Path, mine: ModuleType) -> None:
    data = DataConfig(data=mine.split_squares)
    peers = mutual(MutualConfig(peer=(mine.Tiny, "user_nets:wide"), out=tmp_path / "a", data=data, loop=LOOP))
    assert [run.record.model.name for run in peers] == ["user_nets:Tiny", "user_nets:wide"]
    pair = joint(JointConfig(teacher=mine.wide, student="user_nets:Tiny", out=tmp_path / "b", data=data, loop=LOOP))
    assert [Run.open(run.path).network().backbone.conv.out_channels for run in pair] == [8, 16]


def test_a_stored_teacher_and_a_student_for_int8(tmp_path: Path, mine: ModuleType, teacher: Run) -> None:
    cache = replace(DistillConfig(teacher=(), student="", out=tmp_path).cache, cache_teacher=True, cache_dir=tmp_path)
    student = lambda num_classes: mine.Tiny(num_classes, width=32, activation=nn.functional.relu)  # noqa: E731
    quantization = replace(config(tmp_path, "").quantization, quantize="int8", float_epochs=2)
    loss = LossConfig(loss=(mine.softened,))
    run = distill(
        config(tmp_path / "a", teacher.path, student=student, losses=loss, cache=cache, quantization=quantization)
    )
    assert run.record.model.arguments["quantize"] == "int8"
    opened = Run.open(run.path).network(module=student(3))
    images = torch.from_numpy(mine.made(6, seed=3)[0]).permute(0, 3, 1, 2)
    assert torch.equal(opened(images), run.network()(images))


def no_gradient(student: Tensor, teacher: Tensor) -> Tensor:
    return (student.detach() - teacher).square().mean()


def not_finite(student: Tensor, teacher: Tensor) -> Tensor:
    return (student - teacher).mean() / 0


def one_each(student: Tensor, teacher: Tensor) -> Tensor:
    return (student - teacher).mean(1)


def a_number(student: Tensor, teacher: Tensor) -> float:
    return (student - teacher).mean().item()


def counted(student: Tensor, teacher: Tensor) -> Tensor:
    return (student.argmax(1) == teacher.argmax(1)).sum()


def failing(student: Tensor, teacher: Tensor) -> Tensor:
    return student @ teacher


def needs_option(student: Tensor, teacher: Tensor, *, power: float) -> Tensor:
    return (student - teacher).abs().pow(power).mean()


class _Module(nn.Module):
    def forward(self, student: Tensor, teacher: Tensor, labels: Tensor | None = None) -> Tensor:
        assert labels is not None
        return (student - teacher).square().mean()


@pytest.mark.parametrize(
    ("loss", "message"),
    [
        (no_gradient, "no_gradient returns a number without a gradient"),
        (not_finite, "not_finite is -?inf for the first batch; accepted: a finite number"),
        (one_each, r"one_each returns float32 of shape \[\d+\]; accepted: one number"),
        (a_number, "a_number returns a float; accepted"),
        (counted, r"counted returns int64 of shape \[\]"),
        (failing, r"failing fails: RuntimeError: .* \(test_custom.py, line \d+\)"),
        (needs_option, "needs_option fails: TypeError: .*'power'"),
    ],
)
def test_losses_that_are_none(tmp_path: Path, mine: ModuleType, teacher: Run, loss: object, message: str) -> None:
    with pytest.raises(UsageError, match=f"--loss .*{message}"):
        distill(config(tmp_path / "a", teacher.path, losses=LossConfig(loss=loss)))


@pytest.mark.parametrize(
    ("loss", "message"),
    [
        (lambda student: student, "takes 1 arguments; accepted: a function of"),
        (lambda a, b, c, d: a, "takes 4 arguments"),
        ("user_nets:soft", "module user_nets has no soft; did you mean 'softened'"),
        ("user_nets:softened:temprature=3", "has no 'temprature' .did you mean 'temperature'"),
        ("user_nets:softened:weight=x", "weight is 'x'; accepted: a number"),
        ("user_nets:np.pi", "is a float; accepted: a function of"),
        ("kdd:standardize", "unknown loss 'kdd' .did you mean 'kd'.* or your own function as package.module:name"),
        ("user_gone:loss", "--loss user_gone:loss needs the module user_gone, which cannot be imported"),
        (5, "--loss is 5; accepted"),
    ],
)
def test_losses_that_cannot_be_used(mine: ModuleType, loss: object, message: str) -> None:
    with pytest.raises(UsageError, match=message):
        resolve_losses(LossConfig(loss=(loss,)), 0.0)


def test_options_and_labels_of_a_loss(mine: ModuleType) -> None:
    (term,) = resolve_losses(LossConfig(loss="user_nets:softened:weight=0.5,warmup=2,standardize,temperature=3"), 0.0)
    assert (term.name, term.weight, term.warmup, term.standardize) == ("user_nets:softened", 0.5, 2, True)
    assert (term.options, term.kind.sees) == ({"temperature": 3.0}, "logits")
    assert parse_loss("kd:standardize").kind is parse_loss("kd").kind
    (labeled,) = resolve_losses(LossConfig(loss=_Module()), 0.0)
    assert labeled.kind.sees == "logits+labels"
    student, other = torch.randn(4, 3, generator=torch.Generator().manual_seed(0)), torch.zeros(4, 3)
    expected = np.square(student.numpy()).mean()
    assert labeled.kind.function(student, other, torch.zeros(4)).item() == pytest.approx(expected, rel=1e-6)


def test_what_does_not_go_together(tmp_path: Path, mine: ModuleType, teacher: Run) -> None:
    data = DataConfig(data=mine.split_squares)
    mixed = config(tmp_path / "a", teacher.path, losses=LossConfig(loss=mine.where_right))
    with pytest.raises(UsageError, match="needs one label for each image"):
        distill(replace(mixed, augment=AugmentConfig(mixup=1.0)))
    with pytest.raises(ModelError, match=r"returns float32 of shape \[2, 5\] for two images"):
        distill(config(tmp_path / "b", mine.Tiny(5), data=data))
    free = config(tmp_path / "c", mine.Tiny(3), data=data)
    with pytest.raises(UsageError, match="--data-free needs a teacher that knows its classes"):
        distill(replace(free, data_free=replace(free.data_free, data_free="teacher")))
    with pytest.raises(UsageError, match="no data is named"):
        distill(config(tmp_path / "d", mine.Tiny(3)))
