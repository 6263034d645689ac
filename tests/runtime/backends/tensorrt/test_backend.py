import logging
import threading
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from contextlib import nullcontext, suppress

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper

from _helpers.bundles import TinyNet
from _helpers.fake_tensorrt import faked, install_fakes
from _helpers.tensorrt_bindings import ALL, GENERATIONS
from krl_runtime.backends.cuda import NoTensorRTError, current_gpu
from krl_runtime.backends.tensorrt.backend import TensorRTBackend
from krl_runtime.errors import BackendError
from krl_runtime.images.preprocessing import Preprocessing

SPEC = Preprocessing(12, 10)
NET = TinyNet.random(SPEC, 4)


trt = faked(*ALL)
capturing = faked(*GENERATIONS)  # krl captures their work as CUDA graphs; TensorRT-RTX does so itself
newest = faked(GENERATIONS[-1])


def shapes(*batches):
    return {"pixels": [[batch, *SPEC.shape] for batch in batches]}


def load(trt, *profiles, **options):
    plan = trt.plan(NET.onnx(), [shapes(*profile) for profile in profiles or [(1, 4, 8)]], bool(options.get("weights")))
    return TensorRTBackend(trt.library, plan, label="test", **options)


def pixels(count, seed=0):
    return np.random.default_rng(seed).integers(0, 256, (count, *SPEC.shape), dtype=np.uint8)


def check(backend, count, seed=0):
    given = pixels(count, seed)
    result = backend.run({"pixels": given})
    assert list(result) == ["logits"]
    assert result["logits"].dtype == np.float32
    np.testing.assert_allclose(result["logits"], NET.logits(given), atol=1e-5)
    return result["logits"]


def exercise(trt):
    """Load, run a shape three times and another one, and close: what a fault can hit."""
    backend = load(trt)
    try:
        for seed in range(3):
            check(backend, 3, seed)
        check(backend, 5)
    finally:
        backend.close()


def test_answers_as_the_network_does_and_gives_arrays_that_the_caller_owns(trt):
    backend = load(trt)
    first = check(backend, 3)
    kept = first.copy()
    for seed, count in enumerate((3, 3, 8, 1, 8, 8, 8, 3), start=1):
        check(backend, count, seed)
    np.testing.assert_array_equal(first, kept)
    backend.close()
    assert trt.cuda.leaks() == {"memory": 0, "streams": 0, "graphs": 0}


def test_a_batch_beyond_the_largest_is_run_in_even_parts(capturing):
    backend = load(capturing, (3, 4, 4))
    check(backend, 9)
    assert capturing.calls["IExecutionContext.execute_async_v3"] == 2  # 3 + 3 + 3: one run, one captured
    assert capturing.cuda.calls["cudaGraphLaunch"] == 2
    with pytest.raises(BackendError, match=r"batch of 5 does not fit.*takes 3 to 4, and nothing is padded.*--profile"):
        backend.run({"pixels": pixels(5)})
    with pytest.raises(BackendError, match="batch of 2 does not fit"):
        backend.run({"pixels": pixels(2)})


def test_the_profile_that_fits_is_used(trt):
    backend = load(trt, (1, 1, 1), (8, 16, 16))
    for count in (1, 12, 1, 16, 20):
        check(backend, count)
    # 1 | 12 | 1 | 16 | 20 = 10 + 10. With CUDA graphs each of the four shapes has a context that stays on its profile;
    # without, one context changes its profile four times.
    assert trt.calls["IExecutionContext.set_optimization_profile_async"] == 4
    check(backend, 3)  # between the two: three times the first profile
    assert trt.calls["IExecutionContext.set_optimization_profile_async"] == (5 if trt.library.rtx else 4)


def test_a_fixed_batch(trt):
    backend = TensorRTBackend(trt.library, trt.plan(NET.onnx(batch=2), []), label="fixed")
    check(backend, 2)
    check(backend, 6)
    with pytest.raises(BackendError, match="batch of 3 does not fit the engine, which takes 2 to 2"):
        backend.run({"pixels": pixels(3)})


