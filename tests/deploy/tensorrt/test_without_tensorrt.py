"""What ``build-engine`` does where there is no TensorRT, and the parts of it that need none."""

import json
import shutil
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from _helpers.bundles import TinyNet, write_bundle
from krl_deploy.cli import build_engine, inspect_engine
from krl_deploy.rules.targets import Target, target_here
from krl_deploy.tensorrt import engines as commands
from krl_deploy.tensorrt import inputs
from krl_deploy.tensorrt.config import BuildEngineConfig, InspectEngineConfig
from krl_deploy.tensorrt.onnx_file import read_source
from krl_deploy.tensorrt.options import BuildOptions
from krl_deploy.tensorrt.plan import plan_version
from krl_deploy.tensorrt.script import trtexec_line
from krl_runtime import load
from krl_runtime.backends.tensorrt.library import Library
from krl_runtime.bundle import TensorSpec
from krl_runtime.cli.dispatch import Program, dispatch
from krl_runtime.device import platforms
from krl_runtime.device.platforms import JETPACKS, jetpack_here, jetpacks_with
from krl_runtime.errors import BundleError, ModelError, UsageError, install_command
from krl_runtime.files import sha256_bytes, sha256_file
from krl_runtime.images.preprocessing import Preprocessing


@pytest.fixture(autouse=True)
def no_tensorrt(monkeypatch):
    monkeypatch.setitem(sys.modules, "tensorrt", None)


@pytest.fixture
def bundle(tmp_path):
    return write_bundle(tmp_path / "tiny.krl", variants=("fp32", "int8"))


def tree(path):
    return {str(item.relative_to(path)): sha256_file(item) for item in path.rglob("*") if item.is_file()}


def test_all_but_the_engine_is_done_and_said(bundle, capsys):
    before = tree(bundle.path)
    assert build_engine(BuildEngineConfig(bundle.path, precision="int8", profile=("1,8,32",), prepare=True)) is None
    told = capsys.readouterr().out
    assert (
        f"No engine was built: TensorRT is not installed here; install it with: {install_command('tensorrt')}" in told
    )
    assert f"{bundle.path} is in order and unchanged. Run the same command on the device" in told
    shapes = "--minShapes=pixels:1x3x12x10 --optShapes=pixels:8x3x12x10 --maxShapes=pixels:32x3x12x10"
    assert (
        f"TensorRT 10:  trtexec --onnx=model.int8.onnx --saveEngine=model.int8.engine --stronglyTyped {shapes}" in told
    )
    assert f"TensorRT 11:  trtexec --onnx=model.int8.onnx --saveEngine=model.int8.engine {shapes}" in told
    assert "int8 " not in told  # no precision flag: TensorRT 11 has none
    assert tree(bundle.path) == before
    with load(bundle.path, variant="int8") as model:
        assert model.backend.name == "onnxruntime-cpu"


def test_the_same_as_json(bundle, capsys):
    build_engine(BuildEngineConfig(bundle.path, precision="int8", json=True, prepare=True))
    report = json.loads(capsys.readouterr().out)
    assert report["engine"] is None
    assert report["reason"].startswith("TensorRT is not installed here")
    assert set(report["commands"]) == {"10", "11", "rtx"}


def test_with_tensorrt_but_without_a_gpu_it_is_the_same(bundle, capsys, monkeypatch):
    monkeypatch.setattr(commands, "tensorrt_library", lambda: Library("tensorrt", None, "11.4.0.106"))
    monkeypatch.setitem(sys.modules, "cuda.bindings", None)
    build_engine(BuildEngineConfig(bundle.path, precision="int8", prepare=True))
    assert "No engine was built: cuda-python is not installed here" in capsys.readouterr().out


def test_a_damaged_bundle_is_found_all_the_same(bundle):
    (bundle.path / "model.fp32.onnx").write_bytes(b"")
    with pytest.raises(BundleError, match=r"model\.fp32\.onnx is damaged or was changed"):
        build_engine(BuildEngineConfig(bundle.path, precision="int8"))


