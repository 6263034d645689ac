from __future__ import annotations

import json
import os
import sys
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from _helpers.bundles import SHIFTS, write_bundle
from _helpers.fake_cuda import GPU_NAME
from _helpers.fake_tensorrt import install_fakes
from _helpers.tensorrt_bindings import GENERATIONS, cache_folder, dump_tensorrt
from krl_runtime import BackendError, Bundle, Classifier, UsageError, load
from krl_runtime.backends import build_lock as build_lock_module
from krl_runtime.backends import warm
from krl_runtime.backends.cuda import Gpu, NoTensorRTError
from krl_runtime.backends.onnxruntime import OnnxRuntimeBackend, open_cpu
from krl_runtime.backends.tensorrt import engines
from krl_runtime.backends.tensorrt.registry import registry_folder

BUILDER = """
import sys, time
from pathlib import Path
from krl_runtime.bundle import Bundle, Engine
path, variant, signal = sys.argv[1:]
while not Path(signal).exists():
    time.sleep(0.005)
engine = Engine("k.engine", variant, "0" * 64, "10.3.0", ("8.7",), "Orin", "linux-aarch64", ((1, 4, 8),))
Bundle.open(path).update({"k.engine": b"plan"}, engines={"k": engine})
"""


class FakeEngine:
    """Stands where TensorRT would: its outputs are those of the variant's file, a little slower."""

    name = "tensorrt"
    shift = 0.0
    opened: list[FakeEngine]

    image_sizes = None

    def __init__(self, bundle: Bundle, variant: str, library: str, device: int) -> None:
        assert library == "tensorrt"
        self._cpu = open_cpu(bundle, variant, 1)
        self.closed = False
        self.opened.append(self)

    def run(self, inputs: dict) -> dict:
        return {name: values + np.float32(self.shift) for name, values in self._cpu.run(inputs).items()}

    def close(self) -> None:
        self.closed = True
        self._cpu.close()


@pytest.fixture
def jetson(monkeypatch: pytest.MonkeyPatch) -> type[FakeEngine]:
    """A machine with TensorRT and a GPU, and an engine that answers as it should."""
    monkeypatch.setattr(warm, "tensorrt_library", lambda: None)
    monkeypatch.setattr(warm, "current_gpu", lambda: Gpu("Orin", "8.7", 1, 1))
    engine = type("Engine", (FakeEngine,), {"opened": []})
    monkeypatch.setattr(engines, "open_engine", engine)
    return engine


@pytest.fixture
def signal(tmp_path: Path) -> Path:
    """The build ends when this file is there."""
    return tmp_path / "signal"


@pytest.fixture
def model(bundle: Bundle, jetson: type[FakeEngine], signal: Path) -> Iterator[Classifier]:
    command = [sys.executable, "-c", BUILDER, str(bundle.path), "fp16", str(signal)]
    with load(bundle.path, variant="fp16", threads=1, build="background", build_command=command) as loaded:
        yield loaded


def test_it_answers_at_once_and_changes_over_when_the_engine_is_there(model: Classifier, signal: Path, jetson):
    golden = model.bundle.golden()
    before = model.logits(golden["pixels"])
    assert (model.backend.name, model.backend.variant, model.backend.state) == ("onnxruntime-cpu", "fp16", "building")
    assert model.backend.reason.endswith("; an engine for variant fp16 is being built in the background")
    assert not model.backend.wait(0.01)
    old = model.backend.backend
    signal.touch()
    assert model.backend.wait(60)
    assert (model.backend.name, model.backend.state) == ("tensorrt", "done")
    assert model.backend.reason.startswith("tensorrt runs variant fp16 (built in the background in ")
    assert model.backend.skipped == {}
    assert model.backend.backend is jetson.opened[0]
    assert np.allclose(model.logits(golden["pixels"]), before)
    with pytest.raises(BackendError, match="is closed"):
        old.run({"pixels": golden["pixels"]})