def test_the_second_run_of_a_shape_is_captured_and_then_replayed(capturing):
    backend = load(capturing)
    for seed in range(5):
        check(backend, 3, seed)
    assert capturing.cuda.calls["cudaGraphLaunch"] == 4
    assert capturing.calls["IExecutionContext.execute_async_v3"] == 2  # one run, one capture
    check(backend, 4)
    assert capturing.cuda.leaks()["graphs"] == 1  # a graph belongs to the shape that it was captured with
    check(backend, 4)
    assert capturing.cuda.calls["cudaGraphInstantiate"] == 2
    for seed in range(6):  # both are kept: batches of a server change all the time
        check(backend, 3 + seed % 2, seed)
    assert capturing.cuda.calls["cudaGraphInstantiate"] == 2
    assert capturing.cuda.leaks()["graphs"] == 2
    for count in (1, 2, 5):  # at most four contexts: the graph of batch 3 was needed longest ago
        check(backend, count)
    check(backend, 4)
    check(backend, 4)
    assert capturing.cuda.calls["cudaGraphInstantiate"] == 2
    backend.close()
    assert capturing.cuda.leaks() == {"memory": 0, "streams": 0, "graphs": 0}


@pytest.mark.parametrize("cause", ["engine", "cudaStreamBeginCapture", "cudaStreamEndCapture", "cudaGraphInstantiate"])
def test_an_engine_that_cannot_be_captured_runs_without_graphs(capturing, cause, caplog):
    if cause == "engine":
        capturing.no_capture = True
    else:
        capturing.cuda.fail[cause] = "cudaErrorStreamCaptureUnsupported"
    backend = load(capturing)
    with caplog.at_level(logging.INFO, "krl"):
        for seed in range(4):
            check(backend, 3, seed)
    told = [record.getMessage() for record in caplog.records if "CUDA graphs" in record.getMessage()]
    assert len(told) == 1
    assert ("when stream is capturing" if cause == "engine" else "cudaErrorStreamCaptureUnsupported") in told[0]
    assert capturing.cuda.calls["cudaGraphLaunch"] == 0
    backend.close()
    assert capturing.cuda.leaks() == {"memory": 0, "streams": 0, "graphs": 0}


def faults(fake):
    """Every way in which the calls that were recorded can fail, by their real signatures."""
    for key in sorted(fake.calls):
        returns = fake.returns(key)
        if key.startswith("ILogger"):
            continue
        if returns == "bool" and not key.endswith("__bool__"):
            yield key, False
        if fake.is_class(returns):
            yield key, None
        yield key, RuntimeError("out of order")


def test_every_failing_call_of_tensorrt_is_an_error_with_its_cause(trt, pytestconfig):
    exercise(trt)
    found = list(faults(trt))
    assert ("IExecutionContext.execute_async_v3", False) in found
    assert ("Runtime.deserialize_cuda_engine", None) in found
    for key, outcome in found:
        with pytest.MonkeyPatch.context() as patch:
            generation = next(item for item in ALL if trt.version.startswith(item.version))
            fake = install_fakes(generation, pytestconfig, patch)
            fake.fail[key] = outcome
            fake.say[key] = ["Error Code 1: Cuda Runtime (out of memory)"]
            with pytest.raises(
                BackendError, match=r"engine test: .*the GPU ran out of memory \(TensorRT: Error Code 1"
            ):
                exercise(fake)
            assert fake.cuda.leaks() == {"memory": 0, "streams": 0, "graphs": 0}, key


TOLERATED = {  # capturing: the run goes on without; freeing: there is nothing to be done about it
    "cudaStreamBeginCapture",
    "cudaStreamEndCapture",
    "cudaGraphInstantiate",
    "cudaGraphDestroy",
    "cudaGetLastError",
}
FREEING = {
    "cudaFree": "memory",
    "cudaFreeHost": "memory",
    "cudaStreamDestroy": "streams",
    "cudaGraphExecDestroy": "graphs",
}


