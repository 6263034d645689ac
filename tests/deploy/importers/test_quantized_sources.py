"""Models that come with ranges of their own: trained as their INT8 graph computes, or files of other tools."""

from __future__ import annotations

import json
import logging
from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
from torch import nn

from _helpers import zoo
from _helpers.digits import PREPROCESSING, pixels_of, record
from _helpers.graphs import constants, ops, run
from _helpers.quantized import float_input, ranges_of
from krl_deploy.calibration.record import Calibration
from krl_deploy.cli import main
from krl_deploy.config import ExportConfig, ImportConfig, QuantizeConfig
from krl_deploy.exporters import classifier as exporting
from krl_deploy.exporters.conversion import to_onnx
from krl_deploy.exporters.export import export
from krl_deploy.graph.quantized import read_quantized
from krl_deploy.graph.session import count_convolutions, optimized_graph
from krl_deploy.importers.import_onnx import import_onnx
from krl_deploy.importers.quantized import taken_apart
from krl_deploy.precision.emit_tensorrt import to_tensorrt
from krl_deploy.precision.quantize import quantize
from krl_deploy.precision.variants import came_in_float
from krl_runtime import Bundle
from krl_runtime.errors import CheckFailedError
from krl_runtime.images.preprocessing import Preprocessing
from krl_train.models import Network, build_model
from krl_train.models.quantized import FakeQuantized
from krl_train.run import ModelSpec, Run

LABELS = [str(digit) for digit in range(10)]
SMALL = {
    "mobilenet_v3": zoo.mobilenet_v3,
    "efficientnet": zoo.efficientnet,
    "shufflenet": zoo.shufflenet,
    "densenet": zoo.densenet,
    "regnet": zoo.regnet,
    "inception": zoo.inception,
    "convnext": zoo.convnext,
    "swin": zoo.swin,
}


def rounding(name: str, size: int, channels: int = 3) -> Network:
    """A network with random weights, by name or a small one of its family; scales were observed on random pixels."""
    torch.manual_seed(0)
    backbone = FakeQuantized(
        SMALL[name]() if name in SMALL else build_model(name, 10, channels), (channels, size, size)
    )
    network = Network(backbone, Preprocessing(size, size, channels=channels)).eval()
    with torch.no_grad(), backbone.observing():
        network(pixels(size, channels))
    return network


def pixels(size: int, channels: int = 3) -> torch.Tensor:
    return torch.randint(0, 256, (4, channels, size, size), dtype=torch.uint8, generator=torch.manual_seed(1))


@pytest.mark.filterwarnings("ignore:TF32 acceleration:UserWarning")  # torch's own, of its switch for oneDNN
@pytest.mark.parametrize(
    ("name", "size"),
    [
        ("resnet8", 32),
        ("wrn-16-2", 32),
        ("dscnn-0.5", 32),
        ("cifar-vgg8", 32),
        *((name, 32) for name in SMALL if name != "swin"),
        pytest.param("resnet18", 64, marks=pytest.mark.slow),
        pytest.param("mobilenet_v3_small", 64, marks=pytest.mark.slow),
        pytest.param("squeezenet1_1", 64, marks=pytest.mark.slow),
    ],
)
def test_training_rounds_where_the_graph_does(name, size):
    """Same activations, same weights, same scales: the logits differ by what the order of a sum can turn over.

    In deep networks of random weights one value that rounds the other way moves a logit by 3 %, between torch's own
    kernels as well; so the graph has to agree with one of their orders.
    """
    network = rounding(name, size)
    read = read_quantized(to_onnx(network, (3, size, size), 20))
    written = to_tensorrt(read.model, read.ranges).model
    assert {node.input[0] for node in written.graph.node if node.op_type == "QuantizeLinear"} == read.ranges.keys()
    with torch.no_grad():
        rounded = network(pixels(size)).numpy()
        with torch.backends.mkldnn.flags(enabled=False):
            in_another_order = network(pixels(size)).numpy()
        with network.backbone.computing("float"):
            exact = network(pixels(size)).numpy()
    graph = run(written, optimize=False, pixels=pixels(size).numpy())[0]
    largest = np.abs(rounded).max()
    np.testing.assert_allclose(run(read.model, pixels=pixels(size).numpy())[0], exact, atol=1e-4 * largest)
    assert min(np.abs(graph - order).max() for order in (rounded, in_another_order)) <= 0.03 * largest
    int8 = [value for value in constants(written).values() if value.dtype == np.int8 and value.ndim > 1]
    layers = [
        layer for layer in network.modules() if isinstance(layer, nn.Conv2d | nn.Linear) and hasattr(layer, "mode")
    ]
    assert len(int8) == len(layers)


