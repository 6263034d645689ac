from __future__ import annotations

import dataclasses
import io
import json
import math
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from _helpers.bundles import LABELS, TinyNet, write_bundle
from _helpers.images import SHARED_DATA
from krl_runtime import (
    BackendError,
    Bundle,
    BundleError,
    Classification,
    Classifier,
    ImageError,
    ModelError,
    Preprocessing,
    UsageError,
    load,
)
from krl_runtime.bundle import TensorSpec
from krl_runtime.pipelines.classifier import _largest


@pytest.fixture
def model(bundle: Bundle) -> Classifier:
    return load(bundle.path, threads=1)


def noise(count: int, height: int = 12, width: int = 10) -> np.ndarray:
    return np.random.default_rng(count).integers(0, 256, (count, height, width, 3), dtype=np.uint8)


def softmax(logits: np.ndarray) -> np.ndarray:
    values = [math.exp(float(value)) for value in logits]
    return np.array(values) / math.fsum(values)


# Answers.


def test_from_an_image_file_to_the_answer_as_numpy_computes_it(model: Classifier, images: list[Path]):
    net = TinyNet.random(model.preprocessing, 4)
    for image in images:
        logits = net.logits(model.preprocessing(image)[None])[0]
        answer = model(image)
        assert np.abs(answer.logits - logits).max() < 1e-5
        assert answer.index == logits.argmax()
        assert answer.label == LABELS[answer.index]
        assert answer.score == pytest.approx(softmax(logits)[answer.index], abs=1e-6)


def test_an_answer(model: Classifier):
    (answer,) = model.interpret(np.float32([[1, 3, 2, 0]]), top_k=3)
    # exp(3) / (exp(0) + exp(1) + exp(2) + exp(3)) and so on
    assert (answer.label, answer.index) == ("dog", 1)
    assert answer.score == pytest.approx(0.6439142598879724, abs=1e-12)
    assert [label for label, _ in answer.top] == ["dog", "frog", "cat"]
    assert [score for _, score in answer.top] == pytest.approx(
        [0.6439142598879724, 0.23688281808991013, 0.08714431874203257], abs=1e-12
    )
    assert answer.top[0] == (answer.label, answer.score)
    assert type(answer.score) is float
    assert type(answer.index) is int
    assert str(answer) == "dog 64.4%, frog 23.7%, cat 8.7%"
    assert repr(answer).startswith("Classification(label='dog', index=1, score=0.64")
    assert "logits" not in repr(answer)
    assert answer.logits.dtype == np.float32


def test_an_answer_serializes_compares_and_does_not_change(model: Classifier):
    answer, same = model.interpret(np.float32([[1, 3, 2, 0]] * 2), top_k=2)
    values = json.loads(json.dumps(answer.to_dict()))
    assert values["label"] == "dog"
    assert values["top"][1] == {"label": "frog", "score": pytest.approx(0.2368828)}
    assert values["logits"] == [1, 3, 2, 0]
    assert values.keys() == {field.name for field in dataclasses.fields(Classification)} - {"present", "others"}
    assert answer == same
    assert hash(answer) == hash(same)
    with pytest.raises(dataclasses.FrozenInstanceError):
        answer.label = "cat"


@pytest.mark.parametrize(
    ("logits", "scores"),
    [
        ([1000, 1000, -1000, 0], [0.5, 0.5, 0, 0]),
        ([3e38, -3e38, 0, 0], [1, 0, 0, 0]),
        ([-1000, -1000, -1000, -1000], [0.25] * 4),
        ([88, 89, 90, 87], [0.08714431874203257, 0.23688281808991013, 0.6439142598879724, 0.03205860328008499]),
    ],
)
def test_softmax_is_stable(model: Classifier, logits: list[float], scores: list[float]):
    (answer,) = model.interpret(np.float32([logits]))
    by_label = dict(answer.top)
    assert [by_label[label] for label in LABELS] == pytest.approx(scores, abs=1e-6)


def test_ties_go_to_the_first_label(model: Classifier):
    (answer,) = model.interpret(np.float32([[2, 5, 5, 2]]))
    assert [label for label, _ in answer.top] == ["dog", "frog", "cat", "ship"]


def test_the_largest_of_many_with_ties():
    rng = np.random.default_rng(3)
    for _ in range(200):
        values = rng.integers(-4, 5, 30).astype(np.float32)
        expected = sorted(range(30), key=lambda place: (-values[place], place))
        for count in (1, 5, 29, 30, 99):
            assert _largest(values, count) == expected[:count]