def test_on_a_jetson_the_jetpack_is_named(bundle, capsys, monkeypatch):
    monkeypatch.setattr(platforms, "jetson_release", lambda: "36.4.3")
    build_engine(BuildEngineConfig(bundle.path, precision="int8", prepare=True))
    assert "This is JetPack 6.1, 6.2, which has TensorRT 10.3." in capsys.readouterr().out


def test_an_onnx_file_needs_no_bundle(bundle, capsys):
    build_engine(BuildEngineConfig(bundle.path / "model.fp32.onnx", output=Path("net.engine"), prepare=True))
    assert "--saveEngine=net.engine" in capsys.readouterr().out


def test_the_command_line(bundle, capsys, tmp_path):
    names = {"build-engine": build_engine, "inspect-engine": inspect_engine}
    script = tmp_path / "build.sh"
    argv = ["build-engine", str(bundle.path), "--precision", "int8", "--profile", "1,2,4", "--emit-script", str(script)]
    assert dispatch(Program("krl-deploy", "d", names), argv) == 2
    assert "no engine was built: TensorRT is not installed here" in capsys.readouterr().err
    argv.append("--prepare")
    assert dispatch(Program("krl-deploy", "d", names), argv) == 0
    assert "No engine was built" in capsys.readouterr().out
    assert script.read_text().startswith("#!/bin/sh\n")
    assert dispatch(Program("krl-deploy", "d", names), ["inspect-engine", str(bundle.path), "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["engines"] == {}
    assert (
        dispatch(Program("krl-deploy", "d", names), ["build-engine", str(tmp_path / "none.krl"), "--precision", "int8"])
        == 2
    )
    assert "does not exist; a bundle is the folder that krl-deploy export makes" in capsys.readouterr().err


def test_the_help_needs_neither_onnx_nor_tensorrt(tmp_path):
    code = (
        "import sys\n"
        "class Absent:\n"
        "    def find_spec(self, name, path=None, target=None):\n"
        "        if name.partition('.')[0] in ('onnx', 'onnxruntime', 'torch', 'tensorrt', 'cuda'):\n"
        "            raise ModuleNotFoundError(name, name=name)\n"
        "sys.meta_path.insert(0, Absent())\n"
        "from krl_runtime.cli.dispatch import Program, dispatch\n"
        "from krl_deploy.cli import build_engine\n"
        "dispatch(Program('krl-deploy', 'd', {'build-engine': build_engine}), ['build-engine', '--help'])\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    for option in ("--precision", "--profile", "--workspace-mb", "--dla-core", "--emit-script", "--time-limit", "-o"):
        assert option in done.stdout


@pytest.mark.skipif(shutil.which("sh") is None, reason="no shell")
def test_the_script_calls_trtexec_as_each_generation_wants_it(bundle, tmp_path):
    script = tmp_path / "build.sh"
    options = {"workspace_mb": 512, "optimization_level": 4, "strip_weights": True, "version_compatible": True}
    asked = BuildEngineConfig(bundle.path, precision="int8", profile=("1,2,4",), emit_script=script, **options)
    build_engine(replace(asked, prepare=True))
    trtexec = tmp_path / "trtexec"
    trtexec.write_text('#!/bin/sh\nfor word in "$@"; do echo "$word"; done\n')
    trtexec.chmod(0o755)

    def run(*words):
        environment = {"PATH": f"{tmp_path}:/usr/bin:/bin"}
        return subprocess.run(["sh", str(script), *words], capture_output=True, text=True, env=environment)

    common = [
        "--minShapes=pixels:1x3x12x10",
        "--optShapes=pixels:2x3x12x10",
        "--maxShapes=pixels:4x3x12x10",
        "--memPoolSize=workspace:512M",
        "--builderOptimizationLevel=4",
        "--timingCacheFile=trtexec.cache",
        "--versionCompatible",
        "--stripWeights",
        "--skipInference",
    ]
    files = ["--onnx=model.int8.onnx", "--saveEngine=model.int8.engine"]
    assert run("10").stdout.splitlines() == [*files, "--stronglyTyped", *common]
    assert run("11").stdout.splitlines() == [*files, *common]
    rtx = ["--minShapes=pixels:1x3x12x10", "--optShapes=pixels:2x3x12x10", "--maxShapes=pixels:4x3x12x10"]
    trtexec.rename(tmp_path / "tensorrt_rtx")
    assert run("rtx").stdout.splitlines() == [*files, *rtx, "--refit", "--stripWeights", "--skipInference"]
    wrong = run("9")
    assert wrong.returncode == 2
    assert "usage:" in wrong.stderr


def test_further_options_of_trtexec():
    inputs = [TensorSpec("a b", "float32", (1, 3))]
    options = BuildOptions(profiles=((1, 1, 1),), dla_core=1, hardware_compatibility="ampere-plus", refit=True)
    line = trtexec_line(11, "m.onnx", "m.engine", inputs, options)
    assert "Shapes" not in line  # a fixed batch needs none
    assert "--useDLACore=1 --allowGPUFallback --hardwareCompatibilityLevel=ampere+ --refit" in line
    line = trtexec_line(
        10, "m.onnx", "m.engine", [TensorSpec("a b", "float32", ("batch", 3))],
        BuildOptions(profiles=((1, 2, 3),), hardware_compatibility="same-compute-capability"),
    )  # fmt: skip
    assert "'--optShapes=a b:2x3'" in line
    assert "--hardwareCompatibilityLevel=sameComputeCapability" in line


# The header of an engine


def plan(*version, tag=b"ftrt", layout=0):
    return tag + layout.to_bytes(4, "little") + bytes(16) + bytes(version) + b"the rest"


def test_the_version_in_an_engines_header(tmp_path, capsys):
    path = tmp_path / "a.engine"
    path.write_bytes(plan(10, 3, 0, 30))
    assert plan_version(path) == ("tensorrt", "10.3.0.30")
    inspect_engine(InspectEngineConfig(path, json=True))
    entry = json.loads(capsys.readouterr().out)["engines"]["a.engine"]
    assert entry == {
        "library": "tensorrt",
        "version": "10.3.0.30",
        "bytes": 36,
        "sha256": sha256_bytes(path.read_bytes()),
    }


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "is not a TensorRT engine: it does not begin with ftrt or vtrt"),
        (plan(10, 3, 0, 30)[:27], "is not a TensorRT engine"),
        (b"\x20\0\0\0" + b'{"stride": 32}' + plan(10, 3, 0, 30), "its first bytes are metadata of another tool"),
        (plan(10, 3, 0, 30, layout=7), "of format 7; this krl reads format 0"),
    ],
)
def test_what_is_not_an_engine_is_refused(tmp_path, content, message):
    path = tmp_path / "a.engine"
    path.write_bytes(content)
    with pytest.raises(UsageError, match=message):
        inspect_engine(InspectEngineConfig(path))
    with pytest.raises(UsageError, match="cannot be read: No such file"):
        inspect_engine(InspectEngineConfig(tmp_path / "none.engine"))


