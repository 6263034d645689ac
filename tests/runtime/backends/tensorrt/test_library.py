"""Finding what is installed: TensorRT, TensorRT-RTX, cuda-python, a GPU."""

import sys

import pytest

from _helpers.fake_cuda import GPU_NAME, FakeCuda
from _helpers.fake_tensorrt import faked, install_fakes
from _helpers.tensorrt_bindings import GENERATIONS, RTX
from krl_runtime.backends import cuda
from krl_runtime.backends.cuda import Gpu, NoTensorRTError, current_gpu, version_tuple
from krl_runtime.backends.tensorrt import library
from krl_runtime.backends.tensorrt.library import rtx_library, tensorrt_library
from krl_runtime.errors import BackendError

newest = faked(GENERATIONS[-1])


def test_without_tensorrt_the_message_says_how_to_install_it(monkeypatch, tmp_path):
    monkeypatch.setitem(sys.modules, "tensorrt", None)
    with pytest.raises(NoTensorRTError, match=r"TensorRT is not installed here; install it with: pip .*\[tensorrt\]"):
        tensorrt_library()
    monkeypatch.setattr(library, "jetson_release", lambda: "36.4.3")
    with pytest.raises(NoTensorRTError, match=r"install JetPack.*--system-site-packages"):
        tensorrt_library()


def test_a_tensorrt_that_cannot_be_used_is_reported(monkeypatch, newest):
    newest.module.__version__ = "8.6.2"
    with pytest.raises(BackendError, match=r"TensorRT 8\.6\.2 is installed; krl needs 10\.3 or newer"):
        tensorrt_library()

    class Broken:
        def find_spec(self, name, path=None, target=None):
            if name == "tensorrt":
                raise ImportError(f"{missing}: cannot open shared object file")

    missing = "libnvdla_compiler.so"
    monkeypatch.setattr("sys.meta_path", [Broken()])
    monkeypatch.delitem(sys.modules, "tensorrt")
    with pytest.raises(BackendError, match=r"libnvdla_compiler\.so.*; JetPack 7\.2 does not have that file"):
        tensorrt_library()
    missing = "libnvinfer.so.11"

    with pytest.raises(BackendError, match=r"libraries cannot be loaded: libnvinfer\.so\.11") as caught:
        tensorrt_library()
    assert not isinstance(caught.value, NoTensorRTError)


def test_the_gpu_is_described(monkeypatch):
    FakeCuda(compute_capability=(8, 7), free=5, total=8).install(monkeypatch)
    assert current_gpu() == Gpu(GPU_NAME, "8.7", total_bytes=8, free_bytes=5)


@pytest.mark.parametrize(
    ("fault", "message"),
    [
        ("cudaErrorNoDevice", "the driver sees no GPU"),
        ("cudaErrorInsufficientDriver", r"pip install 'cuda-python<13'"),
        (RuntimeError("Failed to dlopen libcuda.so.1"), "no NVIDIA driver can be used here.*libcuda"),
    ],
)
def test_without_a_gpu_that_is_reported(monkeypatch, fault, message):
    fake = FakeCuda().install(monkeypatch)
    fake.fail["cudaGetDeviceCount"] = fault
    with pytest.raises(NoTensorRTError, match=message):
        current_gpu()


def test_the_real_bindings_describe_a_gpu_or_say_that_there_is_none():
    cudart = pytest.importorskip("cuda.bindings.runtime", reason="cuda.bindings is not installed")
    error, _ = cudart.cudaGetDeviceCount()
    if error == 0:
        gpu = current_gpu()
        assert version_tuple(gpu.compute_capability) >= (5, 0)
        assert 0 < gpu.free_bytes <= gpu.total_bytes
    else:
        with pytest.raises(
            NoTensorRTError, match="no NVIDIA GPU can be used here: CUDA call cudaGetDeviceCount failed"
        ):
            current_gpu()


def test_without_cuda_python_that_is_reported(monkeypatch):
    monkeypatch.setitem(sys.modules, "cuda.bindings", None)
    with pytest.raises(NoTensorRTError, match="cuda-python is not installed here"):
        current_gpu()


def test_versions_and_releases_are_read(tmp_path):
    assert version_tuple("10.13.3.9.post1") == (10, 13, 3, 9)
    assert version_tuple("dev") == ()
    release = tmp_path / "nv_tegra_release"
    assert cuda.jetson_release(release) is None
    release.write_text("# R36 (release), REVISION: 4.3, GCID: 38968081, BOARD: generic, EABI: aarch64\n")
    assert cuda.jetson_release(release) == "36.4.3"


def test_without_rtx_the_message_says_how_to_install_it(monkeypatch):
    for name in ("tensorrt_rtx", "tensorrt_rtx_bindings"):
        monkeypatch.setitem(sys.modules, name, None)
    with pytest.raises(NoTensorRTError, match=r"TensorRT-RTX is not installed here; install it with: pip .*\[rtx\]"):
        rtx_library()


def test_rtx_is_found_under_either_name(pytestconfig, monkeypatch):
    fake = install_fakes(RTX, pytestconfig, monkeypatch)
    found = rtx_library()
    assert (found.module, found.title) == (fake.module, f"TensorRT-RTX {fake.version}")
    monkeypatch.setitem(sys.modules, "tensorrt_rtx", None)
    monkeypatch.setitem(sys.modules, "tensorrt_rtx_bindings", fake.module)
    assert rtx_library().module is fake.module
    fake.module.__version__ = "1.4.0"
    with pytest.raises(BackendError, match=r"TensorRT-RTX 1\.4\.0 is installed; krl needs 1\.5 or newer"):
        rtx_library()
