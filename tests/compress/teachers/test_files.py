"""Teachers that are bundles and ONNX files: the same teacher in every form teaches the same student."""

from __future__ import annotations

import json
import logging
from dataclasses import replace
from pathlib import Path

import numpy as np
import onnx
import onnxruntime as ort
import pytest
import torch

import krl_deploy
from _helpers.digits import train_run, write_digits
from _helpers.graphs import graph, node
from _helpers.images import SHARED_DATA, blurred_noise
from krl_compress.config import CacheConfig, DistillConfig, LossConfig
from krl_compress.distillation.distill import distill
from krl_compress.teachers.graph import GraphFeatures, GraphNetwork, OnnxGraph
from krl_compress.teachers.kinds import kind_of, task_of
from krl_compress.teachers.loading import load_teacher
from krl_compress.teachers.restorers import load_restorer
from krl_compress.verbs import distill as checked_distill
from krl_runtime.errors import KrlError, ModelError, UsageError
from krl_runtime.images.preprocessing import Preprocessing
from krl_train.config import AugmentConfig, DataConfig, InputConfig, LoopConfig
from krl_train.run import Run

LOOP = LoopConfig(epochs=1, batch_size=50, device="cpu", precision="fp32")
LOGITS = LossConfig(loss=("ce:weight=0.1", "kd:weight=0.9"))
MEAN, STD = (0.5, 0.4, 0.3), (0.2, 0.25, 0.3)
RNG = np.random.default_rng(0)
KERNEL = RNG.normal(size=(4, 3, 3, 3)).astype(np.float32)
HEAD = RNG.normal(size=(4, 5)).astype(np.float32)


