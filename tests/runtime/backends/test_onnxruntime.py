from __future__ import annotations

import shutil
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest
from onnx import TensorProto, helper

from _helpers.bundles import TinyNet, write_bundle
from _helpers.fakes import FakeSession, fake_gpu_runtime
from krl_runtime import BackendError, Bundle, Preprocessing, load
from krl_runtime.backends import onnxruntime as module
from krl_runtime.backends.onnxruntime import NoCudaProviderError, open_cpu, open_cuda, open_session
from krl_runtime.bundle import TensorSpec

ADD = onnx.helper.make_model(
    helper.make_graph(
        [helper.make_node("Add", ["x", "x"], ["y"])],
        "add",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["n"])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, ["n"])],
    ),
    opset_imports=[helper.make_opsetid("", 18)],
    ir_version=8,
)


def pixels(count: int = 2) -> np.ndarray:
    return np.random.default_rng(1).integers(0, 256, (count, 3, 12, 10), dtype=np.uint8)


# What runs is right.


def test_logits_are_those_of_numpy(bundle: Bundle):
    net = TinyNet.random(bundle.manifest.preprocessing, 4)
    backend = open_cpu(bundle, "fp32", threads=1)
    assert backend.name == "onnxruntime-cpu"
    for count in (1, 5):
        outputs = backend.run({"pixels": pixels(count)})
        assert list(outputs) == ["logits"]
        assert outputs["logits"].dtype == np.float32
        assert np.abs(outputs["logits"] - net.logits(pixels(count))).max() < 1e-5


def around_int8(bias: float) -> bytes:
    """FP16 around an INT8 product, and a quantizer behind it: 16 inputs of 0 to the bias, in steps of 0.5."""
    half = {"s": 0.02, "ws": np.full(16, 0.0002), "b": np.full(16, bias), "os": 0.5}
    whole = {"z": np.zeros(()), "w": np.zeros((16, 16)), "wz": np.zeros(16)}
    constants = [onnx.numpy_helper.from_array(np.asarray(v, np.float16), name) for name, v in half.items()]
    constants += [onnx.numpy_helper.from_array(np.asarray(v, np.int8), name) for name, v in whole.items()]
    nodes = [
        helper.make_node("Cast", ["x"], ["h"], to=TensorProto.FLOAT16),
        helper.make_node("QuantizeLinear", ["h", "s", "z"], ["q"]),
        helper.make_node("DequantizeLinear", ["q", "s", "z"], ["d"]),
        helper.make_node("DequantizeLinear", ["w", "ws", "wz"], ["dw"], axis=0),
        helper.make_node("Gemm", ["d", "dw", "b"], ["a"], transB=1),
        helper.make_node("QuantizeLinear", ["a", "os", "z"], ["aq"]),
        helper.make_node("DequantizeLinear", ["aq", "os", "z"], ["ad"]),
        helper.make_node("Cast", ["ad"], ["y"], to=TensorProto.FLOAT),
    ]
    inputs, outputs = ([helper.make_tensor_value_info(name, TensorProto.FLOAT, ["n", 16])] for name in "xy")
    graph = helper.make_graph(nodes, "around", inputs, outputs, constants)
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=9).SerializeToString()


def test_biases_around_int8_are_not_cut_off():
    # A bias of 1 is 250000 steps of 0.02 x 0.0002, and FP16 ends at 65504: the optimizer's integer overflows.
    zeros = {"x": np.zeros((2, 16), np.float32)}
    assert np.array_equal(open_session(around_int8(1.0), cuda=False).run(None, zeros)[0], np.ones((2, 16)))
    raw = onnxruntime.InferenceSession(around_int8(1.0), providers=["CPUExecutionProvider"]).run(None, zeros)[0]
    if np.array_equal(raw, np.ones((2, 16))):
        pytest.skip("this ONNX Runtime computes it rightly; krl need not turn the optimizer off")
    assert np.array_equal(raw, np.full((2, 16), -64))


def test_outputs_belong_to_the_caller(bundle: Bundle):
    backend = open_cpu(bundle, "fp32")
    first = backend.run({"pixels": pixels()})["logits"]
    kept = first.copy()
    backend.run({"pixels": 255 - pixels()})
    assert np.array_equal(first, kept)
    first[:] = 0
    assert np.array_equal(backend.run({"pixels": pixels()})["logits"], kept)