def test_no_request_is_lost_or_answered_wrongly_while_it_changes_over(
    model: Classifier, signal: Path, monkeypatch: pytest.MonkeyPatch, jetson
):
    """The engine is off by 0.001, within its tolerance: so each answer tells who gave it."""
    monkeypatch.setattr(jetson, "shift", 0.001)
    real = OnnxRuntimeBackend.run

    def slow(self: OnnxRuntimeBackend, inputs: dict) -> dict:
        time.sleep(0.002)  # between the check whether it is open and the run: where a careless swap closes it
        return real(self, inputs)

    monkeypatch.setattr(OnnxRuntimeBackend, "run", slow)
    golden = model.bundle.golden()
    expected = golden["logits"] + SHIFTS["model.fp16.onnx"]
    stop = threading.Event()

    def call(_: int) -> list[bool]:
        new = []
        while not stop.is_set() or not new or not new[-1]:
            apart = model.logits(golden["pixels"]) - expected
            new.append(bool(apart.mean() > 0.0005))
            assert np.abs(apart - 0.001 * new[-1]).max() < 1e-4
        return new

    with ThreadPoolExecutor(8) as pool:
        futures = [pool.submit(call, index) for index in range(8)]
        time.sleep(0.05)
        signal.touch()
        assert model.backend.wait(60)
        time.sleep(0.05)
        stop.set()
        for future in futures:
            told = future.result(60)
            assert told == sorted(told)  # first the old one, then the new one, never back
            assert not told[0]
    assert model.backend.name == "tensorrt"


def test_a_build_that_fails_leaves_the_old_backend_and_a_reason(bundle: Bundle, jetson, caplog):
    command = [sys.executable, "-c", "import sys; sys.exit('the GPU is on fire')"]
    model = load(bundle.path, build="background", build_command=command)
    assert model.backend.wait(60)
    assert (model.backend.name, model.backend.state) == ("onnxruntime-cpu", "failed")
    told = "the engine built in the background is not used: the build ended with exit code 1: the GPU is on fire"
    assert model.backend.reason.endswith(told)
    assert told in caplog.text
    model(np.zeros((5, 5, 3), np.uint8))
    assert jetson.opened == []


@pytest.mark.parametrize(
    ("command", "cause"),
    [
        ([sys.executable, "-c", ""], "the bundle has no TensorRT engine"),
        (["/no/such/program"], "No such file or directory"),
    ],
)
def test_a_build_that_builds_nothing(bundle: Bundle, jetson, command: list[str], cause: str):
    model = load(bundle.path, build="background", build_command=command)
    assert model.backend.wait(60)
    assert model.backend.state == "failed"
    assert cause in model.backend.reason


@pytest.mark.parametrize(
    ("shift", "cause"),
    [(0.5, "it fails the golden inputs: the largest error 0.50"), (np.nan, "it fails the golden inputs: the largest")],
)
def test_an_engine_that_answers_wrongly_is_not_used(
    model: Classifier, signal: Path, jetson, monkeypatch: pytest.MonkeyPatch, shift: float, cause: str
):
    monkeypatch.setattr(jetson, "shift", shift)
    signal.touch()
    assert model.backend.wait(60)
    assert (model.backend.name, model.backend.state) == ("onnxruntime-cpu", "failed")
    assert cause in model.backend.reason
    assert jetson.opened[0].closed


def test_an_engine_that_crashes_in_an_unknown_way_is_not_used(model: Classifier, signal: Path, jetson, monkeypatch):
    def crash(self: FakeEngine, inputs: dict) -> dict:
        raise ZeroDivisionError("unknown")

    monkeypatch.setattr(jetson, "run", crash)
    signal.touch()
    assert model.backend.wait(60)
    assert "not used: ZeroDivisionError: unknown" in model.backend.reason
    assert model.backend.name == "onnxruntime-cpu"


def test_closing_stops_the_build(model: Classifier):
    while model.backend._process is None:
        time.sleep(0.001)
    process = model.backend._process
    model.close()
    assert process.poll() is not None
    assert model.backend.state == "closed"
    with pytest.raises(BackendError, match="is closed"):
        model(np.zeros((5, 5, 3), np.uint8))
    model.close()