@pytest.mark.slow
def test_attention_stays_in_float_where_training_does_not_reach_it():
    network = rounding("swin", 32)
    read = read_quantized(to_onnx(network, (3, 32, 32), 20))
    keep = came_in_float(read.model, read.ranges)
    assert keep
    written = to_tensorrt(read.model, read.ranges, keep=keep).model
    assert {node.input[0] for node in written.graph.node if node.op_type == "QuantizeLinear"} == read.ranges.keys()


@pytest.fixture(scope="module")
def trained(tmp_path_factory, digits):
    """A run of digits that was trained for a few steps as its INT8 graph computes."""
    from _helpers.digits import train_run

    float_run = train_run(tmp_path_factory.mktemp("runs") / "float", digits, model="resnet8", steps=60)
    spec = ModelSpec("resnet8", 10, 1, {"quantize": "int8"})
    network = Network(FakeQuantized(float_run.network().backbone, PREPROCESSING.shape), PREPROCESSING)
    inputs, labels = (torch.from_numpy(array) for array in pixels_of(digits / "train"))
    with torch.no_grad(), network.backbone.observing():
        network(inputs[::4])
    optimizer = torch.optim.AdamW(network.parameters(), lr=1e-4)
    for start in range(0, 200, 50):
        loss = nn.functional.cross_entropy(network(inputs[start : start + 50]), labels[start : start + 50])
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    return Run.write(tmp_path_factory.mktemp("runs") / "int8", record(spec), network.backbone.state_dict())


def test_a_trained_run_keeps_its_ranges(trained, digits, tmp_path, monkeypatch):
    result = export(ExportConfig(trained.path, tmp_path / "t.krl", data=digits))
    assert result["trained_int8"]["agreement"] > 0.9
    assert result["trained_int8"]["activations"] == len(trained.network().backbone.quantizers())
    bundle = Bundle.open(tmp_path / "t.krl")
    brought = Calibration.from_bytes(bundle.read("calibration.json"))
    scales = sorted(high / 127 for _, high in brought.given.values())
    learned = sorted(float(quantizer.scale.detach()) for quantizer in trained.network().backbone.quantizers())
    assert scales == pytest.approx(learned, rel=1e-6)

    config = QuantizeConfig(bundle.path, digits, limit=100, max_drop=5, equalize="all")
    measured, _ = quantize(config)
    assert measured["calibration"]["method"] == "given, else mse"
    assert measured["equalized_activations"] == 0
    made = Bundle.open(bundle.path)
    kept = Calibration.from_bytes(made.read("calibration.json"))
    assert kept.given == brought.given
    int8 = onnx.load(made.file("model.int8.fp32.onnx"))
    written = [float(v) for n, v in constants(int8).items() if n.endswith("_scale") and v.ndim == 0]
    assert sorted(written) == pytest.approx(learned, rel=2**-11)  # as FP16
    # For the CPU: what has no negative values has twice as many levels, and no convolution stays float.
    assert count_convolutions(optimized_graph(made.read("model.int8.cpu.onnx")))["float_convolutions"] == 0
    inputs, _ = pixels_of(digits / "val")
    with torch.no_grad():
        expected = trained.network()(torch.from_numpy(inputs[:50])).numpy()
    logits = run(int8, optimize=False, pixels=inputs[:50])[0]
    assert (logits.argmax(1) == expected.argmax(1)).mean() > 0.95

    again, _ = quantize(QuantizeConfig(bundle.path, digits, limit=100, max_drop=5, reuse_calibration=True))
    assert again["calibration"] == measured["calibration"]


def test_a_graph_that_does_not_compute_what_was_trained_is_refused(trained, digits, tmp_path, monkeypatch):
    def half_the_ranges(model):
        read = read_quantized(model)
        ranges = {name: (low / 4, high / 4) for name, (low, high) in read.ranges.items()}
        return type(read)(read.model, ranges, read.weight_scales)

    monkeypatch.setattr(exporting, "read_quantized", half_the_ranges)
    with pytest.raises(CheckFailedError, match="the INT8 graph does not compute what was trained"):
        export(ExportConfig(trained.path, tmp_path / "t.krl", data=digits))
    assert not (tmp_path / "t.krl").exists()