def test_every_failing_call_of_cuda_is_an_error_and_leaks_nothing(newest, pytestconfig):
    exercise(newest)
    assert {"cudaMalloc", "cudaMallocHost", "cudaGraphLaunch", "cudaStreamSynchronize"} <= set(newest.cuda.calls)
    for name, count in sorted(newest.cuda.calls.items()):
        for call in sorted({1, count}):
            with pytest.MonkeyPatch.context() as patch:
                fake = install_fakes(GENERATIONS[-1], pytestconfig, patch)
                fake.cuda.fail[f"{name}@{call}"] = "cudaErrorUnknown"
                # The first context does without a second one; and closing frees what it can of a lost GPU.
                done_without = name in ("cudaStreamCreateWithFlags", "cudaSetDevice") and call == count > 1
                told = f"CUDA call {name} failed with cudaErrorUnknown"
                if name in FREEING:
                    expected = suppress(BackendError)
                else:
                    expected = (
                        nullcontext() if name in TOLERATED or done_without else pytest.raises(BackendError, match=told)
                    )
                with expected:
                    exercise(fake)
                leaks = {kind: number for kind, number in fake.cuda.leaks().items() if number}
                assert set(leaks) <= {FREEING.get(name, "graphs" if name == "cudaGraphDestroy" else "")}, (name, leaks)


def test_a_lost_device_is_reported_and_a_new_context_is_made_when_it_is_back(newest):
    backend = load(newest)
    check(backend, 3)
    newest.cuda.fail["cudaStreamSynchronize"] = "cudaErrorLaunchFailure"
    with pytest.raises(BackendError, match="cudaStreamSynchronize failed with cudaErrorLaunchFailure"):
        backend.run({"pixels": pixels(3)})
    del newest.cuda.fail["cudaStreamSynchronize"]
    check(backend, 3)
    backend.close()
    assert newest.cuda.leaks() == {"memory": 0, "streams": 0, "graphs": 0}


def test_threads_get_their_own_answers_on_at_most_four_contexts(newest):
    backend = load(newest)

    def work(seed):
        return [check(backend, 1 + (seed + i) % 5, seed * 100 + i) is not None for i in range(5)]

    with ThreadPoolExecutor(16) as pool:
        assert all(all(results) for results in pool.map(work, range(32)))
    assert 1 <= newest.calls["ICudaEngine.create_execution_context"] <= 4
    backend.close()
    assert newest.cuda.leaks() == {"memory": 0, "streams": 0, "graphs": 0}


class Gate:
    """Holds the first synchronization of a stream until it is opened; other threads go on meanwhile."""

    def __init__(self, fake):
        self.entered, self.open = threading.Event(), threading.Event()
        self._original = fake.cuda._cudaStreamSynchronize
        fake.cuda._lock = nullcontext()
        fake.cuda._cudaStreamSynchronize = self._wait

    def _wait(self, stream):
        if not self.entered.is_set():
            self.entered.set()
            assert self.open.wait(10)
        return self._original(stream)


def test_where_memory_allows_one_context_threads_wait_for_it(newest, caplog):
    backend = load(newest)
    check(backend, 1)
    newest.fail["ICudaEngine.create_execution_context"] = None
    gate = Gate(newest)
    with ThreadPoolExecutor(2) as pool:
        running = pool.submit(check, backend, 1, 7)
        assert gate.entered.wait(10)
        waiting = pool.submit(check, backend, 2, 8)
        while "runs at most 1 calls at once" not in caplog.text:
            assert not waiting.done()
        gate.open.set()
        assert running.result(10) is not None
        assert waiting.result(10) is not None
    backend.close()
    assert newest.cuda.leaks() == {"memory": 0, "streams": 0, "graphs": 0}