def test_arrays_that_are_not_contiguous(bundle: Bundle):
    backend = open_cpu(bundle, "fp32")
    wide = np.ascontiguousarray(pixels().transpose(0, 2, 3, 1))
    assert np.array_equal(
        backend.run({"pixels": wide.transpose(0, 3, 1, 2)})["logits"], backend.run({"pixels": pixels()})["logits"]
    )


def test_gray_and_fixed_batch(tmp_path: Path):
    gray = Preprocessing(8, 8, channels=1, mean=(0.5,), std=(0.25,))
    bundle = write_bundle(tmp_path / "gray.krl", preprocessing=gray, batch=1)
    backend = open_cpu(bundle, "fp32")
    one = np.full((1, 1, 8, 8), 200, np.uint8)
    assert np.abs(backend.run({"pixels": one})["logits"] - TinyNet.random(gray, 4).logits(one)).max() < 1e-5
    with pytest.raises(BackendError, match=r"shape \[2, 1, 8, 8\]; accepted: uint8 of shape \[1, 1, 8, 8\]"):
        backend.run({"pixels": np.concatenate([one, one])})


# Wrong inputs are named.


@pytest.mark.parametrize(
    ("inputs", "message"),
    [
        ({}, "input 'pixels' is missing; given: nothing"),
        ({"image": pixels()}, "input 'pixels' is missing; given: image"),
        ({"pixels": pixels(), "mask": pixels()}, "the graph has no input 'mask'; it has: pixels"),
        ({"pixels": [[1]]}, "input 'pixels' is a list; accepted: a numpy array"),
        (
            {"pixels": pixels().astype(np.float32)},
            r"input 'pixels' has dtype float32 and shape \[2, 3, 12, 10\]; accepted: uint8 of shape",
        ),
        ({"pixels": pixels()[0]}, r"has dtype uint8 and shape \[3, 12, 10\]; accepted: uint8 of shape"),
        ({"pixels": pixels().transpose(0, 2, 3, 1)}, r"shape \[2, 12, 10, 3\]"),
        ({"pixels": pixels()[:0]}, r"shape \[0, 3, 12, 10\]"),
    ],
)
def test_wrong_inputs(bundle: Bundle, inputs: dict, message: str):
    with pytest.raises(BackendError, match=message):
        open_cpu(bundle, "fp32").run(inputs)


def test_errors_while_running(bundle: Bundle, monkeypatch: pytest.MonkeyPatch):
    backend = open_cpu(bundle, "fp32")

    class Failing:
        def run(self, *_: object) -> None:
            raise RuntimeError("[ONNXRuntimeError] : 6 : RUNTIME_EXCEPTION : Non-zero status code\n while running Conv")

    monkeypatch.setattr(backend, "_session", Failing())
    with pytest.raises(BackendError, match=r"^onnxruntime-cpu failed: Non-zero status code while running Conv$"):
        backend.run({"pixels": pixels()})


# Files that cannot be run.


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (b"", "cannot open the model"),
        (b"garbage", "[Pp]rotobuf parsing failed"),
        (ADD.SerializeToString()[:60], "cannot open the model"),
    ],
    ids=["empty", "garbage", "truncated"],
)
def test_damaged_models_that_the_manifest_vouches_for(tmp_path: Path, data: bytes, message: str, capfd):
    bundle = write_bundle(tmp_path / "a.krl", contents={"model.fp32.onnx": data})
    with pytest.raises(BackendError, match=message):
        load(bundle.path)
    assert capfd.readouterr().err == ""  # told once, by us


def test_unsupported_operators_are_named(tmp_path: Path):
    model = onnx.ModelProto()
    model.CopyFrom(ADD)
    model.graph.node[0].op_type = "NoSuchOperator"
    bundle = write_bundle(tmp_path / "a.krl", contents={"model.fp32.onnx": model.SerializeToString()})
    with pytest.raises(BackendError, match="NoSuchOperator"):
        load(bundle.path)


def test_mutated_models_are_refused_or_run(tmp_path: Path):
    """A fixed seed; the manifest vouches for each."""
    rng = np.random.default_rng(3)
    good = np.frombuffer(TinyNet.random(Preprocessing(12, 10), 4).onnx(), np.uint8)
    outcomes = set()
    for number in range(60):
        broken = good.copy()
        broken[rng.integers(0, len(good), 3)] = rng.integers(0, 256, 3)
        bundle = write_bundle(tmp_path / f"{number}.krl", golden=0, contents={"model.fp32.onnx": broken.tobytes()})
        try:
            with load(bundle.path, threads=1) as model:
                outcomes.add(model.logits(pixels(1)).shape)
        except BackendError:
            outcomes.add("refused")
    assert outcomes == {(1, 4), "refused"}