@pytest.mark.parametrize(("top_k", "count"), [(1, 1), (2, 2), (4, 4), (100, 4)])
def test_top_k(model: Classifier, top_k: int, count: int):
    assert len(model(noise(1)[0], top_k=top_k).top) == count


def test_top_k_is_checked(model: Classifier):
    with pytest.raises(UsageError, match="top_k is 0; accepted: 1 or more"):
        model(noise(1)[0], top_k=0)


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_logits_that_are_not_finite_are_no_answer(model: Classifier, value: float):
    logits = np.zeros((2, 4), np.float32)
    logits[1, 2] = value
    with pytest.raises(ModelError, match="variant fp32 on onnxruntime-cpu gave logits that are not finite"):
        model.interpret(logits)


def test_a_network_that_overflows_gives_no_answer(tmp_path: Path):
    net = TinyNet.random(Preprocessing(12, 10), 4)
    broken = replace(net, bias=np.float32([np.nan, 0, 0, 0])).onnx()
    model = load(write_bundle(tmp_path / "a.krl", contents={"model.fp32.onnx": broken}).path)
    with pytest.raises(ModelError, match="load another variant, and run krl-runtime selftest"):
        model(noise(1)[0])


# Sources.


def test_every_kind_of_source_gives_the_same_answer(model: Classifier, images: list[Path]):
    data = images[0].read_bytes()
    array = np.asarray(Image.open(images[0]))
    expected = model(array)
    with images[0].open("rb") as file:
        for source in (images[0], str(images[0]), data, io.BytesIO(data), file, Image.open(images[0])):
            answer = model(source)
            assert answer == expected
            assert np.array_equal(answer.logits, expected.logits)


@pytest.mark.parametrize("size", [(12, 10), (31, 45)])
@pytest.mark.parametrize("channels", [3, 4])
def test_arrays_of_opencv_are_the_flipped_ones(bundle: Bundle, size: tuple[int, int], channels: int):
    """Of the network's size, which numpy copies, and of others, which Pillow copies; also parts of frames."""
    rgb = np.random.default_rng(4).integers(0, 256, (*size, channels), np.uint8)
    bgr = rgb[..., [2, 1, 0, 3][:channels]]
    whole = np.zeros((size[0], size[1] + 6, channels), np.uint8)
    whole[:, 2:-4] = bgr
    with load(bundle.path) as model, load(bundle.path, channel_order="bgr") as other:
        expected = model.prepare(rgb)
        for frame in (bgr, np.ascontiguousarray(bgr), whole[:, 2:-4]):
            made = other.prepare(frame)
            assert (made == expected).all()
            assert made.flags.c_contiguous
            assert (other(frame).logits == model(rgb).logits).all()
        (result,) = other(bgr[None]) if channels == 3 else other([bgr])
        assert (result.logits == model(rgb).logits).all()


def test_files_pillow_images_and_gray_arrays_have_no_order(bundle: Bundle, images: list[Path]):
    gray = noise(1)[0, ..., 0]
    sources = [images[0], images[0].read_bytes(), Image.fromarray(noise(1)[0]), gray, gray[..., None]]
    with load(bundle.path) as model, load(bundle.path, channel_order="bgr") as other:
        for source in sources:
            assert (model.prepare(source) == other.prepare(source)).all()


def test_an_order_that_is_none(bundle: Bundle):
    with pytest.raises(UsageError, match="channel_order is 'BGR'; accepted: rgb, or bgr for arrays of OpenCV"):
        load(bundle.path, channel_order="BGR")  # type: ignore[call-overload]


def test_lists_tuples_and_arrays_of_images(model: Classifier, images: list[Path]):
    alone = [model(image) for image in images]
    assert model(images) == alone
    assert model(tuple(images)) == alone
    mixed = [images[0], images[1].read_bytes(), np.asarray(Image.open(images[2]))]
    assert model(mixed) == alone
    stack = noise(3, 20, 30)
    assert model(stack) == [model(image) for image in stack]
    assert model([]) == []
    assert model(stack[:0]) == []
    assert model(images[:1]) == alone[:1]
    gray = stack[0, :, :, 0]
    assert model(gray) == model([gray])[0]


def test_long_lists_run_in_batches_of_a_bounded_size(model: Classifier, monkeypatch: pytest.MonkeyPatch):
    sizes = []
    run = model.backend.backend.run
    monkeypatch.setattr(model.backend.backend, "run", lambda inputs: sizes.append(len(inputs["pixels"])) or run(inputs))
    images = noise(40)
    answers = model(list(images), top_k=2)
    assert sizes == [16, 16, 8]
    assert [answer.label for answer in answers] == [model(image).label for image in images]
    assert all(len(answer.top) == 2 for answer in answers)