def test_a_closed_engine_refuses_and_closing_waits_for_runs_under_way(newest):
    backend = load(newest)
    check(backend, 1)
    gate = Gate(newest)
    with ThreadPoolExecutor(2) as pool:
        running = pool.submit(check, backend, 1, 7)
        assert gate.entered.wait(10)
        closing = pool.submit(backend.close)
        assert not closing.done()
        gate.open.set()
        assert running.result(10) is not None
        closing.result(10)
    backend.close()
    with pytest.raises(BackendError, match="engine test is closed; load the bundle again"):
        backend.run({"pixels": pixels(1)})
    assert newest.cuda.leaks() == {"memory": 0, "streams": 0, "graphs": 0}


@pytest.mark.parametrize(
    ("inputs", "message"),
    [
        ({}, "input 'pixels' is missing"),
        ({"pixels": np.zeros((1, 3, 12, 10), np.float32)}, "has dtype float32"),
        ({"pixels": np.zeros((1, 3, 12, 11), np.uint8)}, r"shape \[1, 3, 12, 11\]"),
        ({"pixels": np.zeros((0, 3, 12, 10), np.uint8)}, r"shape \[0, 3, 12, 10\]"),
        ({"pixels": pixels(1), "more": pixels(1)}, "no input 'more'"),
    ],
)
def test_wrong_inputs_are_refused(newest, inputs, message):
    backend = load(newest)
    with pytest.raises(BackendError, match=message):
        backend.run(inputs)
    check(backend, 2)


def graph(inputs, outputs):
    """A graph of Identity nodes: for each input (name, type, shape) an output of that name with a prime."""
    nodes = [helper.make_node("Identity", [i[0]], [o[0]]) for i, o in zip(inputs, outputs, strict=True)]
    values = [[helper.make_tensor_value_info(*item) for item in items] for items in (inputs, outputs)]
    model = helper.make_model(helper.make_graph(nodes, "g", *values), ir_version=8, opset_imports=[OPSET])
    onnx.checker.check_model(model)
    return model.SerializeToString()


F = TensorProto.FLOAT
OPSET = helper.make_opsetid("", 18)


@pytest.mark.parametrize(
    ("model", "message"),
    [
        (graph([("x", TensorProto.BFLOAT16, ["b", 3])], [("y", TensorProto.BFLOAT16, ["b", 3])]), "'x' has type BF16"),
        (
            graph([("x", F, ["b", "n"])], [("y", F, ["b", "n"])]),
            r"'x' has shape \[-1, -1\]; only the batch, and .* may vary",
        ),
        (graph([("x", F, [])], [("y", F, [])]), r"'x' has shape \[\]"),
        (graph([("x", F, ["b", 2])], [("y", F, [1, 2])]), r"do not share one batch dimension: \[-1, 1\]"),
    ],
)
def test_engines_of_another_form_are_refused_when_they_are_loaded(newest, model, message):
    with pytest.raises(BackendError, match=f"loading engine odd: .*{message}"):
        TensorRTBackend(newest.library, newest.plan(model, [{"x": [[1, 2], [1, 2], [1, 2]]}]), label="odd")


def test_tensors_on_the_host_and_shapes_that_stay_unknown_are_refused(newest):
    newest.fail["ICudaEngine.get_tensor_location"] = newest.module.TensorLocation.HOST
    with pytest.raises(BackendError, match="tensor 'pixels' lives on the host"):
        load(newest)
    del newest.fail["ICudaEngine.get_tensor_location"]
    newest.fail["IExecutionContext.infer_shapes"] = ["pixels"]
    with pytest.raises(BackendError, match="running engine test: shapes are not known: pixels"):
        load(newest).run({"pixels": pixels(1)})
    del newest.fail["IExecutionContext.infer_shapes"]
    newest.fail["IExecutionContext.get_tensor_shape"] = [-1, 4]
    with pytest.raises(BackendError, match=r"output 'logits' has shape \[-1, 4\] for batch 1"):
        load(newest).run({"pixels": pixels(1)})


