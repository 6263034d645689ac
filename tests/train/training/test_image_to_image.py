"""Translation and style: the networks, that their losses fall on toy problems, and bad input."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from _helpers.images import blurred_noise
from krl_runtime.errors import DataError, ModelError, UsageError
from krl_train.config import (
    DataConfig,
    EvaluateConfig,
    FitConfig,
    InputConfig,
    LoopConfig,
    OptimConfig,
    StyleConfig,
    TranslationConfig,
)
from krl_train.data.pairs import list_pairs
from krl_train.evaluation.evaluate import evaluate
from krl_train.models import Network
from krl_train.models.image_to_image import PatchDiscriminator
from krl_train.models.perceptual import FeatureMaps, gram
from krl_train.models.restorers import build_restorer, receptive_radius
from krl_train.run import ModelSpec, Run, RunRecord
from krl_train.tasks.style import total_variation
from krl_train.training.fit import fit
from krl_train.training.restoration import restorer_preprocessing


def image(seed: int, side: int = 40) -> Image.Image:
    return blurred_noise(side, seed, 2)


def fit_config(task: Any, model: str, folder: Path, out: Path, epochs: int, **changes: Any) -> FitConfig:
    return FitConfig(
        out=out,
        task=task,
        model=model,
        data=DataConfig(data=str(folder), val_fraction=0.3),
        input=InputConfig(size=(16,)),
        loop=LoopConfig(epochs=epochs, batch_size=4, device="cpu", precision="fp32", evaluate_every=epochs),
        **changes,
    )


@pytest.fixture
def pairs(tmp_path: Path) -> Path:
    """Images, and their negatives."""
    folder = tmp_path / "pairs"
    for split, count in (("train", 5), ("val", 2)):
        for name in ("A", "B"):
            (folder / split / name).mkdir(parents=True)
        for index in range(count):
            given = image(10 * count + index)
            given.save(folder / split / "A" / f"{index}.png")
            Image.fromarray(255 - np.asarray(given)).save(folder / split / "B" / f"{index}.bmp")
    return folder


@pytest.fixture
def classifier(tmp_path: Path) -> Run:
    """A classifier as it is initialized: its features tell images apart, too."""
    torch.manual_seed(0)
    spec = ModelSpec("resnet8", 2, 3)
    record = RunRecord(
        task="classification",
        model=spec,
        preprocessing=restorer_preprocessing(3, (32, 32)),
        labels=("a", "b"),
        command="test",
        configuration={},
        seed=0,
        data={},
    )
    return Run.write(tmp_path / "classifier", record, spec.build(record.preprocessing).backbone.state_dict())


@pytest.mark.parametrize("name", ["unet-4-1", "unet-4-3", "style-4"])
@pytest.mark.parametrize(("height", "width"), [(16, 24), (17, 19), (13, 9)])
def test_networks_keep_any_size_and_see_all_of_it(name: str, height: int, width: int) -> None:
    torch.manual_seed(0)
    spec = ModelSpec(name, 0, 3, {"scale": 1})
    network = build_restorer(spec, restorer_preprocessing(3, (16, 16)))
    pixels = torch.randint(0, 256, (2, 3, height, width), dtype=torch.uint8)
    assert network(pixels).shape == pixels.shape
    assert receptive_radius(name, 1) is None
    with pytest.raises(ModelError, match="cannot enlarge them 2 times"):
        build_restorer(ModelSpec(name, 0, 3, {"scale": 2}), restorer_preprocessing(3, (16, 16)))


def test_parts_of_the_discriminator_are_34_pixels() -> None:
    torch.manual_seed(0)
    judge = PatchDiscriminator(2, width=4)
    for module in judge.modules():
        if isinstance(module, torch.nn.InstanceNorm2d):
            module.forward = lambda x: x  # type: ignore[method-assign]  # its mean sees all of the image
    given = torch.rand(1, 1, 96, 96).requires_grad_()
    logits = judge(given, torch.rand(1, 1, 96, 96))
    logits[0, 0, logits.shape[2] // 2, logits.shape[3] // 2].backward()
    assert given.grad is not None
    rows = given.grad[0, 0].abs().sum(1).nonzero().flatten()
    assert int(rows.max() - rows.min()) + 1 == 34


@pytest.mark.parametrize("adversarial", [0.0, 0.1])
def test_translation_learns_negatives(pairs: Path, tmp_path: Path, adversarial: float) -> None:
    options = TranslationConfig(adversarial_weight=adversarial)
    optim = OptimConfig(lr=5e-3)
    run = fit(fit_config("translation", "unet-8-1", pairs, tmp_path / "run", 50, translation=options, optim=optim))
    record = run.record
    assert record.metrics["gain"] > 5
    assert record.history[-1]["pixels"] < 0.5 * record.history[0]["pixels"]
    assert ("discriminator" in record.history[0]) == bool(adversarial)
    assert record.task == "restoration"
    assert record.model.arguments["overlap"] is None
    assert set(Run.open(run.path).state()) == set(Run.open(run.path).module().get_submodule("backbone").state_dict())
    assert (run.path / "samples" / "restored-0050.png").is_file()
    again = evaluate(EvaluateConfig(run=run.path, device="cpu"))
    assert again["psnr"] == pytest.approx(record.metrics["psnr"], abs=1e-3)


def test_pairs_must_be_pairs(pairs: Path, tmp_path: Path) -> None:
    config = fit_config("translation", "unet-4-1", pairs, tmp_path / "run", 1)
    image(9).save(pairs / "train" / "A" / "lonely.png")
    with pytest.raises(DataError, match="1 images have no partner of their name in the other of A and B: lonely"):
        fit(config)
    (pairs / "train" / "A" / "lonely.png").unlink()
    image(9, side=20).save(pairs / "train" / "A" / "0.png")
    with pytest.raises(DataError, match="A has 20x20 pixels, B 40x40; both need the same size"):
        fit(config)
    with pytest.raises(DataError, match="A does not exist"):
        fit(replace(config, data=DataConfig(data=str(tmp_path))))


def test_pairs_of_one_folder_are_split_by_what_is_wanted(pairs: Path) -> None:
    data = DataConfig(val_fraction=0.5)
    listed = {split: list_pairs(pairs / "train", split, data) for split in ("train", "val")}
    assert sum(len(given) for given, _ in listed.values()) == 5
    for given, wanted in listed.values():
        assert [item.path.stem for item in given] == [item.path.stem for item in wanted]
        assert {item.path.parent.name for item in given} == {"A"}


def test_gram_and_variation_by_hand() -> None:
    features = torch.tensor([[1.0, 2.0], [3.0, 0.0]]).reshape(1, 2, 1, 2)
    expected = torch.tensor([[5.0, 3.0], [3.0, 9.0]]) / 4
    assert torch.allclose(gram(features)[0], expected)
    assert total_variation(torch.tensor([[0.0, 1.0], [0.5, 0.5]]).reshape(1, 1, 2, 2)).item() == pytest.approx(
        (0.5 + 0.5) / 2 + (1.0 + 0.0) / 2
    )


def test_the_last_map_of_each_resolution_is_taken(classifier: Run) -> None:
    network = classifier.network()
    assert isinstance(network, Network)
    features = FeatureMaps(network)
    assert [tap.name for tap in features.taps] == ["layer1", "layer2", "layer3"]
    pixels = torch.zeros(1, 3, 24, 20).requires_grad_()
    maps = features(pixels)
    assert [tuple(item.shape) for item in maps] == [(1, 16, 24, 20), (1, 32, 12, 10), (1, 64, 6, 5)]
    torch.stack([item.sum() for item in maps]).sum().backward()
    assert pixels.grad is not None
    assert all(parameter.grad is None for parameter in network.parameters())


def test_style_comes_nearer_to_the_style_image(pairs: Path, classifier: Run, tmp_path: Path) -> None:
    stripes = np.zeros((32, 32, 3), np.uint8)
    stripes[:, ::4] = 255
    Image.fromarray(stripes).save(tmp_path / "stripes.png")
    weights = {"content_weight": 0.001, "variation_weight": 0.0}
    options = StyleConfig(style_image=tmp_path / "stripes.png", style_features=str(classifier.path), **weights)
    folder = pairs / "val" / "A"
    whole = fit_config("style", "style-4", folder, tmp_path / "run", 15, style=options)
    run = fit(replace(whole, data=DataConfig(data=str(pairs / "train" / "A"), val_data=folder)))
    history = run.record.history
    assert history[-1]["style"] < 0.7 * history[0]["style"]
    assert run.record.metrics["style"] < history[0]["style"]
    assert run.record.model.arguments["overlap"] is None
    assert run.record.data["features"] == classifier.record.weights_sha256
    with pytest.raises(UsageError, match="paints in a style; there is no truth to measure it by"):
        evaluate(EvaluateConfig(run=run.path, device="cpu"))
    with Image.open(run.path / "samples" / "painted-0015.png") as shown:
        assert shown.size[0] == 2 * 98 + 96
    assert torch.equal(Run.open(run.path).module()(torch.zeros(1, 3, 8, 8)), run.module()(torch.zeros(1, 3, 8, 8)))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (StyleConfig(), "needs --style-image FILE and --style-features RUN"),
        (StyleConfig(style_image=Path("x.png"), style_features="vgg16"), "the run of a classifier, or vgg16 with"),
    ],
)
def test_style_says_what_it_needs(pairs: Path, tmp_path: Path, options: StyleConfig, message: str) -> None:
    with pytest.raises(UsageError, match=message):
        fit(fit_config("style", "style-4", pairs / "val" / "A", tmp_path / "run", 1, style=options))