def test_a_graph_for_one_image_gets_one_at_a_time(tmp_path: Path):
    model = load(write_bundle(tmp_path / "a.krl", batch=1).path)
    images = noise(3)
    assert model(images) == [model(image) for image in images]


def test_bad_items_of_a_list_are_named(model: Classifier, images: list[Path]):
    images[1].write_bytes(images[1].read_bytes()[:100])
    with pytest.raises(ImageError, match=r"^item 1 of 3: image .*b\.png is damaged or truncated"):
        model(images)
    with pytest.raises(ImageError, match=r"^item 0 of 2: image given as list; accepted: a path"):
        model([[1], [2]])
    with pytest.raises(ImageError, match="image given as generator; accepted"):
        model(image for image in images)
    with pytest.raises(ImageError, match=r"item 0 of 2: .*dtype float64"):
        model(np.zeros((2, 5, 5, 3)))


# Arrays that are inputs of the network already.


def test_logits(model: Classifier):
    pixels = model.bundle.golden()["pixels"]
    logits = model.logits(pixels)
    assert logits.dtype == np.float32
    assert np.abs(logits - model.bundle.golden()["logits"]).max() < 1e-5


@pytest.mark.parametrize(
    ("pixels", "message"),
    [
        (np.zeros((1, 3, 12, 10), np.float32), "input 'pixels' has dtype float32"),
        (np.zeros((3, 12, 10), np.uint8), r"shape \[3, 12, 10\]; accepted: uint8 of shape \[batch, 3, 12, 10\]"),
        (np.zeros((1, 12, 10, 3), np.uint8), r"shape \[1, 12, 10, 3\]"),
        (np.zeros((1, 1, 12, 10), np.uint8), r"shape \[1, 1, 12, 10\]"),
        ([[0]], "input 'pixels' is a list; accepted: a numpy array"),
    ],
)
def test_logits_of_wrong_arrays(model: Classifier, pixels: np.ndarray, message: str):
    with pytest.raises(BackendError, match=message):
        model.logits(pixels)


@pytest.mark.parametrize("shape", [(4,), (1, 3), (1, 4, 1)])
def test_interpreting_other_shapes(model: Classifier, shape: tuple[int, ...]):
    with pytest.raises(UsageError, match=r"logits have shape .*; accepted: \[batch, 4\]"):
        model.interpret(np.zeros(shape, np.float32))


# Life cycle and threads.


def test_a_closed_model_says_so(bundle: Bundle):
    with load(bundle.path) as model:
        model(noise(1)[0])
    with pytest.raises(BackendError, match="onnxruntime-cpu is closed; load the bundle again"):
        model(noise(1)[0])
    model.close()


def test_repr(model: Classifier):
    assert repr(model) == "Classifier('tiny', 4 classes, variant fp32 on onnxruntime-cpu)"


@pytest.mark.parametrize("threads", [1, 2])
def test_eight_threads_give_what_one_gives(bundle: Bundle, threads: int):
    model = load(bundle.path, threads=threads)
    files = []
    for image in noise(32, 40, 30):
        file = io.BytesIO()
        Image.fromarray(image).save(file, "JPEG")
        files.append(file.getvalue())
    serial = [model(file) for file in files]
    with ThreadPoolExecutor(8) as pool:
        for _ in range(3):
            for together, alone in zip(pool.map(model, files), serial, strict=True):
                assert together == alone
                assert np.array_equal(together.logits, alone.logits)


def test_closing_while_threads_are_calling(bundle: Bundle):
    model = load(bundle.path, threads=1)
    image = noise(1)[0]
    expected = model(image)

    def call(number: int) -> Classification | str:
        if number == 40:
            model.close()
        try:
            return model(image)
        except BackendError as error:
            return str(error)

    with ThreadPoolExecutor(8) as pool:
        outcomes = list(pool.map(call, range(80)))
    assert all(outcome == expected or "is closed" in outcome for outcome in outcomes)
    assert outcomes[0] == expected
    assert "is closed" in outcomes[-1]


# None of these.