def test_inputs_with_different_batches_are_refused(newest):
    model = graph([("a", F, ["b", 2]), ("c", F, ["b", 3])], [("x", F, ["b", 2]), ("y", F, ["b", 3])])
    backend = TensorRTBackend(newest.library, newest.plan(model, [{"a": [[1, 2]] * 3, "c": [[1, 3]] * 3}]), label="two")
    with pytest.raises(BackendError, match=r"different batches: \[1, 2\]"):
        backend.run({"a": np.zeros((1, 2), np.float32), "c": np.zeros((2, 3), np.float32)})
    result = backend.run({"a": np.full((1, 2), 5, np.float32), "c": np.full((1, 3), 7, np.float32)})
    assert result["x"].tolist() == [[5, 5]]
    assert result["y"].tolist() == [[7, 7, 7]]


def test_a_plan_of_another_version_or_a_damaged_one_is_refused_with_its_reason(trt):
    plan = bytearray(trt.plan(NET.onnx(), [shapes(1, 1, 1)]))
    plan[24] = 99
    with pytest.raises(
        BackendError, match=r"does not load it: it was built by another version of TensorRT.*Version tag"
    ):
        TensorRTBackend(trt.library, bytes(plan), label="old")
    with pytest.raises(BackendError, match="it is damaged, or not a TensorRT engine"):
        TensorRTBackend(trt.library, b"\0" * 100, label="zeros")


def test_options_reach_the_runtime(trt):
    seen = {}
    original = trt._Runtime_deserialize_cuda_engine

    def deserialize(this, serialized_engine):
        seen.update(this.s.values)
        return original(this, serialized_engine)

    trt._Runtime_deserialize_cuda_engine = deserialize
    check(load(trt), 1)
    assert seen == {}
    check(load(trt, host_code=True, dla_core=1, weights=NET.onnx()), 2)  # stripped: weights are put back
    assert seen == {"engine_host_code_allowed": True, "DLA_core": 1}
    for key, message in (
        ("OnnxParserRefitter.refit_from_bytes", "weights cannot be taken from the ONNX file"),
        ("Refitter.refit_cuda_engine", "weights cannot be put into it"),
    ):
        trt.fail = {key: False}
        with pytest.raises(BackendError, match=message):
            load(trt, weights=NET.onnx())


def test_no_more_is_asked_of_tensorrt_for_each_run_than_needed(newest):
    """A replayed run makes no call of TensorRT at all."""
    backend = load(newest)
    for seed in range(3):
        check(backend, 3, seed)
    newest.calls = Counter()
    check(backend, 3, 9)
    assert not newest.calls


def test_each_thread_uses_the_gpu_of_the_model(newest):
    """CUDA's current device belongs to a thread; one that used another model must not run this one elsewhere."""
    newest.cuda.devices = 3
    backend = load(newest, device=2)
    assert newest.cuda.current == [2]
    with ThreadPoolExecutor(1) as pool:
        pool.submit(check, backend, 1).result(10)
    assert newest.cuda.current == [2, 2]
    backend.close()
    assert newest.cuda.current == [2, 2, 2]


def test_a_gpu_that_is_not_there(newest):
    with pytest.raises(NoTensorRTError, match="there is no GPU 1 here, 1 are visible"):
        current_gpu(1)


def test_a_change_of_profile_is_waited_for(trt):
    """The profile is changed on the stream; shapes that are set before that is done are those of the old profile."""
    events = []
    change, wait, shape = (
        trt._IExecutionContext_set_optimization_profile_async,
        trt.cuda._cudaStreamSynchronize,
        trt._IExecutionContext_set_input_shape,
    )

    def record(name, original):
        def call(*arguments, **named):
            events.append(name)
            return original(*arguments, **named)

        return call

    trt._IExecutionContext_set_optimization_profile_async = record("change", change)
    trt.cuda._cudaStreamSynchronize = record("wait", wait)
    trt._IExecutionContext_set_input_shape = record("shape", shape)
    backend = load(trt, (1, 1, 1), (8, 16, 16))
    for count in (1, 12):
        check(backend, count)
    changes = [index for index, name in enumerate(events) if name == "change"]
    assert len(changes) == 2
    assert all(events[index + 1] == "wait" and events[index + 2] == "shape" for index in changes)
