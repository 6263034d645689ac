"""krl's source against the real bindings: every name, signature and possible ``None`` of every call, by mypy."""

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from _helpers.tensorrt_bindings import ALL, RTX, RTX_OLDEST, cache_folder, dump_cuda, dump_tensorrt
from _helpers.tensorrt_stubs import write_stubs

ROOT = Path(__file__).parents[2]
PACKAGES = ("train", "compress", "deploy", "runtime")
USES = re.compile(r"^\s*(import tensorrt(_rtx)?\b|from tensorrt\b|import cuda\b|from cuda\b)", re.MULTILINE)

CONFIGURATION = """
[mypy]
strict = true
warn_unused_ignores = false
explicit_package_bases = true
follow_imports = silent
mypy_path = {path}
[mypy-tensorrt.*,tensorrt_rtx.*,cuda.*]
ignore_errors = true
[mypy-numpy.*,onnx.*,onnxruntime.*,openvino.*,rich.*,tyro.*,PIL.*]
follow_imports = skip
ignore_missing_imports = true
"""


@pytest.fixture(params=(*ALL, RTX_OLDEST), ids=lambda generation: generation.name)
def mypy(request, pytestconfig, tmp_path):
    """A function that checks files of a source tree against the bindings of one generation."""
    pytest.importorskip("mypy")
    folder = cache_folder(pytestconfig)
    stubs = tmp_path / "stubs"
    stubs.mkdir()
    generation = request.param
    own = dump_tensorrt(folder, generation)
    rtx = own if generation.rtx else dump_tensorrt(folder, RTX)
    write_stubs(stubs, own, rtx, dump_cuda(folder, generation.cuda_bindings))

    def run(root: Path, files: list[str]) -> tuple[int, str]:
        paths = [stubs, *(root / package for package in PACKAGES)]
        configuration = tmp_path / "mypy.ini"
        configuration.write_text(CONFIGURATION.format(path=":".join(map(str, paths))))
        command = [sys.executable, "-m", "mypy", "--config-file", str(configuration), "--no-error-summary", *files]
        cache = folder / f"mypy-{generation.name}" if root == ROOT else tmp_path / "mypy"
        command += ["--cache-dir", str(cache)]
        done = subprocess.run(command, cwd=root, capture_output=True, text=True, env={**os.environ, "MYPYPATH": ""})
        return done.returncode, done.stdout + done.stderr

    run.generation = generation
    return run


def users() -> list[str]:
    """The source files that use TensorRT or CUDA."""
    files = [file for package in PACKAGES for file in (ROOT / package).rglob("*.py")]
    return sorted(str(file.relative_to(ROOT)) for file in files if USES.search(file.read_text(encoding="utf-8")))


def test_every_use_exists_with_that_signature(mypy):
    files = users()
    assert {"runtime/krl_runtime/backends/cuda.py", "deploy/krl_deploy/tensorrt/builder.py"} <= set(files)
    code, output = mypy(ROOT, files)
    assert code == 0, output


