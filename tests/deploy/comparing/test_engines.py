"""Layers of engines against ONNX Runtime's: on fakes with the real signatures, and parts shown to the real builder."""

from __future__ import annotations

import json

import numpy as np
import onnx
import pytest
from onnx import numpy_helper

from _helpers.fake_tensorrt import faked
from _helpers.graphs import measured_ranges
from _helpers.planted_nets import Net, pixels_of, write_colors, write_planted
from _helpers.required import real_rtx
from _helpers.tensorrt_bindings import ALL
from krl_deploy.cli import main
from krl_deploy.comparing.backends import of_shapes
from krl_deploy.comparing.sides import Pair, Side
from krl_deploy.graph.cleanup import clean
from krl_deploy.precision.emit_tensorrt import to_tensorrt
from krl_deploy.tensorrt.builder import build_plan
from krl_deploy.tensorrt.options import BuildOptions
from krl_runtime import Bundle
from krl_runtime.bundle import Variant, names

fake = faked(*ALL)


@pytest.fixture
def bundle(tmp_path) -> Bundle:
    """A bundle whose INT8 variant is TensorRT's graph with FP32 around INT8."""
    net = Net()
    net.conv("first", net.mixing(in_channels=3))
    net.add("Relu", "first")
    for name in ("second", "third"):
        net.conv(name, net.mixing(), np.full(32, 0.01))
        net.add("Relu", name)
    net.add("GlobalAveragePool", net.tensor)
    net.add("Flatten", net.tensor)
    net.gemm("logits", *net.head())
    model = clean(net.model())
    data = write_colors(tmp_path / "data", train=6, val=10)
    made = write_planted(tmp_path / "colors.krl", model, data)
    quantized = to_tensorrt(model, measured_ranges(model, pixels=pixels_of(data, "train"))).model
    variants = {**made.manifest.variants, "int8": Variant("int8", names.INT8)}
    return made.update({names.INT8: quantized.SerializeToString()}, variants=variants)


def compared(capsys, bundle, backend, *options, refused=False):
    code = main(["compare", str(bundle.path), "--layers", "--json", "--b-backend", backend, *options])
    shown = capsys.readouterr()
    assert code == 0 or refused, shown.err
    return code, json.loads(shown.out) if code == 0 else shown.err


def test_layers_of_an_engine(fake, bundle, capsys):
    backend = "tensorrt-rtx" if fake.rtx else "tensorrt"
    code, found = compared(capsys, bundle, backend, "--a", "int8", "--b", "int8")
    assert (code, found["wrong"], found["b"]) == (0, [], {"file": "int8", "backend": backend})
    assert min(layer["alone"]["snr_db"] for layer in found["layers"]) > 100
    assert fake.calls["Builder.build_serialized_network"] > len(found["layers"])  # each layer alone, and all together
    assert fake.cuda.leaks() == {"memory": 0, "streams": 0, "graphs": 0}
    model = onnx.load_model_from_string(bundle.read(names.INT8))
    scale = next(item for item in model.graph.initializer if item.name.startswith("third_w_scale"))
    scale.CopyFrom(numpy_helper.from_array(numpy_helper.to_array(scale) * 2, scale.name))
    bundle.update({names.INT8: model.SerializeToString()}, variants=bundle.manifest.variants)
    code, found = compared(capsys, bundle, backend, "--a", "fp32", "--b", "int8")
    assert (code, found["first"]["layer"]) == (0, "n_third")


def test_an_engine_that_adds_to_its_outputs_is_wrong_from_the_first_layer_on(fake, bundle, capsys):
    fake.wrong_answer = 3
    backend = "tensorrt-rtx" if fake.rtx else "tensorrt"
    code, found = compared(capsys, bundle, backend, "--a", "fp32", "--b", "fp32")
    assert (code, found["first"]["layer"]) == (0, found["layers"][0]["name"])


def test_without_a_gpu_it_is_refused(bundle, capsys):
    code, said = compared(capsys, bundle, "tensorrt-rtx", "--a", "int8", "--b", "int8", refused=True)
    assert code == 2
    assert "TensorRT-RTX is not installed here" in said or "no NVIDIA GPU can be used here" in said or "driver" in said


def test_nvidias_builder_takes_every_part(bundle):
    """A part ends in tensors of INT8 where the next layer quantizes them, and begins with any layer's output."""
    library = real_rtx()
    side = Side("int8", bundle.read(names.INT8))
    pair = Pair(Side("fp32", bundle.read(names.FP32)), side)
    golden = bundle.golden()
    values = pair.run_a(pair.layers)({"pixels": golden["pixels"][:2]}, {})
    ends = frozenset(layer.ends[1] for layer in pair.layers)
    shapes = {"pixels": golden["pixels"][:2].shape}
    shapes |= {layer.ends[1]: values[layer.name].shape for layer in pair.layers}
    built = 0
    for layer in pair.layers:
        tensor = layer.taps[1].tensor
        part = side.graph.part([tensor], ends - {layer.ends[1]})
        needed = [value.name for value in onnx.load_model_from_string(part).graph.input]
        data = of_shapes(part, {name: shapes[name] for name in needed})
        built += bool(build_plan(data, BuildOptions(profiles=((2, 2, 2),)), library).plan)
    assert built == len(pair.layers) > 6