# JetPack


def test_jetpack_by_the_release_of_its_linux(monkeypatch):
    for release, name in (("36.4.3", "JetPack 6.1, 6.2"), ("38.2", "JetPack 7.0, 7.1"), ("39.2.0", "JetPack 7.2")):
        monkeypatch.setattr(platforms, "jetson_release", lambda release=release: release)
        assert jetpack_here().name == name
    for release in (None, "99.9.9"):
        monkeypatch.setattr(platforms, "jetson_release", lambda release=release: release)
        assert jetpack_here() is None


def test_jetpacks_by_tensorrt():
    assert [jetpack.versions for jetpack in jetpacks_with(10)] == [("6.1", "6.2"), ("7.0", "7.1"), ("7.2",)]
    assert [jetpack.versions for jetpack in jetpacks_with(11)] == [("7.2.2",)]
    assert all(jetpack.source for jetpack in JETPACKS)


# The ONNX file


def model(nodes, inputs, outputs, constants=(), opset=19):
    graph = helper.make_graph(
        nodes,
        "g",
        [helper.make_tensor_value_info(*item) for item in inputs],
        [helper.make_tensor_value_info(*item) for item in outputs],
        [numpy_helper.from_array(np.asarray(value), name) for name, value in dict(constants).items()],
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", opset)], ir_version=8)


F = TensorProto.FLOAT


PER_TENSOR = np.float32(0.1)
ZERO = np.int8(0)


def quantized(scale=PER_TENSOR, zero=ZERO, **constants):
    """x → Q → DQ → y, and a weight w → DQ → MatMul."""
    nodes = [
        helper.make_node("QuantizeLinear", ["x", "s", "z"], ["q"], name="Q"),
        helper.make_node("DequantizeLinear", ["q", "s", "z"], ["d"], name="DQ"),
        helper.make_node("DequantizeLinear", ["w", "ws", "wz"], ["wd"], name="WDQ", axis=1),
        helper.make_node("MatMul", ["d", "wd"], ["y"], name="M"),
    ]
    weights = {"w": np.ones((3, 2), np.int8), "ws": np.array([0.1, 0.2], np.float32), "wz": np.zeros(2, np.int8)}
    return model(nodes, [("x", F, ["n", 3])], [("y", F, ["n", 2])], {"s": scale, "z": zero, **weights, **constants})


def read(tmp_path, proto):
    path = tmp_path / "m.onnx"
    path.write_bytes(proto.SerializeToString())
    return read_source(path, TARGET)


def test_a_good_file_is_read(tmp_path):
    source = read(tmp_path, quantized())
    assert source.inputs == (TensorSpec("x", "float32", ("batch", 3)),)
    assert source.sha256 == sha256_file(tmp_path / "m.onnx")
    assert source.data == (tmp_path / "m.onnx").read_bytes()
    net = onnx.load_from_string(TinyNet.random(Preprocessing(8, 8), 3).onnx(batch=2))
    assert read(tmp_path, net).inputs == (TensorSpec("pixels", "uint8", (2, 3, 8, 8)),)


TARGET = target_here(None)


def test_what_tensorrt_would_refuse_is_found_before(tmp_path):
    message = (
        r"m\.onnx is not ready for tensorrt-11\.5:\n  QuantizeLinear: Q: its zero point is not 0.*\n.*"
        r"what to do: krl-deploy check .*m\.onnx --target tensorrt-11\.5"
    )
    with pytest.raises(ModelError, match=rf"(?s){message}"):
        read(tmp_path, quantized(zero=np.int8(3)))


def test_warnings_are_said_and_the_file_is_read(tmp_path, caplog):
    source = read(tmp_path, quantized(ws=np.array([0.1, 0.2], np.float32)))
    assert source.inputs
    assert "m.onnx: MatMul: M: matrix of 3x2: INT8 needs 16 rows and columns; leave it in floating point" in caplog.text


def test_the_check_is_for_the_tensorrt_that_is_here(monkeypatch):
    monkeypatch.setattr(inputs, "tensorrt_library", lambda: Library("tensorrt", None, "10.3.0"))
    assert inputs._target(BuildEngineConfig(Path("m.krl"))) == Target("tensorrt-10.3.0", (10, 3, 0))
    monkeypatch.setattr(platforms, "jetson_release", lambda: "36.4.3")
    assert inputs._target(BuildEngineConfig(Path("m.krl"))).boards == ("Orin",)
