import asyncio
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from _helpers.bundles import LABELS, TinyNet, write_bundle
from _helpers.embeddings import SIZE, colored, embed, write_embedder
from krl_runtime import BackendError, BundleError, Embedder, Embedding, ImageError, ModelError, UsageError, load
from krl_runtime.bundle import TensorSpec


@pytest.fixture
def model(tmp_path: Path) -> Embedder:
    return load(write_embedder(tmp_path / "tiny.krl").path, Embedder, threads=1)


def expected(model: Embedder, images: np.ndarray) -> np.ndarray:
    """Return the embeddings of images ``[N, 12, 12, 3]``, which need no resizing, by NumPy."""
    return embed(TinyNet.random(model.preprocessing, SIZE), images.transpose(0, 3, 1, 2))


def test_an_image_and_several_are_embedded_as_numpy_does(model: Embedder):
    images = colored(40)
    one = model(images[0])
    assert isinstance(one, Embedding)
    assert one.vector.dtype == np.float32
    several = model(list(images))
    array = model(images)
    wanted = expected(model, images)
    for made in ([item.vector for item in several], [item.vector for item in array]):
        np.testing.assert_allclose(made, wanted, atol=1e-6)
    np.testing.assert_allclose(one.vector, wanted[0], atol=1e-6)
    np.testing.assert_allclose(model.embed(images.transpose(0, 3, 1, 2)), wanted, atol=1e-6)
    assert np.linalg.norm(model.embed(images.transpose(0, 3, 1, 2)).astype(float), axis=1) == pytest.approx(1, abs=1e-7)
    assert model([]) == []


def test_similarity_is_the_cosine(model: Embedder):
    one, other = model(list(colored(2)))
    assert one.similarity(other) == pytest.approx(float(np.dot(one.vector, other.vector)), abs=1e-6)
    assert one.similarity(one) == pytest.approx(1)
    assert one.to_dict() == {"vector": one.vector.tolist()}
    assert str(one) == "embedding of 6 dimensions"
    assert repr(model) == "Embedder('tiny', 6 dimensions, variant fp32 on onnxruntime-cpu)"


def test_streams_threads_and_batches_give_the_same(model: Embedder, tmp_path: Path):
    images = colored(5)
    wanted = expected(model, images)
    for number, image in enumerate(images):
        Image.fromarray(image).save(tmp_path / f"{number}.png")
    (tmp_path / "broken.png").write_bytes(b"none")
    items = list(model.stream(tmp_path, workers=2))
    assert [item.error is None for item in items] == [True] * 5 + [False]
    np.testing.assert_allclose([item.result.vector for item in items[:5]], wanted, atol=1e-6)
    (last,) = (item.result.vector for item in model.watch(iter(images[:1])))
    np.testing.assert_allclose(last, wanted[0], atol=1e-6)
    np.testing.assert_allclose(asyncio.run(model.embed_async(images[1])).vector, wanted[1], atol=1e-6)
    with model.batched(max_batch=4) as batched:
        futures = [batched.submit(image) for image in images]
        np.testing.assert_allclose([future.result().vector for future in futures], wanted, atol=1e-6)
    assert batched.processed == 5


def test_a_bad_image_of_several_is_named(model: Embedder):
    with pytest.raises(ImageError, match="item 1 of 2"):
        model([colored(1)[0], b"none"])


@pytest.mark.parametrize("value", [0.0, np.nan, np.inf])
def test_outputs_without_a_direction_are_refused(model: Embedder, value: float, monkeypatch):
    outputs = np.ones((2, SIZE), np.float32)
    outputs[1] = value
    monkeypatch.setattr(type(model.backend), "run", lambda *_: {"embeddings": outputs})
    with pytest.raises(ModelError, match="variant fp32 on onnxruntime-cpu gave an embedding that is zero"):
        model(colored(2))
    good, bad = model.run_batch(colored(2).transpose(0, 3, 1, 2), [5, 5])
    assert good.vector == pytest.approx(SIZE**-0.5)
    assert isinstance(bad, ModelError)


def test_float16_outputs_have_length_1_in_float32(model: Embedder):
    rough = np.array([[0.6, 0.8, 0.1, 0, 0, 0]], np.float16)
    assert np.linalg.norm(model.normalized(rough).astype(float)) == pytest.approx(1, abs=1e-7)


@pytest.mark.parametrize(
    "changes",
    [
        {"settings": {}},
        {"settings": {"embedding": 6}},
        {"settings": {"embedding": {"size": 7}}},
        {"settings": {"embedding": {"size": True}}},
        {"settings": {"embedding": {"size": "6"}}},
        {"labels": ("a", "b")},
        {"outputs": (TensorSpec("embeddings", "float16", ("batch", 6)),)},
        {"outputs": (TensorSpec("embeddings", "float32", ("batch", 6, 1)),)},
        {"outputs": (TensorSpec("embeddings", "float32", ("batch", 6)),) * 2},
        {"inputs": (TensorSpec("pixels", "float32", ("batch", 3, 12, 12)),)},
        {"inputs": (TensorSpec("pixels", "uint8", ("batch", 3, 12, 13)),)},
    ],
)
def test_a_manifest_that_does_not_fit_is_refused(tmp_path: Path, changes: dict):
    bundle = write_embedder(tmp_path / "a.krl", **changes)
    with pytest.raises(BundleError, match=r"a\.krl is no embedding network: .*; export it again"):
        load(bundle.path)


def test_a_graph_of_several_images_at_once_is_refused(tmp_path: Path):
    bundle = write_embedder(tmp_path / "a.krl", batch=3)
    with pytest.raises(BundleError, match="its graph takes 3 images at once; accepted: 1 or any number"):
        load(bundle.path)
    fixed = write_embedder(tmp_path / "b.krl", batch=1)
    with load(fixed.path, Embedder) as model:
        assert len(model(colored(3))) == 3


def test_pipelines_of_other_tasks_are_refused(tmp_path: Path):
    embedder, classifier = write_embedder(tmp_path / "e.krl"), write_bundle(tmp_path / "c.krl", labels=LABELS)
    from krl_runtime import Classifier

    with pytest.raises(UsageError, match="is for the task 'embedding'; a bundle for classification is needed here"):
        load(embedder.path, Classifier)
    with pytest.raises(UsageError, match="is for the task 'classification'; a bundle for embedding is needed here"):
        load(classifier.path, Embedder)
    unknown = replace(embedder.manifest, task="detection")
    with pytest.raises(BundleError, match="knows: classification, embedding, restoration, generation"):
        load(embedder.update({}, task=unknown.task).path)


def test_a_closed_model_says_so(model: Embedder):
    model.close()
    with pytest.raises(BackendError):
        model(colored(1)[0])
