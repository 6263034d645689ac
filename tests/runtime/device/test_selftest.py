from __future__ import annotations

import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from _helpers.bundles import VARIANTS, TinyNet, add_engines, npz, write_bundle
from _helpers.fake_cuda import GPU_NAME
from _helpers.fake_tensorrt import faked
from _helpers.fakes import fake_gpu_runtime
from _helpers.tensorrt_bindings import GENERATIONS
from krl_runtime import BackendError, Bundle, BundleError, Preprocessing, load
from krl_runtime.backends.cuda import platform_key
from krl_runtime.backends.onnxruntime import OnnxRuntimeBackend
from krl_runtime.bundle import Engine
from krl_runtime.bundle.golden import golden_arrays
from krl_runtime.cli import main
from krl_runtime.device import selftest as module
from krl_runtime.device.selftest import Replay, selftest
from krl_runtime.errors import MissingExtraError, NotAvailableError

pytestmark = pytest.mark.usefixtures("without_openvino")

SPEC = Preprocessing(12, 10)


def on_cpu(bundle: Bundle) -> dict[str, Replay]:
    return {replay.variant: replay for replay in selftest(bundle, threads=1) if replay.kind == "cpu"}


def test_every_variant_on_every_backend(bundle: Bundle):
    replays = selftest(bundle)
    assert [(replay.variant, replay.kind) for replay in replays] == [
        (variant, kind) for variant in ("fp16", "fp32", "int8") for kind in ("tensorrt", "tensorrt-rtx", "cuda", "cpu")
    ]
    for replay in replays:
        assert replay.state == ("passed" if replay.kind == "cpu" else "unavailable")
        assert (replay.cause == "") == (replay.kind == "cpu")


def test_errors_and_agreement(bundle: Bundle):
    """The files differ from the golden outputs by a constant, which changes no class."""
    replays = on_cpu(bundle)
    for variant, error in (("fp32", 0), ("fp16", 0.002), ("int8", 0.02)):
        replay = replays[variant]
        assert replay.max_abs_error == pytest.approx(error, abs=1e-5)
        assert (replay.agreement, replay.inputs) == (1, 6)
        assert (replay.tolerance, replay.required_agreement) == (
            VARIANTS[variant].tolerance,
            VARIANTS[variant].agreement,
        )