@pytest.fixture(scope="module")
def forms(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """One classifier as a run and as a bundle, and its data."""
    folder = tmp_path_factory.mktemp("forms")
    data = write_digits(folder / "digits", per_class=20, val_per_class=10)
    train_run(folder / "run", data, source=str(data))
    krl_deploy.export(run=folder / "run", out=folder / "t.krl", data=data / "val")
    return {"data": data, "run": folder / "run", "bundle": folder / "t.krl"}


def classifier(batch: int | str = "n", *, last: bool = False, softmax: bool = False) -> onnx.ModelProto:
    """Return convolution, ReLU, mean and linear layer, of images ``[N, C, H, W]`` or with channels last."""
    nodes = [node("Transpose", ["x"], "turned", perm=[0, 3, 1, 2])] if last else []
    nodes += [
        node("Conv", ["turned" if last else "x", "k"], "c", pads=[1, 1, 1, 1], strides=[2, 2]),
        node("Relu", ["c"], "r"),
        node("ReduceMean", ["r", "axes"], "m", keepdims=0),
        node("MatMul", ["m", "h"], "l" if softmax else "y"),
    ]
    nodes += [node("Softmax", ["l"], "y", axis=1)] if softmax else []
    shape = [batch, 8, 8, 3] if last else [batch, 3, 8, 8]
    return graph(nodes, {"x": shape}, {"y": None}, {"k": KERNEL, "h": HEAD, "axes": np.int64([2, 3])})


def by_hand(pixels: np.ndarray) -> np.ndarray:
    """Return the logits of ``classifier``, one image at a time, by plain ONNX Runtime."""
    session = ort.InferenceSession(classifier().SerializeToString(), providers=["CPUExecutionProvider"])
    mean, std = (np.float32(each)[:, None, None] for each in (MEAN, STD))
    rows = [session.run(None, {"x": ((image / np.float32(255) - mean) / std)[None]})[0][0] for image in pixels]
    return np.stack(rows)


def network_of(model: onnx.ModelProto, **options) -> GraphNetwork:
    return GraphNetwork(
        OnnxGraph(model.SerializeToString(), "t.onnx", **options), Preprocessing(8, 8, mean=MEAN, std=STD)
    )


@pytest.mark.parametrize("options", [{}, {"batch": 1}, {"batch": 4}, {"last": True}, {"batch": 4, "last": True}])
def test_a_graph_answers_as_plain_onnxruntime_does(options) -> None:
    pixels = RNG.integers(0, 256, (6, 3, 8, 8)).astype(np.uint8)
    found = network_of(classifier(**options))(torch.from_numpy(pixels))
    np.testing.assert_allclose(found.numpy(), by_hand(pixels), rtol=1e-4, atol=1e-4)


def test_probabilities_become_log_probabilities() -> None:
    pixels = RNG.integers(0, 256, (6, 3, 8, 8)).astype(np.uint8)
    found = network_of(classifier(softmax=True), kind="probabilities")(torch.from_numpy(pixels))
    wanted = torch.from_numpy(by_hand(pixels)).log_softmax(1).clamp(min=np.log(1e-6))  # smaller ones are cut off
    torch.testing.assert_close(found, wanted, rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize("last", [False, True])
def test_tensors_of_a_graph_are_its_features(last) -> None:
    network = network_of(classifier(last=last))
    source = GraphFeatures(network)
    maps = {tap.name: tap for tap in source.list_maps()}
    assert [tap.name for tap in source.stages()] == (["turned", "r"] if last else ["r"])
    assert maps["r"].shape == (4, 4, 4)
    assert (source.has_negative_values(maps["c"]), source.has_negative_values(maps["r"])) == (True, False)
    pixels = torch.randint(0, 256, (3, 3, 8, 8), dtype=torch.uint8)
    with source.reading([maps["r"]], embedding=True) as features:
        network(pixels)
    mean, std = (torch.tensor(each).reshape(3, 1, 1) for each in (MEAN, STD))
    wanted = torch.conv2d((pixels / 255 - mean) / std, torch.from_numpy(KERNEL), stride=2, padding=1).relu()
    torch.testing.assert_close(features.maps[0], wanted, rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(features.embedding, wanted.mean((2, 3)), rtol=1e-4, atol=1e-4)


def test_maps_with_channels_last_are_turned() -> None:
    kernel = np.eye(3, dtype=np.float32)
    nodes = [
        node("Transpose", ["x"], "t", perm=[0, 2, 3, 1]),
        node("MatMul", ["t", "k"], "map"),
        node("ReduceMean", ["map", "axes"], "m", keepdims=0),
        node("MatMul", ["m", "k"], "y"),
    ]
    network = network_of(graph(nodes, {"x": ["n", 3, 8, 8]}, {"y": None}, {"k": kernel, "axes": np.int64([1, 2])}))
    tap = next(tap for tap in GraphFeatures(network).list_maps() if tap.name == "map")
    assert (tap.shape, tap.channels_last) == ((3, 8, 8), True)


def distilled(forms: dict[str, Path], out: Path, *teachers: object, **changes) -> Run:
    base = DistillConfig(
        teacher=tuple(str(item) if isinstance(item, Path) else item for item in teachers),
        student="lenet5-half",
        out=out,
        data=DataConfig(data=str(forms["data"])),
        augment=AugmentConfig(augment=False),
        input=InputConfig(size=(32,)),
        loop=LOOP,
        losses=LOGITS,
    )
    return distill(replace(base, **changes))


def test_a_run_a_bundle_and_a_network_teach_the_same(forms, tmp_path) -> None:
    own = Run.open(forms["run"]).network()
    pixels = torch.randint(0, 256, (8, 1, 16, 16), dtype=torch.uint8)
    with torch.no_grad():
        wanted = own(pixels)
    graph_of = OnnxGraph((forms["bundle"] / "model.fp32.onnx").read_bytes(), "t")
    torch.testing.assert_close(GraphNetwork(graph_of, own.preprocessing)(pixels), wanted, rtol=1e-4, atol=1e-4)
    teachers = {"run": forms["run"], "bundle": forms["bundle"], "own": own}
    runs = {name: distilled(forms, tmp_path / name, item) for name, item in teachers.items()}
    for name, run in runs.items():
        record = run.record
        assert record.parent["teachers"][0]["kind"] == name
        history = record.history[-1]
        for key in ("loss", "ce", "kd", "val_loss"):
            assert history[key] == pytest.approx(runs["run"].record.history[-1][key], rel=1e-2), (name, key)
        assert record.metrics["teacher"]["top1"] == runs["run"].record.metrics["teacher"]["top1"]
    entry = json.loads((forms["bundle"] / "manifest.json").read_bytes())["files"]["model.fp32.onnx"]
    assert runs["bundle"].record.parent["teachers"][0]["sha256"] == entry["sha256"]
    assert runs["bundle"].record.configuration["teacher"] == [str(forms["bundle"])]


def test_teachers_of_three_kinds_are_stored_and_the_files_hash_counts(forms, tmp_path, caplog) -> None:
    file = tmp_path / "t.onnx"
    file.write_bytes((forms["bundle"] / "model.fp32.onnx").read_bytes())
    cache = CacheConfig(cache_teacher=True, cache_dir=tmp_path / "cache")
    with caplog.at_level(logging.INFO, logger="krl"):
        run = distilled(forms, tmp_path / "a", file, forms["bundle"], forms["run"], cache=cache)
    assert "1 parts computed, 0 reused" in caplog.text
    assert [teacher["kind"] for teacher in run.record.parent["teachers"]] == ["onnx", "bundle", "run"]
    folders = len(list(cache.cache_dir.iterdir()))
    model = onnx.load(file)
    model.doc_string = "other bytes, the same network"
    onnx.save(model, file)
    distilled(forms, tmp_path / "b", file, cache=cache)
    assert len(list(cache.cache_dir.iterdir())) == folders + 1
    with pytest.raises(KrlError, match=r"cannot be resumed.*sha256"):
        distilled(forms, tmp_path / "b", forms["bundle"] / "model.fp32.onnx", cache=cache, resume=True)


def test_a_quantized_file_teaches(forms, tmp_path) -> None:
    from onnxruntime.quantization import CalibrationDataReader, quantize_static

    class Reader(CalibrationDataReader):
        def __init__(self) -> None:
            self.left = [RNG.normal(size=(1, 3, 8, 8)).astype(np.float32) for _ in range(8)]

        def get_next(self):
            return {"x": self.left.pop()} if self.left else None

    onnx.save(classifier(), tmp_path / "float.onnx")
    quantize_static(tmp_path / "float.onnx", tmp_path / "int8.onnx", Reader())
    numbers = tuple(f"{digit}={digit % 5}" for digit in range(5))
    with pytest.raises(UsageError, match=r"the data's class '5' has no counterpart"):
        distilled(forms, tmp_path / "x", tmp_path / "int8.onnx", map_labels=numbers, input=InputConfig(size=(8,)))
    found = network_of(onnx.load(tmp_path / "int8.onnx"))(torch.randint(0, 256, (3, 3, 8, 8), dtype=torch.uint8))
    assert found.shape == (3, 5)
    quantized = forms["bundle"].parent / "int8.onnx"
    model = onnx.load(forms["bundle"] / "model.fp32.onnx")
    onnx.save(model, tmp_path / "bundle.onnx")

    class Pixels(CalibrationDataReader):
        def __init__(self) -> None:
            self.left = [RNG.integers(0, 256, (1, 1, 16, 16)).astype(np.uint8) for _ in range(8)]

        def get_next(self):
            return {model.graph.input[0].name: self.left.pop()} if self.left else None

    quantize_static(tmp_path / "bundle.onnx", quantized, Pixels())
    run = distilled(forms, tmp_path / "student", quantized)
    assert run.record.parent["teachers"][0]["kind"] == "onnx"
    assert run.record.metrics["teacher"]["top1"] > 0.5


def test_losses_on_features_take_tensors_by_name(forms, tmp_path) -> None:
    losses = LossConfig(loss=("ce", "at", "rkd"))
    run = distilled(forms, tmp_path / "auto", forms["bundle"], losses=losses, student="resnet8", input=InputConfig())
    assert {"at", "rkd"} <= set(run.record.history[-1])
    named = replace(losses, feature_taps=("layer1=nothing",))
    message = r"--feature-taps layer1=nothing: the teacher has no feature map 'nothing'; it has: \w"
    with pytest.raises(UsageError, match=message):
        distilled(forms, tmp_path / "no", forms["bundle"], losses=named, student="resnet8", input=InputConfig())


WRONG = {
    "two inputs": (
        graph([node("Concat", ["x", "z"], "y", axis=0)], {"x": ["n", 3, 8, 8], "z": ["n", 3, 8, 8]}, {"y": None}),
        r"has the inputs: x float32 .*z float32.*krl-deploy import",
    ),
    "channels": (graph([node("Relu", ["x"], "y")], {"x": ["n", 7, 8, 8]}, {"y": None}), "images of 1 or 3 channels"),
    "rank": (graph([node("Relu", ["x"], "y")], {"x": ["n", 8]}, {"y": None}), "accepted: one of float32"),
    "two outputs": (
        graph([node("Relu", ["x"], "y"), node("Neg", ["x"], "z")], {"x": ["n", 3, 8, 8]}, {"y": None, "z": None}),
        "has 2 outputs",
    ),
    "one class": (
        graph([node("ReduceMean", ["x", "a"], "y", keepdims=0)], {"x": ["n", 3, 8, 8]}, {"y": None}, {"a": [1, 2, 3]}),
        "accepted: logits or probabilities",
    ),
}


@pytest.mark.parametrize("name", WRONG)
def test_files_of_other_forms_are_refused_with_advice(forms, tmp_path, name) -> None:
    model, message = WRONG[name]
    onnx.save(model, tmp_path / "t.onnx")
    with pytest.raises(ModelError, match=message):
        distilled(forms, tmp_path / "out", tmp_path / "t.onnx", input=InputConfig(size=(8,)))
    assert not (tmp_path / "out").exists()


def test_other_numbers_of_classes_are_mapped_or_refused(forms, tmp_path) -> None:
    onnx.save(classifier(), tmp_path / "t.onnx")
    with pytest.raises(UsageError, match=r"do not have the same labels; teacher: 5 \(0, 1, 2, 3, 4\)"):
        distilled(forms, tmp_path / "out", tmp_path / "t.onnx", input=InputConfig(size=(8,)))


def test_damaged_files_and_weights_elsewhere_are_refused(tmp_path) -> None:
    with pytest.raises(ModelError, match=r"teacher a.onnx: cannot open the model"):
        OnnxGraph(b"not a model", "a.onnx")
    model = classifier()
    onnx.save(model, tmp_path / "t.onnx", save_as_external_data=True, size_threshold=0)
    with pytest.raises(ModelError, match="keeps weights in other files"):
        OnnxGraph((tmp_path / "t.onnx").read_bytes(), "t.onnx")


def test_what_teaches_is_told_apart_by_what_is_on_disk(forms, tmp_path) -> None:
    (tmp_path / "weights.pt").write_bytes(b"")
    onnx.save(classifier(), tmp_path / "t.ONNX")
    kinds = [kind_of(str(path)) for path in (forms["run"], forms["bundle"], tmp_path / "t.ONNX")]
    assert [*kinds, kind_of("resnet18"), kind_of("timm/resnet18"), kind_of("pkg:Net")] == [
        *("run", "bundle", "onnx", "published", "published", "own")
    ]
    assert task_of(str(forms["bundle"])) == task_of(str(tmp_path / "t.ONNX")) == "classification"
    for name, message in (("weights.pt", "cannot teach"), ("no.onnx", "does not exist"), ("no.krl", "does not exist")):
        with pytest.raises(UsageError, match=f"{message}; accepted: a run, a bundle"):
            checked_distill(teacher=str(tmp_path / name), student="resnet8", data="digits", out=tmp_path / "out")
    with pytest.raises(UsageError, match="nor allowed to be downloaded"):
        checked_distill(teacher="resnet18", student="resnet8", data="digits", out=tmp_path / "out")


def test_published_weights_of_other_classes_are_refused_before_anything_is_downloaded() -> None:
    pytest.importorskip("timm")
    with pytest.raises(UsageError, match="its published weights know 21843 classes; accepted"):
        load_teacher("timm/vit_base_patch16_224.augreg_in21k", pretrained=True)


def enlarger(sides: tuple[int | str, int | str], scale: int = 2, gain: float = 1.0) -> onnx.ModelProto:
    """Return a network that repeats each pixel ``scale`` times in both directions."""
    weight = np.full((scale * scale, 1, 1, 1), gain, np.float32)
    nodes = [node("Conv", ["x", "w"], "c"), node("DepthToSpace", ["c"], "y", blocksize=scale)]
    return graph(nodes, {"x": ["n", 1, *sides]}, {"y": None}, {"w": weight})


@pytest.fixture(scope="module")
def photographs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("photographs")
    for split, count in (("train", 2), ("val", 1)):
        (folder / split).mkdir()
        for index in range(count):
            blurred_noise(60, (count, index), 2).save(folder / split / f"{index}.png")
    return folder


@pytest.mark.parametrize("sides", [("h", "w"), (16, 16)])
def test_a_restorers_file_teaches(photographs, tmp_path, sides) -> None:
    onnx.save(enlarger(sides), tmp_path / "t.onnx")
    assert task_of(str(tmp_path / "t.onnx")) == "restoration"
    teacher = load_restorer(str(tmp_path / "t.onnx"))
    pixels = torch.randint(0, 256, (2, 1, 37, 21), dtype=torch.uint8)
    wanted = pixels.float().repeat_interleave(2, 2).repeat_interleave(2, 3)
    torch.testing.assert_close(teacher.network(pixels), wanted, rtol=1e-4, atol=1e-3)
    config = DistillConfig(
        teacher=(str(tmp_path / "t.onnx"),),
        student="espcn-8",
        out=tmp_path / "out",
        loop=LOOP,
        data=DataConfig(data=str(photographs)),
    )
    record = distill(config).record
    assert (record.model.arguments["scale"], record.model.arguments["color"], record.model.in_channels) == (2, "y", 1)
    assert record.parent["teachers"][0]["kind"] == "onnx"
    assert {"pixels", "teacher"} <= set(record.history[-1])
    with pytest.raises(ModelError, match="has no features to compare"):
        distill(replace(config, out=tmp_path / "no", losses=LossConfig(loss=("pixels", "affinity"))))
    small = replace(config, out=tmp_path / "small", input=InputConfig(size=(8,)))
    assert distill(small).record.preprocessing.shape == (1, 8, 8)


def test_restorers_of_other_units_or_without_a_scale_are_refused(tmp_path) -> None:
    onnx.save(enlarger(("h", "w"), gain=255.0), tmp_path / "units.onnx")
    with pytest.raises(ModelError, match=r"accepted: images of 0 to 1 .*krl-deploy import --task restoration"):
        load_restorer(str(tmp_path / "units.onnx"))
    onnx.save(enlarger(("h", "w"), scale=1), tmp_path / "same.onnx")
    with pytest.raises(ModelError, match="keeps the size of images"):
        load_restorer(str(tmp_path / "same.onnx"))


@pytest.mark.skipif(not (SHARED_DATA / "models").is_dir(), reason="shared data is absent")
def test_the_espcn_of_the_onnx_zoo_teaches(photographs, tmp_path) -> None:
    file = SHARED_DATA / "models" / "super_resolution_espcn_x3.onnx"
    teacher = load_restorer(str(file))
    assert (teacher.arguments["scale"], teacher.network.preprocessing.shape) == (3, (1, 24, 24))
    image = RNG.integers(0, 256, (1, 1, 224, 224)).astype(np.uint8)
    session = ort.InferenceSession(file, providers=["CPUExecutionProvider"])
    wanted = 255 * session.run(None, {"input": (image / np.float32(255))})[0]
    np.testing.assert_allclose(teacher.network(torch.from_numpy(image)).numpy(), wanted, rtol=1e-3, atol=0.05)
    # Patches that are smaller than the graph's sides: their inner part is that of the whole image.
    corners = [(10, 20), (50, 60), (100, 7), (180, 180), (90, 120)]
    patches = np.stack([image[0, :, top : top + 24, left : left + 24] for top, left in corners])
    made = teacher.network(torch.from_numpy(patches)).numpy()
    for patch, (top, left) in zip(made, corners, strict=True):
        inner = wanted[0, :, 3 * (top + 8) : 3 * (top + 16), 3 * (left + 8) : 3 * (left + 16)]
        np.testing.assert_allclose(patch[:, 24:48, 24:48], inner, atol=0.6)
    config = DistillConfig(
        teacher=(str(file),),
        student="espcn-8",
        out=tmp_path / "out",
        loop=LOOP,
        data=DataConfig(data=str(photographs)),
        input=InputConfig(size=(16,)),
    )
    assert "teacher" in distill(config).record.history[-1]