MUTATIONS = {
    # file, what stands there, what it becomes, what mypy says, in which generations
    "absent flag": (
        "deploy/krl_deploy/tensorrt/builder.py",
        "trt.BuilderFlag.REFIT,",
        "trt.BuilderFlag.INT8,",
        '"type[BuilderFlag]" has no attribute "INT8"',
        (1, 11),
    ),
    "absent method": (
        "runtime/krl_runtime/backends/tensorrt/lane.py",
        "self._context.execute_async_v3(int(self._stream))",
        "self._context.execute_async_v2([], int(self._stream))",
        'has no attribute "execute_async_v2"',
        (1, 10, 11),
    ),
    "too few arguments": (
        "deploy/krl_deploy/tensorrt/builder.py",
        "config.set_timing_cache(cache, False)",
        "config.set_timing_cache(cache)",
        'Missing positional argument "ignore_mismatch"',
        (1, 10, 11),
    ),
    "wrong type": (
        "runtime/krl_runtime/backends/tensorrt/calls.py",
        "parser.refit_from_bytes(weights)",
        "parser.refit_from_file(weights)",
        'incompatible type "bytes"; expected "str"',
        (1, 10, 11),
    ),
    "unchecked None": (
        "runtime/krl_runtime/backends/tensorrt/backend.py",
        'check(engine.create_execution_context(), "no execution context can be made")',
        "engine.create_execution_context()",
        '(expression has type "IExecutionContext | None", variable has type "IExecutionContext")',
        (1, 10, 11),
    ),
    "absent method of RTX": (
        "runtime/krl_runtime/backends/tensorrt/rtx.py",
        "self._config.set_runtime_cache(self._cache)",
        "self._config.set_kernel_cache(self._cache)",
        'has no attribute "set_kernel_cache"',
        (1, 10, 11),
    ),
    "wrong type for RTX": (
        "deploy/krl_deploy/tensorrt/api.py",
        "rtx_config.set_compute_capability(known[name], index)",
        "rtx_config.set_compute_capability(name, index)",
        'incompatible type "str"; expected "ComputeCapability"',
        (1, 10, 11),
    ),
    "unknown CUDA call": (
        "runtime/krl_runtime/backends/cuda.py",
        "call(cudart.cudaMalloc, nbytes)",
        "call(cudart.cudaMallocPinned, nbytes)",
        'Module has no attribute "cudaMallocPinned"',
        (1, 10, 11),
    ),
    "CUDA call with a missing argument": (
        "runtime/krl_runtime/backends/cuda.py",
        "call(cudart.cudaGraphInstantiate, graph, 0)",
        "call(cudart.cudaGraphInstantiate, graph)",
        'Missing positional argument "flags"',
        (1, 10, 11),
    ),
}


def test_a_use_that_does_not_exist_is_found(mypy, tmp_path):
    for package in ("runtime", "deploy"):
        shutil.copytree(ROOT / package, tmp_path / package, ignore=shutil.ignore_patterns("__pycache__"))
    expected = []
    for file, before, after, message, majors in MUTATIONS.values():
        path = tmp_path / file
        text = path.read_text()
        assert text.count(before) == 1, f"{file} has {before!r} {text.count(before)} times"
        path.write_text(text.replace(before, after))
        expected += [message] if mypy.generation.major in majors else []
    code, output = mypy(tmp_path, sorted({file for file, *_ in MUTATIONS.values()}))
    assert code == 1
    assert [message for message in expected if message not in output] == [], output
    assert ("INT8" in output) == (mypy.generation.major != 10)


@pytest.fixture(params=(*ALL, RTX_OLDEST), ids=lambda generation: generation.name)
def classes(request, pytestconfig):
    dump = dump_tensorrt(cache_folder(pytestconfig), request.param)
    assert dump["version"].startswith(request.param.version)
    return request.param, dump["classes"]


def test_what_krl_says_of_the_generations(classes):
    generation, found = classes
    gone = {"FP16", "INT8", "BF16", "FP8", "OBEY_PRECISION_CONSTRAINTS", "PREFER_PRECISION_CONSTRAINTS"}
    assert gone & set(found["BuilderFlag"]["members"]) == (gone if generation.major == 10 else set())
    assert ("IInt8EntropyCalibrator2" in found) == (generation.major == 10)
    assert found["NetworkDefinitionCreationFlag"]["members"]["STRONGLY_TYPED"] == (1 if generation.major == 10 else 0)
    same_capability = "SAME_COMPUTE_CAPABILITY" in found["HardwareCompatibilityLevel"]["members"]
    assert same_capability == (generation.name != "10.3")
    assert ("ComputeCapability" in found) == generation.rtx
    assert ("CudaGraphStrategy" in found) == generation.rtx
    assert ("IRuntimeCache" in found) == generation.rtx
