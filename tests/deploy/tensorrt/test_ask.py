"""``krl-deploy check --parser``: NVIDIA's real parser and builder, in a process of their own."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import textwrap
import time
from dataclasses import replace
from itertools import pairwise

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper

import krl_deploy
from _helpers.bundles import write_bundle
from _helpers.graphs import graph, node
from _helpers.planted import block, edited, find, set_value, transformer
from _helpers.required import real_rtx
from krl_deploy.cli import main
from krl_deploy.rules.targets import RTX, parse_target
from krl_deploy.tensorrt.ask import ask
from krl_runtime import Bundle
from krl_runtime.backends.cuda import NoTensorRTError
from krl_runtime.errors import BackendError, UsageError


@pytest.fixture(scope="module")
def library():
    return real_rtx()


@pytest.fixture
def written(tmp_path):
    def write(model, name="model.onnx"):
        path = tmp_path / name
        path.write_bytes(model.SerializeToString())
        return path

    return write


def asymmetric(model):
    set_value(model, find(model, "QuantizeLinear_r0_quantized").input[2], np.int8(3))


def report(capsys):
    return json.loads(capsys.readouterr().out)


def check_json(path, capsys, *options, target="rtx"):
    code = main(["check", str(path), "--target", target, "--parser", "--json", *options])
    return code, report(capsys)


@pytest.mark.parametrize("make", [block, transformer])
def test_what_krl_writes_is_taken(make, written, library, capsys):
    path = written(make(half=True))
    assert main(["check", str(path), "--target", "rtx", "--parser"]) == 0
    shown = capsys.readouterr().out
    assert f"parser of TensorRT-RTX {library.version}: takes the file; the builder takes it (" in shown
    assert "whether TensorRT's parser takes every node" not in shown  # it is known now
    code, found = check_json(path, capsys)
    assert code == 0
    parser = found["files"][0]["parser"]
    assert (parser["library"], parser["version"]) == ("TensorRT-RTX", library.version)
    assert (parser["parsed"], parser["built"], parser["note"]) == (True, True, "")
    assert 0 < parser["seconds"] < 60


def test_without_the_option_nothing_is_asked(written, capsys):
    assert main(["check", str(written(block())), "--target", "rtx", "--json"]) == 0
    assert report(capsys)["files"][0]["parser"] is None


def test_a_refused_file_names_the_node(written, library, capsys):
    code, found = check_json(written(edited(block(), asymmetric)), capsys)
    assert code == 1
    (file,) = found["files"]
    assert (file["parser"]["parsed"], file["parser"]["built"]) == (False, None)
    (theirs,) = [item for item in file["findings"] if item["rule"] == "parser/refused"]
    assert (theirs["severity"], theirs["node"]) == ("error", "QuantizeLinear_r0_quantized")
    assert theirs["op"] == "QuantizeLinear"
    assert "Non-zero zero point is not supported" in theirs["why"]
    assert theirs["source"] == f"NVIDIA's parser, TensorRT-RTX {library.version}"
    assert theirs["do"]


def test_a_fault_that_the_builder_finds_names_the_node(written, library, capsys):
    """Five of four values: the parser does not look, the builder does."""
    model = graph(
        [helper.make_node("TopK", ["x", "k"], ["y", "i"], name="largest")],
        {"x": ["n", 9]}, {"y": ["n", 5], "i": ["n", 5]}, {"k": np.int64([5])}, dtypes={"i": "int64"},
    )  # fmt: skip
    assert check_json(written(model), capsys)[0] == 0
    model.graph.input[0].type.tensor_type.shape.dim[1].dim_value = 4
    code, found = check_json(written(model), capsys)
    assert code == 1
    theirs = {item["rule"]: item for item in found["files"][0]["findings"]}["builder/refused"]
    assert (theirs["node"], theirs["op"]) == ("largest", "TopK")
    assert theirs["source"] == f"NVIDIA's builder, TensorRT-RTX {library.version}"
    assert found["files"][0]["parser"]["built"] is False


def test_an_open_size_leaves_the_builder_out(written, library, capsys):
    model = graph([node("Relu", ["x"], "y")], {"x": ["n", 3, "h", "w"]}, {"y": ["n", 3, "h", "w"]})
    code, found = check_json(written(model), capsys)
    parser = found["files"][0]["parser"]
    assert (code, parser["parsed"], parser["built"]) == (0, True, None)
    assert "more than the batch is open" in parser["note"]
    assert any("whether TensorRT's parser" in question for question in found["unknown"])


def no_blocks():
    made = helper.make_node("DepthToSpace", ["x"], ["y"], name="spread", blocksize=0)
    values = [helper.make_tensor_value_info(name, TensorProto.FLOAT, [1, 4, 2, 2]) for name in "xy"]
    shell = helper.make_graph([made], "g", values[:1], values[1:])
    return helper.make_model(shell, opset_imports=[helper.make_opsetid("", 20)], ir_version=10)


def test_a_graph_that_kills_the_parser(written, library, capsys):
    code, found = check_json(written(no_blocks()), capsys)
    assert code == 1
    theirs = {item["rule"]: item for item in found["files"][0]["findings"]}["parser/crashed"]
    assert (theirs["node"], theirs["op"]) == ("spread", "DepthToSpace")
    assert theirs["why"] == "the parser crashed (SIGFPE) at this node"
    parser = found["files"][0]["parser"]
    assert (parser["parsed"], parser["built"], parser["seconds"]) == (False, None, None)


def test_a_function_that_calls_itself_kills_the_parser(written, library, capsys):
    """krl refuses the file before that (exit code 2), so that the parser is asked directly."""
    imports = [helper.make_opsetid("", 20), helper.make_opsetid("local", 1)]
    body = [helper.make_node("F", ["a"], ["b"], domain="local", name="again")]
    function = helper.make_function("local", "F", ["a"], ["b"], body, imports)
    values = [helper.make_tensor_value_info(name, TensorProto.FLOAT, [2, 2]) for name in "xy"]
    call = helper.make_node("F", ["x"], ["y"], domain="local", name="call")
    shell = helper.make_graph([call], "g", values[:1], values[1:])
    path = written(helper.make_model(shell, functions=[function], opset_imports=imports, ir_version=10))
    verdict, (found,) = ask(path, RTX)
    assert not verdict.parsed
    assert (found.rule, found.why) == ("parser/crashed", "the parser crashed (SIGSEGV) at this node")
    assert main(["check", str(path), "--target", "rtx", "--parser"]) == 2
    assert "must not be recursive" in capsys.readouterr().err


def chain(count):
    """Return a graph that takes TensorRT-RTX about a second for each 1000 nodes, and krl's rules much less."""
    names = ["x", *(f"t{index}" for index in range(1, count)), "y"]
    nodes = [node("Sin", [before], after) for before, after in pairwise(names)]
    return graph(nodes, {"x": ["n", 3]}, {"y": ["n", 3]})


