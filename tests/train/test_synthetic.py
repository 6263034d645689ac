"""Generated images that a classifier is trained on."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from krl_runtime.errors import RunError, UsageError
from krl_runtime.images.preprocessing import Preprocessing
from krl_train.config import AugmentConfig, DataConfig, FitConfig, LoopConfig, SyntheticConfig
from krl_train.data import PixelSet, open_source
from krl_train.data.splits import read_training
from krl_train.models.generators import build_generator
from krl_train.run import ModelSpec, Run, RunRecord
from krl_train.synthetic import add_synthetic, class_conditions, make_images, open_maker
from krl_train.training.fit import fit

DIGITS = tuple(str(digit) for digit in range(10))
GRAY = Preprocessing(8, 8, channels=1, mean=(0.5,), std=(0.5,))
CONDITIONS: dict[str, dict[str, Any]] = {
    "labels": {"kind": "labels", "length": 1, "dim": 4, "vocabulary": list(DIGITS)},
    "text": {"kind": "text", "length": 2, "dim": 4, "vocabulary": ["", "a", *DIGITS]},
    "attributes": {
        "kind": "attributes",
        "length": 2,
        "dim": 4,
        "vocabulary": ["c=", "c=red", "d=", *(f"d={digit}" for digit in DIGITS)],
    },
}


def generator_run(path: Path, condition: dict[str, Any] | None) -> Path:
    torch.manual_seed(0)
    spec = ModelSpec("dcgan-2", 0, 1, {"latent": 4} | ({"condition": condition} if condition else {}))
    generator = build_generator(spec, GRAY)
    record = RunRecord("generation", spec, GRAY, (), "krl-train fit", {}, 0, {})
    Run.write(path, record, generator.backbone.state_dict())
    return path


def test_joined_sets_are_one_after_the_other() -> None:
    pixels = np.arange(5, dtype=np.uint8)[:, None, None, None].repeat(4, 2).repeat(4, 3)
    joined = PixelSet(pixels[:3], [0, 1, 2]).joined(PixelSet(pixels[3:], [3, 4]))
    assert len(joined) == 5
    assert joined.labels.tolist() == [0, 1, 2, 3, 4]
    assert joined.pixels(np.array([4, 0, 3, 2]))[:, 0, 0, 0].tolist() == [4, 0, 3, 2]
    assert joined.pixels(np.array([1]))[:, 0, 0, 0].tolist() == [1]
    assert joined.identity != PixelSet(pixels[:3], [0, 1, 2]).joined(PixelSet(pixels[3:], [4, 3])).identity


@pytest.mark.parametrize("kind", CONDITIONS)
def test_classes_are_asked_for_in_turn(tmp_path: Path, kind: str) -> None:
    maker = open_maker(generator_run(tmp_path / "g", CONDITIONS[kind]))
    made = make_images(maker, DIGITS, 23, Preprocessing(12, 12), seed=1, margin=2)
    assert made.labels.tolist() == [index % 10 for index in range(23)]
    assert made.pixels(np.arange(23)).shape == (23, 3, 16, 16)
    again = make_images(maker, DIGITS, 23, Preprocessing(12, 12), seed=1, margin=2)
    other = make_images(maker, DIGITS, 23, Preprocessing(12, 12), seed=2, margin=2)
    assert again.identity == made.identity != other.identity


def test_images_are_those_of_the_generator(tmp_path: Path) -> None:
    path = generator_run(tmp_path / "g", CONDITIONS["labels"])
    made = make_images(open_maker(path), DIGITS, 12, GRAY, seed=0)
    generator = Run.open(path).module()
    latents = torch.from_numpy(np.random.default_rng(0).standard_normal((12, 4), dtype=np.float32))
    with torch.no_grad():
        expected = generator(latents, (torch.arange(12) % 10)[:, None]).clamp(0, 255).round().to(torch.uint8)
    assert torch.equal(made.pixels(np.arange(12)), expected)


def test_the_attribute_that_has_the_classes_is_chosen(tmp_path: Path) -> None:
    maker = open_maker(generator_run(tmp_path / "g", CONDITIONS["attributes"]))
    assert class_conditions(maker, ("3", "7")) == [{"d": "3"}, {"d": "7"}]
    with pytest.raises(UsageError, match=r"has all classes \(3, red\) as values; it knows: c: red; d: 0, 1"):
        class_conditions(maker, ("3", "red"))


@pytest.mark.parametrize(
    ("condition", "labels", "message"),
    [(None, DIGITS, "takes no condition"), ("labels", ("cat", "dog"), "label 'cat' is not known; accepted: 0, 1")],
)
def test_a_generator_that_does_not_know_the_classes(
    tmp_path: Path, condition: str | None, labels: tuple[str, ...], message: str
) -> None:
    maker = open_maker(generator_run(tmp_path / "g", CONDITIONS[condition] if condition else None))
    with pytest.raises(UsageError, match=message):
        class_conditions(maker, labels)


def test_a_generator_without_conditions_makes_images_of_no_class(tmp_path: Path) -> None:
    made = make_images(open_maker(generator_run(tmp_path / "g", None)), DIGITS, 5, GRAY, seed=0)
    assert made.labels.tolist() == [0] * 5


def test_training_with_generated_images(tmp_path: Path) -> None:
    generator = generator_run(tmp_path / "g", CONDITIONS["labels"])
    common = {
        "model": "dscnn-0.25",
        "data": DataConfig(data="digits", limit=40, val_limit=20),
        "loop": LoopConfig(epochs=1, batch_size=10, device="cpu", precision="fp32"),
    }
    synthetic = SyntheticConfig(augment_from=generator, augment_count=60)
    run = fit(FitConfig(out=tmp_path / "run", synthetic=synthetic, **common))
    plain = fit(FitConfig(out=tmp_path / "plain", **common))
    assert run.record.data["synthetic"] == {
        "generator": str(generator.resolve()),
        "sha256": Run.open(generator).record.weights_sha256,
        "count": 60,
    }
    assert run.record.data["train"] == plain.record.data["train"]  # the real ones, by themselves
    assert run.state().keys() == plain.state().keys()
    assert not all(torch.equal(value, plain.state()[name]) for name, value in run.state().items())
    assert run.record.data["val"] == plain.record.data["val"]
    assert "synthetic" not in plain.record.data
    assert run.record.metrics["count"] == 20
    assert run.record.preprocessing == plain.record.preprocessing  # mean and std are those of real images


def test_generated_images_are_added_to_the_real_ones(tmp_path: Path) -> None:
    generator = generator_run(tmp_path / "g", CONDITIONS["labels"])
    source = open_source(DataConfig(data="digits", limit=40, val_limit=20))
    training = read_training(source, GRAY, AugmentConfig(crop_padding=1), seed=0)
    both, described = add_synthetic(training, SyntheticConfig(generator, 60), GRAY, seed=3)
    made = make_images(open_maker(generator), DIGITS, 60, GRAY, seed=3, margin=training.train.margin)
    real = training.train.pixels(np.arange(40))
    assert torch.equal(both.train.pixels(np.arange(100)), torch.cat([real, made.pixels(np.arange(60))]))
    assert both.train.labels.tolist() == training.train.labels.tolist() + made.labels.tolist()
    assert both.val is training.val
    assert described["count"] == 60


def test_what_is_no_generator(tmp_path: Path) -> None:
    with pytest.raises(RunError, match="does not exist"):
        open_maker(tmp_path / "missing")
    with pytest.raises(UsageError, match="--augment-count is 0; accepted: 1 or more"):
        SyntheticConfig(augment_count=0)