@pytest.mark.parametrize("kind", ["logits", "probabilities"])
def test_none_of_these(tmp_path: Path, kind: str):
    bundle = write_bundle(tmp_path / "a.krl", settings={"least_score": 0.6, "output_kind": kind})
    scores = np.float32([[0.1, 0.59, 0.2, 0.11], [0.1, 0.61, 0.2, 0.09]])
    with load(bundle.path) as model:
        refused, known = model.interpret(scores if kind == "probabilities" else np.log(scores), top_k=2)
    assert (refused.known, refused.label, refused.prediction) == (False, "dog", "none of these")
    assert (known.known, known.label, known.prediction) == (True, "dog", "dog")
    assert str(refused) == "none of these (dog 59.0%, frog 20.0%)"
    assert str(known) == "dog 61.0%, frog 20.0%"
    assert [item.to_dict()["known"] for item in (refused, known)] == [False, True]


def test_a_score_of_exactly_the_threshold_is_known(tmp_path: Path):
    bundle = write_bundle(tmp_path / "a.krl", settings={"least_score": 0.5, "output_kind": "probabilities"})
    (result,) = load(bundle.path).interpret(np.float32([[0.5, 0.25, 0.25, 0]]))
    assert result.known


def test_without_a_threshold_every_image_shows_a_class(model: Classifier):
    (result,) = model.interpret(np.float32([[0, 0, 0, 0]]))
    assert (result.known, result.prediction) == (True, "cat")


@pytest.mark.parametrize("least", [0, 1.5, -0.1, "0.5", True, [0.5]])
def test_thresholds_that_are_none(tmp_path: Path, least: object):
    bundle = write_bundle(tmp_path / "a.krl", settings={"least_score": least})
    with pytest.raises(BundleError, match=r"is no classifier: least_score is .*; accepted: a number above 0, up to 1"):
        load(bundle.path)


@pytest.mark.parametrize("kind", ["sigmoid", "sigmoid-logits"])
def test_multi_label_models_have_none(tmp_path: Path, kind: str):
    bundle = write_bundle(tmp_path / "a.krl", settings={"least_score": 0.5, "output_kind": kind})
    with pytest.raises(BundleError, match="for a model whose images can have no label"):
        load(bundle.path)


# Bundles that are not for this pipeline.


def test_another_task(tmp_path: Path):
    bundle = write_bundle(tmp_path / "a.krl", task="segmentation")
    with pytest.raises(BundleError, match="is for the task 'segmentation'; this krl-runtime knows: classification"):
        load(bundle.path)


@pytest.mark.parametrize(
    "changes",
    [
        {"labels": ("cat", "dog")},
        {"labels": ()},
        {"preprocessing": Preprocessing(12, 12)},
        {"inputs": ()},
        {"outputs": ()},
        {"inputs": (TensorSpec("pixels", "float32", ("batch", 3, 12, 10)),)},
        {"inputs": (TensorSpec("pixels", "uint8", ()),)},
        {"inputs": (TensorSpec("pixels", "uint8", ("batch", 3, 12, 10)), TensorSpec("x", "uint8", (1,)))},
        {"outputs": (TensorSpec("logits", "float32", ("batch", 4, 1)),)},
    ],
    ids=lambda changes: next(iter(changes)),
)
def test_tensors_labels_and_preprocessing_have_to_fit(bundle: Bundle, changes: dict):
    other = Bundle.create(
        bundle.path.parent / "b.krl",
        replace(bundle.manifest, **changes),
        {name: bundle.file(name) for name in bundle.manifest.files},
    )
    with pytest.raises(BundleError, match=r"is no classifier: it has (inputs|outputs) .* accepted: "):
        load(other.path)


def test_a_fixed_batch_of_several_is_refused(tmp_path: Path):
    with pytest.raises(BundleError, match="its graph takes 4 images at once; accepted: 1 or any number"):
        load(write_bundle(tmp_path / "a.krl", batch=4).path)


# Real photographs.


def test_real_photographs_as_one_by_one_as_in_batches(tmp_path: Path):
    folder = SHARED_DATA / "natural224"
    if not folder.is_dir():
        pytest.skip("needs the shared images")
    files = sorted(folder.glob("*.jpg"))[:20]
    spec = Preprocessing(64, 64, crop_fraction=0.875)
    model = load(write_bundle(tmp_path / "a.krl", preprocessing=spec).path, threads=1)
    net = TinyNet.random(spec, 4)
    together = model(files)
    for file, answer in zip(files, together, strict=True):
        assert np.abs(answer.logits - net.logits(spec(file)[None])[0]).max() < 1e-5
        assert np.abs(model(file).logits - answer.logits).max() < 1e-5