def test_a_time_limit(written, library, capsys):
    path = written(chain(8000))
    start = time.monotonic()
    code, found = check_json(path, capsys, "--time-limit", "2")
    assert code == 1
    assert time.monotonic() - start < 30
    (theirs,) = found["files"][0]["findings"]
    assert theirs["rule"] == "parser/timeout"
    assert theirs["why"].endswith("was not done after 2 seconds")
    assert "--time-limit" in theirs["do"]


def test_a_process_that_is_not_ready_in_time_is_no_verdict(written, library, capsys):
    assert main(["check", str(written(block())), "--target", "rtx", "--parser", "--time-limit", "0.001"]) == 2
    assert "was not ready after 0.001 seconds; give more with --time-limit" in capsys.readouterr().err


def test_every_variant_of_a_bundle_is_asked(tmp_path, library, capsys):
    bundle = write_bundle(tmp_path / "tiny.krl", variants=("fp32", "int8"))
    _, found = check_json(bundle.path, capsys)
    asked = {file["variant"]: file["parser"] for file in found["files"]}
    assert set(asked) == {"fp32", "int8"}
    assert all(parser["parsed"] for parser in asked.values())


def test_another_target_gets_evidence_of_rtx(written, library, capsys):
    code, found = check_json(written(block()), capsys, target="jetpack-6.2")
    parser = found["files"][0]["parser"]
    if parser["library"] == "TensorRT":
        pytest.skip("TensorRT is installed and usable here")
    assert (code, parser["built"], parser["exact"]) == (0, True, False)
    assert parser["note"].startswith("evidence about NVIDIA's parser, not about jetpack-6.2 (TensorRT 10.3, Orin)")
    assert any("whether TensorRT's parser" in question for question in found["unknown"])


def test_the_python_api(written, library):
    result = krl_deploy.check(model=written(edited(block(), asymmetric)), target="rtx", parser=True)
    assert not result.ready
    assert result.details["files"][0]["parser"]["parsed"] is False


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--target", "onnxruntime-cpu", "--parser"], "--target onnxruntime-cpu does not use; accepted: jetpack-*"),
        (["--target", "rtx", "--time-limit", "5"], "--time-limit is for --parser"),
        (["--target", "rtx", "--parser", "--time-limit", "0"], "--time-limit is 0; accepted: seconds, above 0"),
        (["--target", "rtx", "--parser", "--time-limit", "nan"], "--time-limit is nan; accepted: seconds, above 0"),
    ],
)
def test_bad_options(options, message, written, capsys):
    assert main(["check", str(written(block())), *options]) == 2
    assert message in capsys.readouterr().err


def test_a_missing_file(tmp_path, capsys):
    assert main(["check", str(tmp_path / "none.onnx"), "--target", "rtx", "--parser"]) == 2
    assert "does not exist; give an ONNX file" in capsys.readouterr().err


