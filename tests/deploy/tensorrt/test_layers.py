"""``inspect-engine --layers``: of engines on fakes with the real signatures, of networks by NVIDIA's real parser."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import helper, numpy_helper

from _helpers.bundles import write_bundle
from _helpers.fake_tensorrt import faked
from _helpers.graphs import measured_ranges
from _helpers.required import real_rtx
from _helpers.tensorrt_bindings import ALL
from krl_deploy.cli import main
from krl_deploy.precision.emit_tensorrt import to_tensorrt
from krl_deploy.tensorrt.config import BuildEngineConfig
from krl_deploy.tensorrt.engines import build_engine
from krl_deploy.tensorrt.layers import EngineLayer, layer_table, totals
from krl_runtime.bundle import Bundle

fake = faked(*ALL)


def shown(capsys, *arguments):
    code = main(["inspect-engine", *map(str, arguments), "--layers", "--json"])
    out, err = capsys.readouterr()
    return code, json.loads(out)["engines"] if code == 0 else err


def test_layers_of_an_engine(fake, tmp_path, capsys):
    """The tiny network has 12 x 10 positions, 3 channels, 5 filters of 3 x 3 and a head of 4 classes."""
    bundle = write_bundle(tmp_path / "tiny.krl", variants=("fp32",))
    target = "rtx" if fake.rtx else "tensorrt"
    kinds = {}
    fake._Builder_build_serialized_network, original = (
        lambda this, network, config: (kinds.update(config.s.values), original(this, network, config))[1],
        fake._Builder_build_serialized_network,
    )
    build_engine(BuildEngineConfig(bundle.path, precision="fp32", target=target))
    assert kinds["profiling_verbosity"].name == "DETAILED"
    capsys.readouterr()
    (key,) = Bundle.open(bundle.path).engines
    code, found = shown(capsys, bundle.path)
    engine = found[key]
    assert code == 0
    assert "layers of the engine" in engine["source"]
    by_kind = {layer["kind"]: layer for layer in engine["list"]}
    assert (by_kind["Conv"]["precision"], by_kind["Conv"]["macs"]) == ("int8", 12 * 10 * 5 * 3 * 9)
    assert (by_kind["Gemm"]["precision"], by_kind["Gemm"]["weights"]) == ("fp32", 5 * 4 + 4)
    assert by_kind["Reformat"]["reformat"]
    assert engine["macs"] == {"int8": 16200, "fp32": 20}
    assert (engine["layers"], engine["reformats"], engine["weights"]) == (8, 1, 135 + 24)
    fake._EngineInspector_get_engine_information = lambda this, format: "no detail"
    assert main(["inspect-engine", str(bundle.path), "--layers"]) == 2
    assert "gives no JSON with layers" in capsys.readouterr().err


def write_network(path: Path) -> tuple[Path, Path]:
    """A convolution and a ReLU in FP32, and the same in INT8."""
    rng = np.random.default_rng(0)
    weights = {"w": rng.normal(size=(16, 16, 3, 3)).astype(np.float32), "b": np.ones(16, np.float32)}
    graph = helper.make_graph(
        [
            helper.make_node("Conv", ["x", "w", "b"], ["c"], name="conv", pads=[1] * 4),
            helper.make_node("Relu", ["c"], ["y"], name="relu"),
        ],
        "two",
        [helper.make_tensor_value_info("x", 1, ["batch", 16, 8, 8])],
        [helper.make_tensor_value_info("y", 1, ["batch", 16, 8, 8])],
        [numpy_helper.from_array(value, name) for name, value in weights.items()],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=8)
    quantized = to_tensorrt(model, measured_ranges(model, x=rng.normal(size=(2, 16, 8, 8)).astype(np.float32))).model
    onnx.save(model, path / "float.onnx")
    onnx.save(quantized, path / "int8.onnx")
    return path / "float.onnx", path / "int8.onnx"


def test_layers_of_a_network_by_nvidias_parser(tmp_path, capsys):
    real_rtx()
    floating, quantized = write_network(tmp_path)
    for file, precision, pairs in ((floating, "fp32", 0), (quantized, "int8", 3)):
        code, found = shown(capsys, file)
        network = found[file.name]
        assert code == 0
        assert "before fusion, by the parser of TensorRT-RTX" in network["source"]
        assert network["macs"] == {precision: 8 * 8 * 16 * 16 * 9}
        assert network["weights"] == 16 * 16 * 9 + 16
        kinds = [layer["kind"] for layer in network["list"]]
        assert sum("QUANTIZE" in kind for kind in kinds) == pairs
        assert [layer["nodes"] for layer in network["list"] if layer["kind"] == "ACTIVATION"] == [["relu"]]


def test_what_has_no_layers_is_refused(tmp_path, capsys):
    engine = tmp_path / "a.engine"
    engine.write_bytes(b"ftrt" + bytes(40))
    assert main(["inspect-engine", str(engine), "--layers"]) == 2
    assert "an engine file alone is not loaded, since it is code" in capsys.readouterr().err
    bundle = write_bundle(tmp_path / "tiny.krl")
    assert main(["inspect-engine", str(bundle.path), "--layers", "--precision", "int8"]) == 2
    assert "has no variant int8; it has: fp32" in capsys.readouterr().err
    assert main(["inspect-engine", str(bundle.path), "--precision", "fp32"]) == 2
    assert "give --layers as well" in capsys.readouterr().err
    real_rtx()
    broken = tmp_path / "broken.onnx"
    broken.write_bytes(b"no model")
    assert main(["inspect-engine", str(broken), "--layers"]) == 2
    assert "broken.onnx" in capsys.readouterr().err


@pytest.mark.parametrize(("macs", "unknown"), [((10, 5), 0), ((10, None), 1)])
def test_sums(macs, unknown):
    layers = [EngineLayer(f"l{index}", "Conv", "int8", "", (), False, 3, count) for index, count in enumerate(macs)]
    found = totals(layers)
    assert found["macs"] == {"int8": sum(count or 0 for count in macs)}
    assert (found["weights"], found["unknown_macs"]) == (6, unknown)
    assert ("not known of 1 layers" in layer_table(layers)) == bool(unknown)
