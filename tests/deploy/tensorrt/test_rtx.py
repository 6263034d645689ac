"""``build-engine --target rtx`` with the real TensorRT-RTX, which builds without a GPU."""

import json
import os
import re
import signal
import subprocess
import sys
import time
from dataclasses import replace

import pytest

from _helpers.bundles import write_bundle
from _helpers.graphs import graph, node
from _helpers.image_nets import write_restorer
from _helpers.required import real_rtx
from krl_deploy import build_engine
from krl_deploy.bundles.triton import PackageConfig, package
from krl_deploy.cli import main
from krl_deploy.tensorrt.builder import build_plan
from krl_deploy.tensorrt.options import BuildOptions
from krl_deploy.tensorrt.plan import plan_version
from krl_deploy.tensorrt.progress import BuildProgress
from krl_runtime.bundle import Bundle
from krl_runtime.errors import BackendError, ModelError, UsageError
from krl_runtime.files import sha256_file


@pytest.fixture(autouse=True)
def library():
    return real_rtx()


@pytest.fixture
def bundle(tmp_path):
    return write_bundle(tmp_path / "tiny.krl", variants=("fp32", "fp16", "int8"))


def tree(bundle):
    return {str(path.relative_to(bundle.path)): sha256_file(path) for path in bundle.path.rglob("*") if path.is_file()}


def run(capsys, *argv):
    code = main([str(item) for item in argv])
    captured = capsys.readouterr()
    return code, captured.out, captured.err


def test_an_engine_is_built_and_registered_without_a_gpu(bundle, library, capsys):
    before = tree(bundle)
    code, out, err = run(capsys, "build-engine", bundle.path, "--target", "rtx", "--json")
    assert code == 0, err
    result = json.loads(out)
    onnx = sha256_file(bundle.path / "model.fp16.onnx")
    key = f"fp16-rtx{library.version}-sm86up-b1-1-1-{onnx[:8]}"
    assert result["engine"] == key
    built = Bundle.open(bundle.path)
    built.verify()
    engine = built.manifest.engines[key]
    assert (engine.library, engine.version, engine.variant) == ("tensorrt-rtx", library.version, "fp16")
    assert (engine.compute_capabilities, engine.gpu, engine.platform) == ((), "", "")
    assert engine.onnx_sha256 == onnx
    path = built.file(engine.file)
    assert plan_version(path) == ("tensorrt-rtx", library.version)
    assert result["bytes"] == path.stat().st_size > 10_000
    evidence = built.manifest.evidence["engines"][key]
    assert evidence["parity"] is None
    assert evidence["not_run"] == "there is no GPU here"
    assert sum(evidence["layer_types"].values()) == evidence["layers"] > 5
    assert evidence["layer_types"]["CONVOLUTION FLOAT"] == 1
    assert "its outputs were not compared" in err
    assert f"next: krl-runtime selftest {bundle.path}" in err
    after = tree(bundle)
    assert {name for name in after if after[name] != before.get(name)} == {"manifest.json", engine.file}


@pytest.mark.parametrize("precision", ["fp32", "fp16", "int8"])
def test_every_precision_and_option_is_in_the_key(bundle, precision, library):
    found = build_engine(
        model=bundle.path,
        target="rtx",
        precision=precision,
        profile="1,4,8",
        compute_capability=("8.6, 8.9", "12.0"),
    )
    (engine,) = Bundle.open(bundle.path).manifest.engines.values()
    assert engine.compute_capabilities == ("8.6", "8.9", "12.0")
    assert engine.profiles == ((1, 4, 8),)
    assert f"{precision}-rtx{library.version}-sm86-sm89-sm120-b1-4-8-" in found.engine


def test_heights_and_widths_of_a_restorer(tmp_path, capsys):
    restorer = write_restorer(tmp_path / "open.krl")
    assert run(capsys, "build-engine", restorer.path, "--target", "rtx", "--precision", "fp32")[0] == 0
    options = ("--height", "16,512,1080", "--width", "16,512,1920")
    assert run(capsys, "build-engine", restorer.path, "--target", "rtx", "--precision", "fp32", *options)[0] == 0
    engines = Bundle.open(restorer.path).manifest.engines
    assert {engine.height for engine in engines.values()} == {(16, 288, 288), (16, 512, 1080)}
    code, out, _ = run(capsys, "inspect-engine", restorer.path)
    assert code == 0
    assert re.search(r"tensorrt-rtx .* 8\.6 and later .* 16,512,1080 +16,512,1920", out), out


