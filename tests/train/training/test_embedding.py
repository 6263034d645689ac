"""``krl-train fit --task embedding``: what is learned, which classes are held out, starts, resuming, bad input."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from sklearn.neighbors import NearestNeighbors

from _helpers.digits import write_digits
from _helpers.resuming import stopped_at_checkpoint
from krl_runtime.errors import DataError, KrlError, RunError, UsageError
from krl_train import evaluate
from krl_train.cli import main
from krl_train.config import DataConfig, EmbeddingConfig, FitConfig, LoopConfig, OptimConfig, TransferConfig
from krl_train.data import load_split
from krl_train.metrics.retrieval import check_measurable
from krl_train.models.embedders import EmbeddingNetwork
from krl_train.run import Run
from krl_train.training.fit import fit

LOOP = LoopConfig(epochs=6, batch_size=40, device="cpu", precision="fp32", keep="last")
HELD_OUT = ("8", "9")


@pytest.fixture(scope="module")
def images(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a folder of digits, split."""
    return write_digits(tmp_path_factory.mktemp("digits") / "images", per_class=40, val_per_class=20)


def config(images: Path, out: Path, embedding: EmbeddingConfig, **changes: Any) -> FitConfig:
    made = FitConfig(
        task="embedding", model="resnet8", out=out, data=DataConfig(data=str(images)), loop=LOOP, embedding=embedding
    )
    return replace(made, **changes)


@pytest.fixture(scope="module")
def run(images: Path, tmp_path_factory: pytest.TempPathFactory) -> Run:
    """Return a run that has not seen two of the ten classes."""
    asked = EmbeddingConfig(embedding_dim=16, held_out_classes=HELD_OUT)
    return fit(config(images, tmp_path_factory.mktemp("embedding") / "run", asked))


def embeddings(run: Run) -> tuple[np.ndarray, np.ndarray]:
    pixels, labels = load_split(run.record, "val")
    with torch.inference_mode():
        return run.module()(torch.from_numpy(pixels)).numpy(), np.array(labels)


def test_held_out_classes_are_measured_and_never_trained_on(run: Run, images: Path) -> None:
    data = run.record.data
    assert data["held_out_classes"] == list(HELD_OUT)
    assert data["train"]["count"] == 8 * 40  # the validation images of these classes are of no use, and left
    assert data["val"]["count"] == 2 * 60
    _, labels = embeddings(run)
    assert set(labels) == {8, 9}


def test_recall_is_that_of_an_independent_search(run: Run) -> None:
    vectors, labels = embeddings(run)
    assert np.allclose(np.linalg.norm(vectors, axis=1), 1, atol=1e-5)
    nearest = NearestNeighbors(n_neighbors=2, metric="cosine").fit(vectors).kneighbors(return_distance=False)[:, 0]
    expected = (labels[nearest] == labels).mean()
    assert run.record.metrics["recall_at_1"] == pytest.approx(expected, abs=1e-6)
    assert expected > 0.8  # two classes that nobody has shown to it; chance is a half
    assert evaluate(run=run.path).metrics["recall_at_1"] == pytest.approx(expected, abs=1e-6)


@pytest.mark.parametrize("loss", ["proxy-anchor", "contrastive", "triplet", "supcon"])
def test_each_loss_learns(loss: Any, images: Path, tmp_path: Path) -> None:
    asked = EmbeddingConfig(embedding_dim=16, embedding_loss=loss)
    history = fit(config(images, tmp_path / "run", asked)).record.history
    assert history[-1]["val_map_at_r"] > 1.1 * history[0]["val_map_at_r"]
    assert history[-1]["val_recall_at_1"] > 0.7  # chance is a tenth


def test_a_class_comes_in_groups_to_each_batch(run: Run) -> None:
    from krl_train.loop.order import grouped_order

    labels = np.repeat(np.arange(5), [9, 8, 4, 2, 1])
    order = grouped_order(labels, np.random.default_rng(0), 4)
    assert len(order) == len(labels)
    groups = labels[order].reshape(-1, 4)
    assert (groups == groups[:, :1]).all()
    assert set(groups[:, 0].tolist()) <= {0, 1, 2, 3, 4}
    assert len(set(order[:8])) == 8 or len(groups) == 6


def test_a_resumed_training_is_the_same(images: Path, tmp_path: Path) -> None:
    asked = EmbeddingConfig(embedding_dim=8, embedding_loss="proxy-anchor")
    loop = replace(LOOP, epochs=2)
    whole = fit(config(images, tmp_path / "whole", asked, loop=loop))
    again = config(images, tmp_path / "again", asked, loop=loop)
    with stopped_at_checkpoint(1), pytest.raises(KeyboardInterrupt):
        fit(again)
    resumed = fit(replace(again, resume=True))
    first, second = whole.state(), resumed.state()
    assert all(torch.equal(value, second[name]) for name, value in first.items())


def test_it_starts_from_a_classifier_and_from_embeddings(run: Run, images: Path, tmp_path: Path) -> None:
    data = DataConfig(data=str(images))
    classifier = fit(FitConfig(model="resnet8", out=tmp_path / "classifier", data=data, loop=replace(LOOP, epochs=1)))
    asked, loop = EmbeddingConfig(embedding_dim=16), replace(LOOP, epochs=1)
    start = TransferConfig(str(classifier.path), "linear")
    probe = fit(config(images, tmp_path / "probe", asked, model="", loop=loop, transfer=start))
    kept, made = classifier.state(), probe.state()
    changed = {name for name, value in made.items() if not torch.equal(value, kept[name])}
    assert changed == {"linear.weight", "linear.bias"}
    assert made["linear.weight"].shape[0] == 16
    start = TransferConfig(str(run.path))
    still = replace(loop, epochs=1)
    more = fit(
        config(images, tmp_path / "more", asked, model="", loop=still, transfer=start, optim=OptimConfig(lr=1e-9))
    )
    assert torch.allclose(more.state()["linear.weight"], run.state()["linear.weight"], atol=1e-5)
    with pytest.raises(RunError, match="is a run of the task embedding"):
        fit(FitConfig(out=tmp_path / "no", data=data, loop=loop, transfer=TransferConfig(str(run.path))))