def test_the_default_command(bundle: Bundle, jetson, monkeypatch: pytest.MonkeyPatch):
    commands = []

    def refuse(command: list[str], **_: object) -> None:
        commands.append(command)
        raise OSError("enough")

    monkeypatch.setattr(warm.subprocess, "Popen", refuse)
    bundle.update({}, default_variants={"cuda": "fp16", "cpu": "int8"})
    model = load(bundle.path, build="background")
    assert model.backend.wait(60)
    assert commands == [[sys.executable, "-m", "krl_deploy", "build-engine", str(bundle.path), "--precision", "fp16"]]
    assert "is not used: enough" in model.backend.reason


# Where nothing is built.


def test_with_an_engine_nothing_is_built(bundle: Bundle, jetson, signal: Path):
    signal.touch()
    exec(BUILDER.replace("sys.argv[1:]", repr([str(bundle.path), "fp32", str(signal)])), {})
    model = load(bundle.path, build="background", build_command=["/no/such/program"])
    assert model.backend.name == "tensorrt"
    assert "background" not in model.backend.reason


def test_without_tensorrt_nothing_is_built(bundle: Bundle, monkeypatch: pytest.MonkeyPatch):
    def missing() -> str:
        raise NoTensorRTError("TensorRT is not installed here; install it")

    monkeypatch.setattr(warm, "tensorrt_library", missing)
    model = load(bundle.path, build="background")
    assert model.backend.name == "onnxruntime-cpu"
    told = "; no engine is built in the background: TensorRT is not installed here; install it"
    assert model.backend.reason.endswith(told)


def test_without_golden_inputs_nothing_is_built(tmp_path: Path, jetson):
    model = load(write_bundle(tmp_path / "a.krl", golden=0).path, build="background")
    assert "no engine is built in the background: bundle" in model.backend.reason
    assert "has no golden inputs" in model.backend.reason