def test_turing_takes_no_matrix_products_in_fp32(bundle, capsys):
    """The builder refuses what a GPU lacks: the capability has reached it. The message names the node."""
    code, _, err = run(capsys, "build-engine", bundle.path, "--target", "rtx", "--compute-capability", "7.5,8.6")
    assert code == 2
    assert "there is no FP32 GEMM on Turing (sm_75), which node 'node_of_logits' needs; build from another" in err


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (("--compute-capability", "9.0"), r"--compute-capability is 9\.0; TensorRT-RTX .* accepts: 7\.5, 8\.0, 8\.6"),
        (("--compute-capability", "sm86"), r"--compute-capability is 'sm86'; accepted: as in 8\.6,8\.9,12\.0"),
        (("--refit",), "--refit needs a GPU while TensorRT-RTX builds"),
        (("--strip-weights",), "--strip-weights needs a GPU while TensorRT-RTX builds"),
        (("--dla-core", "0"), "--dla-core is for TensorRT; TensorRT-RTX has no such thing"),
        (("--version-compatible",), "--version-compatible is for TensorRT"),
        (("--hardware-compatibility", "ampere-plus"), "--hardware-compatibility is for TensorRT"),
        (("--time-limit", "0.000001"), r"the engine was not built: it took longer than the 1e-06 seconds"),
        (("--profile", "0,1,1"), "--profile is 0,1,1"),
    ],
)
def test_what_cannot_be_is_refused_and_changes_nothing(bundle, capsys, options, message):
    before = tree(bundle)
    code, _, err = run(capsys, "build-engine", bundle.path, "--target", "rtx", *options)
    assert code == 2
    assert re.search(message, err)
    assert tree(bundle) == before


def test_refit_is_for_one_capability_where_there_is_a_gpu():
    options = BuildOptions(refit=True, compute_capabilities=("8.6", "8.9"))
    with pytest.raises(UsageError, match=r"--compute-capability is 8\.6,8\.9; accepted with --refit: one at most"):
        options.check_library("tensorrt-rtx", gpu=True)
    replace(options, compute_capabilities=("8.6",)).check_library("tensorrt-rtx", gpu=True)


def test_a_bundle_without_fp16_says_how_to_make_it(tmp_path, capsys):
    bundle = write_bundle(tmp_path / "tiny.krl")
    code, _, err = run(capsys, "build-engine", bundle.path, "--target", "rtx")
    assert code == 2
    assert f"has no variant fp16 (it has: fp32); make it with: krl-deploy fp16 {bundle.path}" in err


def test_an_onnx_file_is_described_beside_its_engine(bundle, tmp_path, capsys, library):
    engine = tmp_path / "net.engine"
    onnx = bundle.path / "model.fp16.onnx"
    assert run(capsys, "build-engine", onnx, "--target", "rtx", "-o", engine, "--profile", "1,2,4")[0] == 0
    described = json.loads((tmp_path / "net.engine.json").read_bytes())
    assert (described["library"], described["version"]) == ("tensorrt-rtx", library.version)
    code, out, _ = run(capsys, "inspect-engine", engine, "--json")
    shown = json.loads(out)["engines"]["net.engine"]
    assert (code, shown["library"], shown["profiles"]) == (0, "tensorrt-rtx", [[1, 2, 4]])


def test_the_parsers_error_names_the_node(library):
    """The static check lets it pass: the file is given to the builder itself."""
    bad = graph([node("Unique", ["x"], "y")], {"x": [4]}, {"y": ["n"]})
    with pytest.raises(ModelError, match=rf"{library.title} does not take this ONNX file:\n  node 'n_y' \(Unique\)"):
        build_plan(bad.SerializeToString(), BuildOptions(), library)


