from __future__ import annotations

import re
import sys
from pathlib import Path
from types import ModuleType, SimpleNamespace

import numpy as np
import onnx
import pytest

from _helpers.fakes import fake_gpu_runtime
from krl_runtime import BackendError
from krl_runtime.backends.cuda import Gpu, NoTensorRTError
from krl_runtime.backends.tensorrt.library import Library
from krl_runtime.device import doctor
from krl_runtime.device.doctor import Component, can_run

pytestmark = pytest.mark.usefixtures("without_openvino")


def found(component: str) -> Component:
    (finding,) = [finding for finding in doctor.doctor() if finding.component == component]
    return finding


def raising(error: Exception):
    def call(*_: object) -> None:
        raise error

    return call


def test_the_model_that_it_carries_along():
    model = onnx.load_from_string(doctor._ONNX)
    onnx.checker.check_model(model)
    assert len(doctor._ONNX) < 150
    assert [node.op_type for node in model.graph.node] == ["Add"]


def test_this_machine():
    findings = doctor.doctor()
    assert [finding.component for finding in findings if finding.component != "tensorrt-rtx"] == [
        "krl", "python", "numpy", "pillow", "int8", "onnxruntime-cpu", "onnxruntime-cuda", "cuda", "tensorrt"
    ]  # fmt: skip
    assert found("numpy").detail == np.__version__
    cpu = found("onnxruntime-cpu")
    assert (cpu.state, cpu.runs_models) == ("ok", True)
    assert cpu.detail.endswith("ran a model")
    assert can_run(findings)
    for finding in findings:
        assert (finding.advice == "") == (finding.state == "ok")


def test_a_runtime_without_cuda():
    finding = found("onnxruntime-cuda")
    assert (finding.state, finding.runs_models) == ("missing", False)
    assert "has no CUDA provider" in finding.detail
    assert finding.advice.startswith("on a machine with an NVIDIA GPU replace it: pip uninstall onnxruntime")