def test_without_krl_deploy_nothing_is_built(bundle: Bundle, jetson, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(warm, "find_spec", lambda name: None)
    model = load(bundle.path, build="background")
    assert "krl-deploy, which builds it, is not installed; install krl with its extra deploy" in model.backend.reason


def test_arguments_are_checked(bundle: Bundle):
    with pytest.raises(UsageError, match="build is 'now'; accepted: background, or nothing"):
        load(bundle.path, build="now")
    with pytest.raises(UsageError, match="which is for TensorRT, but require is 'cpu'"):
        load(bundle.path, build="background", require="cpu")


STARTUP = """
import json, sys
sys.path.insert(0, {tests!r})
import pytest
from _helpers.fake_cuda import FakeCuda
from _helpers.fake_tensorrt import FakeTensorRT
patch = pytest.MonkeyPatch()
with open({dump!r}) as file:
    FakeTensorRT(json.load(file), FakeCuda().install(patch)).install(patch)
"""


def test_the_real_command_line_builds_the_engine(tmp_path: Path, pytestconfig, monkeypatch: pytest.MonkeyPatch):
    """The default command in a process of its own, where a fake TensorRT stands: ``python -m krl_deploy``."""
    bundle = write_bundle(tmp_path / "a.krl")
    install_fakes(GENERATIONS[-1], pytestconfig, monkeypatch)
    dump = tmp_path / "dump.json"
    dump.write_text(json.dumps(dump_tensorrt(cache_folder(pytestconfig), GENERATIONS[-1])))
    code = STARTUP.format(tests=str(Path(__file__).parents[2]), dump=str(dump))
    (tmp_path / "startup").mkdir()
    (tmp_path / "startup" / "sitecustomize.py").write_text(code)
    monkeypatch.setenv("PYTHONPATH", str(tmp_path / "startup"), prepend=os.pathsep)
    with load(bundle.path, backend="cpu", build="background") as model:
        assert model.backend.wait(120)
        assert model.backend.state == "done", model.backend.reason
        assert model.backend.name == "tensorrt"
        images = list(bundle.golden()["pixels"].transpose(0, 2, 3, 1))
        assert [result.index for result in model(images)] == bundle.golden()["logits"].argmax(1).tolist()
    (engine,) = Bundle.open(bundle.path).manifest.engines.values()
    assert (engine.variant, engine.library, engine.gpu) == ("fp32", "tensorrt", GPU_NAME)


def test_the_real_command_line_that_cannot_build_ends_in_failure(bundle: Bundle, jetson):
    """TensorRT is in this process alone: the command that is to build finds none, and does not end with 0."""
    with load(bundle.path, build="background") as model:
        assert model.backend.wait(120)
        assert model.backend.state == "failed"
        assert "exit code 2" in model.backend.reason
        assert "no engine was built: TensorRT is not installed here" in model.backend.reason
        assert model.backend.name == "onnxruntime-cpu"


def test_the_engine_takes_the_batches_that_are_asked_for(bundle: Bundle, jetson, monkeypatch: pytest.MonkeyPatch):
    commands = []

    def refuse(command: list[str], **_: object) -> None:
        commands.append(command)
        raise OSError("not today")

    monkeypatch.setattr(warm.subprocess, "Popen", refuse)
    model = load(bundle.path, variant="fp16", build="background", build_batch=16)
    model.backend.wait(60)
    model.close()
    assert commands[0][-2:] == ["--profile", "1,16,16"]
    with pytest.raises(UsageError, match="build_batch is 0; accepted: 1 or more"):
        load(bundle.path, build="background", build_batch=0)


def test_one_process_builds_at_a_time(bundle: Bundle, jetson, signal: Path, monkeypatch: pytest.MonkeyPatch):
    """Two models of one bundle, as two workers of a server: the second finds the engine that the first one built."""
    started = []
    real = warm.subprocess.Popen

    def counted(*arguments: Any, **options: Any) -> Any:
        started.append(1)
        return real(*arguments, **options)

    monkeypatch.setattr(warm.subprocess, "Popen", counted)
    monkeypatch.setattr(build_lock_module, "_POLL", 0.01)
    command = [sys.executable, "-c", BUILDER, str(bundle.path), "fp16", str(signal)]
    options: dict[str, Any] = {"variant": "fp16", "threads": 1, "build": "background", "build_command": command}
    with load(bundle.path, **options) as first:
        while not started:
            time.sleep(0.005)
        with load(bundle.path, **options) as second:
            assert not second.backend.wait(0.1)
            signal.touch()
            assert first.backend.wait(60)
            assert second.backend.wait(60)
            assert (first.backend.state, second.backend.state) == ("done", "done")
            assert len(started) == 1


def test_closing_does_not_wait_for_another_build(bundle: Bundle, jetson, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(build_lock_module, "_POLL", 0.01)
    lock = registry_folder().parent / "build.lock"
    lock.parent.mkdir(parents=True, exist_ok=True)
    lock.write_text("1")
    model = load(bundle.path, build="background", build_command=[sys.executable, "-c", ""])
    model.close()
    assert model.backend.state == "closed"
    lock.unlink()


def test_the_lock_of_a_process_that_is_gone_is_taken_over(tmp_path: Path):
    lock = tmp_path / "build.lock"
    lock.write_text("12345")
    old = time.time() - 2 * build_lock_module._STALE
    os.utime(lock, (old, old))
    with build_lock_module.build_lock(lock, lambda: False) as alive:
        assert lock.read_text() == str(os.getpid())
        alive()
    assert not lock.exists()


def test_a_lock_that_cannot_be_written_is_named(tmp_path: Path):
    (tmp_path / "file").write_text("")
    with (
        pytest.raises(BackendError, match=r"build\.lock cannot be written"),
        build_lock_module.build_lock(tmp_path / "file" / "build.lock", lambda: False),
    ):
        pass