def test_cuda_replays_its_own_file(bundle: Bundle, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    fake_gpu_runtime(monkeypatch, tmp_path)
    (replay,) = [item for item in selftest(bundle) if (item.variant, item.kind) == ("int8", "cuda")]
    assert replay.state == "passed"
    assert replay.max_abs_error == pytest.approx(0.01, abs=1e-5)


def test_an_error_above_the_tolerance_fails(tmp_path: Path):
    variants = {**VARIANTS, "int8": replace(VARIANTS["int8"], tolerance=0.019)}
    replay = on_cpu(write_bundle(tmp_path / "a.krl", variants=tuple(VARIANTS)).update({}, variants=variants))["int8"]
    assert replay.state == "failed"
    assert replay.cause == "the largest error 0.02 is above the tolerance 0.019"


def test_other_classes_fail(tmp_path: Path):
    net = TinyNet.random(SPEC, 4)
    pixels = np.random.default_rng(0).integers(0, 256, (4, 3, 12, 10), dtype=np.uint8)
    logits = net.logits(pixels)
    best = logits[0].argmax()
    logits[0, best] -= 100  # in one of four the golden class is another one
    variants = {"fp32": replace(VARIANTS["fp32"], tolerance=1000, agreement=0.8)}
    bundle = write_bundle(tmp_path / "a.krl", contents={"golden.npz": npz(pixels=pixels, logits=logits)})
    replay = on_cpu(bundle.update({}, variants=variants))["fp32"]
    assert (replay.state, replay.agreement) == ("failed", 0.75)
    assert replay.cause == "top-1 agrees on 75.0% of the golden inputs, required: 80.0%"
    variants = {"fp32": replace(VARIANTS["fp32"], tolerance=1000, agreement=0.75)}
    assert on_cpu(bundle.update({}, variants=variants))["fp32"].state == "passed"


def test_nan_fails(tmp_path: Path):
    broken = replace(TinyNet.random(SPEC, 4), bias=np.float32([np.nan, 0, 0, 0])).onnx()
    variants = {"fp32": replace(VARIANTS["fp32"], tolerance=1e9)}
    bundle = write_bundle(tmp_path / "a.krl", contents={"model.fp32.onnx": broken}).update({}, variants=variants)
    replay = on_cpu(bundle)["fp32"]
    assert replay.state == "failed"
    assert "the largest error nan" in replay.cause


def test_a_variant_that_cannot_be_opened_on_the_cpu_fails(tmp_path: Path):
    bundle = write_bundle(tmp_path / "a.krl", variants=("fp32", "fp16"), contents={"model.fp16.onnx": b"garbage"})
    replays = on_cpu(bundle)
    assert replays["fp32"].state == "passed"
    assert replays["fp16"].state == "failed"
    assert "cannot open the model" in replays["fp16"].cause


def test_a_failure_while_running_fails(bundle: Bundle, monkeypatch: pytest.MonkeyPatch):
    def run(self: OnnxRuntimeBackend, inputs: dict) -> None:
        self.close()
        return original(self, inputs)

    original = OnnxRuntimeBackend.run
    monkeypatch.setattr(OnnxRuntimeBackend, "run", run)
    assert on_cpu(bundle)["fp32"] == Replay(
        "fp32", "cpu", "failed", cause="onnxruntime-cpu is closed; load the bundle again"
    )


def test_without_onnxruntime_nothing_is_available(bundle: Bundle, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setitem(sys.modules, "onnxruntime", None)
    assert {replay.state for replay in selftest(bundle)} == {"unavailable"}


def test_more_inputs_than_a_batch_takes(tmp_path: Path):
    assert on_cpu(write_bundle(tmp_path / "a.krl", golden=35))["fp32"].inputs == 35
    assert on_cpu(write_bundle(tmp_path / "b.krl", golden=3, batch=1))["fp32"].state == "passed"


def test_every_file_is_checked_first(bundle: Bundle):
    (bundle.path / "golden.npz").write_bytes(b"")
    with pytest.raises(BundleError, match=r"golden\.npz is damaged or was changed"):
        selftest(Bundle.open(bundle.path))


PIXELS = np.zeros((2, 3, 12, 10), np.uint8)
LOGITS = np.zeros((2, 4), np.float32)


@pytest.mark.parametrize(
    ("arrays", "message"),
    [
        ({"pixels": PIXELS}, "golden file: input 'logits' is missing; given: pixels"),
        ({"pixels": PIXELS, "logits": LOGITS[:, :3]}, r"'logits' has dtype float32 and shape \[2, 3\]"),
        ({"pixels": PIXELS.astype(np.int8), "logits": LOGITS}, "'pixels' has dtype int8"),
        ({"pixels": PIXELS[:0], "logits": LOGITS[:0]}, r"'pixels' has dtype uint8 and shape \[0, 3, 12, 10\]"),
        ({"pixels": PIXELS, "logits": LOGITS[:1]}, "the golden file's arrays differ in length"),
        ({"pixels": PIXELS, "logits": LOGITS, "x": LOGITS}, "no input 'x'"),
    ],
)
def test_golden_arrays_that_do_not_fit(tmp_path: Path, arrays: dict, message: str):
    bundle = write_bundle(tmp_path / "a.krl", contents={"golden.npz": npz(**arrays)})
    with pytest.raises(BundleError, match=message):
        golden_arrays(bundle)


# What is not here is unavailable; what is here and fails has failed.


@pytest.mark.parametrize(
    ("error", "state"),
    [
        (NotAvailableError("no GPU"), "unavailable"),
        (MissingExtraError("tensorrt", "tensorrt", "running an engine"), "unavailable"),
        (BackendError("TensorRT does not load it"), "failed"),
    ],
)
def test_installed_but_failed_is_a_failure(bundle: Bundle, monkeypatch: pytest.MonkeyPatch, error, state: str):
    real = module.open_backend

    def opened(kind: str, *rest: Any) -> Any:
        if kind in ("tensorrt", "cuda"):
            raise error
        return real(kind, *rest)  # type: ignore[arg-type]

    monkeypatch.setattr(module, "open_backend", opened)
    found = {(replay.variant, replay.kind): replay for replay in selftest(bundle, threads=1)}
    assert found["fp32", "tensorrt"].state == found["fp32", "cuda"].state == state
    assert found["fp32", "cpu"].state == "passed"
    assert main(["selftest", str(bundle.path), "--threads", "1"]) == (1 if state == "failed" else 0)


def test_a_required_backend_that_is_not_here_is_a_failure(bundle: Bundle, capsys: pytest.CaptureFixture[str]):
    assert {replay.state for replay in selftest(bundle, threads=1, require="cpu")} == {"passed"}
    assert {replay.kind for replay in selftest(bundle, threads=1, require="cpu")} == {"cpu"}
    assert {replay.state for replay in selftest(bundle, require="tensorrt")} == {"failed"}
    assert main(["selftest", str(bundle.path), "--require", "tensorrt"]) == 1
    assert "the bundle has no TensorRT engine" in capsys.readouterr().out
    assert main(["selftest", str(bundle.path), "--require", "cpu", "--threads", "1"]) == 0


newest = faked(GENERATIONS[-1])


def with_engine(path: Path, trt: Any, net: TinyNet | None = None, **changes: Any) -> Bundle:
    """A bundle that says of an engine that it is its own, whatever network the engine is of."""
    bundle = write_bundle(path)
    engine = Engine(
        "engines/a.engine", "fp32", bundle.manifest.files["model.fp32.onnx"].sha256, trt.version, ("9.0",), GPU_NAME,
        platform_key(), ((1, 4, 8),), library=trt.library.name,
    )  # fmt: skip
    shape = SPEC.shape if net is None else net.preprocessing.shape
    plan = trt.plan(
        bundle.read("model.fp32.onnx") if net is None else net.onnx(), [{"pixels": [[n, *shape] for n in (1, 4, 8)]}]
    )
    return add_engines(bundle, {engine.file: plan}, {"a": replace(engine, **changes)})


def states(bundle: Bundle, kind: str) -> set[str]:
    return {replay.state for replay in selftest(bundle, threads=1) if replay.kind == kind}


def test_an_engine_that_does_not_load_fails_the_test(tmp_path: Path, newest: Any, caplog: pytest.LogCaptureFixture):
    kind = newest.library.name
    bundle = with_engine(tmp_path / "a.krl", newest)
    assert states(bundle, kind) == {"passed"}
    newest.fail["Runtime.deserialize_cuda_engine"] = None
    assert states(bundle, kind) == {"failed"}
    with load(bundle.path) as model:  # which goes on with another one, and a warning
        assert model.backend.name == "onnxruntime-cpu"
    assert f"{kind} is installed, but failed" in caplog.text


def test_an_engine_for_another_machine_is_unavailable(tmp_path: Path, newest: Any):
    assert states(with_engine(tmp_path / "a.krl", newest, version="1.0.0"), newest.library.name) == {"unavailable"}


@pytest.mark.parametrize(
    "net", [TinyNet.random(SPEC, 5), TinyNet.random(Preprocessing(12, 11), 4)], ids=["classes", "width"]
)
def test_engines_are_checked_like_graphs(tmp_path: Path, newest: Any, net: TinyNet):
    bundle = with_engine(tmp_path / "a.krl", newest, net)
    (failed,) = [item for item in selftest(bundle, threads=1) if item.kind == newest.library.name]
    assert failed.state == "failed"
    assert "the manifest says" in failed.cause
    assert newest.cuda.leaks() == {"memory": 0, "streams": 0, "graphs": 0}