def test_cuda_that_works_and_cuda_that_does_not(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    fake_gpu_runtime(monkeypatch, tmp_path)
    assert found("onnxruntime-cuda") == Component(
        "onnxruntime-cuda", "ok", "onnxruntime 1.99.0 ran a model", runs_models=True
    )
    fake_gpu_runtime(monkeypatch, tmp_path, works=False, ignores_strictness=True)
    finding = found("onnxruntime-cuda")
    assert finding.state == "broken"
    assert "did not start, it would have run on the CPU instead" in finding.detail


def test_without_onnxruntime(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setitem(sys.modules, "onnxruntime", None)
    finding = found("onnxruntime-cpu")
    assert finding.state == "missing"
    assert "needs onnxruntime, which is not installed" in finding.detail
    assert re.fullmatch(r"install it with: pip install .*\[cpu\]'", finding.advice)
    assert not can_run(doctor.doctor())


def test_an_onnxruntime_that_is_half_installed(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setitem(sys.modules, "onnxruntime", ModuleType("onnxruntime"))
    finding = found("onnxruntime-cpu")
    assert (finding.state, finding.advice) == ("broken", "reinstall onnxruntime")
    assert finding.detail.startswith("AttributeError: ")


@pytest.mark.parametrize(
    ("error", "detail", "advice"),
    [
        (ImportError("numpy.core.multiarray failed to import"), "built for numpy 1, and this is numpy", "numpy<2"),
        (AttributeError("_ARRAY_API not found"), "built for numpy 1, and this is numpy", "numpy<2"),
        (ImportError("libgomp.so.1: cannot open shared object file"), "libgomp.so.1", "reinstall it"),
    ],
)
def test_an_onnxruntime_that_cannot_be_imported(
    monkeypatch: pytest.MonkeyPatch, error: Exception, detail: str, advice: str
) -> None:
    class Broken:
        def find_spec(self, name: str, *_: object) -> None:
            if name == "onnxruntime":
                raise error

    monkeypatch.delitem(sys.modules, "onnxruntime", raising=False)
    monkeypatch.setattr(sys, "meta_path", [Broken(), *sys.meta_path])
    for component in ("onnxruntime-cpu", "onnxruntime-cuda"):
        finding = found(component)
        assert finding.state == "broken"
        assert "onnxruntime is installed and cannot be imported" in finding.detail
        assert detail in finding.detail
        assert advice in finding.advice


def test_a_session_that_computes_nonsense(monkeypatch: pytest.MonkeyPatch):
    session = SimpleNamespace(run=lambda *_: [np.float32([0, 0])])
    monkeypatch.setattr(doctor, "open_session", lambda *_, **__: session)
    finding = found("onnxruntime-cpu")
    assert (finding.state, finding.detail) == ("broken", "1.5 + 1.5 and -2 - 2 gave [0.0, 0.0]")


def test_gpus(monkeypatch: pytest.MonkeyPatch):
    gpu = Gpu("Orin", "8.7", 8 * 2**30, 3 * 2**30)
    monkeypatch.setattr(doctor, "current_gpu", lambda: gpu)
    assert found("cuda") == Component("cuda", "ok", "Orin, compute capability 8.7, 3.0 of 8.0 GiB free")
    monkeypatch.setattr(doctor, "current_gpu", raising(NoTensorRTError("no GPU; buy one")))
    assert found("cuda") == Component("cuda", "missing", "no GPU", "buy one")
    monkeypatch.setattr(doctor, "current_gpu", raising(ValueError("odd; really")))
    finding = found("cuda")
    assert (finding.state, finding.detail) == ("broken", "ValueError: odd; really")
    assert "nvidia-smi" in finding.advice


def fake_tensorrt(monkeypatch: pytest.MonkeyPatch, runtime: object) -> None:
    module = ModuleType("tensorrt")
    module.Runtime = lambda logger: runtime() if callable(runtime) else runtime
    monkeypatch.setitem(sys.modules, "tensorrt", module)
    monkeypatch.setattr(doctor, "tensorrt_library", lambda: Library("tensorrt", module, "10.3.0"))
    monkeypatch.setattr(doctor, "tensorrt_logger", lambda library: None)


def test_tensorrt(monkeypatch: pytest.MonkeyPatch):
    fake_tensorrt(monkeypatch, object())
    assert found("tensorrt") == Component("tensorrt", "ok", "10.3.0 made a runtime", runs_models=True)
    fake_tensorrt(monkeypatch, None)
    finding = found("tensorrt")
    assert (finding.state, finding.detail) == ("broken", "making a TensorRT runtime: TensorRT made none")
    fake_tensorrt(monkeypatch, raising(TypeError("factory function returned nullptr")))
    assert "factory function returned nullptr" in found("tensorrt").detail
    monkeypatch.setattr(doctor, "tensorrt_library", raising(BackendError("TensorRT 8.5 is installed; krl needs 10.3")))
    assert found("tensorrt") == Component("tensorrt", "broken", "TensorRT 8.5 is installed", "krl needs 10.3")


@pytest.mark.parametrize(
    ("release", "detail"),
    [
        ("36.4.3", "JetPack 6.1, 6.2 (L4T 36.4.3): TensorRT 10.3 and CUDA 12.6, from the system"),
        ("35.4.1", "JetPack 5.1 (L4T 35.4.1): its TensorRT 8.5.2 is older than krl needs (10.3); use the CPU"),
        ("38.2", "JetPack 7.0, 7.1 (L4T 38.2): TensorRT 10.13"),
        ("39.2.0", "JetPack 7.2 (L4T 39.2.0): TensorRT 10.16.2"),
        ("99.1", "a JetPack that this krl does not know (L4T 99.1): check its TensorRT"),
    ],
)
def test_jetsons(monkeypatch: pytest.MonkeyPatch, release: str, detail: str):
    monkeypatch.setattr(doctor, "jetson_release", lambda: release)
    finding = found("jetpack")
    assert finding.detail.startswith(detail)
    assert "--system-site-packages" in finding.advice


def test_rtx(monkeypatch: pytest.MonkeyPatch):
    """Without a GPU it builds engines, which is no fault; with one it has to make a runtime."""
    module = ModuleType("tensorrt_rtx")
    module.Runtime = lambda logger: None
    monkeypatch.setattr(doctor, "rtx_library", lambda: Library("tensorrt-rtx", module, "1.7.1"))
    monkeypatch.setattr(doctor, "tensorrt_logger", lambda library: None)
    monkeypatch.setattr(doctor, "current_gpu", raising(NoTensorRTError("no GPU; buy one")))
    assert found("tensorrt-rtx") == Component("tensorrt-rtx", "ok", "1.7.1 builds engines; running them needs a GPU")
    monkeypatch.setattr(doctor, "current_gpu", lambda: Gpu("RTX", "8.9", 8 * 2**30, 3 * 2**30))
    assert found("tensorrt-rtx").state == "broken"
    module.Runtime = lambda logger: object()
    assert found("tensorrt-rtx") == Component("tensorrt-rtx", "ok", "1.7.1 made a runtime", runs_models=True)
    monkeypatch.setattr(doctor, "rtx_library", raising(BackendError("its libraries cannot be loaded")))
    assert found("tensorrt-rtx").state == "broken"
    monkeypatch.setattr(doctor, "rtx_library", raising(NoTensorRTError("not installed")))
    assert "tensorrt-rtx" not in [finding.component for finding in doctor.doctor()]
