"""Triton's repository, read back with Triton's own schema of ``config.pbtxt``."""

from __future__ import annotations

import importlib.util
import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
import pytest

from _helpers.bundles import LABELS, TinyNet, write_bundle
from _helpers.two_heads import SOURCE, write_two_heads
from krl_deploy.bundles.triton import PackageConfig, package
from krl_deploy.cli import main
from krl_runtime import Bundle, BundleError, Preprocessing, UsageError
from krl_runtime.bundle import Engine

VARIANTS = ("fp32", "fp16", "int8")
PLAN = b"ftrt a plan"


def engine(variant: str = "fp16", **changes: Any) -> Engine:
    made = Engine("engines/a.engine", variant, "0" * 64, "10.3.0.30", ("8.7",), "Orin", "linux-aarch64", ((1, 4, 8),))
    return replace(made, **changes)


def with_engines(path: Path, **engines: Engine) -> Bundle:
    contents = {entry.file: PLAN for entry in engines.values()}
    return write_bundle(path, variants=VARIANTS, engines=engines, contents=contents)


@pytest.fixture(scope="module")
def schema() -> Any:
    """Triton's ``ModelConfig``, from the client's wheel without what its gRPC client needs."""
    pytest.importorskip("google.protobuf", reason="protobuf is not installed")
    found = importlib.util.find_spec("tritonclient")
    if found is None:
        pytest.skip("tritonclient is not installed (extra dev)")
    file = Path(next(iter(found.submodule_search_locations)), "grpc", "model_config_pb2.py")
    specification = importlib.util.spec_from_file_location("model_config_pb2", file)
    module = importlib.util.module_from_spec(specification)
    specification.loader.exec_module(module)
    return module


def parse(schema: Any, model: Path) -> Any:
    from google.protobuf import text_format

    return text_format.Parse((model / "config.pbtxt").read_text(encoding="ascii"), schema.ModelConfig())


def files(folder: Path) -> list[str]:
    return sorted(str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file())


def test_onnx(tmp_path: Path, schema):
    bundle = write_bundle(
        tmp_path / "flowers.krl", name="resnet8", variants=VARIANTS, default_variants={"cuda": "fp16", "cpu": "int8"}
    )
    result = package(
        PackageConfig(bundle.path, "triton", tmp_path / "models", max_batch=32, max_delay_us=2500, instances=2)
    )
    model = tmp_path / "models" / "flowers"
    assert result == {
        "model": str(model), "name": "flowers", "variant": "fp16", "file": "model.fp16.onnx", "backend": "cuda",
        "max_batch": 32,
    }  # fmt: skip
    assert files(tmp_path / "models") == ["flowers/1/model.onnx", "flowers/config.pbtxt", "flowers/labels.txt"]
    assert (model / "1" / "model.onnx").read_bytes() == (bundle.path / "model.fp16.onnx").read_bytes()
    assert (model / "labels.txt").read_text() == "cat\ndog\nfrog\nship\n"

    config = parse(schema, model)
    assert (config.name, config.backend, config.max_batch_size) == ("flowers", "onnxruntime", 32)
    (tensor,) = config.input
    assert (tensor.name, tensor.data_type, list(tensor.dims)) == ("pixels", schema.TYPE_UINT8, [3, 12, 10])
    (output,) = config.output
    assert (output.name, output.data_type, list(output.dims)) == ("logits", schema.TYPE_FP32, [4])
    assert output.label_filename == "labels.txt"
    (group,) = config.instance_group
    assert (group.count, group.kind) == (2, schema.ModelInstanceGroup.KIND_GPU)
    assert config.dynamic_batching.max_queue_delay_microseconds == 2500
    (warmup,) = config.model_warmup
    zeros = warmup.inputs["pixels"]
    assert (warmup.batch_size, zeros.zero_data, zeros.data_type) == (1, True, schema.TYPE_UINT8)
    assert list(zeros.dims) == [3, 12, 10]
    assert config.parameters["krl_bundle_digest"].string_value == bundle.manifest.digest
    assert config.parameters["krl_variant"].string_value == "fp16"
    assert json.loads(config.parameters["krl_preprocessing"].string_value) == bundle.manifest.preprocessing.to_dict()