def test_a_start_keeps_its_embeddings_unless_others_are_asked_for(run: Run, images: Path, tmp_path: Path) -> None:
    start, loop, optim = TransferConfig(str(run.path)), replace(LOOP, epochs=1), OptimConfig(lr=1e-9)
    given = {"model": "", "loop": loop, "transfer": start, "optim": optim}
    kept = fit(config(images, tmp_path / "kept", EmbeddingConfig(), **given))
    assert torch.allclose(kept.state()["linear.weight"], run.state()["linear.weight"], atol=1e-5)
    other = fit(config(images, tmp_path / "other", EmbeddingConfig(embedding_dim=4), **given))
    assert other.state()["linear.weight"].shape[0] == 4
    fresh = fit(config(images, tmp_path / "fresh", EmbeddingConfig(), loop=loop))
    assert fresh.record.model.num_classes == 128


def test_images_of_one_class_measure_nothing() -> None:
    check_measurable(np.array([0, 0, 1]))
    with pytest.raises(DataError, match="all 20 images are of one class, so that each finds its own"):
        check_measurable(np.full(20, 3))
    with pytest.raises(DataError, match="no image has another one of its class"):
        check_measurable(np.arange(20))


def test_the_command_shows_what_was_measured(run: Run, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["evaluate", str(run.path), "--device", "cpu"]) == 0
    shown = capsys.readouterr().out
    assert f"{run.record.metrics['recall_at_1']:.4g}"[:5] in shown
    assert "recall_at_5" in shown


def test_a_run_of_embeddings_is_no_classifier(run: Run) -> None:
    assert isinstance(run.module(), EmbeddingNetwork)
    with pytest.raises(RunError, match="a classifier is needed here"):
        run.network()


@pytest.mark.parametrize(
    ("asked", "changes", "error", "message"),
    [
        ({"held_out_classes": ("8", "x")}, {}, UsageError, "names 'x', which"),
        ({"held_out_classes": tuple("012345678")}, {}, UsageError, "leaves 1 to train on"),
        ({"held_out_classes": ("9",)}, {}, UsageError, "holds out '9' alone"),
        ({}, {"data": {"val_limit": 10}}, DataError, "no image has another one of its class"),
        ({"embedding_loss": "triplet", "images_per_class": 30}, {}, UsageError, "has no room for 30 images"),
    ],
)
def test_bad_options_are_refused(
    asked: dict[str, Any],
    changes: dict[str, Any],
    error: type[KrlError],
    message: str,
    images: Path,
    tmp_path: Path,
) -> None:
    given = {name: DataConfig(data=str(images), **value) for name, value in changes.items()}
    with pytest.raises(error, match=message):
        fit(config(images, tmp_path / "run", EmbeddingConfig(**asked), **given))
    if error is DataError:
        assert not (tmp_path / "run").exists()  # before anything is trained


def test_one_image_of_each_class_teaches_nothing(images: Path, tmp_path: Path) -> None:
    data = DataConfig(data=str(images), shots=1)
    with pytest.raises(DataError, match="each class has one training image"):
        fit(config(images, tmp_path / "run", EmbeddingConfig(), data=data))


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("--embedding-loss", "supcon", "--margin", "0.5"), "--margin is for contrastive, triplet and proxy-anchor"),
        (("--embedding-dim", "1"), "--embedding-dim is 1; accepted: 2 or more"),
        (("--mixup", "0.2"), "--mixup is for classification; the task is embedding"),
        (("--label-smoothing", "0.1"), "--label-smoothing is for classification"),
    ],
)
def test_the_command_refuses_options_with_a_message(
    arguments: tuple[str, ...], message: str, images: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    given = ("fit", "--task", "embedding", "--data", str(images), "--model", "resnet8", "--out", str(tmp_path / "run"))
    assert main([*given, *arguments]) == 2
    assert message in capsys.readouterr().err


def test_the_options_of_embeddings_are_refused_by_other_tasks(
    images: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    given = ("fit", "--data", str(images), "--model", "resnet8", "--out", str(tmp_path / "run"))
    assert main([*given, "--embedding-dim", "64"]) == 2
    assert "--embedding-dim is for embedding; the task is classification" in capsys.readouterr().err


def test_classes_that_are_held_out_get_no_proxy() -> None:
    from krl_train.tasks.metric_losses import MetricLoss

    torch.manual_seed(0)
    embeddings = torch.nn.functional.normalize(torch.randn(8, 4))
    labels = torch.tensor([1, 1, 3, 3, 6, 6, 1, 3])
    loss = MetricLoss("proxy-anchor", labels, 4)
    proxies = loss.loss.proxies
    assert proxies.shape == (3, 4)
    # Kim et al. 2020, equation 4, written out.
    near = embeddings @ torch.nn.functional.normalize(proxies).T
    mine = torch.tensor([1, 3, 6]) == labels[:, None]
    pull = torch.log1p((torch.exp(-32 * (near - 0.1)) * mine).sum(0)).mean()
    push = torch.log1p((torch.exp(32 * (near + 0.1)) * ~mine).sum(0)).mean()
    assert torch.allclose(loss(embeddings, labels), pull + push, rtol=1e-4)
