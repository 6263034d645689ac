from __future__ import annotations

from itertools import pairwise

import numpy as np
import pytest

from _helpers.graphs import graph, node
from krl_deploy.evaluation.comparison import compare, interleaved_latency, machine, outputs_of
from krl_deploy.graph.files import to_bytes
from krl_deploy.graph.session import count_convolutions, open_cpu, optimized_graph
from krl_runtime.errors import BackendError, DataError, ModelError
from krl_runtime.images.folders import ImageFile
from krl_runtime.images.labeled import decoded, open_data
from krl_runtime.images.preprocessing import Preprocessing

PIXELS = np.arange(4 * 6, dtype=np.uint8).reshape(6, 1, 2, 2)


def session(shift, batch: int | str = "batch"):
    """Logits are the four pixels plus ``shift``."""
    nodes = [node("Cast", ["pixels"], "f", to=1), node("Flatten", ["f"], "v"), node("Add", ["v", "k"], "logits")]
    model = graph(
        nodes, {"pixels": [batch, 1, 2, 2]}, {"logits": None}, {"k": np.float32(shift)}, dtypes={"pixels": "uint8"}
    )
    return open_cpu(to_bytes(model))


@pytest.mark.parametrize(("batch", "asked"), [("batch", 4), (1, 4), ("batch", 1)])
def test_logits_in_any_batch(batch, asked):
    assert outputs_of(session(0, batch), PIXELS, batch=asked).tolist() == PIXELS.reshape(6, 4).tolist()


def test_logits_that_are_not_finite_and_failures_are_reported():
    with pytest.raises(ModelError, match="not finite"):
        outputs_of(session(np.inf), PIXELS)
    with pytest.raises(BackendError, match="ONNX Runtime failed"):
        outputs_of(session(0), PIXELS[:, :, :1])


def test_scores_by_hand():
    """The reference answers 3 for each image; the other one adds a lot to the first logit: it answers 0."""
    labels = np.array([3, 3, 3, 0, 0, 1])
    sessions = {"fp32": session([0, 0, 0, 0]), "other": session([100, 0, 0, 0])}
    parts = [(PIXELS[:4], labels[:4]), (PIXELS[4:], labels[4:])]
    count, scores = compare(sessions, parts)
    assert count == 6
    assert scores["fp32"].top1 == 0.5
    assert scores["other"].top1 == pytest.approx(1 / 3)
    assert (scores["fp32"].agreement, scores["fp32"].max_error) == (1, 0)
    assert (scores["other"].agreement, scores["other"].max_error) == (0, 100)


def test_without_all_labels_there_is_no_accuracy():
    _, scores = compare({"fp32": session(0)}, [(PIXELS, np.array([3, 3, 3, 3, 3, -1]))])
    assert scores["fp32"].top1 is None


def test_nothing_to_measure_on_is_refused():
    with pytest.raises(DataError, match="no image is left"):
        compare({"fp32": session(0)}, [])


def test_files_are_decoded_in_parts(digits, monkeypatch):
    monkeypatch.setattr("krl_runtime.images.labeled._CHUNK", 7)
    folder = open_data(digits, on_bad="refuse")
    images = folder.split("val")[:20]
    spec = Preprocessing(8, 8, channels=1, mean=(0.0,), std=(1.0,))
    parts = list(decoded(images, spec, on_bad="refuse"))
    assert [len(pixels) for pixels, _ in parts] == [7, 7, 6]
    assert np.concatenate([labels for _, labels in parts]).tolist() == [image.label for image in images]


def test_bad_files_are_skipped_or_refused(tmp_path, digits, monkeypatch):
    monkeypatch.setattr("krl_runtime.images.labeled._CHUNK", 2)
    bad = tmp_path / "bad.png"
    bad.write_bytes(b"no image")
    good = open_data(digits, on_bad="refuse").split("val")[0]
    spec = Preprocessing(8, 8, channels=1, mean=(0.0,), std=(1.0,))
    images = [ImageFile(bad, 0), ImageFile(bad, 0), good]
    assert [len(pixels) for pixels, _ in decoded(images, spec, on_bad="skip")] == [1]
    with pytest.raises(DataError, match=r"bad\.png"):
        list(decoded(images, spec, on_bad="refuse"))


def test_latency_shows_which_is_slower():
    chain = ["f", *(f"m{index}" for index in range(6))]
    nodes = [node("Cast", ["pixels"], "f", to=1)]
    nodes += [node("MatMul", [before, "w"], after) for before, after in pairwise(chain)]
    nodes.append(node("ReduceMax", [chain[-1]], "logits", keepdims=0))
    slow = graph(
        nodes,
        {"pixels": ["batch", 256]},
        {"logits": None},
        {"w": np.eye(256, dtype=np.float32)},
        dtypes={"pixels": "uint8"},
    )
    fast = graph(
        [nodes[0], node("ReduceMax", ["f"], "logits", keepdims=0)],
        {"pixels": ["batch", 256]},
        {"logits": None},
        dtypes={"pixels": "uint8"},
    )
    sessions = {name: open_cpu(to_bytes(model)) for name, model in (("slow", slow), ("fast", fast))}
    found = interleaved_latency(sessions, np.ones((256, 256), np.uint8), rounds=3, block_seconds=0.005)
    assert found["slow"] > found["fast"] > 0


def test_float_convolutions_are_counted_and_normalization_is_not():
    values = {
        "w": np.ones((8, 8, 3, 3), np.float32),
        **{name: np.ones(8, np.float32) for name in ("g", "b", "m", "v")},
    }
    nodes = [
        node("Conv", ["x", "w"], "c"),
        node("MaxPool", ["c"], "p", kernel_shape=[2, 2]),
        node("BatchNormalization", ["p", "g", "b", "m", "v"], "n"),
        node("Conv", ["n", "w"], "y"),
    ]
    model = graph(nodes, {"x": ["batch", 8, 12, 12]}, {"y": None}, values)
    assert count_convolutions(optimized_graph(to_bytes(model))) == {"int8_convolutions": 0, "float_convolutions": 2}


def test_machine_says_what_a_time_depends_on():
    found = machine()
    assert found["cores"] >= 1
    assert found["processor"]
    assert found["onnxruntime"][0].isdigit()
    assert found["exact_int8"] is True


def test_machine_without_proc(monkeypatch):
    monkeypatch.setattr("krl_runtime.processor.read_start", lambda path: "")
    assert isinstance(machine()["processor"], str)
    assert machine()["int8_instructions"] is None


@pytest.mark.parametrize(("flags", "found"), [("avx2", []), ("avx2 avx512_vnni amx_int8", ["avx512_vnni", "amx_int8"])])
def test_machine_says_what_int8_runs_on(monkeypatch, flags, found):
    monkeypatch.setattr("krl_runtime.processor.read_start", lambda path: f"cpu family: 6\nflags: {flags}\n")
    assert machine()["int8_instructions"] == found