def test_weights_outside_the_hashed_file_are_refused(tmp_path: Path):
    model = onnx.load_from_string(TinyNet.random(Preprocessing(12, 10), 4).onnx())
    onnx.save(model, str(tmp_path / "m.onnx"), save_as_external_data=True, location="w.bin", size_threshold=0)
    bundle = write_bundle(tmp_path / "a.krl", contents={"model.fp32.onnx": tmp_path / "m.onnx"})
    shutil.copy(tmp_path / "w.bin", bundle.path)  # nothing in the manifest vouches for it
    onnxruntime.InferenceSession(bundle.file("model.fp32.onnx"), providers=["CPUExecutionProvider"])  # takes it
    with pytest.raises(BackendError, match="keeps weights in other files; save it with its weights inside"):
        load(bundle.path)
    with pytest.raises(BackendError, match="keeps weights in other files"):
        open_session((tmp_path / "m.onnx").read_bytes(), cuda=False)


def test_a_graph_that_is_not_the_manifests(tmp_path: Path, bundle: Bundle):
    contents = {"model.fp32.onnx": ADD.SerializeToString()}
    with pytest.raises(BackendError) as caught:
        load(write_bundle(tmp_path / "a.krl", contents=contents).path)
    assert (
        "the graph of variant fp32 has inputs x float32 [n], the manifest says pixels uint8 [batch, 3, 12, 10]; "
        "export the bundle again"
    ) in str(caught.value)
    outputs = (*bundle.manifest.outputs, TensorSpec("features", "float32", ("batch", 5)))
    with pytest.raises(BackendError, match=r"has outputs logits float32 \[batch, 4\], the manifest says .*features"):
        open_cpu(Bundle(bundle.path, replace(bundle.manifest, outputs=outputs)), "fp32")
    inputs = (replace(bundle.manifest.inputs[0], shape=("batch", 3, "height", "width")),)
    open_cpu(Bundle(bundle.path, replace(bundle.manifest, inputs=inputs)), "fp32")
    with pytest.raises(BackendError, match=r"the manifest says none"):
        open_cpu(Bundle(bundle.path, replace(bundle.manifest, inputs=())), "fp32")


def test_unknown_dimensions_and_types_of_a_graph(tmp_path: Path, bundle: Bundle):
    graph = helper.make_graph(
        [helper.make_node("Identity", ["words"], ["same"])],
        "words",
        [helper.make_tensor_value_info("words", TensorProto.STRING, [None])],
        [helper.make_tensor_value_info("same", TensorProto.STRING, [None])],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=8)
    with pytest.raises(BackendError, match=r"has inputs words tensor\(string\) \[\?\]"):
        load(write_bundle(tmp_path / "a.krl", contents={"model.fp32.onnx": model.SerializeToString()}).path)


# CUDA: never the CPU in silence. The real machine of the tests has no GPU.


def test_no_cuda_provider(bundle: Bundle):
    with pytest.raises(NoCudaProviderError, match="that is installed has no CUDA provider; on a machine with"):
        open_cuda(bundle, "fp32")


@pytest.mark.parametrize(("version", "file"), [("1.29.1", "model.int8.cpu.onnx"), ("1.30.0", "model.int8.onnx")])
def test_cuda_gets_fp32_around_int8_from_an_old_version(bundle: Bundle, tmp_path, monkeypatch, version: str, file: str):
    """That for CPUs stands for it here."""
    variant = replace(bundle.manifest.variants["int8"], fp32_file="model.int8.cpu.onnx")
    changed = bundle.update({}, variants={**bundle.manifest.variants, "int8": variant})
    fake_gpu_runtime(monkeypatch, tmp_path)
    monkeypatch.setattr(sys.modules["onnxruntime"], "__version__", version)
    opened = []
    real = module.open_session
    monkeypatch.setattr(module, "open_session", lambda model, **options: opened.append(model) or real(model, **options))
    open_cuda(changed, "int8")
    assert opened == [changed.read(file)]


