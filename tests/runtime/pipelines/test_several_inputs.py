from __future__ import annotations

import asyncio
import io
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from _helpers.bundles import LABELS, npz
from _helpers.fused import INPUTS, arrays, expected, logits, samples, write_fused, write_fused_list
from krl_runtime import BundleError, Classifier, ImageError, MissingExtraError, UsageError, load
from krl_runtime.bundle import TensorSpec
from krl_runtime.bundle.further_inputs import tensor_spec
from krl_runtime.device.bench import bench, golden_image
from krl_runtime.device.evaluate import evaluate
from krl_runtime.device.selftest import selftest
from krl_runtime.device.tune import tune
from krl_runtime.images.descriptors import DescriptorInput


@pytest.fixture
def model(tmp_path: Path):
    write_fused(tmp_path / "fused.krl")
    with load(tmp_path / "fused.krl", Classifier, variant="fp32", backend="cpu") as loaded:
        yield loaded


def test_samples_get_the_logits_of_their_values(model: Classifier):
    given = samples(7)
    results = model(given)
    np.testing.assert_allclose([result.logits for result in results], [expected(each) for each in given], atol=1e-4)
    one = model(given[0])
    assert one.label == results[0].label == LABELS[int(expected(given[0]).argmax())]


def test_each_input_counts(model: Classifier):
    (sample,) = samples(1)
    plain = model(sample).logits
    for name, value in {"color": "blue", "size": 3, "right": sample["image"], "image": sample["right"]}.items():
        assert np.abs(model({**sample, name: value}).logits - plain).max() > 1e-3, name


def test_all_ways_agree(model: Classifier):
    given = samples(5)
    wanted = [result.label for result in model(given)]
    assert [item.result.label for item in model.stream(given)] == wanted
    with model.batched(max_batch=3) as batched:
        futures = [batched.submit(sample) for sample in given]
        assert [future.result().label for future in futures] == wanted
    assert [asyncio.run(model.classify_async(sample)).label for sample in given] == wanted
    with model.watch(iter(given[:1])) as watch:
        assert next(watch).result.label == wanted[0]
    np.testing.assert_allclose(model.logits(arrays(given)), logits(arrays(given)), atol=1e-4)


@pytest.mark.parametrize(
    ("changes", "kind", "message"),
    [
        ({"size": 9}, UsageError, "'size': 9 is out of range; accepted: 1 to 3"),
        ({"color": "green"}, UsageError, "'color': 'green' is not known; accepted: blue, red"),
        ({"shape": 1}, UsageError, "no input 'shape'; accepted: image, color, size, right"),
        ({"right": "no.png"}, ImageError, "input 'right'.*no.png"),
    ],
)
def test_what_is_not_accepted_is_named(model: Classifier, changes: dict, kind: type[Exception], message: str):
    sample = {**samples(1)[0], **changes}
    with pytest.raises(kind, match=message):
        model(sample)
    with pytest.raises(kind, match=f"item 1 of 2: .*{message}"):
        model([samples(1)[0], sample])
    good, bad = model.stream([samples(1)[0], sample])
    assert good.error is None
    assert isinstance(bad.error, kind)


def test_a_bare_image_is_refused_with_what_is_missing(model: Classifier):
    with pytest.raises(UsageError, match="an image alone has no 'color', 'size', 'right'"):
        model(samples(1)[0]["image"])


def test_a_truncated_second_image_is_refused(model: Classifier):
    file = io.BytesIO()
    Image.fromarray(samples(1)[0]["right"]).save(file, "png")
    with pytest.raises(ImageError, match="input 'right'"):
        model({**samples(1)[0], "right": file.getvalue()[:100]})


@pytest.mark.parametrize(
    "changes",
    [
        {"settings": {}},
        {"settings": {"inputs": [each.to_dict() for each in INPUTS[:2]]}},
        {"settings": {"inputs": [each.to_dict() for each in reversed(INPUTS)]}},
        {"settings": {"inputs": "attributes"}},
    ],
)
def test_settings_that_do_not_fit_the_graph_are_refused(tmp_path: Path, changes: dict):
    write_fused(tmp_path / "a.krl", **changes)
    with pytest.raises(BundleError, match="is no classifier"):
        load(tmp_path / "a.krl")


def test_a_first_input_of_another_name_is_refused(tmp_path: Path):
    manifest = write_fused(tmp_path / "a.krl").manifest
    first = TensorSpec("image", "uint8", manifest.inputs[0].shape)
    with pytest.raises(BundleError, match="first input is 'image'; accepted: 'pixels'"):
        load(write_fused(tmp_path / "b.krl", inputs=(first, *manifest.inputs[1:])).path)


def test_a_missing_library_is_named_when_a_bundle_is_loaded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    import sys

    pixels = np.zeros((3, 12, 10), np.uint8)
    lbp = DescriptorInput.fit([pixels], ["lbp"])
    settings = [*(each.to_dict() for each in INPUTS[:2]), lbp.to_dict()]
    whole = write_fused(tmp_path / "a.krl").manifest
    specs = (*whole.inputs[:3], tensor_spec(lbp))
    bundle = write_fused(tmp_path / "b.krl", settings={"inputs": settings}, inputs=specs)
    for name in ("skimage", "skimage.feature"):
        monkeypatch.setitem(sys.modules, name, None)
    with pytest.raises(MissingExtraError, match="features"):
        Classifier(bundle, None)
    load(tmp_path / "a.krl", backend="cpu").close()  # colors need no library


def test_golden_inputs_need_every_input(tmp_path: Path):
    whole = arrays(samples(3))
    bundle = write_fused(tmp_path / "a.krl", contents={"golden.npz": npz(pixels=whole["pixels"], logits=logits(whole))})
    with pytest.raises(BundleError, match="'attributes' is missing"):
        selftest(bundle)


def test_the_verbs_of_a_device_run(tmp_path: Path, model: Classifier):
    replays = selftest(model.bundle)
    assert {replay.state for replay in replays if replay.kind == "cpu"} == {"passed"}
    result = bench(model, golden_image(model.bundle), batch=2, warmup=0, iterations=2)
    assert result.throughput_per_s > 0
    given = samples(12)
    truth = [LABELS[int(expected(sample).argmax())] for sample in given]
    path = write_fused_list(tmp_path / "data", given, truth)
    found = evaluate(model.bundle, path, variants=["fp16"], backends=["cpu"])
    assert [row.metrics["top1"] for row in found.rows if row.variant == "fp32"] == [1.0]
    best = tune(model.bundle, max_drop=100, rounds=1, threads=[1], write=False).measurements[0]
    assert best.cause == ""