ABSENT = "raise ModuleNotFoundError(f'No module named {__name__!r}', name=__name__)"
WITHOUT_GPU = """
    __version__ = "10.16.1.11"
    class ILogger:
        class Severity:
            INTERNAL_ERROR, ERROR, WARNING = range(3)
        def __init__(self):
            pass
    class Builder:
        def __init__(self, logger):
            raise TypeError("factory function returned nullptr")
"""


@pytest.fixture
def installed(tmp_path, monkeypatch):
    """Put modules before all others, in this process and in those that it starts."""

    def install(**modules):
        for name, source in modules.items():
            (tmp_path / f"{name}.py").write_text(textwrap.dedent(source), encoding="utf-8")
            monkeypatch.delitem(sys.modules, name, raising=False)
        monkeypatch.syspath_prepend(tmp_path)

    return install


def test_without_any_library(written, installed, capsys):
    path = written(block())
    installed(tensorrt=ABSENT, tensorrt_rtx=ABSENT, tensorrt_rtx_bindings=ABSENT)
    assert main(["check", str(path), "--target", "tensorrt-11.4", "--parser"]) == 2
    said = capsys.readouterr().err
    assert "--parser needs NVIDIA's parser: TensorRT is not installed here; install it with: pip install" in said
    assert "TensorRT-RTX is not installed here; install it with: pip install" in said
    with pytest.raises(NoTensorRTError, match="TensorRT-RTX is not installed"):
        krl_deploy.check(model=path, target="rtx", parser=True)


def test_tensorrt_that_makes_no_builder_is_passed_by(written, installed, library):
    path = written(block())
    installed(tensorrt=WITHOUT_GPU)
    verdict, found = ask(path, parse_target("tensorrt-10.16"))
    assert (verdict.library, verdict.built, found) == ("TensorRT-RTX", True, ())
    assert "TensorRT 10.16.1.11 makes no builder here" in verdict.note


def test_a_library_that_fails_otherwise_is_no_verdict(written, installed):
    path = written(block())
    installed(tensorrt_rtx='__version__ = "1.7.1"\nILogger = None', tensorrt_rtx_bindings=ABSENT)
    with pytest.raises(BackendError, match=r"could not be asked about .*model\.onnx: .*AttributeError"):
        ask(path, RTX)


def test_a_process_that_the_system_kills_is_no_verdict(written, installed):
    path = written(block())
    killed = "import os, signal\nos.kill(os.getpid(), signal.SIGKILL)"
    installed(tensorrt_rtx=killed)
    with pytest.raises(BackendError, match=r"signal 9 .* most likely because the memory ran out"):
        ask(path, RTX)


def test_interrupting_ends_the_process(written, library, tmp_path):
    """Ctrl-C reaches the command alone, as from a service manager; the process that it started ends with it."""
    path = written(chain(8000))
    command = [sys.executable, "-m", "krl_deploy", "check", str(path), "--target", "rtx", "--parser"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, start_new_session=True) as process:
        child = _child_of(process.pid)
        os.kill(process.pid, signal.SIGINT)
        process.communicate(timeout=30)
    assert process.returncode == 130
    for _ in range(50):
        if not _runs(child):
            break
        time.sleep(0.1)
    assert not _runs(child)


def _child_of(parent: int) -> int:
    import psutil

    for _ in range(300):
        for child in psutil.Process(parent).children():
            if "krl_deploy.tensorrt.ask_process" in child.cmdline():
                return child.pid
        time.sleep(0.1)
    raise AssertionError("no process was started")


def _runs(pid: int) -> bool:
    import psutil

    return psutil.pid_exists(pid) and psutil.Process(pid).status() != psutil.STATUS_ZOMBIE


def test_only_targets_of_tensorrt_are_asked(written):
    with pytest.raises(UsageError, match="--target onnxruntime-cpu does not use"):
        krl_deploy.check(model=written(block()), target="onnxruntime-cpu", parser=True)


def test_weights_beside_the_file_are_parsed_with_it(tmp_path, library, capsys):
    path = tmp_path / "m.onnx"
    onnx.save_model(block(), path, save_as_external_data=True, location="w.bin", size_threshold=0)
    code, found = check_json(path, capsys)
    assert code == 0
    assert found["files"][0]["parser"]["parsed"]


def test_a_file_of_a_bundle_keeps_its_weights_itself(tmp_path, capsys):
    bundle = write_bundle(tmp_path / "tiny.krl")
    model = onnx.load(bundle.path / "model.fp32.onnx")
    onnx.save_model(model, tmp_path / "e.onnx", save_as_external_data=True, location="w.bin", size_threshold=0)
    files = {"model.fp32.onnx": (tmp_path / "e.onnx").read_bytes()}
    files |= {p.name: p.read_bytes() for p in bundle.path.iterdir() if p.name not in (*files, "manifest.json")}
    other = Bundle.create(tmp_path / "other.krl", replace(bundle.manifest, files={}), files)
    (other.path / "w.bin").write_bytes((tmp_path / "w.bin").read_bytes())
    assert main(["check", str(other.path), "--target", "rtx"]) == 2
    assert "weights in other files" in capsys.readouterr().err
