"""``krl-deploy compare`` on a bundle: files, data, output, plot, exit codes and refusals."""

from __future__ import annotations

import json
import sys

import numpy as np
import onnx
import pytest
from onnx import numpy_helper
from PIL import Image

import krl_deploy
from _helpers.graphs import measured_ranges
from _helpers.image_nets import smooth, write_generator, write_restorer
from _helpers.planted_nets import Net, pixels_of, write_colors, write_planted
from krl_deploy.cli import main
from krl_deploy.comparing import backends
from krl_deploy.graph.cleanup import clean
from krl_deploy.precision.emit_cpu import to_cpu
from krl_deploy.precision.emit_fp16 import to_fp16
from krl_deploy.precision.emit_tensorrt import to_tensorrt
from krl_runtime import Bundle
from krl_runtime.bundle import Variant, names
from krl_runtime.errors import UsageError


@pytest.fixture(scope="module")
def colors(tmp_path_factory):
    return write_colors(tmp_path_factory.mktemp("colors") / "data", train=6, val=10)


@pytest.fixture
def bundle(tmp_path, colors) -> Bundle:
    """A bundle with all INT8 files and without FP16."""
    net = Net()
    net.conv("first", net.mixing(in_channels=3))
    net.add("Relu", "first")
    for name in ("second", "third", "fourth"):
        net.conv(name, net.mixing(), np.full(32, 0.01))
        net.add("Relu", name)
    net.add("GlobalAveragePool", net.tensor)
    net.add("Flatten", net.tensor)
    net.gemm("logits", *net.head())
    model = clean(net.model())
    made = write_planted(tmp_path / "colors.krl", model, colors)
    ranges = measured_ranges(model, pixels=pixels_of(colors, "train"))
    tensorrt = to_tensorrt(model, ranges).model
    files = {
        names.INT8: to_fp16(tensorrt, ranges, around_int8=True).model,
        names.INT8_FP32: tensorrt,
        names.INT8_CPU: to_cpu(model, ranges).model,
    }
    variant = Variant("int8", names.INT8, cpu_file=names.INT8_CPU, fp32_file=names.INT8_FP32)
    return made.update(
        {name: each.SerializeToString() for name, each in files.items()},
        variants={**made.manifest.variants, "int8": variant},
    )


def plant(bundle: Bundle, file: str) -> None:
    """Double the scale of the weights of one convolution in a file of the bundle."""
    model = onnx.load_model_from_string(bundle.read(file))
    tensor = next(item for item in model.graph.initializer if item.name.startswith("third_w_scale"))
    tensor.CopyFrom(numpy_helper.from_array(numpy_helper.to_array(tensor) * 2, tensor.name))
    variants = bundle.manifest.variants
    bundle.update({file: model.SerializeToString()}, variants=variants)


def run(capsys, *arguments) -> tuple[int, str, str]:
    code = main(["compare", *map(str, arguments)])
    shown = capsys.readouterr()
    return code, shown.out, shown.err


def test_outputs_alone_without_layers(bundle, capsys):
    code, out, _ = run(capsys, bundle.path, "--json")
    found = json.loads(out)
    assert code == 0
    assert "layers" not in found
    assert found["b"] == {"file": "int8.cpu", "backend": "cpu"}
    assert found["images"] == {"data": "golden inputs", "count": 5}
    assert 20 < found["outputs"]["logits"]["snr_db"] < 60
    # What the golden file has is what fp32 gives, so that the SNR of int8 to both is the same.
    assert found["golden_snr_db"]["a"] > 100
    assert found["golden_snr_db"]["b"] == pytest.approx(found["outputs"]["logits"]["snr_db"], abs=0.01)


@pytest.mark.parametrize("file", ["int8", "int8.fp32", "int8.cpu"])
def test_layers_as_a_table_a_plot_and_json(bundle, colors, capsys, tmp_path, file):
    options = [bundle.path, "--b", file, "--layers", "--data", colors, "--limit", 12]
    code, out, _ = run(capsys, *options, "--plot", tmp_path / "layers.png", "--min-snr", 10)
    assert code == 0
    assert "12 images of data" in out
    assert "no layer is wrong; " in out
    with Image.open(tmp_path / "layers.png") as image:
        assert image.format == "PNG"
        assert image.width == 960
    code, shown, _ = run(capsys, *options, "--json")
    found = json.loads(shown)
    assert found["first"] is None
    assert found["wrong"] == []
    layers = {layer["name"]: layer for layer in found["layers"]}
    assert {"n_first", "n_second", "n_third", "n_fourth", "n_logits"} <= set(layers)
    assert all(name in out for name in layers)
    assert layers["n_second"]["precision"] == {"a": "fp32", "b": "int8"}
    assert 20 < layers["n_second"]["alone"]["snr_db"] < 80