def test_the_configuration_describes_the_graph_that_lies_beside_it(tmp_path: Path, schema):
    """What Triton would refuse otherwise: names, types and dimensions are the ONNX file's own."""
    bundle = write_bundle(tmp_path / "a.krl", variants=VARIANTS)
    package(PackageConfig(bundle.path, "triton", tmp_path / "models", backend="cpu", variant="int8"))
    model = tmp_path / "models" / "a"
    config = parse(schema, model)
    session = onnxruntime.InferenceSession(model / "1" / "model.onnx", providers=["CPUExecutionProvider"])
    for tensors, nodes in ((config.input, session.get_inputs()), (config.output, session.get_outputs())):
        assert [(tensor.name, list(tensor.dims)) for tensor in tensors] == [
            (node.name, node.shape[1:]) for node in nodes
        ]
    pixels = np.zeros((2, *config.input[0].dims), np.uint8)
    (logits,) = session.run(["logits"], {"pixels": pixels})
    shift = 0.02  # of the file for CPUs
    np.testing.assert_allclose(logits, TinyNet.random(Preprocessing(12, 10), 4).logits(pixels) + shift, atol=1e-3)
    assert config.instance_group[0].kind == schema.ModelInstanceGroup.KIND_CPU


def test_a_graph_that_takes_one_image(tmp_path: Path, schema):
    bundle = write_bundle(tmp_path / "one.krl", batch=1)
    result = package(PackageConfig(bundle.path, "triton", tmp_path / "models"))
    assert result["max_batch"] == 0
    config = parse(schema, tmp_path / "models" / "one")
    assert config.max_batch_size == 0
    assert list(config.input[0].dims) == [1, 3, 12, 10]
    assert list(config.output[0].dims) == [1, 4]
    assert not config.HasField("dynamic_batching")
    assert (config.model_warmup[0].batch_size, list(config.model_warmup[0].inputs["pixels"].dims)) == (
        1,
        [1, 3, 12, 10],
    )


def test_an_engine(tmp_path: Path, schema, caplog):
    caplog.set_level("INFO", "krl")
    bundle = with_engines(tmp_path / "a.krl", key=engine())
    result = package(PackageConfig(bundle.path, "triton", tmp_path / "models"))
    assert (result["backend"], result["variant"], result["file"]) == ("tensorrt", "fp16", "engines/a.engine")
    assert result["max_batch"] == 8  # the profile's, although 16 were allowed
    model = tmp_path / "models" / "a"
    assert (model / "1" / "model.plan").read_bytes() == PLAN
    config = parse(schema, model)
    assert (config.backend, config.max_batch_size) == ("tensorrt", 8)
    assert caplog.messages == ["Triton must have TensorRT 10.3.0.30 and a GPU like Orin (compute capability 8.7)"]
    small = package(PackageConfig(bundle.path, "triton", tmp_path / "small", max_batch=2))
    assert small["max_batch"] == 2
    onnx = package(PackageConfig(bundle.path, "triton", tmp_path / "onnx", backend="cuda", variant="fp16"))
    assert onnx["file"] == "model.fp16.onnx"


def test_an_engine_for_newer_versions(tmp_path: Path, caplog):
    caplog.set_level("INFO", "krl")
    bundle = with_engines(tmp_path / "a.krl", key=engine(version_compatible=True))
    package(PackageConfig(bundle.path, "triton", tmp_path / "models"))
    assert "--backend-config=tensorrt,version-compatible=true" in caplog.text


def test_which_engine(tmp_path: Path):
    bundle = with_engines(tmp_path / "a.krl", a=engine(), b=engine("int8", file="engines/b.engine"))
    out = tmp_path / "models"
    with pytest.raises(UsageError, match=r"2 engines match; choose one with --engine; the bundle has: a \(fp16, Tens"):
        package(PackageConfig(bundle.path, "triton", out))
    with pytest.raises(UsageError, match="0 engines match"):
        package(PackageConfig(bundle.path, "triton", out, engine="c"))
    with pytest.raises(UsageError, match="0 engines match"):
        package(PackageConfig(bundle.path, "triton", out, engine="a", variant="int8"))
    assert not out.exists()
    assert package(PackageConfig(bundle.path, "triton", out, variant="int8"))["file"] == "engines/b.engine"
    assert package(PackageConfig(bundle.path, "triton", out, engine="a", name="other"))["file"] == "engines/a.engine"


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"stripped": True}, "built without its weights"),
        ({"profiles": ((2, 4, 8),)}, "takes batches from 2 on.*--profile 1,4,8"),
    ],
)
def test_engines_that_triton_cannot_use(tmp_path: Path, change, message):
    bundle = with_engines(tmp_path / "a.krl", key=engine(**change))
    with pytest.raises(UsageError, match=message):
        package(PackageConfig(bundle.path, "triton", tmp_path / "models"))
    assert not (tmp_path / "models").exists()