def test_cuda_that_works(bundle: Bundle, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    fake_gpu_runtime(monkeypatch, tmp_path)
    backend, remark = open_cuda(bundle, "fp32")
    assert (backend.name, remark) == ("onnxruntime-cuda", "")


def test_cuda_that_falls_back_in_silence_is_refused(bundle: Bundle, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    for ignores in (False, True):
        fake_gpu_runtime(monkeypatch, tmp_path, works=False, ignores_strictness=ignores)
        with pytest.raises(BackendError, match="did not start, it would have run on the CPU instead"):
            open_cuda(bundle, "fp32")
        assert load(bundle.path).backend.name == "onnxruntime-cpu"
        with pytest.raises(BackendError, match=r"cannot run on cuda, which is required: .*did not start"):
            load(bundle.path, require="cuda")


def test_nodes_left_on_the_cpu_are_reported(bundle: Bundle, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    fake_gpu_runtime(monkeypatch, tmp_path, left_on_cpu=("Shape", "Gather", "Shape"))
    assert load(bundle.path, require="cuda").backend.reason.startswith(
        "onnxruntime-cuda runs variant fp32 (the bundle names no default for cuda; 3 of 4 nodes stay on the CPU: "
        "2 Shape, 1 Gather)"
    )
    monkeypatch.delattr(FakeSession, "get_provider_graph_assignment_info")
    monkeypatch.setattr(FakeSession, "__getattr__", lambda self, name: getattr(self._real, check_name(name)))
    assert "; some nodes stay on the CPU)" in load(bundle.path, require="cuda").backend.reason


def check_name(name: str) -> str:
    if name == "get_provider_graph_assignment_info":
        raise AttributeError(name)
    return name


def test_a_missing_library_of_cuda_is_named(bundle: Bundle, tmp_path: Path, monkeypatch, capsys):
    compiler = shutil.which("cc") or shutil.which("gcc")
    if compiler is None:
        pytest.skip("needs a C compiler to make a library that lacks another")
    folder = tmp_path / "capi"
    folder.mkdir()
    (tmp_path / "empty.c").write_text("int nothing;\n")
    needed = tmp_path / "libneeded.so.13"
    library = folder / "libonnxruntime_providers_cuda.so"
    shared = [compiler, "-shared", "-fPIC", str(tmp_path / "empty.c")]
    subprocess.run([*shared, "-Wl,-soname,libneeded.so.13", "-o", str(needed)], check=True)
    subprocess.run([*shared, "-Wl,--no-as-needed", str(needed), "-o", str(library)], check=True)
    needed.unlink()
    fake_gpu_runtime(monkeypatch, tmp_path, preload="Failed to load libneeded.so.13")
    with pytest.raises(BackendError, match=r"cannot load: libneeded\.so\.13: cannot open shared object file") as caught:
        open_cuda(bundle, "fp32")
    assert "install the CUDA and cuDNN that onnxruntime-gpu 1.99.0 was built for" in str(caught.value)
    # A library that is there but needs symbols of its host is not at fault; and nothing is printed.
    library.write_bytes(b"not a library")
    open_cuda(bundle, "fp32")
    assert capsys.readouterr().out == ""


def test_sessions_from_bytes():
    session = open_session(ADD.SerializeToString(), cuda=False, threads=1)
    assert session.run(None, {"x": np.float32([1, 2])})[0].tolist() == [2, 4]
    assert session.get_providers() == ["CPUExecutionProvider"]


def test_inputs_stay_in_memory_of_the_gpu(bundle: Bundle, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    module = fake_gpu_runtime(monkeypatch, tmp_path)
    backend, _ = open_cuda(bundle, "fp32", device=3)
    assert module.devices == [3]
    golden = bundle.golden()
    for count in (2, 2, 2, 5, 5, 2):
        made = backend.run({"pixels": golden["pixels"][:count]})["logits"]
        np.testing.assert_allclose(made, golden["logits"][:count], atol=1e-4)
    assert module.copies == 3  # one for each change of the shape
    kept = backend.run({"pixels": golden["pixels"][:2]})["logits"]
    backend.run({"pixels": golden["pixels"][2:4]})
    np.testing.assert_allclose(kept, golden["logits"][:2], atol=1e-4)  # the caller's own


def test_threads_have_bindings_of_their_own(bundle: Bundle, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    fake_gpu_runtime(monkeypatch, tmp_path)
    backend, _ = open_cuda(bundle, "fp32")
    golden = bundle.golden()

    def work(index: int) -> bool:
        rows = slice(index % 5, index % 5 + 1)
        made = backend.run({"pixels": golden["pixels"][rows]})["logits"]
        return np.allclose(made, golden["logits"][rows], atol=1e-4)

    with ThreadPoolExecutor(8) as pool:
        assert all(pool.map(work, range(200)))