def test_a_wrong_layer_is_named_with_the_network_that_has_it(bundle, capsys):
    plant(bundle, names.INT8_CPU)
    code, out, err = run(capsys, bundle.path, "--layers")
    assert code == 0  # a report: only a limit that the user gave is enforced
    assert "first wrong layer: n_third. Alone, on a's values, it has " in out
    assert "The outputs of b (int8.cpu) are farther from the golden ones" in out
    code, out, err = run(capsys, bundle.path, "--layers", "--min-snr", 10, "--json")
    assert code == 1
    assert "layers of int8.cpu have too little SNR to fp32, required: 10 dB" in err
    found = json.loads(out)
    assert found["first"]["layer"] == "n_third"
    statuses = [layer["status"] for layer in found["layers"]]
    assert statuses.count("wrong") == 1
    assert "inherits" in statuses
    result = krl_deploy.compare(bundle=bundle.path, a="int8.cpu", b="fp32", layers=True)
    assert result.first_wrong == "n_third"
    assert "The outputs of a (int8.cpu) are farther" in result.text
    right = krl_deploy.compare(bundle=bundle.path, b="int8.fp32", layers=True)
    assert right.first_wrong is None
    assert right.below == 0


def test_int8_with_fp16_around_is_refused_where_onnxruntime_computes_it_wrongly(bundle, monkeypatch):
    monkeypatch.setattr("krl_deploy.comparing.compare.computes_fp16_pairs", lambda: False)
    with pytest.raises(UsageError, match=r"compare int8\.fp32"):
        krl_deploy.compare(bundle=bundle.path, b="int8")
    krl_deploy.compare(bundle=bundle.path, b="int8.fp32")


def test_a_backend_that_is_wrong_in_one_operator_is_found(bundle, capsys, monkeypatch):
    """A stand-in for OpenVINO: ONNX Runtime, whose ``Relu`` behind ``second`` lets everything through."""

    def opened(data, threads):
        model = onnx.load_model_from_string(data)
        for node in model.graph.node:
            if node.op_type == "Relu" and node.input[0] == "second":
                node.op_type = "Identity"
        return backends._open_onnxruntime(model.SerializeToString(), threads)

    monkeypatch.setattr(backends, "_open_openvino", opened)
    options = [bundle.path, "--b", "fp32", "--b-backend", "openvino", "--layers"]
    code, out, _ = run(capsys, *options, "--min-snr", 60)
    assert code == 1
    assert "fp32 (a) and fp32 on OpenVINO (b)" in out
    relu = next(
        node.name for node in onnx.load_model_from_string(bundle.read(names.FP32)).graph.node if "second" in node.input
    )
    assert f"first wrong layer: {relu}. " in out


def test_openvino_that_is_not_installed(bundle, monkeypatch, capsys):
    monkeypatch.setitem(sys.modules, "openvino", None)
    code, _, err = run(capsys, bundle.path, "--b", "fp32", "--b-backend", "openvino")
    assert code == 2
    assert "openvino" in err


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--b", "fp16"], "has no fp16; it has fp32, int8, int8.fp32, int8.cpu; make it with krl-deploy fp16"),
        (["--b", "fp32"], "--a and --b are both fp32 on cpu"),
        (["--plot", "x.png"], "--plot is for the comparison of layers; give --layers"),
        (["--min-snr", "20"], "--min-snr is for the comparison of layers; give --layers"),
        (["--layers", "--min-snr", "0"], "--min-snr is 0.0; accepted: above 0 dB"),
        (["--limit", "0"], "--limit is 0; accepted: 1 or more"),
    ],
)
def test_refusals_name_the_option_and_what_to_do(bundle, capsys, options, message):
    code, _, err = run(capsys, bundle.path, *options)
    assert code == 2
    assert message in err


def test_restorers_on_images_of_several_sizes(tmp_path, capsys):
    bundle = write_restorer(tmp_path / "sr.krl")
    photographs = tmp_path / "photographs"
    for number in range(6):
        file = photographs / ("val" if number < 3 else "train") / f"{number}.png"
        file.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(smooth(60 + 4 * number, 70, 3, seed=number)).save(file)
    assert main(["fp16", str(bundle.path), "--data", str(photographs), "--max-drop", "5", "--accept-unmeasured"]) == 0
    found = krl_deploy.compare(bundle=bundle.path, b="fp16", layers=True, data=photographs, limit=3).to_dict()
    assert found["images"] == {"data": "photographs", "count": 3}
    assert found["first"] is None
    assert 40 < min(layer["alone"]["snr_db"] for layer in found["layers"]) < 100


def test_generators_on_golden_latents(tmp_path, capsys):
    bundle = write_generator(tmp_path / "g.krl")
    assert main(["fp16", str(bundle.path)]) == 0
    found = krl_deploy.compare(bundle=bundle.path, b="fp16", layers=True).to_dict()
    assert found["images"] == {"data": "golden inputs", "count": 4}
    assert "MatMul_0" in [layer["name"] for layer in found["layers"]]
    assert found["first"] is None
    assert 40 < min(layer["alone"]["snr_db"] for layer in found["layers"]) < 100
    with pytest.raises(UsageError, match="--data"):
        krl_deploy.compare(bundle=bundle.path, b="fp16", layers=True, data=tmp_path)