@pytest.fixture
def third_party(exported, digits, tmp_path):
    """A file in TensorRT's style as another tool would have written it: float input, normalized outside."""
    model = float_input(exported)
    inputs, _ = pixels_of(digits / "train")
    onnx.save(
        to_tensorrt(model, ranges_of(model, ((inputs / 255 - 0.3) / 0.35).astype(np.float32))).model,
        tmp_path / "third_party.onnx",
    )
    return tmp_path / "third_party.onnx"


def import_config(third_party, digits, out):
    return ImportConfig(third_party, out, digits, tuple(LABELS), mean=(0.3,), std=(0.35,))


def test_a_third_party_file_is_taken_apart_and_written_for_both(third_party, digits, tmp_path, caplog):
    with caplog.at_level(logging.WARNING, "krl"):
        result = import_onnx(import_config(third_party, digits, tmp_path / "a.krl"))
    assert "the file is quantized" in caplog.text
    assert "krl-deploy quantize" in caplog.text
    assert any("taken apart into its float model" in change for change in result["changes"])
    bundle = Bundle.open(tmp_path / "a.krl")
    assert not {"QuantizeLinear", "DequantizeLinear"} & set(ops(onnx.load(bundle.file("model.fp32.onnx"))))
    result, _ = quantize(QuantizeConfig(bundle.path, digits, limit=100, max_drop=5))
    made = Bundle.open(bundle.path)
    ours, theirs = onnx.load(made.file("model.int8.onnx")), onnx.load(third_party)
    inputs, _ = pixels_of(digits / "val")
    normalized = ((inputs / 255 - 0.3) / 0.35).astype(np.float32)
    expected = run(theirs, optimize=False, **{theirs.graph.input[0].name: normalized})[0]
    logits = run(ours, optimize=False, pixels=inputs)[0]
    assert (logits.argmax(1) == expected.argmax(1)).mean() > 0.99
    np.testing.assert_allclose(logits, expected, atol=0.05 * np.abs(expected).max())
    cpu = made.read("model.int8.cpu.onnx")
    assert count_convolutions(optimized_graph(cpu))["float_convolutions"] == 0
    assert made.manifest.variants["int8"].cpu_file == "model.int8.cpu.onnx"  # the third_party form never runs on a CPU


def test_operators_that_compute_on_integers_stay_as_they_are(caplog):
    from _helpers.graphs import graph, node

    values = {"s": np.float32(0.1), "z": np.uint8(0), "w": np.ones((4, 4), np.int8), "wz": np.int8(0)}
    nodes = [
        node("QuantizeLinear", ["x", "s", "z"], "q"),
        node("QLinearMatMul", ["q", "s", "z", "w", "s", "wz", "s", "z"], "y"),
    ]
    model = graph(nodes, {"x": ["n", 4]}, {"y": None}, values, dtypes={"y": "uint8"})
    with caplog.at_level(logging.WARNING, "krl"):
        assert taken_apart(ImportConfig(Path("x"), Path("y"), Path("z"), ("a",)), model) is None
    assert "computes on integers (QLinearMatMul)" in caplog.text
    assert "TensorRT refuses it" in caplog.text


def test_the_command_says_it(third_party, digits, tmp_path, capsys):
    options = ["--labels", *LABELS, "--mean", "0.3", "--std", "0.35", "--data", str(digits), "--json"]
    assert main(["import", str(third_party), "-o", str(tmp_path / "b.krl"), *options]) == 0
    captured = capsys.readouterr()
    assert "ranges of its" in captured.err
    assert json.loads(captured.out)["top1"] > 0.9


def test_the_self_test_of_fp16_around_int8_is_not_lax(bundle, digits):
    """Were the file measured with the optimizer that overflows, the tolerance would be twelve times as large."""
    found = {}
    for around in ("fp32", "fp16"):
        quantize(QuantizeConfig(bundle.path, digits, limit=64, max_drop=5, float_precision=around))
        found[around] = Bundle.open(bundle.path).manifest.variants["int8"].tolerance
    assert found["fp16"] < 3 * found["fp32"]