def test_ctrl_c_stops_the_real_builder(bundle, library, monkeypatch):
    steps = []

    def step_complete(self, name, step):
        steps.append(name)
        if len(steps) == 3:
            os.kill(os.getpid(), signal.SIGINT)
            time.sleep(0.5)  # the main thread gets to say that the build is to stop
        return not self.canceled

    monkeypatch.setattr(BuildProgress, "step_complete", step_complete)
    onnx = (bundle.path / "model.fp16.onnx").read_bytes()
    inherited = signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        with pytest.raises(KeyboardInterrupt):
            build_plan(onnx, BuildOptions(), library)
    finally:
        signal.signal(signal.SIGINT, inherited)
    assert len(steps) == 3
    monkeypatch.undo()
    assert build_plan(onnx, BuildOptions(), library).plan  # the library can be used again


def test_the_builder_reports_progress(bundle, library, monkeypatch):
    phases = []
    monkeypatch.setattr(BuildProgress, "phase_start", lambda self, name, parent, steps: phases.append((parent, steps)))
    build_plan((bundle.path / "model.fp16.onnx").read_bytes(), BuildOptions(), library)
    assert phases[0][0] is None  # the whole build, which the others are parts of
    assert all(steps > 0 for _, steps in phases)


def test_a_full_disk_leaves_the_bundle_as_it_was(bundle, monkeypatch, capsys):
    before = tree(bundle)

    def full(*_, **__):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("krl_runtime.bundle.bundle._store", full)
    code, _, err = run(capsys, "build-engine", bundle.path, "--target", "rtx")
    assert code == 2
    assert "the disk is full; what was there before is untouched" in err
    assert tree(bundle) == before


def test_triton_does_not_get_an_engine_of_rtx(bundle, tmp_path, capsys):
    result = build_engine(model=bundle.path, target="rtx")
    packaged = package(PackageConfig(bundle.path, "triton", tmp_path / "models"))
    assert packaged["file"].endswith(".onnx")
    with pytest.raises(UsageError, match=r"is one of TensorRT-RTX, which Triton does not run"):
        package(PackageConfig(bundle.path, "triton", tmp_path / "others", engine=result.engine))


def test_a_gpu_that_does_not_take_the_engine_is_no_fault_of_the_build(bundle, library, monkeypatch, capsys):
    """Built on a data-center GPU for desktops: it is kept, and the reason why it was not run is recorded."""
    from krl_deploy.tensorrt import engines
    from krl_runtime.backends.cuda import Gpu

    monkeypatch.setattr(engines, "current_gpu", lambda: Gpu("H100", "9.0", 1 << 30, 1 << 30))
    result = build_engine(model=bundle.path, target="rtx")
    assert result.details["parity"] is None
    # Where there is no driver at all, the thread's GPU cannot be set.
    assert "loading engine" in result.details["not_run"] or "cudaSetDevice" in result.details["not_run"]
    assert result.engine in Bundle.open(bundle.path).manifest.engines


def test_without_the_library_the_commands_are_shown_and_nothing_is_claimed(bundle, monkeypatch, capsys):
    for name in ("tensorrt_rtx", "tensorrt_rtx_bindings"):
        monkeypatch.setitem(sys.modules, name, None)
    code, _, err = run(capsys, "build-engine", bundle.path, "--target", "rtx")
    assert code == 2
    assert "no engine was built: TensorRT-RTX is not installed here; install it with: pip install" in err
    code, out, err = run(
        capsys, "build-engine", bundle.path, "--target", "rtx", "--prepare", "--compute-capability", "8.9"
    )
    assert code == 0
    assert "tensorrt_rtx --onnx=model.fp16.onnx --saveEngine=model.fp16.engine" in out
    assert "--computeCapabilities=89 --skipInference" in out
    assert "next:" not in err


def test_the_real_command_line_in_a_process_of_its_own(bundle):
    command = [sys.executable, "-m", "krl_deploy", "build-engine", str(bundle.path), "--target", "rtx"]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert "Traceback" not in done.stderr
    assert len(Bundle.open(bundle.path).manifest.engines) == 1


def test_a_builder_that_gives_nothing_is_an_error_with_its_reason(bundle, library):
    """Refit without a GPU, past the check of the options: NVIDIA's builder itself fails."""
    onnx = (bundle.path / "model.fp16.onnx").read_bytes()
    with pytest.raises(BackendError, match="building the engine: TensorRT could not do it"):
        build_plan(onnx, BuildOptions(refit=True), library)