def test_labels_and_names_of_any_kind(tmp_path: Path, schema):
    bundle = write_bundle(tmp_path / "a.krl", labels=('say "ah"', "back\\slash", "Türe", "中"))
    with pytest.raises(UsageError, match="'my net' cannot be a model's name"):
        package(PackageConfig(bundle.path, "triton", tmp_path / "models", name="my net"))
    for name in ("..", "a/b", ".hidden"):
        with pytest.raises(UsageError, match="cannot be a model's name"):
            package(PackageConfig(bundle.path, "triton", tmp_path / "models", name=name))
    package(PackageConfig(bundle.path, "triton", tmp_path / "models", name="net-1.a"))
    labels = (tmp_path / "models" / "net-1.a" / "labels.txt").read_text(encoding="utf-8")
    assert labels.splitlines() == list(bundle.manifest.labels)
    broken = write_bundle(tmp_path / "b.krl", labels=("a\nb", *LABELS[1:]))
    with pytest.raises(UsageError, match="a label has a line break"):
        package(PackageConfig(broken.path, "triton", tmp_path / "models"))


def test_strings_survive_the_text_format(schema):
    from google.protobuf import text_format

    from krl_deploy.bundles.triton import _quoted

    for text in ('"', "\\", "\n\t\0", "ü中🙂", "plain", "'", "\\n", "\x7f1"):
        assert text_format.Parse(f"name: {_quoted(text)}", schema.ModelConfig()).name == text


def test_names_that_are_taken(tmp_path: Path):
    bundle = write_bundle(tmp_path / "a.krl", variants=VARIANTS)
    out = tmp_path / "models"
    package(PackageConfig(bundle.path, "triton", out, variant="fp32"))
    with pytest.raises(UsageError, match="exists already; give another --name, or --overwrite"):
        package(PackageConfig(bundle.path, "triton", out, variant="fp16"))
    package(PackageConfig(bundle.path, "triton", out, variant="fp16", overwrite=True))
    assert (out / "a" / "1" / "model.onnx").read_bytes() == (bundle.path / "model.fp16.onnx").read_bytes()
    (out / "mine").mkdir()
    (out / "mine" / "letter.txt").touch()
    with pytest.raises(UsageError, match="is not a model of a Triton repository"):
        package(PackageConfig(bundle.path, "triton", out, name="mine", overwrite=True))
    assert files(out) == ["a/1/model.onnx", "a/config.pbtxt", "a/labels.txt", "mine/letter.txt"]


def test_refusals(tmp_path: Path):
    bundle = write_bundle(tmp_path / "a.krl")
    with pytest.raises(UsageError, match="no variant 'int8'; it has: fp32"):
        package(PackageConfig(bundle.path, "triton", tmp_path / "models", variant="int8"))
    with pytest.raises(UsageError, match="no TensorRT engine; krl-deploy build-engine adds one"):
        package(PackageConfig(bundle.path, "triton", tmp_path / "models", backend="tensorrt"))
    with pytest.raises(UsageError, match="--engine is for the backend tensorrt, not cpu"):
        package(PackageConfig(bundle.path, "triton", tmp_path / "models", backend="cpu", engine="a"))
    with pytest.raises(BundleError, match="does not exist"):
        package(PackageConfig(tmp_path / "none.krl", "triton", tmp_path / "models"))
    for name, value in (("max_batch", 0), ("max_delay_us", -1), ("instances", 0)):
        with pytest.raises(UsageError, match=f"--{name.replace('_', '-')} is {value}; accepted: "):
            PackageConfig(bundle.path, "triton", tmp_path, **{name: value})
    (bundle.path / "model.fp32.onnx").write_bytes(b"other")
    with pytest.raises(BundleError, match="is damaged or was changed"):
        package(PackageConfig(bundle.path, "triton", tmp_path / "models"))
    assert not (tmp_path / "models").exists()


def test_the_command(tmp_path: Path, capsys):
    bundle = write_bundle(tmp_path / "a.krl")
    arguments = ["package", str(bundle.path), "--to", "triton", "-o", str(tmp_path / "models")]
    assert main([*arguments, "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["max_batch"] == 16
    assert main(arguments) == 2
    assert "exists already" in capsys.readouterr().err
    assert main([*arguments, "--overwrite"]) == 0
    assert "model.fp32.onnx" in capsys.readouterr().out


def test_two_outputs_have_labels_of_their_own(tmp_path: Path, schema):
    bundle = write_two_heads(tmp_path / "two.krl")
    package(PackageConfig(bundle.path, "triton", tmp_path / "models", backend="cpu"))
    model = tmp_path / "models" / "two"
    configuration = parse(schema, model)
    outputs = [(item.name, list(item.dims), item.label_filename) for item in configuration.output]
    assert outputs == [("logits", [4], "labels.txt"), ("source_logits", [3], "labels-2.txt")]
    assert (model / "labels.txt").read_text().splitlines() == list(LABELS)
    assert (model / "labels-2.txt").read_text().splitlines() == list(SOURCE)
    forged = write_two_heads(tmp_path / "forged.krl", settings={"heads": []})
    with pytest.raises(BundleError, match="is no classifier: heads"):
        package(PackageConfig(forged.path, "triton", tmp_path / "models", backend="cpu"))
